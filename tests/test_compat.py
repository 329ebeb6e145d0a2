"""A torch and a torchaudio or torchvision that do not fit are named in one sentence, before anything else fails."""

import os
import subprocess
import sys

import pytest


def import_beside(folder, package: str, source: str) -> subprocess.CompletedProcess:
    """Import the package in a new process that finds `source` as its torchaudio or torchvision."""
    (folder / f"{package}.py").write_text(source)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    return subprocess.run([sys.executable, "-c", "import bridle_hf"], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ("package", "error"),
    [
        ("torchaudio", "OSError('libtorchaudio.so: undefined symbol')"),
        ("torchaudio", "RuntimeError('CUDA 12.8 and 13.0')"),
        ("torchvision", "RuntimeError('CUDA 12.8 and 13.0')"),
    ],
)
def test_broken_pair_says_what_to_install(tmp_path, package, error):
    result = import_beside(tmp_path, package, f"raise {error}")
    assert result.returncode != 0
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith(f"ImportError: bridle_hf needs a torch and a {package} that load together")
    assert "undefined symbol" in message or "CUDA 12.8" in message  # the cause
    assert '"torch>=2.11,<2.15" "torchaudio>=2.11,<2.12"' in message  # the cure


def test_the_message_and_the_metadata_ask_for_the_same_versions(repository):
    from bridle_hf._compat import INSTALL

    metadata = (repository / "setup.cfg").read_text().split()
    for requirement in INSTALL.split('"')[1::2]:
        assert requirement in metadata
