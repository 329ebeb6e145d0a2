"""What a user named and is not there: one line and exit code 2, before any work."""

import argparse
import json
from pathlib import Path

import pytest
from datasets import Dataset
from safetensors.torch import load_file, save_file

from bridle_hf import BridleForAudioClassification, BridleForPreTraining, BridleModel, BridleTokenizer
from bridle_hf.cli.checks import (
    check_data,
    check_finetuning,
    check_output,
    check_recipe,
    reading,
    setting_up,
)
from bridle_hf.data import DataArguments, LabelError, UnusableDataError, build_processor
from bridle_hf.files import FolderError, WriteError
from bridle_hf.finetuning.finetune import FinetuneRecipe
from bridle_hf.loading import check_model, open_model
from bridle_hf.training import load_recipe
from bridle_hf.training.waiting import LostProcessError


@pytest.fixture
def recipe(tiny_recipe):
    return lambda *overrides: load_recipe(tiny_recipe, ["output_dir=x", *overrides])


@pytest.fixture
def saved(recipe, tmp_path, monkeypatch):
    """Folders pretrained, encoder and tokenizer with a processor each, in the current one."""
    monkeypatch.chdir(tmp_path)
    config = recipe().config()
    for cls, name in ((BridleForPreTraining, "pretrained"), (BridleModel, "encoder"), (BridleTokenizer, "tokenizer")):
        cls(config).save_pretrained(name)
        build_processor(config).save_pretrained(name)


@pytest.mark.parametrize("error", [ValueError("two\n  lines"), FileNotFoundError("two lines")])
def test_errors_of_what_was_given_are_one_line(error, capsys):
    with pytest.raises(SystemExit, match="2"), setting_up(argparse.ArgumentParser("script.py")):
        raise error
    assert capsys.readouterr().err.splitlines()[-1] == "script.py: error: two lines"


def test_a_full_disk_is_no_fault_of_what_was_given(capsys):
    with pytest.raises(SystemExit, match="1"), setting_up(argparse.ArgumentParser("script.py")):
        raise OSError(28, "No space left on device", "a.csv")
    said = "script.py: error: no room to write: [Errno 28] No space left on device: 'a.csv'. Make room and start again."
    assert capsys.readouterr().err.splitlines() == ["", said]


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="kernel"), setting_up(argparse.ArgumentParser()):
        raise RuntimeError("kernel")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.dataset=no/such/set"], "^data.dataset is 'no/such/set'; there is no such folder here and no such data"),
        (["data.dataset=nosuch"], "^data.dataset is 'nosuch'; there is no such folder here and the Hub cannot be rea"),
        (
            ["data.dataset=empty"],
            "^data.dataset is 'empty', a folder that holds no audio file, archive or",
        ),
        (["data.dataset=a.txt"], "^data.dataset is '.', a folder that holds no audio file, archive or table"),
        (["data.dataset=a.txt", "data.files=*.wav"], "^data.dataset is 'a.txt', a file, with data.files beside it"),
        (["data.dataset="], "^data.dataset is empty"),
        (
            ["data.split=test"],
            "^data.dataset is '.*sounds' and data.split 'test': Bad split: test. Available splits: .*train",
        ),
        (["data.test_split=test"], r"and data.test_split 'test': Bad split: test. Available splits: \['train'\]$"),
        (["data.name=other"], "and data.name 'other': BuilderConfig 'other' not found"),
        (
            ["data.files=**/*.mp3"],
            r"^data.files='\*\*/\*.mp3' matches no readable file in '.*sounds'.$",
        ),
        (["data.files=no.wav"], "^data.files='no.wav' matches no readable file in '.*sounds'.$"),
        (["data.input_column=x"], "^data.input_column: .* has no column 'x'; its columns are"),
        (["data.exclude={x: [1]}"], "^data.exclude.x: .* has no column 'x'"),
        (["processor.mean=abc"], "^`processor`: mean is 'abc'; it takes a finite number"),
        (["processor.max_length=abc"], "^`processor`: "),
    ],
)
def test_what_a_pretraining_recipe_names_is_looked_at(recipe, overrides, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("")
    if overrides == ["data.dataset="]:
        overrides = ['data.dataset=""']
    with pytest.raises(ValueError, match=message):
        check_recipe(recipe(*overrides))


def test_what_a_run_would_stumble_over_is_looked_at(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FolderError, match="^output_dir is 'null'; it takes the name of a folder"):
        check_recipe(recipe("output_dir=null"))
    with pytest.raises(ValueError, match="^`training.attention` is 'foo': .*not supported"):
        check_recipe(recipe("training.attention=foo"))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "checkpoints").touch()
    with pytest.raises(FolderError, match="^output_dir is 'x', in which checkpoints is no folder"):
        check_recipe(recipe())


def test_what_is_wrong_with_the_data_is_said_by_its_options(capsys):
    for error in (UnusableDataError, LabelError):
        with pytest.raises(SystemExit, match="2"), reading(argparse.ArgumentParser("script.py")):
            raise error("more than data.max_bad_share=0 allows\n(data.input_column)")
        said = "script.py: error: more than --max-bad-share=0 allows (--input-column)"
        assert capsys.readouterr().err.splitlines()[-1] == said


def test_good_recipes_pass_and_nothing_is_written(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_recipe(recipe())
    check_recipe(recipe("data.dataset=synthetic"))
    assert not list(tmp_path.iterdir())


def test_what_a_finetuning_recipe_names_is_looked_at(saved, sounds):
    def named(model="encoder", processor=None, config=None, from_scratch=False, **data):
        data = DataArguments(**{"dataset": str(sounds), "label_column": "label"} | data)
        changes = {"processor": processor or {}, "config": config or {}, "from_scratch": from_scratch}
        check_finetuning(FinetuneRecipe(model, "x", data, folds=[1], **changes))

    named()
    with pytest.raises(ValueError, match="^model is 'runs/1'; there is no such folder"):
        named(model="runs/{fold}")
    with pytest.raises(ValueError, match="^data.label_column: .* has no column 'x'"):
        named(label_column="x")
    with pytest.raises(ValueError, match="^data.dataset is 'no/such/set'"):
        named(dataset="no/such/set")
    with pytest.raises(ValueError, match="^`processor`: mean is"):
        named(processor={"mean": "abc"})
    with pytest.raises(ValueError, match="^`config`: .*`patch_size` .* does not divide `input_size`"):
        named(config={"input_size": [65, 16]})
    with pytest.raises(ValueError, match="^`config.modality` is 'image', and model='encoder' is one of audios"):
        named(config={"modality": "image", "input_size": [64, 16], "patch_size": [16, 8]})
    for config in ({"hidden_size": 48}, {"num_hidden_layers": 9}):
        with pytest.raises(
            ValueError, match="^`config` is .*, for which model='encoder' has no .*; it takes what leav"
        ):
            named(config=config)
        named(config=config, from_scratch=True)
    named(config={"drop_path_rate": 0.5, "input_size": [128, 16]})


def test_a_split_that_is_there_passes(recipe, tmp_path):
    for split in ("train", "test"):
        Dataset.from_list([{"audio": {"bytes": b"", "path": "a.wav"}}]).to_parquet(tmp_path / f"{split}.parquet")
    check_data(DataArguments(dataset=str(tmp_path), test_split="test"), recipe().build_processor())


def test_models_that_are_not_there_are_named(saved, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="^--model is 'run', a folder without a config.json; it takes a pretraining m"):
        check_model("run")
    with pytest.raises(ValueError, match="^--model is 'runs/no/final'; there is no such folder here and no such model"):
        check_model("runs/no/final")
    with pytest.raises(
        ValueError, match="^--classifier is 'nosuch'; there is no such folder here and the Hub cannot b"
    ):
        check_model("nosuch", "--classifier")


@pytest.mark.parametrize(
    ("cls", "source", "message"),
    [
        (BridleTokenizer, "encoder", "holds no tokenizer; it takes a pretraining model such as runs/mine/final."),
        (BridleForPreTraining, "encoder", "holds no tokenizer; it takes a pretraining model"),
        (BridleForPreTraining, "tokenizer", "holds no encoder; it takes a pretraining model"),
        (BridleModel, "tokenizer", "holds no encoder; it takes a pretraining model"),
        (BridleForAudioClassification, "pretrained", "holds no classifier; it takes a fine-tuned one"),
    ],
)
def test_a_model_without_the_weights_of_a_part_is_refused(saved, cls, source, message, capsys):
    with pytest.raises(ValueError, match=f"^--model is '{source}', which {message}"):
        open_model(cls, source)
    assert "LOAD REPORT" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cls", "source"),
    [
        (BridleTokenizer, "pretrained"),
        (BridleTokenizer, "tokenizer"),
        (BridleModel, "pretrained"),
        (BridleModel, "encoder"),
        (BridleForPreTraining, "pretrained"),
    ],
)
def test_a_whole_model_is_opened(saved, cls, source):
    assert isinstance(open_model(cls, source), cls)


def test_commands_name_their_options_and_not_the_keys_of_recipes(recipe, sounds, tmp_path):
    processor = recipe().build_processor()
    (tmp_path / "empty").mkdir()
    for data, message in [
        ({"dataset": str(tmp_path / "empty")}, "^--dataset is '.*empty', a folder that holds no audio file"),
        ({"files": "*.mp3"}, r"^--files='\*.mp3' matches no readable file"),
        ({"input_column": "x"}, "^--input-column: .* has no column 'x'"),
        ({"label_column": "x"}, "^--label-column: .* has no column 'x'"),
        ({"fold_column": "x"}, "^--fold-column: .* has no column 'x'"),
        ({"exclude": {"x": [1]}}, "^--exclude.x: .* has no column 'x'"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_data(DataArguments(**{"dataset": str(sounds)} | data), processor, "--dataset")


def test_no_output_takes_the_place_of_a_folder_or_of_the_data(tmp_path, caplog):
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    (sounds / "train.parquet").write_text("rows")
    for output, message in (
        (sounds, "--output is .*, a folder; it takes the name of a file"),
        ("", "--output is '', nothing"),
        ("/dev/null", "--output is '/dev/null', a device or pipe; it takes the name of a file"),
        (sounds / "train.parquet", "is there already, in --dataset; it takes the name of a new file"),
        (sounds / "train.parquet" / "more" / "f.parquet", "the folder of --output is .* is no folder"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            check_output(str(output), str(sounds))
    (tmp_path / "before.parquet").write_text("rows")
    for output in (sounds / "new.parquet", tmp_path / "new" / "f.parquet", tmp_path / "before.parquet"):
        check_output(str(output), str(sounds))
    check_output(str(tmp_path / "f.parquet"), "org/a_set_of_the_hub")
    assert [line for line in caplog.messages if "in --dataset" in line] == [
        f"--output is {str(sounds / 'new.parquet')!r}, in --dataset: what reads that folder next finds the file there"
    ]
    assert (sounds / "train.parquet").read_text() == "rows" and not (tmp_path / "new").exists()


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def spoil(folder):
    weights = load_file(folder / "model.safetensors")
    weights["bridle.layers.0.norm1.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def widen(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 40}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "which cannot be read: Error while deserializing header"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "which cannot be read: "),
        (lambda folder: (folder / "config.json").write_text("{nope"), "which cannot be read: "),
        (lambda folder: (folder / "config.json").write_text("[]"), "which cannot be read: "),
        (lambda folder: (folder / "config.json").write_text('{"hidden_size": 1000000000}'), "is 1000000000; it takes"),
        (lambda folder: (folder / "model.safetensors").unlink(), "which cannot be read: model.safetensors is gone"),
        (widen, "weights are of other sizes than its config says"),
        (spoil, "whose weights hold NaN or inf: bridle.layers.0.norm1.weight"),
    ],
)
def test_a_damaged_model_is_named(saved, damage, message):
    damage(Path("pretrained"))
    with pytest.raises(ValueError, match=f"(?s)^--model is 'pretrained'.*{message}"):
        open_model(BridleForPreTraining, "pretrained")


def test_no_run_writes_into_the_folder_it_reads(recipe, sounds, tmp_path):
    with pytest.raises(ValueError, match="output_dir is .*, the folder of data.dataset; it takes another one"):
        check_recipe(recipe(f"data.dataset={sounds}", f"output_dir={sounds}"))
    check_recipe(recipe(f"data.dataset={sounds}", f"output_dir={sounds}/runs"))


@pytest.mark.parametrize("error", [WriteError("the disk\nis full"), LostProcessError("another process ended")])
def test_what_no_user_did_ends_with_one_line_and_code_1(error, capsys):
    parser = argparse.ArgumentParser("bridle pretrain")
    with pytest.raises(SystemExit) as ended, setting_up(parser):
        raise error
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"\nbridle pretrain: error: {' '.join(str(error).split())}\n"


def test_an_output_called_like_another_kind_of_file_is_refused(tmp_path):
    for name in ("a.parquet", "a", "a.v1", "a.PARQUET"):
        check_output(str(tmp_path / name), ending=".parquet")
    with pytest.raises(ValueError, match="--output is '.*a.csv'; it takes the name of a .parquet file, such as a.parq"):
        check_output(str(tmp_path / "a.csv"), ending=".parquet")
    for name in ("a.xlsx", "a.csv.gz", "a.pdf"):
        with pytest.raises(ValueError, match="it takes the name of a .csv file"):
            check_output(str(tmp_path / name), ending=".csv")
