"""Recipes: overlays, overrides, types, and messages that name the key, the file and what was meant."""

from dataclasses import dataclass, field

import pytest
import yaml

from bridle_hf.finetuning.finetune import FinetuneRecipe
from bridle_hf.recipe_reader import RecipeError, changed_keys, read_recipe, read_yaml, recipe_to_yaml, value_at
from bridle_hf.recipes import FOLDER, find_recipe, recipe_names
from bridle_hf.training import PretrainRecipe, load_recipe
from bridle_hf.training.phases import build_schedule


@dataclass
class Inner:
    rate: float = 0.1
    pair: tuple[float, float] = (0.0, 1.0)
    limit: int | None = None


@dataclass
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    other: str | None = "x"
    parts: list[Inner] = field(default_factory=list)
    flag: bool = False


def write(path, values):
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def test_overlays_and_overrides_are_laid_over_each_other(tmp_path):
    write(tmp_path / "base.yaml", {"name": "a", "inner": {"rate": 1, "limit": 3}, "parts": [{"rate": 5}]})
    (tmp_path / "sub").mkdir()
    top = write(tmp_path / "sub" / "top.yaml", {"base": "../base.yaml", "inner": {"limit": 4}})
    recipe = load_recipe(top, ["inner.pair=[2, 3e-1]", "parts.0.limit=7", "flag=true"], cls=Outer)
    assert recipe == Outer("a", Inner(1.0, (2.0, 0.3), 4), "x", [Inner(5.0, limit=7)], True)
    assert isinstance(recipe.inner.rate, float)


def test_numbers_that_yaml_reads_as_strings(tmp_path):
    path = write(tmp_path / "r.yaml", "name: a\ninner: {rate: 1e-3}\n")
    assert yaml.safe_load("1e-3") == "1e-3"  # why it needs care
    assert load_recipe(path, cls=Outer).inner.rate == 0.001
    assert load_recipe(path, ["inner.limit=null"], cls=Outer).inner.limit is None


@pytest.mark.parametrize(
    "text",
    [
        "2024",
        "001",
        "no",
        "1e3",
        "a #b",
        "/x/my run #2",
        "a: b",
        "[1, 2]",
        "{fold}/final",
        "**/*.flac",
        "it's",
        "2024-01-02",
    ],
)
def test_where_text_is_taken_an_override_is_taken_as_it_is(tmp_path, text):
    path = write(tmp_path / "r.yaml", {"name": "a"})
    recipe = load_recipe(path, [f"name={text}", f"other={text}"], cls=Outer)
    assert (recipe.name, recipe.other) == (text, text)
    (tmp_path / "again.yaml").write_text(recipe_to_yaml(recipe))
    assert load_recipe(tmp_path / "again.yaml", cls=Outer) == recipe


def test_nothing_where_text_or_nothing_is_taken(tmp_path):
    path = write(tmp_path / "r.yaml", {"name": "a"})
    assert [load_recipe(path, [f"other={text}"], cls=Outer).other for text in ("null", "~", "")] == [None] * 3
    assert load_recipe(path, ["name=null"], cls=Outer).name == "null"
    for text, said in (("''", ""), ('""', ""), ("'null'", "null"), ('"a b"', "a b")):
        assert load_recipe(path, [f"name={text}", f"other={text}"], cls=Outer) == Outer(said, other=said)


def test_numbers_may_have_an_exponent_and_no_point(tmp_path):
    path = write(tmp_path / "r.yaml", {"name": "a"})
    (tmp_path / "r.yaml").write_text("name: a\ninner: {rate: 1e-5}\n")
    assert load_recipe(path, cls=Outer).inner.rate == 1e-5
    made = load_recipe("audio/demo", ["model.layer_norm_eps=1e-12", "model.quantizer_config.ema_epsilon=2E-5"])
    assert made.config().layer_norm_eps == 1e-12 and made.config().quantizer_config.ema_epsilon == 2e-5
    (tmp_path / "again.yaml").write_text(recipe_to_yaml(made))
    assert load_recipe(tmp_path / "again.yaml") == made
    assert read_yaml("{id: [12e4, 0e12, ff01], x: -1E+3}") == {"id": ["12e4", "0e12", "ff01"], "x": -1000.0}
    for text in ("1e-4_big", "1e-3-noise", "1234567e-89ab-4cde", "1e-4x"):
        assert read_yaml(f"[{text}]") == [text] and load_recipe("audio/demo", [f"data.exclude={{id: [{text}]}}"])


def test_paths_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path / "r.yaml", {"name": "~/runs/a", "other": "a/~/b"})
    assert load_recipe(path, cls=Outer) == Outer(f"{tmp_path}/runs/a", other="a/~/b")
    recipe = load_recipe("audio/demo", ["output_dir=~/x", "data.dataset=~/sounds", "data.cache_dir=~/c"])
    assert recipe.output_dir == f"{tmp_path}/x" and recipe.data.dataset == f"{tmp_path}/sounds"
    assert recipe.data.cache_dir == f"{tmp_path}/c"


def test_a_file_has_to_quote_what_yaml_takes_for_a_number(tmp_path):
    path = write(tmp_path / "r.yaml", "name: 001")
    with pytest.raises(RecipeError, match=r"`name` is 1 \(int\); it takes str, which YAML wants in quotes here"):
        load_recipe(path, cls=Outer)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("nam=b", ["unknown key `nam`", "did you mean name", "override 'nam=b'"]),
        ("inner.raet=1", ["unknown key `inner.raet`", "did you mean inner.rate"]),
        ("inner.zzz=1", ["unknown key `inner.zzz`", "limit, pair, rate"]),
        ("inner.limit=1.5", ["`inner.limit` is 1.5 (float)", "int"]),
        ("inner.limit=true", ["`inner.limit` is True (bool)", "int"]),
        ("inner.rate=fast", ["`inner.rate` is 'fast' (str)", "float"]),
        ("inner.pair=[1]", ["`inner.pair` is [1] (list)", "tuple[float, float]"]),
        ("inner=3", ["`inner` is 3 (int)", "mapping"]),
        ("parts=3", ["`parts` is 3 (int)", "it takes a list, such as [3]"]),
        ("name=", ["`name` is None (NoneType)", "str"]),
        ("flag=1", ["`flag` is 1 (int)", "bool"]),
        ("parts.1.rate=1", ["'1' is no place in a list of 0 entries"]),
        ("flag", ["'flag'", "key=value"]),
        ("flag={", ["'flag={'", "YAML"]),
    ],
)
def test_bad_overrides_are_named(tmp_path, override, words):
    path = write(tmp_path / "r.yaml", {"name": "a", "parts": []})
    with pytest.raises(RecipeError) as error:
        load_recipe(path, [override], cls=Outer)
    assert all(word in str(error.value) for word in words), error.value


def test_bad_files_are_named(tmp_path):
    write(tmp_path / "base.yaml", {"name": "a", "inner": {"rat": 1}})
    top = write(tmp_path / "top.yaml", {"base": "base.yaml"})
    with pytest.raises(RecipeError, match=r"`inner.rat` \(.*base.yaml\); did you mean inner.rate"):
        load_recipe(top, cls=Outer)
    with pytest.raises(RecipeError, match="`name` is missing.*empty.yaml"):
        load_recipe(write(tmp_path / "empty.yaml", ""), cls=Outer)
    lost = write(tmp_path / "lost.yaml", {"base": "gone.yaml"})
    with pytest.raises(RecipeError, match="'gone.yaml' is neither a file nor .*base of .*lost.yaml"):
        load_recipe(lost, cls=Outer)
    with pytest.raises(RecipeError, match="gone.yaml .*base of .*lost.yaml"):
        read_recipe(Outer, lost)
    with pytest.raises(RecipeError, match="leads back"):
        load_recipe(write(tmp_path / "loop.yaml", {"base": "loop.yaml"}), cls=Outer)
    with pytest.raises(RecipeError, match="list.yaml holds list"):
        load_recipe(write(tmp_path / "list.yaml", "[1, 2]"), cls=Outer)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.modality=sound", "`modality` is 'sound'; it takes one of 'audio', 'image', 'video'"),
        ("model.hiden_size=8", "unknown key `model.hiden_size`.*did you mean model.hidden_size"),
        ("model.quantizer_config.codebok_size=8", "unknown key `model.quantizer_config.codebok_size`.*codebook_size"),
        ("processor.men=0", "unknown key `processor.men`.*mean"),
        ("data.datset=x", "unknown key `data.datset`.*did you mean data.dataset"),
        ("training.batchsize=8", "unknown key `training.batchsize`.*did you mean training.batch_size"),
        ("phases.0.stepps=8", "unknown key `phases.0.stepps`.*did you mean phases.0.steps"),
        ("batch_size=8", "did you mean training.batch_size"),
        ("training.max_steps=8", "did you mean training.max_steps_per_phase"),
        ("batchsize=8", "did you mean training.batch_size"),
        ("training.learning_rate=1", "did you mean encoder.learning_rate or tokenizer.learning_rate"),
        ("hidden_size=8", "did you mean model.hidden_size"),
        ("model.codebook_size=8", "did you mean model.quantizer_config.codebook_size"),
        ("data.max_frames=15", "`data.max_frames` is 15; it takes from 16, the frames of a patch, to "),
        ("data.max_frames=10000000000", "`data.max_frames` is 10000000000; it takes from 16"),
        ("evaluate.max_frames=15", "`evaluate.max_frames` is 15; it takes from 16"),
        ("phases.0.kind=decoder", "`phases.0.kind` is 'decoder'.*'encoder', 'tokenizer', 'joint'"),
        ("training.batch_size=0", "`batch_size` is 0"),
        ("training.mixed_precision=fp8", "'fp8'.*'auto', 'no', 'bf16', 'fp16'"),
        ("model.hidden_size=wide", "`model`.*'hidden_size' expected int"),
        ("model.decoder_type=lstm", "`decoder_type` is 'lstm'.*'swin', 'plain'"),
        ("data.shuffle_buffer=0", "shuffle_buffer must be at least 1, got 0"),
        ("seed=-1", "`seed` is -1"),
        ("phases=[]", "`phases` is empty"),
    ],
)
def test_a_pretraining_recipe_knows_its_keys(tiny_recipe, override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(tiny_recipe, ["output_dir=x", override])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.mask_ratio=1.5", "`mask_ratio` is 1.5"),
        ("data.min_seconds=-1", "got -1.0"),
        ("training.batch_size=0", "`batch_size` is 0"),
    ],
)
def test_a_value_that_does_not_fit_is_blamed_on_who_said_it(tiny_recipe, tmp_path, override, said):
    with pytest.raises(RecipeError) as error:
        load_recipe(tiny_recipe, ["output_dir=x", "seed=3", override])
    assert said in str(error.value) and str(error.value).endswith(f"(override {override!r})")
    key, _, value = override.partition("=")
    section, _, name = key.partition(".")
    top = write(tmp_path / "top.yaml", {"base": str(tiny_recipe), section: {name: yaml.safe_load(value)}})
    with pytest.raises(RecipeError, match="top.yaml"):
        load_recipe(top, ["output_dir=x", "seed=3"])


def test_the_bare_word_no_is_a_precision(tiny_recipe):
    recipe = load_recipe(tiny_recipe, ["output_dir=x", "training.mixed_precision=no"])
    assert recipe.training.mixed_precision == "no"


def test_a_recipe_written_out_reads_back_the_same(tiny_recipe, tmp_path):
    recipe = load_recipe(tiny_recipe, ["output_dir=x", "training.betas=[0.8, 0.9]"])
    assert load_recipe(write(tmp_path / "again.yaml", recipe_to_yaml(recipe))) == recipe


def test_changes_between_recipes_are_named():
    before = {"a": 1, "b": {"c": 2, "d": [1]}, "e": None}
    assert changed_keys(before, before) == []
    assert changed_keys(before, {"a": 1, "b": {"c": 3, "d": [1, 2]}, "e": {"f": 1}}) == ["b.c", "b.d", "e"]
    one, other = ({"phases": [{"kind": "encoder", "steps": steps}, {"kind": "tokenizer"}]} for steps in (4, 6))
    assert changed_keys(one, other) == ["phases.0.steps"]
    assert value_at(one, "phases.0.steps") == "4" and value_at(one, "phases.7.steps") == "None"
    longer = {"phases": [*one["phases"], {"kind": "encoder"}]}
    assert changed_keys(one, longer) == ["phases"]
    assert [value_at(each, "phases") for each in (one, longer)] == ["encoder, tokenizer", "encoder, tokenizer, encoder"]


def test_recipes_of_the_package_have_names_and_a_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "audio/demo" in recipe_names() and len(recipe_names()) == len(list(FOLDER.rglob("*.yaml")))
    assert find_recipe("audio/demo") == find_recipe("audio/demo.yaml") == FOLDER / "audio" / "demo.yaml"
    (tmp_path / "audio").mkdir()
    assert find_recipe("audio/demo") == FOLDER / "audio" / "demo.yaml"
    own = write(tmp_path / "audio" / "demo.yaml", {"base": "audio/vq_tiny", "output_dir": "here"})
    assert find_recipe("audio/demo.yaml").resolve() == own
    recipe = load_recipe(own)  # laid over a recipe of the package, by its name
    assert recipe.output_dir == "here" and recipe.model["quantizer_config"]["type"] == "vector"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("audio/dmeo", " Did you mean audio/demo or "),
        ("demo", " Did you mean audio/demo or image/demo or video/demo"),
        ("my/recipes/video/demo.yaml", " Did you mean video/demo or "),
        ("audio/in1k_base", " Did you mean .*image/in1k_base"),
        ("zzz", "$"),
        ("audio", ""),  # a folder, not a recipe
    ],
)
def test_a_recipe_that_is_not_there(name, hint):
    with pytest.raises(
        RecipeError, match=f"^'{name}' is neither a file nor a recipe of the package in .*recipes\\.{hint}"
    ):
        load_recipe(name)


OTHERS = {"autoencoding", "wav2vec2"}  # of other scripts
SHIPPED = sorted(path for path in FOLDER.glob("*/*.yaml") if path.parent.name not in OTHERS)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_shipped_recipes_load(path):
    if path.stem.endswith(("finetune", "probe")):
        assert load_recipe(path, cls=FinetuneRecipe).model
        return
    recipe = load_recipe(path)
    assert build_schedule(recipe)
    assert recipe.resume == "auto" and recipe.data.split == "train"


def test_shipped_recipes_name_data_that_everybody_has():
    """A dataset of the Hub, a set that the run makes, or a folder that the user is told to give."""
    found = set()
    for path in FOLDER.glob("*/*.yaml"):
        assert "shared" not in path.read_text(), path
        found.add(yaml.safe_load(path.read_text()).get("data", {}).get("dataset"))
    hub = {name for name in found if name and name.count("/") == 1 and not name.startswith(".")}
    assert {"ashraq/esc50", "uoft-cs/cifar10"} < hub
    made = {name for name in found - hub if name and name.startswith("runs/") and name.endswith("/synthetic")}
    own = {"my_sounds", "my_pictures", "my_videos", "my_labelled"}
    assert found - hub - made <= {None, "synthetic", "kinetics400"} | own


def test_esc10_is_a_part_of_esc50_and_a_folder_of_it_alone_takes_two_overrides():
    audio = FOLDER / "audio"
    for path, cls in ((audio / "vq_tiny.yaml", PretrainRecipe), (audio / "esc10_finetune.yaml", FinetuneRecipe)):
        data = load_recipe(path, cls=cls).data
        assert (data.dataset, data.exclude) == ("ashraq/esc50", {"esc10": [False]})
        data = load_recipe(path, ["data.dataset=DIR", "data.exclude={}"], cls).data
        assert (data.dataset, data.exclude) == ("DIR", {})
        inductive = load_recipe(path, ["data.exclude.fold=[1]"], cls).data
        assert inductive.exclude == {"esc10": [False], "fold": [1]}


def test_as2m_base_is_the_paper_s_table_5():
    recipe = load_recipe(FOLDER / "audio" / "as2m_base.yaml")
    config = recipe.config()
    encoder, tokenizer, again = build_schedule(recipe, num_processes=64)
    assert (encoder.name, tokenizer.name, again.name) == ("encoder-iter1", "tokenizer-iter2", "encoder-iter2")
    epoch = recipe.training.examples_per_epoch / (16 * 64)  # steps
    assert encoder.steps == again.steps == round(130 * epoch) and tokenizer.steps == round(30 * epoch)
    # warm-up and betas are the reference code's
    assert encoder.warmup_steps == round(10 * epoch) and tokenizer.warmup_steps == round(2 * epoch)
    assert (encoder.learning_rate, tokenizer.learning_rate) == (5e-4, 2e-4)
    assert recipe.training.betas == (0.9, 0.95) and recipe.training.weight_decay == 1e-4
    assert (config.hidden_size, config.num_hidden_layers, config.decoder_num_hidden_layers) == (768, 12, 16)
    assert (config.quantizer_config.num_codebooks, config.quantizer_config.codebook_size) == (4, 256)


@pytest.mark.parametrize("name", ["audio/as2m_base", "image/in1k_base", "video/k400_base"])
def test_the_paper_s_resets_and_augmentation(name):
    """T_u = 1 in the first batch of the tokenizer phase; no clipping of gradients; videos flip in space and time."""
    recipe = load_recipe(name)
    quantizer = recipe.config().quantizer_config
    assert (quantizer.reset, quantizer.reset_min_count) == ("first_batch", 1)
    assert recipe.training.max_grad_norm is None
    assert recipe.data.flip and recipe.data.flip_time == (name == "video/k400_base")


AUDIOSET, ESC50 = {"mean": -4.4446096, "std": 3.3216383}, {"mean": -6.6268077, "std": 5.358466}


@pytest.mark.parametrize(
    ("name", "masking", "loss", "processor"),
    [
        ("audio/as2m_finetune", [0.2, 0.2], "binary_cross_entropy", AUDIOSET),
        ("audio/as20k_finetune", [0.2, 0.2], "binary_cross_entropy", AUDIOSET),
        ("audio/esc50_finetune", [0.2, 0.2], "binary_cross_entropy", ESC50 | {"max_length": 512}),
        ("image/in1k_finetune", [0.2], "binary_cross_entropy", {}),
        ("image/in1k_probe", [0.0], "binary_cross_entropy", {}),
        ("video/k400_finetune", None, "cross_entropy", {}),
    ],
)
def test_fine_tuning_is_table_5(name, masking, loss, processor):
    recipe = load_recipe(name, cls=FinetuneRecipe)
    assert recipe.config.get("classifier_mask_ratio") == masking
    assert (recipe.training.loss, recipe.training.max_grad_norm, recipe.training.weight_decay) == (loss, None, 1e-4)
    assert {key: value for key, value in recipe.processor.items() if key != "frame_stride"} == processor


@pytest.mark.parametrize("name", ["audio/own_finetune", "audio/esc10_finetune", "audio/demo_finetune"])
def test_other_sounds_keep_the_settings_of_their_pretrained_model(name):
    recipe = load_recipe(name, cls=FinetuneRecipe)
    assert recipe.processor == {} and "input_size" not in recipe.config
    assert (recipe.training.loss, recipe.training.max_grad_norm) == ("cross_entropy", 1.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # Until each kind had keys of its own, this silently redrew the encoder, the teacher of the tokenizer.
        ("tokenizer.from_scratch=true", "unknown key `tokenizer.from_scratch`"),
        ("encoder.from_encoder=true", "unknown key `encoder.from_encoder`"),
        ("phases.0.tokenizer_update_every=3", "unknown key `phases.0.tokenizer_update_every`"),
        ("phases.1.from_scratch=true", "unknown key `phases.1.from_scratch`"),
        ("phases=[{kind: joint, tokenizer_update_every: 0}]", "`tokenizer_update_every` is 0; .* at least 1"),
        ("joint.tokenizer_update_every=0", "`joint`: `tokenizer_update_every` is 0"),
        ("encoder.learning_rate=-1", "`encoder`: `learning_rate` is -1.0; .* at least 0"),
        ("encoder.learning_rate=wide", "`encoder.learning_rate` is 'wide'"),
        ("encoder.kind=joint", "`encoder.kind` is 'joint'.*'encoder'"),
        ("phases.0.steps=0", "`steps` is 0; .* at least 1"),
        ("phases.0.epochs=0", "`epochs` is 0.0; .* above 0"),
    ],
)
def test_a_kind_of_phase_takes_its_own_keys_in_their_ranges(tiny_recipe, override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(tiny_recipe, ["output_dir=x", override])


def test_a_value_of_0_is_a_value(tiny_recipe):
    recipe = load_recipe(tiny_recipe, ["output_dir=x", "encoder.learning_rate=0", "tokenizer.warmup_steps=0"])
    encoder, tokenizer, _ = build_schedule(recipe)
    assert encoder.learning_rate == 0 and {encoder.learning_rate_at(step) for step in range(5)} == {0}
    assert tokenizer.warmup_steps == 0 and tokenizer.learning_rate_at(0) == 2e-4


def test_a_recipe_with_nothing_left_to_look_up_is_the_same_recipe(tiny_recipe, tmp_path):
    options = ["output_dir=x", "encoder={steps: 7, learning_rate: 0.5}", "joint.tokenizer_update_every=2"]
    options.append("training.examples_per_epoch=96")
    recipe = load_recipe(tiny_recipe, [*options, "phases=[{kind: encoder, epochs: 2}, {kind: joint, steps: 3}]"])
    assert (recipe.phases[0].steps, recipe.phases[0].epochs) == (None, 2)
    path = write(tmp_path / "whole.yaml", recipe_to_yaml(recipe))
    assert load_recipe(path) == recipe
