import numpy as np
import pytest
import soundfile

from bridle_hf import BridleFeatureExtractor
from bridle_hf.data import DataArguments, load_examples
from bridle_hf.demo_data import sounds, write_sound_set


@pytest.fixture(scope="module")
def sound_set(tmp_path_factory):
    return write_sound_set(tmp_path_factory.mktemp("sounds") / "set", seed=1, clips_per_class=5)


def contents(folder) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_loads_like_any_dataset(sound_set, caplog):
    extractor = BridleFeatureExtractor(num_mel_bins=32, max_length=32)
    data = DataArguments(str(sound_set), label_column="label_name", fold_column="fold", max_frames=512)
    examples = load_examples(data, extractor)
    assert examples.label_names == sorted(make.__name__ for make in sounds.CLASSES) and len(examples) == 60
    assert not [line for line in caplog.messages if "left out" in line]  # such as our own hidden file
    for fold in range(1, 6):
        assert np.bincount(examples.labels[examples.folds == fold]).tolist() == [1] * 12
    frames = examples.batch(range(60))["attention_mask"].sum(1)
    assert frames.min() >= 190 and frames.max() <= 500 and len(set(frames)) > 20


def test_files_are_playable(sound_set):
    for path in list((sound_set / "train").glob("*.flac"))[:6]:
        waveform, rate = soundfile.read(path)
        assert rate == 16000 and waveform.ndim == 1 and 0.09 < np.abs(waveform).max() < 0.72


def test_seed_decides_every_byte(sound_set, tmp_path):
    assert contents(write_sound_set(tmp_path / "again", seed=1, clips_per_class=5)) == contents(sound_set)
    other = contents(write_sound_set(tmp_path / "other", seed=2, clips_per_class=1))
    assert not set(other.values()) & set(contents(sound_set).values())


def test_a_set_that_is_there_stays_and_another_replaces_it(tmp_path):
    folder = write_sound_set(tmp_path / "set", seed=0, clips_per_class=1)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.flac")}
    write_sound_set(folder, seed=0, clips_per_class=1)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.flac")} == before
    write_sound_set(folder, seed=0, clips_per_class=2)
    assert len(list(folder.rglob("*.flac"))) == 24


def test_other_files_are_never_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(FileExistsError, match="something else than a synthesized set"):
        write_sound_set(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "irreplaceable"


def loudest_course(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Loudest frequency in Hz and level of each 32 ms."""
    frames = waveform[: len(waveform) // 512 * 512].reshape(-1, 512)
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(512), 4096))
    return spectrum.argmax(1) * 16000 / 4096, spectrum.max(1)


@pytest.mark.parametrize("make, sign", [(sounds.chirp_up, 1), (sounds.chirp_down, -1)])
def test_chirps_rise_and_fall(make, sign):
    for seed in range(5):
        hertz, level = loudest_course(make(np.random.default_rng(seed), 48000))
        sounding = (level[1:] > 0.2 * level.max()) & (level[:-1] > 0.2 * level.max())
        assert np.mean(np.sign(np.diff(hertz))[sounding] == sign) > 0.75


def test_metronome_is_regular_and_rain_is_not():
    def unevenness(make) -> float:
        values = []
        for seed in range(5):
            envelope = np.abs(make(np.random.default_rng(seed), 80000)).reshape(-1, 160).max(1)
            hits = np.flatnonzero((envelope[1:] > 0.3 * envelope.max()) & (envelope[:-1] < 0.15 * envelope.max()))
            gaps = np.diff(hits)
            values.append(gaps.std() / gaps.mean())
        return float(np.mean(values))

    assert unevenness(sounds.metronome) < 0.05 < 0.3 < unevenness(sounds.rain)
