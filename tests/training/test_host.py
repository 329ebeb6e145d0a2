"""A library call changes nothing of its host: signal handlers and malloc belong to the commands."""

import signal
import threading
from unittest import mock

from bridle_hf.cli import process

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ONE_STEP = "phases=[{kind: encoder, steps: 1}]"


def test_a_run_in_a_thread_ends_and_leaves_the_handlers(train, tmp_path):
    before, ended = [signal.getsignal(number) for number in SIGNALS], []
    thread = threading.Thread(target=lambda: ended.append(train(tmp_path / "run", ONE_STEP)))
    thread.start()
    thread.join(120)
    assert ended == [tmp_path / "run" / "final"]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_run_sets_neither_signals_nor_malloc(train, tmp_path):
    with mock.patch("signal.signal") as signals, mock.patch("ctypes.CDLL") as library:
        assert train(tmp_path / "run", ONE_STEP)
    assert not signals.called and not library.return_value.mallopt.called


def test_the_command_s_signals_stop_and_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with process.stop_signals() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGTERM)
        assert asked()
    assert [signal.getsignal(number) for number in SIGNALS] == before
