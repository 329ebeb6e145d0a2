"""The schedule: lengths, learning rates, what is frozen, when codes are reset."""

from math import cos, pi

import pytest
import torch

from bridle_hf import BridleForPreTraining
from bridle_hf.codebook_training_bridle import project
from bridle_hf.losses_bridle import objective, phase_weights
from bridle_hf.training import RecipeError, load_recipe
from bridle_hf.training.phases import KINDS, EncoderPhase, JointPhase, build_schedule


@pytest.fixture
def schedule(tiny_recipe):
    return lambda *overrides, processes=1: build_schedule(
        load_recipe(tiny_recipe, ["output_dir=x", *overrides]), processes
    )


@pytest.fixture
def model(tiny_recipe):
    torch.manual_seed(0)
    return BridleForPreTraining(load_recipe(tiny_recipe, ["output_dir=x"]).config())


def batch(rows=4, padded=0, seed=0):
    mask = torch.ones(rows, 64, dtype=torch.long)
    mask[:, 64 - padded :] = 0
    return {"input_values": torch.randn(rows, 64, 16, generator=torch.manual_seed(seed)), "attention_mask": mask}


def drawn(**options):
    """As `Phase.draw` gives it where no frame is padding."""
    return {"input_values": batch(**options)["input_values"]}


def test_iterations_are_counted_as_the_paper_does(schedule):
    kinds = "[{kind: encoder}, {kind: tokenizer}, {kind: encoder}, {kind: tokenizer}, {kind: encoder}]"
    phases = schedule(f"phases={kinds}", "training.max_steps_per_phase=2")
    names = ["encoder-iter1", "tokenizer-iter2", "encoder-iter2", "tokenizer-iter3", "encoder-iter3"]
    assert [phase.name for phase in phases] == names
    assert [phase.steps for phase in phases] == [2] * 5


def test_an_entry_speaks_over_its_section_and_a_section_over_the_default(schedule):
    first, second = schedule(
        "phases=[{kind: encoder, learning_rate: 1.0, epochs: 3}, {kind: encoder}]",
        "encoder={steps: 50, learning_rate: 0.5, warmup_steps: 7}",
        "training.examples_per_epoch=96",
        "training.gradient_accumulation_steps=2",
        processes=3,
    )
    # 3 epochs of 96 clips in steps of 4 clips x 2 x 3 processes
    assert (first.steps, first.learning_rate, first.warmup_steps) == (12, 1.0, 7)
    assert (second.steps, second.learning_rate, second.warmup_steps) == (50, 0.5, 7)
    assert schedule()[1].learning_rate == 2e-4  # the paper's, for a tokenizer phase


def test_a_phase_cut_short_keeps_its_share_of_warm_up(schedule):
    (phase,) = schedule("phases=[{kind: encoder, steps: 1000, warmup_steps: 200}]", "training.max_steps_per_phase=10")
    assert (phase.steps, phase.warmup_steps) == (10, 2)


def test_a_phase_that_warms_up_to_its_end_is_said(schedule, caplog):
    schedule("phases=[{kind: encoder, steps: 10, warmup_steps: 9}]")
    assert not caplog.messages
    (phase,) = schedule("phases=[{kind: encoder, steps: 10, warmup_steps: 20}]")
    assert phase.warmup_steps == 10
    (line,) = set(caplog.messages)
    assert line.startswith("`phases.0`: the warm-up of 20 steps leaves none of its 10 steps")
    assert line.endswith("lower `phases.0.warmup_steps`")


def test_a_phase_without_a_length_is_refused(tiny_recipe):
    """When the recipe is read, before anything is opened."""
    with pytest.raises(RecipeError, match="`phases.0` has no length"):
        load_recipe(tiny_recipe, ["output_dir=x", "phases=[{kind: encoder}]"])
    with pytest.raises(RecipeError, match="`phases.0` counts in epochs.*examples_per_epoch.*override 'phases="):
        load_recipe(tiny_recipe, ["output_dir=x", "phases=[{kind: encoder, epochs: 3}]"])


def test_a_phase_that_many_processes_leave_no_step_is_refused(tiny_recipe):
    few = ["output_dir=x", "phases=[{kind: encoder, epochs: 1}]", "training.examples_per_epoch=8"]
    recipe = load_recipe(tiny_recipe, [*few, "training.batch_size=4"])
    assert recipe.build_tasks(2)[0].steps == 1
    with pytest.raises(RecipeError, match="`phases.0` has 0 steps; it takes .* at least one step"):
        recipe.build_tasks(16)


def test_learning_rate_warms_up_linearly_and_falls_as_a_cosine(schedule):
    settings = "{kind: encoder, steps: 14, warmup_steps: 4, learning_rate: 2.0, min_learning_rate: 1.0}"
    (phase,) = schedule(f"phases=[{settings}]")
    rates = [phase.learning_rate_at(step) for step in range(14)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4:] == pytest.approx([1 + (1 + cos(pi * k / 10)) / 2 for k in range(10)])


def test_modes_of_each_phase(schedule, model):
    for phase, frozen in zip(schedule(), (["tokenizer"], ["bridle", "decoder"], ["tokenizer"]), strict=True):
        phase.set_modes_(model)
        for part in ("bridle", "decoder", "tokenizer"):
            module = getattr(model, part)
            assert module.training == (part not in frozen)
            assert {p.requires_grad for p in module.parameters()} == {part not in frozen}


def test_codebooks_start_from_real_patches_only(model):
    batches = iter([batch(2, padded=16, seed=seed) for seed in range(9)])
    model.initialize_codebooks(batches, torch.Generator().manual_seed(0))
    # 8 samples for each of 4 codes; 2 clips of 4 x 2 patches, a quarter of them padding, are 12
    assert len(list(batches)) == 9 - 3
    assert model.tokenizer.quantizer.initialized
    counts = model.tokenizer.quantizer.codebooks[0].cluster_size
    assert counts.sum() == pytest.approx(36, abs=1)


def test_projected_tokens_leave_modes_and_padding_alone(model):
    model.tokenizer.train()
    full, cut = drawn(), drawn()
    cut["valid"] = torch.arange(8).expand(4, 8) < 6
    cut["input_values"][:, 48:] = 1e6
    tokens = project(model, cut)
    assert model.tokenizer.training and not tokens.requires_grad
    torch.testing.assert_close(tokens, project(model, full).view(4, 8, -1)[:, :6].flatten(0, 1))


def test_tokenizer_phase_starts_with_a_new_tokenizer_and_its_own_codebooks(schedule, model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    schedule()[1].start_(model, iter([batch(seed=seed) for seed in range(9)]), torch.Generator().manual_seed(0))
    assert model.tokenizer.cold_start is None and model.tokenizer.quantizer.initialized
    after = model.state_dict()
    assert "tokenizer.encoder.layers.0.mlp.fc1.weight" in after and "tokenizer.cold_start.projection" not in after
    assert all(torch.equal(before[n], after[n]) for n in after if n.startswith(("bridle.", "decoder.")))


def test_tokenizer_can_start_as_a_copy_of_the_encoder(schedule, model):
    batches = iter([batch(seed=seed) for seed in range(9)])
    schedule("tokenizer.from_encoder=true")[1].start_(model, batches, torch.Generator().manual_seed(0))
    copied = model.tokenizer.encoder.state_dict()
    assert all(torch.equal(value, copied[name]) for name, value in model.bridle.state_dict().items())


def test_encoder_phase_of_the_second_iteration_forgets_only_the_head(schedule, model):
    model.tokenizer.reset_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    schedule()[2].start_(model, iter(()), torch.Generator())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {"decoder.head.weight"}  # the bias was and is zero


@pytest.mark.parametrize(
    ("policy", "due"),
    [("never", []), ("first_batch", [0]), ("periodic", [2, 5])],  # periodic: every third step of the first half
)
def test_dead_codes_are_reset_when_the_config_says_so(schedule, model, policy, due):
    (phase,) = schedule("phases=[{kind: tokenizer, steps: 14}]")
    model.initialize_codebooks([batch(seed=seed) for seed in range(9)], torch.Generator().manual_seed(0))
    model.config.quantizer_config.reset = policy
    model.config.quantizer_config.reset_interval = 3
    found = []
    for step in range(14):
        book = model.tokenizer.quantizer.codebooks[1]
        book.set_(book.embed, torch.tensor([0.0, 50.0, 50.0, 50.0]))  # a dead code
        if phase.after_step_(model, [drawn(seed=step)], step, torch.Generator().manual_seed(step))["codes_reset"]:
            found.append(step)
    assert found == due


def test_a_joint_phase_turns_to_the_tokenizer_every_k_th_step(schedule):
    (phase,) = schedule("phases=[{kind: joint, steps: 9, tokenizer_update_every: 4}]")
    assert isinstance(phase, JointPhase) and not isinstance(phase, EncoderPhase)
    assert [step for step in range(9) if phase.losses_at(step) == "joint"] == [0, 4, 8]
    assert {phase.losses_at(step) for step in (1, 2, 3, 5)} == {"encoder"}


@pytest.mark.parametrize("padded", [0, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_s_own_loss_is_what_the_engine_minimises(schedule, model, kind, padded):
    """The same number by the same code; the counts of the batch are known before the forward pass."""
    (phase,) = schedule(f"phases=[{{kind: {kind}, steps: 3}}]")
    if kind != "encoder":
        model.tokenizer.reset_()
    phase.set_modes_(model)
    drawn = phase.draw(model, iter([batch(padded=padded)]), (0, 0, 0, 0, 0))
    output, weights = phase.forward(model, model, drawn, 0), phase.objective(model, 0)
    counts = {name: torch.tensor(float(phase.counts(model, drawn)[name])) for name in weights}
    assert counts == {name: output.losses[name].count for name in weights}
    assert torch.equal(objective(output.losses, weights, counts), output.loss)
    by_hand = sum(weight * output.losses[name].mean.item() for name, weight in weights.items())
    assert output.loss.item() == pytest.approx(by_hand, rel=1e-6)


def test_eq_8_is_the_encoder_s_loss_and_alpha_times_the_tokenizer_s(model):
    model.config.joint_tokenizer_weight, model.config.cosine_loss_weight = 0.3, 2.0
    assert phase_weights(model.config, "encoder") == {"encoder": 1}
    assert phase_weights(model.config, "tokenizer") == {"codebook": 1, "cosine": 2}
    assert phase_weights(model.config, "joint") == {"encoder": 1, "codebook": 0.3, "cosine": 0.6}
    with pytest.raises(ValueError, match="`phase` is 'decoder'; it takes one of 'encoder', 'tokenizer', 'joint'"):
        phase_weights(model.config, "decoder")


def test_the_teacher_of_a_joint_phase_drops_nothing_out(tiny_recipe):
    """Its features are the same at every call, as the targets of the encoder are."""
    options = ["output_dir=x", "model.drop_path_rate=0.9", "model.hidden_dropout_prob=0.5", "model.mask_ratio=0.5"]
    model = load_recipe(tiny_recipe, options).build_tasks()[0].build(None, begins=True)
    model.tokenizer.reset_()
    model.tokenizer.eval()
    model.bridle.train()
    values, losses = torch.randn(2, 64, 16), set()
    for _ in range(3):
        losses.add(model(values, phase="joint").losses["cosine"].sum.item())
    assert len(losses) == 1 and model.bridle.training
