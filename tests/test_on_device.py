"""Steps, runs, fine-tuning and a pipeline on the device at hand: what a GPU computes is what the CPU does.

`pytest -m gpu` runs these and the golden vectors on a machine with a GPU. Elsewhere they run on the CPU.
"""

import copy
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from runs import differing, records, stop_after, weights
from tiny_run import fresh_accelerator, sounds, tiny_recipe, train  # noqa: F401
from tones import one_thread, pretrained, tone, tones  # noqa: F401
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import pipeline
from variants import CLIPS, QUANTIZERS, SIZES, quantizer_options

from bridle_hf import BridleConfig, BridleForPreTraining, BridleModel
from bridle_hf.data import DataArguments
from bridle_hf.finetuning.finetune import FinetuneRecipe, FinetuneTraining, finetune
from bridle_hf.training.phases import KINDS

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DRAWS = ("gumbel",)  # quantizers with a random forward pass


def build(kind, modality="audio", quantizer="rq", **options):
    """A model in the mode of a phase, and the inputs of a step, all on the CPU."""
    torch.manual_seed(0)
    options = {"quantizer_config": quantizer_options(quantizer)} | SIZES | CLIPS[modality] | options
    model = BridleForPreTraining(BridleConfig(modality=modality, cold_start=False, **options))
    if kind == "tokenizer":
        model.tokenizer.reset_()
    KINDS[kind]().set_modes_(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # a GPU draws other numbers than a CPU
    *frames, height, width = model.config.input_size
    channels = () if modality == "audio" else (3,)
    values = {model.main_input_name: torch.randn(4, *frames, *channels, height, width)}
    return model, values | {"noise": torch.rand(4, model.config.num_patches)}


def take_steps(model, inputs, kind, device, steps=3, precision=None):
    """Losses of a few optimizer steps there."""
    model, inputs = copy.deepcopy(model).to(device), {name: value.to(device) for name, value in inputs.items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(steps):
        with torch.autocast(device.type, precision) if precision else nullcontext():
            output = model(**inputs, phase=kind)
        output.loss.backward()
        if output.quantizer_stats is not None:
            model.tokenizer.update_(output.quantizer_stats)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    return losses, model


def check_steps(kind, device, **options):
    model, inputs = build(kind, **options)
    losses, trained = take_steps(model, inputs, kind, device)
    assert np.isfinite(losses).all() and next(trained.parameters()).device.type == device.type
    if options.get("quantizer") not in DRAWS:
        there, _ = take_steps(model, inputs, kind, torch.device("cpu"))
        assert losses == pytest.approx(there, rel=1e-4)
    before = model.state_dict()
    moved = {
        name.split(".")[0] for name, value in trained.state_dict().items() if not torch.equal(value.cpu(), before[name])
    }
    assert moved <= set(KINDS[kind].trains) and moved  # and nothing that is frozen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modality", CLIPS)
def test_steps_of_every_phase_and_modality(kind, modality, device):
    check_steps(kind, device, modality=modality)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_steps_of_every_quantizer(kind, quantizer, device):
    check_steps(kind, device, quantizer=quantizer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modality", CLIPS)
def test_bfloat16_stays_close(kind, modality, device):
    model, inputs = build(kind, modality)
    exact, _ = take_steps(model, inputs, kind, device, steps=1)
    rough, _ = take_steps(model, inputs, kind, device, steps=1, precision=torch.bfloat16)
    assert rough == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("backend", ["MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION"])
@pytest.mark.parametrize("modality", CLIPS)
def test_all_attention_is_the_same(modality, backend, device):
    if backend == "EFFICIENT_ATTENTION" and device.type == "cpu":
        pytest.skip("the CPU has no such kernel")
    torch.manual_seed(0)
    config = {"modality": modality, **SIZES, **CLIPS[modality]}
    eager = BridleModel(BridleConfig(**config, attn_implementation="eager")).to(device, torch.bfloat16).eval()
    sdpa = BridleModel(BridleConfig(**config, attn_implementation="sdpa")).to(device, torch.bfloat16).eval()
    sdpa.load_state_dict(eager.state_dict())
    _, inputs = build("encoder", modality)
    values = {eager.main_input_name: inputs[eager.main_input_name].to(device, torch.bfloat16)}
    with torch.no_grad(), sdpa_kernel(getattr(SDPBackend, backend)):
        expected, got = eager(**values).last_hidden_state, sdpa(**values).last_hidden_state
    assert torch.nn.functional.cosine_similarity(got.float(), expected.float(), dim=-1).min() > 0.999


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile takes a C++ compiler")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modality", CLIPS)
def test_compiled_steps_are_the_same(kind, modality, device):
    torch._dynamo.reset()
    model, inputs = build(kind, modality)
    eager, _ = take_steps(model, inputs, kind, device)
    model.compile()
    compiled, _ = take_steps(model, inputs, kind, device)
    assert compiled == pytest.approx(eager, rel=1e-3)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", ["no", "bf16", pytest.param("fp16", marks=needs_gpu)])
def test_a_stopped_run_ends_like_one_left_alone(train, tmp_path, device, deterministic, precision):  # noqa: F811
    """Bit for bit, in the middle of each phase; the loss scaler of fp16 is where it was."""
    setting = f"training.mixed_precision={precision}"
    train(tmp_path / "alone", setting)
    for steps in (2, 6, 10):
        train(tmp_path / "stopped", setting, stop=stop_after(tmp_path / "stopped", steps))
    assert len(records(tmp_path / "stopped")) < 12
    train(tmp_path / "stopped", setting)
    assert records(tmp_path / "stopped") == records(tmp_path / "alone")
    assert not differing(*(weights(tmp_path / name / "final") for name in ("stopped", "alone")))


@pytest.mark.parametrize("num_workers", [2])
def test_fifty_steps_with_workers(train, tmp_path, device, num_workers):  # noqa: F811
    phases = "phases=[{kind: encoder, steps: 30}, {kind: tokenizer, steps: 20}]"
    train(tmp_path / "run", phases, f"data.num_workers={num_workers}", "training.mixed_precision=bf16")
    losses = [record["loss"] for record in records(tmp_path / "run")]
    assert len(losses) == 50 and np.isfinite(losses).all()
    assert np.mean(losses[20:30]) < np.mean(losses[:5]) and np.mean(losses[45:]) < losses[30]


@needs_gpu
def test_the_loss_scaler_goes_on_after_an_overflow(train, tmp_path, device):  # noqa: F811
    """Its first scale, 65536, is too much for some steps; they are left out, and the run goes on."""
    train(tmp_path / "run", "phases=[{kind: encoder, steps: 30}]", "training.mixed_precision=fp16")
    assert np.isfinite([record["loss"] for record in records(tmp_path / "run")]).all()


def test_fine_tuning_and_a_pipeline(tones, tone, pretrained, tmp_path, device):  # noqa: F811
    recipe = FinetuneRecipe(
        model=str(pretrained),
        output_dir=str(tmp_path / "run"),
        folds=[1],
        data=DataArguments(dataset=str(tones), label_column="sound", fold_column="fold"),
        training=FinetuneTraining(epochs=12, batch_size=4, warmup_epochs=1, learning_rate=5e-3, layer_decay=1.0),
    )
    assert finetune(recipe)["accuracy"] >= 0.9
    classify = pipeline("audio-classification", model=str(tmp_path / "run" / "fold-1"), device=device)
    assert classify.model.device.type == device.type
    for label, name in enumerate(("low", "high")):
        assert classify({"array": tone(label, 100).astype(np.float32), "sampling_rate": 16000})[0]["label"] == name
