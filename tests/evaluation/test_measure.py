"""Mean and deviation of pictures and videos, measured by the command and before a run."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from bridle_hf import BridleImageProcessor, pretrain
from bridle_hf.cli.main import main as bridle
from bridle_hf.data.pixels import measure_pixels
from bridle_hf.demo_data.motion import write_video

COLOURS = np.array([[200, 100, 50], [100, 100, 0], [0, 40, 250]])  # of three plain pictures


def expected() -> tuple[list[float], list[float]]:
    shares = COLOURS / 255
    return shares.mean(axis=0), shares.std(axis=0)


@pytest.fixture
def pictures(tmp_path):
    """Plain pictures of unlike sizes, which count alike, and a file that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, colour in enumerate(COLOURS.astype(np.uint8)):
        pixels = np.broadcast_to(colour, (8 * (number + 1), 40, 3))
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "bad.png").write_bytes(b"none")
    return folder


def measured(capsys, *words) -> dict:
    bridle(["measure", "--dataset", *map(str, words)])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_each_clip_counts_alike():
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (3, 2, 5), dtype=np.uint8), rng.integers(0, 256, (4, 3, 9, 7), dtype=np.uint8)]
    colours = [np.moveaxis(clip, -3, 0).reshape(3, -1) / 255 for clip in clips]
    mean = np.mean([each.mean(axis=1) for each in colours], axis=0)
    spread = np.sqrt(np.mean([((each.T - mean) ** 2).mean(axis=0) for each in colours], axis=0))
    found = measure_pixels(clips)
    assert found["image_mean"] == pytest.approx(mean, abs=1e-5)
    assert found["image_std"] == pytest.approx(spread, abs=1e-5)
    assert measure_pixels([clip / 255 for clip in clips]) == measure_pixels(clips)
    with pytest.raises(ValueError, match="clips is empty"):
        measure_pixels([])


def test_pictures(pictures, capsys):
    mean, std = expected()
    found = measured(capsys, pictures)
    assert found["image_mean"] == pytest.approx(mean, abs=1e-4)
    assert found["image_std"] == pytest.approx(std, abs=1e-4)


def test_an_option_of_sounds_is_refused_for_pictures(pictures, capsys):
    with pytest.raises(SystemExit, match="2"):
        bridle(["measure", "--dataset", str(pictures), "--fmin", "50"])
    assert "--fmin is 50.0, which is of sounds; these are images." in capsys.readouterr().err


def test_videos(tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number, grey in enumerate((40, 200)):
        write_video(folder / f"{number}.mp4", np.full((20, 32, 32, 3), grey, np.uint8), rate=12)
    found = measured(capsys, folder)
    assert found["image_mean"] == pytest.approx([120 / 255] * 3, abs=0.01)
    assert found["image_std"] == pytest.approx([80 / 255] * 3, abs=0.01)
    (folder / "moving.gif").write_bytes((folder / "0.mp4").read_bytes())
    for each in folder.glob("*.mp4"):
        each.unlink()
    with pytest.raises(SystemExit, match="2"):
        bridle(["measure", "--dataset", str(folder)])
    assert "may be image or video; it takes a --modality." in capsys.readouterr().err.splitlines()[-1]


def test_a_run_measures_what_is_auto(pictures, tmp_path):
    (pictures / "bad.png").unlink()
    settings = {
        "output_dir": str(tmp_path / "run"), "data.dataset": str(pictures), "data.cache": False,
        "processor": {"image_mean": "auto", "image_std": "auto"}, "phases": [{"kind": "encoder"}],
        "training.max_steps_per_phase": 1, "training.batch_size": 2, "training.tracker": None,
    }  # fmt: skip
    final = pretrain("image/demo", **settings)
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["processor"]
    mean, std = expected()  # every draw of a plain picture is the same; of three as many as can be
    assert written["image_mean"] == pytest.approx(mean, abs=2e-3)
    assert written["image_std"] == pytest.approx(std, abs=2e-3)
    assert list(BridleImageProcessor.from_pretrained(final).image_mean) == written["image_mean"]
