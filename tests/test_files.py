"""Files and folders are there as a whole or not at all; what was there before stays until then."""

import errno
import os
import resource
import socket

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from bridle_hf import files
from bridle_hf.files import (
    FolderError,
    FolderLock,
    WriteError,
    check_writable,
    is_of_a_full_disk,
    remove,
    set_aside,
    whole_file,
    whole_folder,
    write_whole,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["text, ä\n", b"\x00bytes"])
def test_a_file_replaces_the_one_before(tmp_path, content):
    (tmp_path / "a").write_text("before")
    write_whole(tmp_path / "a", content)
    assert (tmp_path / "a").read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(tmp_path) == ["a"]


def test_a_file_never_replaces_a_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="a device or pipe lies where a file is to be written"):
        write_whole(tmp_path / "pipe", "text")
    assert names(tmp_path) == ["pipe"]


@pytest.mark.parametrize("content", [None, "mine"])
def test_a_file_never_replaces_a_folder(tmp_path, content):
    folder = tmp_path / "sounds"
    folder.mkdir()
    if content:
        (folder / "1.wav").write_text(content)
    with pytest.raises(IsADirectoryError, match="a folder lies where a file is to be written"):
        write_whole(folder, "text")
    assert folder.is_dir() and [path.name for path in tmp_path.rglob("*")] == ["sounds"] + ["1.wav"] * bool(content)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_after_an_error_all_is_as_it_was(tmp_path, error):
    write_whole(tmp_path / "file", "before")
    with whole_folder(tmp_path / "folder") as folder:
        write_whole(folder / "inside", "before")
    with pytest.raises(error), whole_file(tmp_path / "file") as file:
        file.write_text("half")
        raise error
    with pytest.raises(error), whole_folder(tmp_path / "folder") as folder:
        (folder / "other").write_text("half")
        raise error
    assert names(tmp_path) == ["file", "folder"] and names(tmp_path / "folder") == ["inside"]
    assert (tmp_path / "file").read_text() == "before"


def test_a_folder_replaces_the_one_before(tmp_path):
    for name in ("first", "second"):
        with whole_folder(tmp_path / "folder") as folder:
            assert not names(folder)
            (folder / name).mkdir()
            write_whole(folder / name / "file", name)
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["second"]


def test_what_a_killed_process_left_is_gone_on_with_where_it_says_how_far_it_came(tmp_path):
    for step in range(2):
        with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "folder", resume="progress") as folder:
            assert names(folder) == (["progress", "work-0"] if step else [])
            (folder / f"work-{step}").touch()
            (folder / "progress").touch()
            raise KeyboardInterrupt
    with whole_folder(tmp_path / "folder", resume="progress") as folder:
        (folder / "progress").unlink()
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["work-0", "work-1"]
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "other", resume="progress"):
        raise KeyboardInterrupt
    assert names(tmp_path) == ["folder"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the names of open files are read from /proc")
def test_a_power_cut_finds_the_content_on_disk(tmp_path, monkeypatch):
    """Everything is flushed before the rename."""
    flushed, fsync, replace = [], os.fsync, os.replace

    def record(number):
        flushed.append(os.readlink(f"/proc/self/fd/{number}"))
        fsync(number)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(os, "replace", lambda *paths: flushed.append("rename") or replace(*paths))
    with whole_folder(tmp_path / "folder") as folder:
        (folder / "file").touch()
    assert [path.rsplit("/", 1)[-1] for path in flushed] == ["file", ".folder.partial", "rename", tmp_path.name]


def test_old_folders_are_numbered(tmp_path):
    for number in (1, 2):
        (tmp_path / "run").mkdir()
        assert set_aside(tmp_path / "run") == tmp_path / f"run.old-{number}"


def test_a_linked_folder_is_set_aside_where_it_is(tmp_path):
    """The link stays, or what comes next would be written to another disk."""
    real, link = tmp_path / "disk" / "run", tmp_path / "link"
    real.mkdir(parents=True)
    (real / "file").touch()
    link.symlink_to(real)
    assert set_aside(link) == real.with_name("run.old-1")
    assert link.is_symlink() and not list(link.iterdir()) and (real.with_name("run.old-1") / "file").exists()


def test_what_is_removed_behind_a_link_stays(tmp_path, caplog):
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    (real / "file").touch()
    link.symlink_to(real)
    remove(link)
    assert not link.is_symlink() and (real / "file").exists()
    remove(tmp_path / "nothing")
    remove(real / "file")  # no folder
    (said,) = caplog.messages
    assert said.startswith(f"{real / 'file'} could not be removed: [Errno 20] Not a directory")


def test_a_lock_file_is_there_while_the_lock_is_held(tmp_path):
    lock = FolderLock(tmp_path / "run" / ".lock")
    lock.acquire()
    assert lock.path.read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    set_aside(tmp_path / "run")
    lock.acquire()  # of the new folder
    assert lock.path.exists()
    lock.release()
    lock.release()
    assert not list((tmp_path / "run").iterdir())


def test_where_nothing_can_be_written_a_message_says_so(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run" / "deeper"):
        with pytest.raises(FolderError, match=f"output_dir is '{path}', and .*file is no folder"):
            check_writable(path)
    with pytest.raises(FolderError, match="cannot be written to: Not a directory. Give another output_dir"):
        FolderLock(tmp_path / "file" / "run" / ".lock").acquire()
    check_writable(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()
    if os.path.exists("/proc/self"):  # which takes no files, whatever its rights say
        with pytest.raises(FolderError, match="and /proc may not be written to"):
            check_writable("/proc/run")

    def refuse(**_):
        raise OSError(number, "refused")

    monkeypatch.setattr(files, "TemporaryFile", refuse)
    number = errno.EROFS  # a disk that is mounted to be read
    with pytest.raises(FolderError, match=f"and {tmp_path} may not be written to"):
        check_writable(tmp_path / "new" / "run")
    number = errno.ENOSPC  # a full disk: what is written says so
    check_writable(tmp_path / "new" / "run")


@pytest.mark.parametrize("name", ["", "null", "None", "~"])
def test_no_folder_is_none_to_write_to(name):
    with pytest.raises(FolderError, match=f"output_dir is '{name}'; it takes the name of a folder"):
        check_writable(name)


def test_what_lies_where_something_is_to_be_written_is_named(tmp_path):
    names = {"folders": ("checkpoints", "encoder-iter*"), "files": ("metrics.jsonl",)}
    check_writable(tmp_path, **names)
    for name in ("checkpoints", "encoder-iter3"):
        (tmp_path / name).touch()
        with pytest.raises(FolderError, match=f"output_dir is '{tmp_path}', in which {name} is no folder"):
            check_writable(tmp_path, **names)
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(FolderError, match="in which metrics.jsonl is no file; it takes another one"):
        check_writable(tmp_path, **names)


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    lock = FolderLock(tmp_path / "run" / ".lock")
    lock.acquire()
    lock.release()
    assert "cannot be locked ([Errno 37] No locks available): see to it that one run alone writes there" in caplog.text


def test_what_a_library_writes_for_its_owner_alone_is_for_all_who_may_read_the_folder(tmp_path):
    before = os.umask(0o027)
    try:
        with whole_folder(tmp_path / "folder") as folder:
            save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
            os.chmod(folder / "model.safetensors", 0o600)  # as some versions of safetensors leave it
    finally:
        os.umask(before)
    assert (tmp_path / "folder" / "model.safetensors").stat().st_mode & 0o777 == 0o640


def write_tensors(path):
    save_file({"a": torch.zeros(10_000)}, path)


def write_table(path):
    pq.write_table(pa.table({"a": np.arange(10_000)}), path)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text(40_000 * "a"),
        lambda path: write_whole(path, 40_000 * "a"),
        lambda path: torch.save(torch.zeros(10_000), path),
        write_tensors,
        write_table,
    ],
    ids=["text", "whole", "torch", "safetensors", "pyarrow"],
)
def test_a_full_disk_in_the_words_of_each_library(tmp_path, write):
    """No file of this process may grow beyond 4 KB for a moment, which fails as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(Exception) as caught:
            write(tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert is_of_a_full_disk(caught.value)
    try:
        raise WriteError("of it") from caught.value
    except WriteError as error:
        assert is_of_a_full_disk(error)


def test_other_errors_are_not_of_a_full_disk(tmp_path):
    for write in (lambda: (tmp_path / "no" / "folder").write_text("a"), lambda: save_file({"a": 1}, tmp_path / "a")):
        with pytest.raises(Exception) as caught:
            write()
        assert not is_of_a_full_disk(caught.value)


@pytest.mark.parametrize("context", [whole_file, whole_folder])
def test_an_error_of_writing_says_where(tmp_path, context):
    """The system names no file when a disk is full."""
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'a'}'"), context(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_has_room_for_no_note_in_a_lock(tmp_path, monkeypatch):
    """The lock is held all the same; what is written next finds the disk full and says what it was."""
    monkeypatch.setattr(os, "write", lambda *_: raise_(OSError(errno.ENOSPC, "No space left on device")))
    lock = FolderLock(tmp_path / ".lock")
    lock.acquire()
    assert lock.file is not None
    lock.release()


def raise_(error):
    raise error
