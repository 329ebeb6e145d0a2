"""Paths as values of a column: whatever they are, they cost their item."""

import io
import os
import zipfile

import pytest
from picture_files import picture, png
from sound_files import clip, flac, wav

from bridle_hf.data import BadClipError, decode_audio, decode_image, decode_video, media
from bridle_hf.data.audio_decoding import stream_audio

PATHS = (
    "/ ~ /dev/zero /dev/random /proc/self/mem /etc/passwd file:///etc/passwd zip://a.wav::/no/none.zip s3://b/x.wav "
    "gs://b/x abfs://x/y memory://x foo://bar a::b :: data:audio/wav;base64,AAAA data:, hf:// github://a:b@c/d "
    "local://x reference://x tar://x::/etc/passwd *.wav {0,1}.wav [ git://x dask://x jupyter://x file:// "
    "simplecache::/etc/passwd blockcache::/etc/passwd https://[::1 zip://x zip://a::/etc/passwd smb://x/y"
).split() + ["\0", "a\0b.wav", "x" * 5000, "\ud800x", "http://exa mple", "caf\udce9.wav"]


@pytest.mark.parametrize("path", PATHS, ids=ascii)
def test_any_path_costs_its_item_alone(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for decode in (lambda raw: decode_audio(raw, 16000), decode_image, decode_video):
        for raw in (path, {"bytes": None, "path": path}):
            with pytest.raises(BadClipError):
                decode(raw)


@pytest.mark.parametrize("raw", [3, 1.5, {"x": 1}, {"bytes": None, "path": 7}, True])
def test_values_that_are_no_file_are_refused(raw):
    for decode in (lambda raw: decode_audio(raw, 16000), decode_image, decode_video):
        with pytest.raises(BadClipError):
            decode(raw)


def test_bytes_alone_are_decoded():
    assert len(decode_audio(flac(clip(0)), 16000)) == len(clip(0))
    assert decode_image(png(picture(0))).shape[0] == 3


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(BadClipError, match="no regular file"):
        decode_audio(str(tmp_path / "pipe.wav"), 16000)


def test_of_a_large_picture_no_more_is_read_than_allowed(tmp_path, monkeypatch):
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(3 * 2**30)
    monkeypatch.setattr(media, "MAX_BYTES", 2**24)
    monkeypatch.setattr(media, "PART_BYTES", 2**20)
    read = []

    class Counting(io.FileIO):
        def readinto(self, memory):
            read.append(len(memory))
            return super().readinto(memory)

    monkeypatch.setattr(media, "open", Counting, raising=False)
    with pytest.raises(BadClipError, match="is larger than 16777216 bytes"):
        decode_image(str(tmp_path / "sparse.png"))
    assert 0 < sum(read) <= 2**24 + 2**20


def test_members_of_archives_are_read_whatever_they_are_called(tmp_path):
    folder = tmp_path / "a::b [c]"
    folder.mkdir()
    with zipfile.ZipFile(folder / "x::y.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in::side/[1].flac", flac(clip(0)))
    path = f"zip://in::side/[1].flac::{folder}/x::y.zip"
    assert len(decode_audio({"bytes": None, "path": path}, 16000)) == len(clip(0))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_damaged_member_of_an_archive_costs_itself(method, place, tmp_path, capfd):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.writestr("a", wav(clip(0)))
        begin = archive.getinfo("a").header_offset + 31
        end = archive.start_dir
    content = bytearray((tmp_path / "x.zip").read_bytes())
    at = begin + int(place * (end - begin))
    content[at : at + 40] = bytes(40)
    (tmp_path / "x.zip").write_bytes(content)
    for decode in (lambda raw: decode_audio(raw, 16000), decode_image, decode_video):
        with pytest.raises(BadClipError, match="cannot be (read|decoded)"):
            decode(f"zip://a::{tmp_path}/x.zip")
    with pytest.raises(BadClipError, match="cannot be read"):
        list(stream_audio(f"zip://a::{tmp_path}/x.zip", 16000))
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("content", [wav(clip(0)), flac(clip(0)), flac(clip(0), 48_000), png(picture(0))])
def test_a_connection_that_is_lost_costs_its_item(content, monkeypatch, capfd):
    class Losing(io.BytesIO):
        """As fsspec has it, whose errors are those of the library below."""

        def readinto(self, memory):
            if self.tell() + len(memory) > len(content) // 2:
                raise RuntimeError("the other side hung up")
            return super().readinto(memory)

    monkeypatch.setattr(media.fsspec, "open", lambda *_: Losing(content))
    for decode in (lambda raw: decode_audio(raw, 16000), decode_image, decode_video):
        with pytest.raises(BadClipError, match="cannot be read: RuntimeError: the other side hung up"):
            decode("https://here/x")
    assert "Traceback" not in capfd.readouterr().err
