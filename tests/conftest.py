"""What every test shares: offline libraries, few threads, the fast lane, and the data beside the repository."""

import logging
import os
import sys
import tempfile
from pathlib import Path

import pytest

# Before any import of torch or a HuggingFace library: they read these when imported, and so do the processes that tests
# start. Caches go to a folder of this run; one thread each is what tiny tensors and busy machines want.
_cache = tempfile.TemporaryDirectory(prefix="bridle-hf-tests-")
os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=_cache.name, HF_DATASETS_DISABLE_PROGRESS_BARS="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it no product on a GPU is deterministic

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]

# Files and tests that start processes, train whole runs or take seconds. They get the mark `e2e` and run behind the
# others, the fast lane, as do all tests with a `num_workers` above 0.
END_TO_END = (
    "tests/data/test_cache.py",
    "tests/evaluation/test_row_files.py",
    "tests/hub/test_onnx_export.py",
    "tests/training/test_hub_copy.py",
    "tests/data/test_streaming.py::test_fewer_clips_than_readers_are_enough",
    "tests/data/test_tables.py",
    "tests/hub/test_convert.py::test_there_and_back",
    "tests/test_quantizer_edges.py::test_codes_without_vectors_stay_where_they_are",
    "tests/test_codebook_options.py::test_a_model",
    "tests/test_codebook_options.py::test_dropout_goes_through_a_model_and_its_config",
    "tests/test_codebook_options.py::test_labels_of_several_codes_leave_padding_out",
    "tests/cli/test_locking.py",
    "tests/cli/test_extras.py::test_names_and_auto_classes",
    "tests/cli/test_extras.py::test_the_help_imports_nothing",
    "tests/cli/test_main.py::test_the_package_runs_as_a_module",
    "tests/cli/test_package_data.py",
    "tests/cli/test_process.py",
    "tests/data/test_bad_data.py::test_a_set_of_which_nothing_is_left_ends_the_run",
    "tests/data/test_bad_data.py::test_of_ten_hours_only_what_is_needed_is_decoded",
    "tests/data/test_in_hand.py",
    "tests/data/test_long_sounds.py::test_an_hour_takes_the_memory_of_a_block",
    "tests/data/test_streaming.py::test_a_stopped_worker",
    "tests/data/test_streaming.py::test_a_worker_finalises_nothing_of_the_run",
    "tests/data/test_streaming.py::test_a_worker_of_a_run_that_died",
    "tests/data/test_streaming.py::test_a_signal_to_the_group_spares_the_workers",
    "tests/demo_data/",
    "tests/evaluation/test_attentive_probe.py",
    "tests/evaluation/test_browser.py",
    "tests/evaluation/test_in_hand.py",
    "tests/evaluation/test_long_clips.py",
    "tests/evaluation/test_multilabel_probe.py",
    "tests/evaluation/test_probe.py",
    "tests/evaluation/test_probe_kinds.py",
    "tests/evaluation/test_report.py",
    "tests/evaluation/test_scripts.py",
    "tests/evaluation/test_study.py",
    "tests/evaluation/test_measure.py::test_a_run",
    "tests/training/test_resources.py::test_a_run",
    "tests/evaluation/test_own_folder.py::test_a_study",
    "tests/evaluation/test_suites.py::test_hears_validator_passes",
    "tests/evaluation/test_suites.py::test_marble_trains_lora_matrices",
    "tests/evaluation/test_suites.py::test_mteb_gets_vectors_of_sounds_at_any_rate",
    "tests/evaluation/test_suites.py::test_mtebs_mock_run_passes",
    "tests/evaluation/test_suites.py::test_padding_changes_nothing",
    "tests/evaluation/test_suites.py::test_what_cannot_be_loaded_says_why",
    "tests/evaluation/test_suites.py::test_xares_checker_passes",
    "tests/finetuning/",
    "tests/hub/test_convert.py::test_it_runs_as_a_module",
    "tests/hub/test_convert.py::test_the_command_says_it_in_one_line",
    "tests/hub/test_push.py",
    "tests/hub/test_release.py",
    "tests/hub/test_reload.py",
    "tests/quantizer_experiments/",
    "tests/test_benchmarks.py",
    "tests/test_compilation.py",
    "tests/test_devices.py",
    "tests/test_fuzz.py",
    "tests/test_init.py",
    "tests/test_loading.py",
    "tests/test_notebooks.py::test_its_cells_run",
    "tests/test_on_device.py",
    "tests/test_paper_page.py::test_every_command_of_the_page_reads_its_recipe",
    "tests/test_pipelines.py::test_a_released_encoder_knows_its_task_without_the_package",
    "tests/test_precision.py",
    "tests/test_quantization.py::test_two_processes_agree_and_equal_one_with_all_rows",
    "tests/test_readme.py",
    "tests/test_safety.py",
    "tests/test_sound_rates.py",
    "tests/test_space.py",
    "tests/test_tokenizer.py::test_a_compiled_encode_looks_at_no_codebook",
    "tests/training/test_bad_clips.py",
    "tests/training/test_by_name.py::test_a_",
    "tests/training/test_compile.py",
    "tests/training/test_evaluating.py",
    "tests/training/test_optimizers.py::test_a_stopped_run_goes_on_bit_for_bit",
    "tests/training/test_failures.py",
    "tests/training/test_host.py",
    "tests/training/test_in_hand.py",
    "tests/training/test_launching.py",
    "tests/training/test_learned_codebooks.py",
    "tests/training/test_loop.py",
    "tests/training/test_memory.py",
    "tests/training/test_modalities.py",
    "tests/training/test_auto.py::test_a_run_keeps_what_it_began_with",
    "tests/training/test_processes.py",
    "tests/training/test_resume.py",
    "tests/training/test_sharding.py",
    "tests/training/test_soak.py",
    "tests/training/test_trainer.py",
)
# Tests that compile backward passes. PyTorch refuses a backward pass in a process that is forked after that, so these
# tests run last.
COMPILING = ("tests/test_compilation.py", "tests/test_on_device.py", "tests/training/test_compile.py")
_started = []  # processes of Python since the current test began


def pytest_collection_modifyitems(items):
    for item in items:
        workers = item.callspec.params.get("num_workers", 0) if hasattr(item, "callspec") else 0
        if workers > 0 or item.nodeid.partition("[")[0].startswith(END_TO_END):
            item.add_marker("e2e")
        if "device" in item.fixturenames:
            item.add_marker("gpu")
    # a stable sort
    items.sort(key=lambda item: (item.get_closest_marker("e2e") is not None, item.nodeid.startswith(COMPILING)))


def pytest_ignore_collect(collection_path, config):
    """The import of transformers' own tests takes seconds."""
    if collection_path.name == "test_hf_common.py" and "not slow" in config.option.markexpr:
        return True


def _note_process(event, arguments):
    if event == "os.fork" or (event == "subprocess.Popen" and arguments[0] == sys.executable):
        _started.append(event)


sys.addaudithook(_note_process)


def pytest_runtest_logstart():
    _started.clear()


@pytest.fixture(autouse=True)
def _starts_no_process_in_the_fast_lane(request):
    yield
    marked = any(request.node.get_closest_marker(name) for name in ("e2e", "slow"))
    assert marked or not _started, "it starts a process: name it in END_TO_END of tests/conftest.py"


@pytest.fixture(autouse=True)
def _commands_leave_the_log_as_it_was():
    level = logging.getLogger("bridle_hf").level
    yield
    logging.getLogger("bridle_hf").setLevel(level)


def _shared(*parts: str) -> Path:
    """A folder of `shared/`, beside the repository or above it; the test is skipped where there is none."""
    for parent in Path(__file__).resolve().parents[1:]:
        folder = parent.joinpath("shared", *parts)
        if folder.is_dir():
            return folder
    pytest.skip(f"shared/{'/'.join(parts)} is not beside the repository")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU where there is one, computing in full float32 unless told otherwise; and the CPU elsewhere.

    A test that asks for it gets the mark `gpu`: `pytest -m gpu` runs all that has to hold on a GPU as well.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Vectors recorded from the reference implementation."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def esc10_dir() -> Path:
    """ESC-10 as a dataset folder: columns audio, target, category, fold."""
    return _shared("data", "esc10")


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    """A part of CIFAR-10 as a dataset folder: columns img, label."""
    return _shared("data", "cifar10-small")


@pytest.fixture(scope="session")
def torchaudio():
    """What our features and resampling are compared with. It loads only beside the torch it was built for."""
    try:
        import torchaudio
    except Exception as error:
        pytest.skip(f"torchaudio does not load: {error}")
    return torchaudio


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return ROOT
