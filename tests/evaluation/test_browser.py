"""The report in a real browser: no errors, nothing wider than the screen, sounds that can be played."""

import shutil

import pytest
import torch

from bridle_hf import BridleFeatureExtractor, BridleForPreTraining
from bridle_hf.data import DataArguments, load_examples
from bridle_hf.data.source import sound_reader
from bridle_hf.evaluation.report import codebook_report

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")


@pytest.fixture(scope="module")
def page_file(tones, pretrained, tmp_path_factory):
    model = BridleForPreTraining.from_pretrained(pretrained)
    torch.manual_seed(0)
    model.tokenizer.reset_()
    data, extractor = (
        DataArguments(str(tones), label_column="sound"),
        BridleFeatureExtractor.from_pretrained(pretrained),
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    records = [
        {"phase": "encoder-iter1", "phase_index": 0, "step": step, "total_step": step, "loss": 1 / step,
         "codebooks": {"ecu": [0.5, 0.5], "residual": [0.5, 0.25]}} for step in (1, 2, 3)
    ]  # fmt: skip
    codebook_report(
        path,
        model,
        load_examples(data, extractor),
        name="tones",
        records=records,
        sounds=sound_reader(data, extractor),
    )
    return path


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_opens_without_errors(browser, page_file, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
    page.goto(page_file.as_uri(), wait_until="load")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)"
    assert dark == (scheme == "dark")
    assert page.locator("svg").count() >= 8 and page.locator("audio").count() >= 3
    assert not problems
    page.close()


def test_a_sound_plays(browser, page_file):
    page = browser.new_page()
    page.goto(page_file.as_uri())
    sound = page.locator("audio").first
    sound.evaluate("element => element.play()")
    page.wait_for_function("document.querySelector('audio').currentTime > 0.05", timeout=10_000)
    assert sound.evaluate("element => element.duration") == pytest.approx(0.35, abs=0.01)
    page.close()
