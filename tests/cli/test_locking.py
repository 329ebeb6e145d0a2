"""Commands that find another process writing to their folder say so in one line and touch nothing."""

import socket
from multiprocessing import get_context

import pytest
from tones import pretrained, tones  # noqa: F401

from bridle_hf.cli.main import main as bridle
from bridle_hf.files import FolderLock
from bridle_hf.quantizer_experiments.wav2vec2 import Wav2Vec2Recipe


def hold(path, ready, done):
    lock = FolderLock(path)
    lock.acquire()
    ready.set()
    done.wait(60)


@pytest.fixture
def held():
    """Lets another process hold the lock of a path; gives what messages say of it."""
    context, processes = get_context("fork"), []

    def start(path):
        ready, done = context.Event(), context.Event()
        process = context.Process(target=hold, args=(path, ready, done))
        process.start()
        processes.append((process, done))
        assert ready.wait(60)
        return f"is in use: process {process.pid} on {socket.gethostname()} writes there."

    yield start
    for process, done in processes:
        done.set()
        process.join()


def refused(command, capsys):
    with pytest.raises(SystemExit) as ended:
        bridle(command)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_pretraining_and_studies(held, tiny_recipe, tmp_path, capsys):
    command, folder = ["--recipe", str(tiny_recipe), f"output_dir={tmp_path}"], tmp_path / "seed-0"
    said = held(tmp_path / ".lock")
    assert f"bridle pretrain: error: {tmp_path} {said}" in refused(["pretrain", *command], capsys)
    study = ["study", *command, "--label-column", "label", "--fold-column", "fold"]
    assert f"bridle study: error: {tmp_path} {said}" in refused(study, capsys)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"] and not folder.exists()


def test_tables(held, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Wav2Vec2Recipe, "check", lambda *arguments: None)  # of the data, which is on the Hub
    said = held(tmp_path / "vq" / ".lock")
    recipe = tmp_path / "table.yaml"
    recipe.write_text("{base: wav2vec2/esc10_1x1024, methods: [{name: vq, quantizer: {type: vector}}]}")
    line = refused(["wav2vec2", str(recipe), f"output_dir={tmp_path}"], capsys)
    assert f"bridle wav2vec2: error: {tmp_path / 'vq'} {said}" in line


def test_a_fold_is_left_to_who_trains_it(held, pretrained, tones, tmp_path, capsys):  # noqa: F811
    """Each fold has a lock of its own, so that several processes may share the folds of a recipe."""
    said = held(tmp_path / ".fold-1.lock")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{base: audio/demo_finetune, data: {label_column: sound, fold_column: fold}}")
    command = ["finetune", str(recipe), f"model={pretrained}", f"output_dir={tmp_path}", f"data.dataset={tones}"]
    command += ["training.epochs=1", "training.warmup_epochs=0"]
    assert f"bridle finetune: error: {tmp_path / 'fold-1'} {said}" in refused([*command, "folds=[1]"], capsys)
    assert not (tmp_path / "fold-1").exists()
    bridle([*command, "folds=[2]"])
    assert (tmp_path / "fold-2" / "fold.json").is_file() and not (tmp_path / ".fold-2.lock").exists()
