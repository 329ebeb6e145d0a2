"""Score an encoder on ESC-50 with X-ARES: the MLP and kNN protocols of its unmodified code, over five folds.

    pip install "bridle-hf[suites]"
    python benchmarks/xares_esc50.py --model MODEL --dataset ashraq/esc50 --output runs/xares

X-ARES would download the clips from Zenodo. This script takes them from a dataset with the columns of ESC-50 (audio,
target, fold) and writes them where X-ARES looks for its download. The last line is one JSON object. X-ARES chooses the
best of 10 epochs by the accuracy on the test fold itself, which makes its MLP score slightly too high.
"""

import argparse
import json
import tarfile
from io import BytesIO
from pathlib import Path

import datasets


def write_folds(dataset: datasets.Dataset, folder: Path) -> None:
    """The clips as X-ARES' download holds them: a tar file a fold, with a sound and its label for each clip."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {fold: tarfile.open(folder / f"wds-audio-fold-{fold}-000000.tar", "w") for fold in set(dataset["fold"])}
    for number, row in enumerate(dataset.cast_column("audio", datasets.Audio(decode=False))):
        kind = Path(row["audio"]["path"]).suffix or ".wav"
        sound = row["audio"]["bytes"] or Path(row["audio"]["path"]).read_bytes()
        label = json.dumps({"label": row["target"]}).encode()
        for suffix, content in ((kind, sound), (".json", label)):
            member = tarfile.TarInfo(f"{number:05d}{suffix}")
            member.size = len(content)
            files[row["fold"]].addfile(member, BytesIO(content))
    for file in files.values():
        file.close()


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a pretrained encoder of sounds")
    parser.add_argument("--dataset", required=True, help="folder or Hub id, with ESC-50's columns")
    parser.add_argument("--output", type=Path, required=True, help="for what X-ARES keeps; one folder per model")
    args = parser.parse_args(arguments)

    from tasks.esc50_task import esc50_config  # X-ARES installs its tasks under this name
    from xares.task import XaresTask

    from bridle_hf.evaluation.suites.xares import BridleEncoder

    encoder = type("BridleEncoder", (BridleEncoder,), {"source": args.model})()
    config = esc50_config(encoder)
    config.env_root = args.output
    folder = args.output / config.name
    ready = folder / config.xares_settings.audio_ready_filename
    if not ready.exists():
        write_folds(datasets.load_dataset(args.dataset, split="train"), folder)
        ready.touch()
    (mlp, _), (knn, _) = XaresTask(config).run()
    scores = {"mlp": mlp, "knn": knn}
    print(json.dumps(scores))
    return scores


if __name__ == "__main__":
    main()
