"""Tar files of samples: a field that cannot be read, or is missing, costs itself and no other."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from sound_files import clip, flac, wav

from bridle_hf.data import DataArguments, load_examples, source
from bridle_hf.data.source import open_source

SOUND, CLIPS = flac(clip(0)), 10


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(source, "RETRY_SECONDS", 0.0)


def write(path, samples):
    """A tar file of samples: field -> content, each with a sound unless it has one."""
    with tarfile.open(path, "w") as tar:
        for number, fields in enumerate(samples):
            for field, content in (fields if "wav" in fields else {"flac": SOUND} | fields).items():
                add(tar, f"{number}.{field}", content)


def add(tar, name, content):
    about = tarfile.TarInfo(name)
    about.size = len(content)
    tar.addfile(about, io.BytesIO(content))


def read(folder, extractor, **data):
    """The examples that decode, of which none may be left out."""
    opened = open_source(DataArguments(str(folder), max_bad_share=0, **data), extractor)
    return [example for example, _ in opened.decode_all(0, 0)]


def array(shape):
    file = io.BytesIO()
    np.save(file, np.ones(shape))
    return file.getvalue()


LABEL = json.dumps({"label": 1}).encode()
ODD = {  # field, content of most samples, of one, what is then read of it, what is said of it
    "broken json": ("json", LABEL, b"{", None, "cannot be read (JSONDecodeError"),
    "a text for a number": ("json", LABEL, b'{"label": "dog"}', {"label": None}, "holds 'dog', of another type"),
    "a list for a dict": ("json", LABEL, b"[1]", None, "holds [1], of another type"),
    "a new key": ("json", LABEL, b'{"label": 2, "x": 3}', {"label": 2}, "holds x, which the first samples lack"),
    "a number for a text": ("json", b'{"a": "b"}', b'{"a": 3}', {"a": "3"}, ""),
    "no json": ("json", LABEL, None, None, ""),
    "a name for a class": ("cls", b"1", b"dog", None, "holds 'dog', of another type"),
    "a number for a class's name": ("cls", b"dog", b"1", "1", ""),
    "Latin-1": ("txt", b"coffee", "café".encode("latin-1"), None, "cannot be read (UnicodeDecodeError"),
    "no array": ("npy", array((2, 3, 1)), b"none", None, "cannot be read (ValueError"),
    "a pickle": ("pth", None, b"\x80\x02K\x01.", None, "cannot be read (UnpicklingError"),
}


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("late", [False, True])
def test_a_field_that_cannot_be_read_costs_itself(case, late, tmp_path, extractor, caplog):
    field, most, one, expected, said = ODD[case]
    samples = [{} if most is None else {field: most} for _ in range(CLIPS)]
    odd = 7 if late else 1
    samples[odd] = {} if one is None else {field: one}
    write(tmp_path / "a.tar", samples)
    found = read(tmp_path, extractor)
    assert [example["__key__"] for example in found] == [str(number) for number in range(CLIPS)]
    others = [example.get(field) for number, example in enumerate(found) if number != odd]
    assert all(other == others[0] for other in others) and (others[0] is not None) == (most is not None)
    if late:
        assert found[odd].get(field) == expected
        if said and most is not None:
            assert f"a.tar: the field {field} of sample 7 {said}" in caplog.text
    elif case in ("broken json", "Latin-1", "no array", "no json"):
        assert found[odd][field] is None


def test_values_that_differ_from_the_first_samples_on_are_kept_as_json(tmp_path, extractor):
    write(tmp_path / "a.tar", [{"json": json.dumps({"label": ["dog", 3][i % 2]}).encode()} for i in range(CLIPS)])
    with pytest.raises(ValueError, match="got 'dog' for .* and integers for others"):
        load_examples(DataArguments(str(tmp_path), label_column="json.label"), extractor)
    assert len(read(tmp_path, extractor)) == CLIPS


def test_classes_of_cls_fields_may_be_names(tmp_path, extractor):
    write(tmp_path / "a.tar", [{"cls": [b"dog\n", b"7"][i % 2]} for i in range(CLIPS)])
    examples = load_examples(DataArguments(str(tmp_path), label_column="cls"), extractor)
    assert examples.label_names == ["7", "dog"] and examples.labels.tolist() == [1, 0] * 5


@pytest.mark.parametrize("column", [None, "label"])
def test_folders_of_keys_are_classes_whether_asked_for_or_not(column, tmp_path, extractor):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("dog/0.wav", "rain/1.wav"):
            add(tar, name, wav(clip(0)))
    found = read(tmp_path, extractor, label_column=column)
    assert [example["label"] for example in found] == ["dog", "rain"]


def test_a_clip_without_its_label_is_left_out_and_named(tmp_path, extractor, caplog):
    write(tmp_path / "a.tar", [{"json": b"{" if i == 3 else LABEL} for i in range(CLIPS)])
    examples = load_examples(DataArguments(str(tmp_path), label_column="json.label"), extractor)
    assert len(examples) == CLIPS - 1 and "1 of the 10 clips" in caplog.text and "3.flac" in caplog.text


@pytest.mark.parametrize("first", ["flac", "wav"])
@pytest.mark.parametrize("odd", [1, 8])
def test_clips_of_several_formats_are_read_alike(first, odd, tmp_path, extractor):
    samples = [{"wav": wav(clip(1))} if (first == "wav") != (i == odd) else {} for i in range(CLIPS)]
    write(tmp_path / "a.tar", samples)
    assert [example["__key__"] for example in read(tmp_path, extractor)] == [str(number) for number in range(CLIPS)]


def test_spawned_workers_read_them(tmp_path, extractor):
    write(tmp_path / "a.tar", [{"json": LABEL}] * CLIPS)
    opened = pickle.loads(pickle.dumps(open_source(DataArguments(str(tmp_path)), extractor)))
    assert [example["json"] for example in opened.read(0)] == [{"label": 1}] * CLIPS


def test_pictures_of_several_formats_are_read_alike(tmp_path, image_processor):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(CLIPS):
            file = io.BytesIO()
            Image.new("RGB", (20, 20), (number, 0, 0)).save(file, ["PNG", "BMP", "TIFF"][number % 3])
            add(tar, f"{number}.{['png', 'BMP', 'tif'][number % 3]}", file.getvalue())
    opened = open_source(DataArguments(str(tmp_path), max_bad_share=0), image_processor)
    assert [int(pixels[0].max()) for _, pixels in opened.decode_all(0, 0)] == list(range(CLIPS))


def test_several_clips_of_a_sample_are_named(tmp_path, extractor, caplog):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(3):
            add(tar, f"night.{number}.flac", SOUND)
    assert len(read(tmp_path, extractor)) == 1
    assert "'0.flac' is read and not '1.flac', '2.flac' (data.input_column); names in tar files are cut at" in (
        caplog.text
    )


def test_a_field_that_is_there_twice_is_said(tmp_path, extractor, caplog):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in (0, 0, 1):
            add(tar, f"{number}.flac", SOUND)
    assert len(read(tmp_path, extractor)) == 2
    assert "the field flac of sample 0 is there twice; the first is taken" in caplog.text
