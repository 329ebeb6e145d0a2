"""Pretraining by hand and under transformers' `Trainer`: codebooks are set, move, and end as healthy as those of the
loop of the package on the same data."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from bridle_hf import BridleForAudioClassification, BridleForPreTraining, BridleModel
from bridle_hf.codebook_metrics import usage
from bridle_hf.training import load_recipe, pretrain, trainer_callback
from bridle_hf.training.trainer_callback import BridleTrainerCallback

SETTINGS = {
    "output_dir": "x",
    "model": {
        "hidden_size": 32,
        "drop_path_rate": 0.0,
        "quantizer_config": {
            "num_codebooks": 2, "codebook_size": 16, "codebook_dim": 8, "ema_decay": 0.9, "reset_interval": 5,
        },
    },
    "training": {"batch_size": 16, "tracker": None, "logging_steps": 50},
    "phases": [{"kind": "encoder", "steps": 30}, {"kind": "tokenizer", "steps": 40, "from_encoder": True}],
    "encoder": {"learning_rate": 1e-3},
    "tokenizer": {"learning_rate": 1e-4},
    "data.dataset": "",
    "data.roll": False,
    "data.gain": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tiny_recipe):
    return load_recipe(tiny_recipe, SETTINGS)


@pytest.fixture(scope="module")
def waveforms():
    """64 tones in noise, 0.64 s each."""
    rng, time = np.random.default_rng(0), np.arange(10240) / 16000
    tones = (np.sin(2 * np.pi * rng.uniform(200, 6000) * time) * rng.uniform(0.05, 0.5) for _ in range(64))
    return [(tone + 0.02 * rng.standard_normal(len(time))).astype(np.float32) for tone in tones]


@pytest.fixture(scope="module")
def examples(recipe, waveforms):
    inputs = recipe.build_processor()(waveforms, sampling_rate=16000, padding="max_length", truncation=True)
    return [
        {"input_values": torch.as_tensor(values), "attention_mask": torch.as_tensor(mask)}
        for values, mask in zip(inputs["input_values"], inputs["attention_mask"], strict=True)
    ]


@pytest.fixture
def model(recipe):
    torch.manual_seed(0)
    return BridleForPreTraining(recipe.config())


@pytest.fixture
def warned(caplog):
    """What transformers' loggers warned of, each message anew."""
    logger = transformers_logging.get_logger("bridle_hf.modeling_bridle")
    logger.warning_once.cache_clear()
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        yield lambda: [each.message for each in caplog.records if "never set from data" in each.message]
    logging.getLogger("transformers").propagate = False


def batches(examples, size=16):
    joined = {name: torch.stack([each[name] for each in examples]) for name in examples[0]}
    return [{name: value[at : at + size] for name, value in joined.items()} for at in range(0, len(examples), size)]


def perplexity(model, examples):
    """Perplexity and share of used codes of each codebook over all clips."""
    (batch,) = batches(examples, len(examples))
    codes = model.eval().tokenizer.encode(batch["input_values"], batch["attention_mask"]).flatten(0, 1)
    measured = usage(np.stack([np.bincount(c, minlength=16) for c in codes.T.numpy()]), (16, 16))
    return measured["perplexity"], measured["cur"]


def train(model, examples, folder, steps, rate, *callbacks, **options):
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, learning_rate=rate, report_to="none",
        use_cpu=True, disable_tqdm=True, lr_scheduler_type="cosine", warmup_steps=steps // 10,
        **{"save_strategy": "no", "per_device_train_batch_size": 16} | options,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=arguments, train_dataset=examples, eval_dataset=examples, callbacks=list(callbacks)
    )
    trainer.train()
    return trainer


def test_a_step_on_codebooks_that_were_never_set_warns_once(model, examples, warned):
    batch = batches(examples)[0]
    model.train()(**batch)
    model(**batch)
    assert len(warned()) == 1


def test_no_warning_once_they_are_set_loaded_or_not_trained_on(model, examples, warned, tmp_path):
    batch = batches(examples)[0]
    model.eval()(**batch)  # `forward` alone: evaluation goes on in silence
    assert not model.tokenizer.quantizer.was_set
    model.initialize_codebooks(batches(examples))
    model.train()(**batch)
    model.save_pretrained(tmp_path)
    loaded = BridleForPreTraining.from_pretrained(tmp_path)
    loaded.train()(**batch)
    copied = BridleForPreTraining(model.config)
    copied.load_state_dict(model.state_dict())
    copied.train()(**batch)
    assert not warned()
    model.start_tokenizer_phase()
    model.train()(**batch)
    assert len(warned()) == 1


def test_codebooks_are_set_from_the_first_batches_and_from_no_more(model, examples):
    model.config.quantizer_config.kmeans_samples_per_code = 8
    read = []
    model.initialize_codebooks(read.append(batch) or batch for batch in batches(examples, 8) * 9)
    # 8 samples for each of 16 codes are 128 tokens; a clip of 64 x 16 in patches of 16 x 8 has 8
    assert len(read) == 2 and model.tokenizer.quantizer.initialized
    model.initialize_codebooks(batches(examples[:4]))  # 32 tokens: fewer than wanted, enough for 16 codes
    with pytest.raises(ValueError, match="`z` holds 8 vectors .* at least one per code, 16"):
        model.initialize_codebooks(batches(examples[:1]))
    with pytest.raises(TypeError, match="batches is a dict; it takes a list of batches"):
        model.initialize_codebooks(batches(examples)[0])
    with pytest.raises(ValueError, match=r"a batch is keys \['pixel_values'\]; the model takes a dict with 'input_val"):
        model.initialize_codebooks([{"pixel_values": torch.zeros(1, 3, 8, 8)}])


def test_phases_are_begun_by_name(model, examples):
    batch = batches(examples)[0]
    model.initialize_codebooks(batches(examples))
    assert set(model(**batch).losses) == {"encoder"}
    model.start_tokenizer_phase()
    copied = model.tokenizer.encoder.state_dict()
    assert all(torch.equal(value, copied[name]) for name, value in model.bridle.state_dict().items())
    model.initialize_codebooks(batches(examples))
    output = model.train()(**batch)
    assert {"cosine", "codebook"} <= set(output.losses) and output.quantizer_stats is not None
    assert set(model(**batch, phase="encoder").losses) == {"encoder"}
    head = model.decoder.head.weight.clone()
    model.start_encoder_phase()
    assert set(model(**batch).losses) == {"encoder"} and not torch.equal(head, model.decoder.head.weight)


def test_codebooks_that_use_few_codes_are_said_at_the_end(model, examples, tmp_path, monkeypatch):
    said, callback = [], BridleTrainerCallback()
    monkeypatch.setattr(trainer_callback.logger, "warning", lambda text, *given: said.append(text % given))
    train(model, examples, tmp_path, 1, 1e-3, callback)
    assert not said and callback.codes is not None
    callback.codes.zero_()
    trainer_callback.HOOKS[model] = model.register_forward_hook(lambda *_: None)
    callback.on_train_end(None, None, None, model=model)
    assert (
        "codebook 1 of" in said[0] and "as if they were 1.0 (perplexity)" in said[0] and "random projection" in said[0]
    )
    model.start_tokenizer_phase()
    trainer_callback.HOOKS[model] = model.register_forward_hook(lambda *_: None)
    callback.on_train_end(None, None, None, model=model)
    assert "'ema_decay': 0.9" in said[1] and "random projection" not in said[1]


def test_evaluate_gives_the_loss_of_the_phase(model, examples, tmp_path):
    model.initialize_codebooks(batches(examples))
    trainer = train(model, examples, tmp_path, 1, 1e-3, BridleTrainerCallback(), per_device_eval_batch_size=64)
    found = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        expected = model.eval()(**batches(examples, 64)[0])
    assert found == pytest.approx(expected.loss.item(), rel=1e-6)
    assert model(**batches(examples)[0], return_loss=False).loss is None


def test_micro_batches_make_the_loss_and_gradient_of_the_batch(recipe, examples, tmp_path, monkeypatch):
    """Whatever column stands beside the inputs."""
    labelled = [example | {"labels": number % 2} for number, example in enumerate(examples)]
    for cls, given in ((BridleForPreTraining, labelled), (BridleForAudioClassification, labelled)):
        found = []
        for size, micro_batches in ((16, 1), (4, 4)):
            torch.manual_seed(0)
            model = cls(recipe.config()).eval()
            monkeypatch.setattr(model, "train", lambda *_, model=model: model)  # no dropout, one fixed mask
            options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": micro_batches}
            trainer = train(model, given, tmp_path, 1, 1e-3, logging_steps=1, **options)
            found.append([trainer.state.log_history[0][name] for name in ("loss", "grad_norm")])
        assert found[1] == pytest.approx(found[0], rel=0.05)


def test_predict_gathers_what_there_is(model, examples, tmp_path):
    model.initialize_codebooks(batches(examples))
    trainer = train(model, examples, tmp_path, 1, 1e-3, BridleTrainerCallback())
    found = trainer.predict(examples)
    assert len(found.predictions[0]) == len(examples) and found.metrics["test_loss"] > 0


def test_a_checkpoint_of_another_phase_is_refused(model, examples, tmp_path):
    model.initialize_codebooks(batches(examples))
    model.start_tokenizer_phase()
    options = {"save_strategy": "steps", "save_steps": 1}
    train(model, examples, tmp_path, 2, 1e-3, BridleTrainerCallback(), **options)
    again = BridleForPreTraining.from_pretrained(tmp_path / "checkpoint-1")
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=16, report_to="none", use_cpu=True
    )

    def resume():
        trainer = Trainer(again, arguments, train_dataset=examples, callbacks=[BridleTrainerCallback()])
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
        return trainer.state.global_step

    with pytest.raises(ValueError, match="saved while model.phase was 'tokenizer', and it is 'encoder'"):
        resume()
    again.phase = "tokenizer"
    assert resume() == 2


def test_codebooks_move_once_a_step_by_all_of_its_batches(model, examples, tmp_path):
    """Two batches accumulated are one step of both: eq. 9-13 by hand."""
    model.config.quantizer_config.reset = "never"
    model.initialize_codebooks(batches(examples))
    model.start_tokenizer_phase()
    model.initialize_codebooks(batches(examples))
    book = model.tokenizer.quantizer.codebooks[0]
    before = {name: value.clone().double() for name, value in book.state_dict().items()}
    with torch.no_grad():
        both = batches(examples[:32], 32)[0]
        projected = model.eval().tokenizer.project(both["input_values"]).flatten(0, 1).double()
    rows = torch.nn.functional.normalize(projected, dim=-1)
    nearest = torch.cdist(rows, before["embed"]).argmin(dim=1)
    counts = torch.bincount(nearest, minlength=16).double()
    sums = torch.zeros_like(before["embed"]).index_add_(0, nearest, rows)
    train(model, examples[:32], tmp_path, 1, 0.0, BridleTrainerCallback(), gradient_accumulation_steps=2, seed=3)
    torch.testing.assert_close(
        book.cluster_size.double(), 0.9 * before["cluster_size"] + 0.1 * counts, rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(book.embed_sum.double(), 0.9 * before["embed_sum"] + 0.1 * sums, rtol=1e-4, atol=1e-5)


class Interrupted(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


@pytest.mark.parametrize("again", [True, False])
def test_an_interrupted_training_leaves_nothing_to_the_next(model, examples, tmp_path, monkeypatch, again):
    """A training after an interrupted one counts each step's statistics once; the old callback stores no inputs."""
    first = BridleTrainerCallback()
    with pytest.raises(KeyboardInterrupt):
        train(model, examples, tmp_path, 2, 1e-3, first, Interrupted())
    model.start_tokenizer_phase()
    model.initialize_codebooks(batches(examples))
    counted = []
    monkeypatch.setattr(model.tokenizer, "update_", lambda found: counted.append(float(found["counts"].sum())))
    train(model, examples, tmp_path, 2, 1e-3, first if again else BridleTrainerCallback())
    assert counted == [2 * 16 * 8] * 2  # codebooks, clips, patches
    assert not first.inputs and not model._forward_hooks


def test_under_trainer_codebooks_are_as_healthy_as_in_the_loop(recipe, waveforms, examples, tmp_path, warned):
    final = pretrain(replace(recipe, output_dir=str(tmp_path / "loop")), waveforms)
    loop = perplexity(BridleForPreTraining.from_pretrained(final), examples)

    encoder = BridleModel.from_pretrained(tmp_path / "loop" / "encoder-iter1").state_dict()

    def under_trainer(*callbacks):
        torch.manual_seed(0)
        model = BridleForPreTraining(recipe.config())
        model.bridle.load_state_dict(encoder)
        model.start_tokenizer_phase()
        options = {"adam_beta2": 0.95, "weight_decay": 1e-4}
        train(model, examples, tmp_path / "trainer", 40, 1e-4, *callbacks, **options)
        return perplexity(model, examples)

    found = under_trainer(BridleTrainerCallback())
    assert not warned()
    alone = under_trainer()
    assert warned()
    # at least as many codes, as evenly used; those of the first codebook swing with the seed
    assert (found[0] > 0.8 * loop[0]).all() and (found[1] >= loop[1] - 1 / 16).all()
    assert found[0][1] == pytest.approx(loop[0][1], rel=0.15)
    assert alone[0][1] < loop[0][1] / 2
