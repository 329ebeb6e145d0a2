"""The package's own `evaluate.Metric`s; they load without the Hub."""

from importlib.resources import as_file, files

import evaluate

METRICS = ("mean_average_precision", "d_prime", "top_k_accuracy", "code_usage")


def load_metric(name, **kwargs):
    """Load one of the package's metrics as an `evaluate.Metric`.

    `evaluate.load("accuracy")` asks the Hub; this takes the script that ships with the package, by absolute path.

    Args:
        name (`str`): one of `METRICS`.
        kwargs: passed to `evaluate.load` (`experiment_id`, `num_process`, `process_id`, `keep_in_memory`, ...).

    Raises:
        ValueError: if there is no metric of that name.
    """
    if name not in METRICS:
        raise ValueError(f"name: there is no metric {name!r}; take one of {', '.join(METRICS)}")
    with as_file(files(__name__) / name) as folder:
        return evaluate.load(str(folder.absolute() / f"{name}.py"), **kwargs)
