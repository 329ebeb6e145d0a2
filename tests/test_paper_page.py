"""docs/paper.md and table 5 of the paper: each command reads its recipe, and each recipe says what the table does."""

import re
import shlex
from pathlib import Path

import pytest

from bridle_hf.finetuning.finetune import FinetuneRecipe
from bridle_hf.quantizer_experiments.autoencoding import AutoencodingRecipe
from bridle_hf.quantizer_experiments.wav2vec2 import Wav2Vec2Recipe
from bridle_hf.training import PretrainRecipe, load_recipe

TESTS = Path(__file__).resolve().parent
SOURCES = TESTS.parent / "src" / "bridle_hf"
PAGE = (TESTS.parent / "docs" / "paper.md").read_text()
CLASSES = {
    "pretrain": PretrainRecipe,
    "finetune": FinetuneRecipe,
    "autoencoding": AutoencodingRecipe,
    "wav2vec2": Wav2Vec2Recipe,
}
COMMANDS = re.findall(r"^\|.*`bridle ((?:pretrain|finetune|autoencoding|wav2vec2) [^`]+)`(.*)$", PAGE, re.MULTILINE)

# table 5: epochs, learning rate, loss, batch of a GPU, nodes of 8 GPUs
FINETUNING = {
    "audio/as2m_finetune": (120, 5e-4, "binary_cross_entropy", 8, 4),
    "audio/as20k_finetune": (150, 4e-4, "binary_cross_entropy", 8, 4),
    "audio/esc50_finetune": (300, 2e-3, "binary_cross_entropy", 8, 1),
    "image/in1k_finetune": (200, 5e-4, "binary_cross_entropy", 32, 4),
    "video/k400_finetune": (75, 7.5e-4, "cross_entropy", 32, 8),
    "audio/as2m_probe": (250, 4e-3, "binary_cross_entropy", 8, 4),
    "audio/as20k_probe": (400, 4e-2, "binary_cross_entropy", 8, 4),
    "image/in1k_probe": (300, 2e-3, "binary_cross_entropy", 32, 4),
}
# encoder and tokenizer: epochs and learning rate; batch of a GPU; codebooks and codes
PRETRAINING = {
    "audio/as2m_base": (130, 5e-4, 30, 2e-4, 16, (4, 256)),
    "audio/as2m_uniform": (130, 5e-4, 30, 2e-4, 16, (4, 256)),
    "audio/as2m_vq": (130, 5e-4, 30, 2e-4, 16, (1, 1024)),
    "image/in1k_base": (400, 5e-4, 100, 2e-4, 16, (4, 256)),
    "image/in1k_vq": (400, 5e-4, 100, 2e-4, 16, (1, 1024)),
    "video/k400_base": (800, 1.2e-3, 200, 2.5e-4, 32, (4, 256)),
    "video/k400_vq": (800, 1.2e-3, 200, 2.5e-4, 32, (1, 1024)),
}


@pytest.mark.parametrize("name", FINETUNING)
def test_fine_tuning_and_probes_are_table_5(name):
    recipe, (epochs, rate, loss, batch, nodes) = load_recipe(name, cls=FinetuneRecipe), FINETUNING[name]
    training = recipe.training
    assert (training.epochs, training.learning_rate, training.loss, training.batch_size) == (epochs, rate, loss, batch)
    assert training.weight_decay == 1e-4
    if name.endswith("probe"):
        assert training.layer_decay == 0 and training.mixup == training.cutmix == training.label_smoothing == 0
        assert not any(recipe.config["classifier_mask_ratio"]) and recipe.config["drop_path_rate"] == 0
        assert not (recipe.data.frequency_mask or recipe.data.time_mask or recipe.data.rand_augment)
    else:  # masking: 2D for sounds, 1D for images, none for videos
        masking = {"audio": [0.2, 0.2], "image": [0.2], "video": None}[name.split("/")[0]]
        assert recipe.config.get("classifier_mask_ratio") == masking and training.max_grad_norm is None
    batches = {int(re.search(r"\| (\d+) \|", rest)[1]) for command, rest in COMMANDS if f" {name} " in command}
    assert batches == {batch * 8 * nodes}


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_is_table_5(name):
    recipe = load_recipe(name)
    encoder_epochs, encoder_rate, tokenizer_epochs, tokenizer_rate, batch, shape = PRETRAINING[name]
    assert [phase.kind for phase in recipe.phases] == ["encoder", "tokenizer", "encoder"]
    for phase in recipe.phases[::2]:
        assert (phase.epochs, phase.learning_rate) == (encoder_epochs, encoder_rate)
    assert (recipe.phases[1].epochs, recipe.phases[1].learning_rate) == (tokenizer_epochs, tokenizer_rate)
    assert (recipe.training.batch_size, recipe.training.weight_decay) == (batch, 1e-4)
    config = recipe.config()
    quantizer = config.quantizer_config
    assert (quantizer.num_codebooks, quantizer.codebook_size) == shape
    assert (quantizer.codebook_dim, quantizer.ema_decay) == (256, 0.99)
    assert quantizer.codebook_init == ("uniform" if "uniform" in name else "kmeans")
    assert config.mask_ratio == (0.9 if "k400" in name else 0.8)


@pytest.mark.parametrize(("name", "shape"), [("audio/as2m_joint", (4, 256)), ("audio/as2m_vq_joint", (1, 1024))])
def test_joint_training_is_equation_8(name, shape):
    recipe = load_recipe(name)
    (phase,), config = recipe.phases, recipe.config()
    assert (phase.kind, phase.tokenizer_update_every, config.joint_tokenizer_weight) == ("joint", 5, 0.5)
    assert (config.quantizer_config.num_codebooks, config.quantizer_config.codebook_size) == shape


def test_every_command_of_the_page_reads_its_recipe():
    """Each with a folder of its own, and a pretrained model that a command above it leaves there."""
    recipes = {}  # output folder -> command
    for command, _ in COMMANDS:
        word, name, *overrides = shlex.split(command)
        recipe = load_recipe(name, overrides, CLASSES[word])
        assert recipe.output_dir not in recipes, command
        if word == "finetune":
            folder, last = recipe.model.rsplit("/", 1)
            assert recipes[folder].startswith("pretrain ") and last in ("encoder-iter1", "final"), command
        recipes[recipe.output_dir] = command
    assert len([command for command, _ in COMMANDS if command.startswith("finetune")]) == 6 * 5 + 4 * 2 + 4


def test_every_report_of_the_page_is_of_a_run_that_it_names():
    """Both halves of each row of table 6, and figures 2 and 3."""
    models = re.findall(r"^\| [^|]+ \| `bridle report --model (\S+) --dataset CLIPS` \|", PAGE, re.MULTILINE)
    runs = {load_recipe(name).output_dir for name in PRETRAINING}
    assert len(models) == 7 and set(models) <= runs


def test_every_file_of_the_facts_is_there():
    """And each fact that is not missing has a test."""
    rows = re.findall(r"^\| (.*) \|$", PAGE[PAGE.index("## The facts") :], re.MULTILINE)
    rows = [row.split(" | ") for row in rows if " | " in row and not row.startswith(("BRIDLE", "T. Morita"))]
    assert len(rows) >= 20
    for fact, here, *where in rows:
        if here.startswith("missing"):
            continue
        sources, tests = (re.findall(r"`([\w/.]+)`", text) for text in where)
        assert (sources or "recipes" in where[0]) and tests, fact
        for path in [*(SOURCES / name for name in sources), *(TESTS / name for name in tests)]:
            assert path.exists(), f"{fact}: {path}"


def test_the_rows_of_table_2_are_those_without_noise():
    rows = PAGE[PAGE.index("Table 2, individual perplexity") :].split("\n\n")[1]
    methods = re.findall(r"^\| [^|]+ \| `(\w[\w-]*)` \|", rows, re.MULTILINE)
    recipe = load_recipe("autoencoding/imagenet_64x64x3", cls=AutoencodingRecipe)
    assert methods == [method.name for method in recipe.methods if method.name.startswith("softmax-")]


@pytest.mark.parametrize(
    ("title", "name", "cls"),
    [
        ("Table 1, code use", "autoencoding/imagenet_64x64x3", AutoencodingRecipe),
        ("Table 3, code use", "wav2vec2/librispeech_1x1024", Wav2Vec2Recipe),
    ],
)
def test_the_second_paper_s_rows_are_those_of_the_recipes(title, name, cls):
    rows = PAGE[PAGE.index(title) :].split("\n\n")[1]
    methods = re.findall(r"^\| [^|]+ \| `(\w[\w-]*)` \|", rows, re.MULTILINE)
    assert methods == [method.name for method in load_recipe(name, cls=cls).methods]
