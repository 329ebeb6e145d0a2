"""The quick check of the connection to the Hub."""

import pytest
from datasets import Dataset
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import httpx

from bridle_hf.data.arguments import DataArguments
from bridle_hf.data.modalities import MODALITIES
from bridle_hf.data.opening import open_named
from bridle_hf.hub_connection import TIMEOUT, check_connection
from bridle_hf.loading import check_model


@pytest.fixture
def answers(monkeypatch):
    """A function that sets the Hub's answer and returns the list of requests."""
    check_connection.cache_clear()
    asked = []

    def answer(error=None):
        def repo_info(self, repo_id, *, repo_type, timeout):
            asked.append((repo_id, repo_type, timeout))
            if error is not None:
                raise error

        monkeypatch.setattr(HfApi, "repo_info", repo_info)
        return asked

    return answer


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_a_hub_that_cannot_be_reached_is_said_at_once(answers, repo_type):
    asked = answers(httpx.ConnectError("Name or service not known"))
    with pytest.raises(ConnectionError, match="^the Hub cannot be reached: Name or service not known$"):
        check_connection("me/sounds", repo_type)
    assert asked == [("me/sounds", repo_type, TIMEOUT)]


ANSWERS = [
    None,
    OfflineModeIsEnabled("offline"),
    httpx.ReadTimeout("slow"),
    RepositoryNotFoundError.__new__(RepositoryNotFoundError),
]


@pytest.mark.parametrize("error", ANSWERS)
def test_what_the_hub_answers_is_left_to_the_library(answers, error):
    answers(error)
    check_connection("me/sounds")


def test_what_can_be_no_id_is_not_asked(answers):
    asked = answers(httpx.ConnectError("no"))
    check_connection("runs/no/final")
    assert asked == []


def test_what_is_in_the_cache_is_not_asked(answers, monkeypatch):
    asked = answers(httpx.ConnectError("no"))
    monkeypatch.setattr("bridle_hf.hub_connection.try_to_load_from_cache", lambda *file, repo_type: "/cache/README.md")
    check_connection("me/sounds", "dataset")
    assert asked == []


def test_names_of_datasets_and_models_are_asked_for_and_folders_are_not(answers, tmp_path):
    asked = answers(httpx.ConnectError("no"))
    with pytest.raises(ConnectionError, match="the Hub cannot be reached"):
        open_named(DataArguments("nosuch"), MODALITIES["audio"])
    with pytest.raises(ValueError, match="--model is 'nosuch'; there is no such folder here and the Hub cannot be rea"):
        check_model("nosuch")
    assert [each[:2] for each in asked] == [("nosuch", "dataset"), ("nosuch", "model")]
    with pytest.raises(ValueError, match="holds no audio file"):
        open_named(DataArguments(str(tmp_path)), MODALITIES["audio"])
    Dataset.from_dict({"audio": ["a.wav"]}).to_parquet(tmp_path / "a.parquet")
    formats = DataArguments("parquet", files=str(tmp_path / "a.parquet"), input_column="audio")
    assert list(open_named(formats, MODALITIES["audio"]).stream) == [{"audio": "a.wav"}]
    assert len(asked) == 2
