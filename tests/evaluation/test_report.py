import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from bridle_hf import BridleFeatureExtractor, BridleForPreTraining
from bridle_hf.data import DataArguments, load_examples
from bridle_hf.evaluation import plots
from bridle_hf.evaluation.report import codebook_report, table, write_page

VOID = {"meta", "br", "img", "link", "hr"}


class Balance(HTMLParser):
    """Fails where tags do not close; collects ids and addresses."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.addresses = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attributes)

    def handle_startendtag(self, tag, attributes):
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action"):
                self.addresses.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(path):
    parser = Balance()
    parser.feed(path.read_text(encoding="utf-8"))
    assert not parser.open
    return parser


@pytest.fixture(scope="module")
def model(pretrained):
    model = BridleForPreTraining.from_pretrained(pretrained)
    torch.manual_seed(0)
    model.tokenizer.reset_()
    model.config.cold_start = False
    return model


@pytest.fixture(scope="module")
def examples(tones, pretrained):
    data = DataArguments(dataset=str(tones), label_column="sound", fold_column="fold")
    return load_examples(data, BridleFeatureExtractor.from_pretrained(pretrained))


@pytest.fixture(scope="module")
def page(model, examples, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    records = [
        {"phase": phase, "phase_index": index, "step": step, "loss": 5.0 - 0.1 * step}
        for index, phase in enumerate(("encoder-iter1", "tokenizer-iter2", "encoder-iter2"))
        for step in (1, 10, 20)
    ]
    results = [{"features": "random <weights>", "accuracy": 0.6514}, {"features": "iteration 1", "accuracy": None}]
    return path, codebook_report(path, model, examples, name="tones", records=records, results=results)


def test_the_page_stands_alone(page):
    parser = parse(page[0])
    text = page[0].read_text()
    assert "<script" not in text and "@import" not in text and "url(http" not in text
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in parser.addresses)
    assert len(parser.ids) == len(set(parser.ids))  # figures do not take each other's clip paths
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text


def test_the_page_shows_what_was_measured(page):
    text, qualities = page[0].read_text(), page[1]
    assert list(qualities) == ["cold start", "trained"]
    for name, quality in qualities.items():
        for stage in range(2):
            cells = [f"{quality[key][stage]:.4g}" for key in ("cur", "entropy", "perplexity", "ecu", "ecu_table6")]
            row = f"<td>{name}, codebook {stage + 1}</td>" + "".join(f"<td>{cell}</td>" for cell in cells)
            assert row in text
    assert "random &lt;weights&gt;" in text and "<td>0.6514</td>" in text
    assert "encoder-iter2" in text and "tokenizer loss" in text
    assert "class high" in text and "class low" in text


def test_colours_follow_the_page(page):
    text = page[0].read_text()
    style, body = text.split("</style>")
    assert not re.search("#0[1-4]0[1-4]0[0-9]", body)  # no placeholder is left
    used = set(re.findall(r"var\((--[\w-]+)\)", body))
    assert {"--ink", "--grid", "--series-0", "--series-1"} <= used
    light, dark = style.split("prefers-color-scheme: dark")
    assert all(f"{name}:" in light and f"{name}:" in dark for name in used)


def test_a_cold_model_has_one_column_and_needs_no_labels(pretrained, examples, tmp_path):
    model = BridleForPreTraining.from_pretrained(pretrained)
    unlabelled = replace(examples, labels=None, folds=None)
    qualities = codebook_report(tmp_path / "cold.html", model, unlabelled, name="cold", clips=1)
    assert list(qualities) == ["cold start"]
    assert qualities["cold start"]["bag_of_codes"] is None
    parse(tmp_path / "cold.html")


def test_histogram_draws_the_counts():
    figure = plots.code_histograms({"a": torch.tensor([[1, 6, 0, 3]]).numpy()})[0]
    heights = figure.axes[0].patches[0].get_data().values
    assert heights.tolist() == pytest.approx([0.6, 0.3, 0.1, 0.0])


def test_text_is_escaped(tmp_path):
    write_page(tmp_path / "page.html", "a <b>", "x & y", [table(["<i>"], [["<script>"], [None]])])
    text = (tmp_path / "page.html").read_text()
    assert "a &lt;b&gt;" in text and "x &amp; y" in text and "<script>" not in text and "–" in text
