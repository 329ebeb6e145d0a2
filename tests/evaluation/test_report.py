import base64
import copy
import html
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
import torch

from bridle_hf import BridleFeatureExtractor, BridleForPreTraining
from bridle_hf.cli.main import main
from bridle_hf.codebook_metrics import norm_histogram
from bridle_hf.data import DataArguments, load_examples
from bridle_hf.data.source import sound_reader
from bridle_hf.evaluation import plots, report
from bridle_hf.evaluation.listening import code_distances, excerpt, nearest_patches
from bridle_hf.evaluation.quality import code_norms, tokenize
from bridle_hf.evaluation.report import codebook_report, table, write_page
from bridle_hf.quantization_bridle import QUANTIZERS, ResidualQuantizer

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
def tones_data(tones):
    return DataArguments(dataset=str(tones), label_column="sound", fold_column="fold")


@pytest.fixture(scope="module")
def examples(tones_data, pretrained):
    return load_examples(tones_data, BridleFeatureExtractor.from_pretrained(pretrained))


@pytest.fixture(scope="module")
def page(model, examples, tones_data, pretrained, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    records = [
        {"phase": phase, "phase_index": index, "step": step, "loss": 5.0 - 0.1 * step}
        for index, phase in enumerate(("encoder-iter1", "tokenizer-iter2", "encoder-iter2"))
        for step in (1, 10, 20)
    ]
    results = [{"features": "random <weights>", "accuracy": 0.6514}, {"features": "iteration 1", "accuracy": None}]
    for record in records:
        measured = {"cur": [1.0, 0.5], "ecu": [0.5, 0.25], "perplexity": [4.0, 2.0], "residual": [0.5, 0.2]}
        record |= {"total_step": record["phase_index"] * 20 + record["step"], "codebooks": measured}
    sounds = sound_reader(tones_data, BridleFeatureExtractor.from_pretrained(pretrained))
    return path, codebook_report(path, model, examples, name="tones", records=records, results=results, sounds=sounds)


def test_the_page_stands_alone(page):
    parser = parse(page[0])
    text = page[0].read_text()
    assert "<script" not in text and "@import" not in text and "url(http" not in text
    assert all(
        address.startswith(("#", "data:image/png;base64,", "data:audio/wav;base64,")) for address in parser.addresses
    )
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
    assert "tone.wav, class high" in text and ", class low" in text


def test_colours_follow_the_page(page):
    text = page[0].read_text()
    style, body = text.split("</style>")
    assert not re.search("#0[1-4]0[1-4]0[0-9]", body)  # no placeholder is left
    used = set(re.findall(r"var\((--[\w-]+)\)", body))
    assert {"--ink", "--grid", "--series-0", "--series-1"} <= used
    light, dark = style.split("prefers-color-scheme: dark")
    assert all(f"{name}:" in light and f"{name}:" in dark for name in used)


def test_clips_with_fewer_patches_than_codes_have_no_cold_start(model, examples, tmp_path, caplog):
    few = replace(examples, clips=examples.clips[:1], labels=None, folds=None)
    few.clips = [few.clips[0][:16]]  # a patch in time, four of them in all
    assert list(codebook_report(tmp_path / "few.html", model, few, name="few", clips=1)) == ["trained"]
    assert "leaves out the cold start" in caplog.text and "`initialize_` takes at least one per code, 8" in caplog.text
    parse(tmp_path / "few.html")


def test_a_cold_model_has_one_column_and_needs_no_labels(pretrained, examples, tmp_path):
    model = BridleForPreTraining.from_pretrained(pretrained)
    unlabelled = replace(examples, labels=None, folds=None)
    qualities = codebook_report(tmp_path / "cold.html", model, unlabelled, name="cold", clips=1)
    assert list(qualities) == ["cold start"]
    assert qualities["cold start"]["bag_of_codes"] is None
    parse(tmp_path / "cold.html")


def test_codes_that_the_decoder_never_saw_have_no_accuracy(model, examples, tmp_path):
    for last, said in (("tokenizer-iter2", False), ("encoder-iter2", True)):
        records = [{"phase": last, "total_step": 1, "step": 1, "loss": 1.0, "losses": {}}]
        codebook_report(tmp_path / "page.html", model, examples, name="x", records=records)
        page = (tmp_path / "page.html").read_text()
        assert (report.NOT_LEARNED in html.unescape(page)) != said
        assert (report.PREDICTED in html.unescape(page)) == said


def test_a_code_plays_the_second_around_its_nearest_patch(page, examples, tones_data, pretrained):
    sounds = [base64.b64decode(found) for found in re.findall(r"data:audio/wav;base64,([^\"]+)", page[0].read_text())]
    assert len(sounds) >= 3
    clips = sound_reader(tones_data, BridleFeatureExtractor.from_pretrained(pretrained))(set(range(len(examples))))
    assert len(clips) == len(examples)
    for sound in sounds:  # the clips are shorter than a second, so each is a whole one
        samples, rate = soundfile.read(io.BytesIO(sound))
        assert rate == 16000 and any(np.corrcoef(samples, clip)[0, 1] > 0.999 for clip in clips.values())


def test_nearest_patches_by_hand():
    codes = np.array([[0, 1, 0], [0, 0, 1], [2, 0, 0]])[..., None]
    distances = np.array([[3.0, 1.0, 2.0], [4.0, 0.5, 1.0], [0.1, np.inf, 5.0]])
    assert nearest_patches(codes, distances, number_of_codes=2, clips=2) == {0: [(1, 1), (0, 2)], 1: [(0, 1), (1, 2)]}
    samples = np.arange(64000)
    assert excerpt(samples, 16000, patch=20, grid=(25, 2), seconds_per_patch=0.16)[0] == (10.5 * 0.16 - 0.5) * 16000
    for patch, first in ((0, 0), (49, 48000)):  # whole seconds at the clip's ends, too
        found = excerpt(samples, 16000, patch, grid=(25, 2), seconds_per_patch=0.16)
        assert found[0] == first and len(found) == 16000


def test_distances_are_those_of_the_search(model, examples):
    codes, valid = tokenize(model.tokenizer, examples)
    distances = code_distances(model.tokenizer, examples, codes, valid, batch_size=7)
    row, patch = 5, int(np.flatnonzero(valid[5])[-1])
    batch = {name: torch.as_tensor(value) for name, value in examples.batch([row]).items()}
    with torch.no_grad():
        z = model.tokenizer.project(batch["input_values"], batch["attention_mask"])[0, patch]
    z = torch.nn.functional.normalize(z, dim=-1)  # the quantizer's normalize is "once"
    every = (model.tokenizer.quantizer.codebooks[0].embed - z).norm(dim=-1)
    assert distances[row, patch] == pytest.approx(every.min().item(), abs=1e-5)
    assert every.argmin() == codes[row, patch, 0] and np.isinf(distances[~valid]).all()


@pytest.mark.parametrize("kind", ["per_stage", "cosine", "smoothed"])
def test_patches_are_near_a_code_by_direction_where_that_is_searched(kind, model, examples):
    """Not because they are short."""
    options = {"per_stage": {"normalize": "per_stage"}, "cosine": {"distance": "cosine"}, "smoothed": {}}[kind]
    cls = QUANTIZERS[{"per_stage": "vector", "cosine": "gradient", "smoothed": "smoothed"}[kind]].inner_class
    model = copy.deepcopy(model)
    dim = model.tokenizer.quantizer.dim
    model.tokenizer.quantizer = quantizer = cls(dim, 1, 8, **options).eval()
    codes, valid = tokenize(model.tokenizer, examples)
    distances = code_distances(model.tokenizer, examples, codes, valid)
    batch = {name: torch.as_tensor(value) for name, value in examples.batch(range(len(examples))).items()}
    with torch.no_grad():
        z = model.tokenizer.project(batch["input_values"], batch["attention_mask"])[torch.as_tensor(valid)]
        cosines = torch.nn.functional.cosine_similarity(z, quantizer.codebooks[0].embed[codes[valid][:, 0]], dim=-1)
    code = np.bincount(codes[valid][:, 0]).argmax()
    own = codes[valid][:, 0] == code
    assert distances[valid][own].argmin() == cosines.numpy()[own].argmax()
    assert np.corrcoef(distances[valid][own], cosines.numpy()[own])[0, 1] < -0.99


def test_histogram_draws_the_counts():
    figure = plots.code_histograms({"a": torch.tensor([[1, 6, 0, 3]]).numpy()}, (4,))[0]
    heights = figure.axes[0].patches[0].get_data().values
    assert heights.tolist() == pytest.approx([0.6, 0.3, 0.1, 0.0])


def test_shares_on_a_logarithmic_scale_are_numbers():
    """Not powers in TeX, which stand in the page as they are."""
    counts = {"a": np.array([[600, 30, 3, 1]])}
    said = str(plots.to_svg(plots.code_histograms(counts, (4,))[0], "shares", "of codes"))
    assert "$" not in said and re.search(r">0\.01<", said) and re.search(r">0\.1<", said)


def test_norms_of_all_codes_are_counted_by_hand():
    """Four bins of width 2.5 up to 10, the longest code of both."""
    edges, counts = norm_histogram({"before": [10.0, 10.0, 1.0, 7.5], "after": [0.0, 2.4, 2.5, 2.6]}, bins=4)
    assert edges.tolist() == [0, 2.5, 5, 7.5, 10]
    assert counts["before"].tolist() == [1, 0, 0, 3] and counts["after"].tolist() == [2, 2, 0, 0]
    assert norm_histogram({"zero": np.zeros(5)}, bins=2)[1]["zero"].tolist() == [5, 0]


def test_the_histogram_of_norms_draws_every_code():
    """A codebook of the lengths 3, 5, 2 and five times 0, and one beside it."""
    quantizer = ResidualQuantizer(4, num_codebooks=2, codebook_size=8)
    codes = torch.zeros(8, 4)
    codes[:3, :2] = torch.tensor([[3.0, 0], [-4, 3], [0, 2]])
    quantizer.codebooks[0].set_(codes, torch.ones(8))
    norms = code_norms(quantizer)
    assert [len(lengths) for lengths in norms] == [8, 8] and norms[0].tolist() == [3, 5, 2, 0, 0, 0, 0, 0]
    first, _ = plots.norm_histograms({"cold start": norms, "trained": norms})
    (axis,) = first.axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["cold start", "trained"]
    for values, edges, _ in (patch.get_data() for patch in axis.patches):
        assert edges[0] == 0 and edges[-1] == 5 and len(axis.patches) == 2
        assert {int(np.flatnonzero(edges <= length)[-1]): n for length, n in ((0, 5), (2, 1), (3, 1))} | {31: 1} == {
            place: int(values[place]) for place in np.flatnonzero(values).tolist()
        }
    assert code_norms(QUANTIZERS["random_projection"].cls(8, 2, 16)) == []


def test_text_is_escaped(tmp_path):
    write_page(tmp_path / "page.html", "a <b>", "x & y", [table(["<i>"], [["<script>"], [None]])])
    text = (tmp_path / "page.html").read_text()
    assert "a &lt;b&gt;" in text and "x &amp; y" in text and "<script>" not in text and "–" in text


HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)",
    "</figcaption><svg onload=alert(1)>",
    "$\\frac{1$ & <!-- <style>",
    "{{ 7*7 }}{% raw %}",
)


class Danger(Balance):
    """Collects what may not be on a page: tags that nobody here writes, and handlers of events."""

    def __init__(self):
        super().__init__()
        self.found, self.shown = [], ""

    def handle_startendtag(self, tag, attributes):
        super().handle_startendtag(tag, attributes)
        self.found += [tag] if tag in ("script", "img", "iframe", "object") else []
        self.found += [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data):
        self.shown += data


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text_wherever_they_stand(name, model, examples, tones_data, pretrained, tmp_path):
    named = replace(examples, label_names=[f"{name} {label}" for label in examples.label_names])
    records = [{"phase": name, "phase_index": 0, "step": step, "loss": 1.0} for step in (1, 2)]
    codebook_report(
        tmp_path / "page.html",
        model,
        named,
        name=name,
        records=records,
        results=[{name: name, "accuracy": 0.5}],
        clips=1,
        sounds=sound_reader(tones_data, BridleFeatureExtractor.from_pretrained(pretrained)),
    )
    page = Danger()
    page.feed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not page.open and not page.found
    # title, heading, two cells of the results, the phase in title and legend, a drawn clip, three players a code
    assert page.shown.count(name) >= 10


def test_odd_records_are_not_drawn():
    good = {"phase": "encoder-iter1", "phase_index": 0, "step": 1, "total_step": 1, "loss": 2.0}
    good["codebooks"] = {"ecu": [0.5], "residual": [0.2]}
    odd = [{"note": "by hand"}, 123, None, ["loss"], {"phase": "x", "loss": 1}, {"codebooks": {}}]
    assert len(plots.loss_curves([good, *odd])) == 1 and len(plots.codebook_curves([*odd, good])) == 2
    assert plots.loss_curves(odd) == plots.codebook_curves(odd) == plots.evaluation_curves(odd) == []


def test_plain_text_among_the_parts_of_a_page_is_escaped(tmp_path):
    write_page(tmp_path / "page.html", "title", "", ["<script>alert(1)</script>"])
    assert "<script>" not in (tmp_path / "page.html").read_text()


def test_what_was_measured_in_training_is_drawn():
    """A figure a kind of measure, a line a measure, a dashed line where the second of the phases that train begins."""
    measured = {"knn": 0.2, "linear": 0.4, "rankme": 9.0, "std": 0.5}
    places = [(0, 0, 0), (0, 10, 10), (0, 20, 20), (2, 5, 30), (2, 10, 35)]
    records = [
        {"phase_index": phase, "step": step, "total_step": total, "evaluate": measured} for phase, step, total in places
    ]
    accuracy, rank, deviation = plots.evaluation_curves([*records, {"phase_index": 2, "step": 10, "total_step": 35}])
    lines = {line.get_label(): line.get_xydata().tolist() for line in accuracy.axes[0].lines}
    assert lines["nearest neighbours"] == [[total, 0.2] for *_, total in places]
    assert lines["linear probe"] == [[total, 0.4] for *_, total in places]
    for figure in (accuracy, rank, deviation):
        assert [25, 25] in [list(line.get_xdata()) for line in figure.axes[0].lines]
    unlabelled = [record | {"evaluate": {"rankme": 9.0, "std": 0.5}} for record in records]
    assert len(plots.evaluation_curves(unlabelled)) == 2


def test_folds_of_which_nothing_can_be_learned_are_refused_first(tones, pretrained, tmp_path, capsys):
    words = ["report", "--model", pretrained, "--dataset", tones, "--label-column", "sound", "--fold-column", "fold"]
    words += ["--exclude", "{fold: [1, 2]}", "--output", tmp_path / "report.html"]
    with pytest.raises(SystemExit, match="2"):
        main([str(word) for word in words])
    assert "at least two folds are needed" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_clips_of_which_the_beginning_alone_is_measured_are_said(pretrained, tmp_path, monkeypatch, caplog, capsys):
    for name, seconds in (("short", 0.4), ("long", 3)):
        soundfile.write(tmp_path / f"{name}.wav", np.random.default_rng(0).normal(0, 0.1, int(16000 * seconds)), 16000)
    monkeypatch.setattr("bridle_hf.cli.report.codebook_report", lambda *args, **more: None)
    page = str(tmp_path / "page.html")
    with caplog.at_level("WARNING"):
        main(["report", "--model", str(pretrained), "--dataset", str(tmp_path), "--output", page])
    assert "1 of 2 clips are longer than the window" in caplog.text and "long.wav" in caplog.text
