"""A finished fold is of the recordings that it was trained on, and not of others under their names."""

import json

import pytest
from datasets import Dataset

from bridle_hf.data import DataArguments
from bridle_hf.finetuning.finetune import FinetuneRecipe, FinetuneTraining, TrainingBatches, finetune


@pytest.mark.parametrize("how", ["memory", "cache", "disk"])
@pytest.mark.parametrize("kind", ["files", "rows"])
def test_a_recording_that_was_replaced_is_noticed(tones, pretrained, tmp_path, monkeypatch, caplog, how, kind):
    rows = Dataset.from_parquet(str(tones / "train.parquet"), cache_dir=str(tmp_path)).to_list()
    folder, drawn, draw = tmp_path / "set", [], TrainingBatches.__call__
    folder.mkdir()
    monkeypatch.setattr(TrainingBatches, "__call__", lambda self, some: drawn.append(some) or draw(self, some))

    def write():
        if kind == "rows":
            return Dataset.from_list(rows).to_parquet(folder / "train.parquet")
        for number, row in enumerate(rows):
            path = folder / f"{number}.wav"
            if not path.exists() or path.read_bytes() != row["audio"]["bytes"]:
                path.write_bytes(row["audio"]["bytes"])
        table = [{"file_name": f"{n}.wav", "sound": row["sound"], "fold": row["fold"]} for n, row in enumerate(rows)]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, table)))

    write()
    columns = {"label_column": "sound", "fold_column": "fold", "cache_dir": str(tmp_path / "caches")}
    made = FinetuneRecipe(
        model=str(pretrained),
        output_dir=str(tmp_path / "run"),
        data=DataArguments(str(folder), in_memory=how != "disk", cache=how == "cache", **columns),
        folds=[1],
        training=FinetuneTraining(epochs=1, batch_size=4, warmup_epochs=0),
    )
    finetune(made)
    batches = len(drawn)
    finetune(made)
    assert len(drawn) == batches  # it was done
    rows[3]["audio"]["bytes"] = rows[4]["audio"]["bytes"]
    write()
    finetune(made)
    assert len(drawn) == 2 * batches and "is of another recipe (data_read.files)" in caplog.text
