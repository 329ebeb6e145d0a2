"""wav2vec 2.0 pretraining with any quantizer in place of its own: section 4.2 of T. Morita (2026), table 3."""

from dataclasses import dataclass, field

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForPreTraining
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices

from ..build_quantizer_bridle import build_quantizer
from ..data.decoding import decode_audio
from ..evaluation.codebooks import code_counts, usage
from ..training.phases import start_codebooks_
from .methods import (
    DatasetArguments,
    Method,
    build_loader,
    build_optimizer,
    check_methods,
    endless,
    open_split,
    quantizer_keys,
)

RATE = 16_000


class Wav2Vec2Quantizer(nn.Module):
    """Stands where `Wav2Vec2ForPreTraining` has its quantizer: a linear layer, then one of ours.

    The output of the last call stays in `output`, since the model that calls it has no place for codes and losses.
    """

    def __init__(self, width: int, quantizer: nn.Module):
        super().__init__()
        self.projection = nn.Linear(width, quantizer.dim)
        self.quantizer = quantizer
        self.output = None

    def forward(self, hidden_states, mask_time_indices=None):
        """(B, T, width) -> vectors (B, T, d), and the perplexity of the codes, summed over the codebooks: ().

        As in wav2vec 2.0 only masked places count, where `mask_time_indices` (B, T) tells them.
        """
        self.output = self.quantizer(self.projection(hidden_states), mask=mask_time_indices)
        codes = self.output.codes if mask_time_indices is None else self.output.codes[mask_time_indices.bool()]
        counts = torch.stack(
            [book.bincount(minlength=self.quantizer.codebook_size) for book in codes.flatten(0, -2).t()]
        )  # (M, K)
        shares = counts / counts.sum(-1, keepdim=True).clamp(min=1)
        return self.output.quantized, torch.special.entr(shares).sum(-1).exp().sum()


class Wav2Vec2WithQuantizer(Wav2Vec2ForPreTraining):
    """`Wav2Vec2ForPreTraining` whose quantizer, and the term that keeps its codes in use, are ours.

    loss = contrastive loss + `quantizer_loss_weight` * masked places * loss of the quantizer; the library sums its own
    losses over the masked places too.
    """

    def __init__(self, config: Wav2Vec2Config, quantizer: nn.Module, quantizer_loss_weight: float = 0.1):
        config.codevector_dim, config.diversity_loss_weight = quantizer.dim, 0.0
        super().__init__(config)
        self.quantizer = Wav2Vec2Quantizer(config.conv_dim[-1], quantizer)
        self.quantizer_loss_weight = quantizer_loss_weight

    def vectors(self, input_values):
        """What our quantizer receives: (B, samples) -> (B, T, d)."""
        features = self.wav2vec2.feature_extractor(input_values).transpose(1, 2)  # (B, T, width)
        return self.quantizer.projection(self.wav2vec2.feature_projection.layer_norm(features))

    def forward(self, input_values, mask_time_indices=None, sampled_negative_indices=None, **kwargs):
        output = super().forward(
            input_values,
            mask_time_indices=mask_time_indices,
            sampled_negative_indices=sampled_negative_indices,
            **kwargs,
        )
        if output.loss is not None:
            masked = mask_time_indices.sum()
            output.loss = output.loss + self.quantizer_loss_weight * masked * self.quantizer.output.loss
        return output


@dataclass
class SpeechArguments(DatasetArguments):
    """Where the clips come from.

    Attributes:
        seconds: every clip is cut to this length, at a random place for training, or repeated up to it.
    """

    seconds: float = 10.0


@dataclass
class Wav2Vec2Recipe:
    """One pretraining a method, all else equal.

    Attributes:
        model: fields of transformers' `Wav2Vec2Config`.
        quantizer: fields of `BridleQuantizerConfig` that all methods share.
        methods: the rows of the table.
        batch_size: clips of a process; K of the KNN regularisers is per process too.
        learning_rate: falls as a cosine to `final_share` of itself.
        quantizer_loss_weight: of the quantizer's loss beside the contrastive one.
    """

    output_dir: str
    data: SpeechArguments
    methods: list[Method]
    model: dict = field(default_factory=dict, metadata={"keys": lambda _: dict.fromkeys(Wav2Vec2Config().to_dict())})
    quantizer: dict = field(default_factory=dict, metadata={"keys": quantizer_keys})
    quantizer_loss_weight: float = 0.1
    seed: int = 0
    steps: int = 100_000
    batch_size: int = 8
    learning_rate: float = 5e-4
    final_share: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    mixed_precision: str = "no"

    def __post_init__(self):
        check_methods(self)

    def build(self, method: Method) -> Wav2Vec2WithQuantizer:
        """The model of a method, drawn from the recipe's seed."""
        torch.manual_seed(self.seed)
        quantizer = build_quantizer(method.config(self.quantizer))
        return Wav2Vec2WithQuantizer(Wav2Vec2Config(**self.model), quantizer, self.quantizer_loss_weight)

    def run(self, method: Method, accelerator: Accelerator) -> tuple[nn.Module, dict]:
        """Trains and measures a method."""
        model = train(self, method, accelerator)
        if not accelerator.is_main_process:
            return model, {}
        return model, evaluate(model, open_clips(self, train=False), accelerator.device)


def open_clips(recipe: Wav2Vec2Recipe, train: bool) -> DataLoader:
    """Batches of normalised waveforms (B, samples) at 16 kHz with masks and negatives for the contrastive loss."""
    data, config, extractor = recipe.data, Wav2Vec2Config(**recipe.model), Wav2Vec2FeatureExtractor()
    clips = open_split(data, train).cast_column(data.column, datasets.Audio(decode=False))
    length = int(data.seconds * RATE)

    def collate(examples):
        waves = [cut(decode_audio(example[data.column], RATE), length, train) for example in examples]
        values = extractor(waves, sampling_rate=RATE, return_tensors="pt").input_values  # (B, samples)
        return {"input_values": values, **draw_masks(config, *values.shape)}

    return build_loader(recipe, clips, collate, train)


def cut(wave: np.ndarray, length: int, at_random: bool) -> np.ndarray:
    """`length` samples of a clip, from its beginning or a random place; a shorter one is repeated."""
    wave = np.tile(wave, -(-length // len(wave)))
    start = int(torch.randint(len(wave) - length + 1, ())) if at_random else 0
    return wave[start : start + length]


def draw_masks(config: Wav2Vec2Config, rows: int, samples: int) -> dict[str, torch.Tensor]:
    """Masked places (B, T) bool and, for each place, the negatives' numbers in the batch (B, T, n)."""
    frames = samples
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        frames = (frames - kernel) // stride + 1
    mask = _compute_mask_indices((rows, frames), config.mask_time_prob, config.mask_time_length, min_masks=2)
    negatives = _sample_negative_indices((rows, frames), config.num_negatives, mask_time_indices=mask)
    return {"mask_time_indices": torch.from_numpy(mask), "sampled_negative_indices": torch.from_numpy(negatives)}


def train(recipe: Wav2Vec2Recipe, method: Method, accelerator: Accelerator) -> Wav2Vec2WithQuantizer:
    """A model after `recipe.steps` steps, in eval mode."""
    bare = recipe.build(method).to(accelerator.device)
    optimizer, schedule = build_optimizer(bare, recipe, method)
    np.random.seed(recipe.seed)  # the library's masks and negatives
    model, optimizer, loader = accelerator.prepare(bare, optimizer, open_clips(recipe, train=True))
    batches = endless(loader)
    vectors = (bare.vectors(batch["input_values"]) for batch in batches)
    start_codebooks_(bare.quantizer.quantizer, vectors, torch.Generator().manual_seed(recipe.seed))
    model.train()
    bar = tqdm(range(recipe.steps), desc=method.name, disable=not accelerator.is_main_process, mininterval=5)
    for step in bar:
        batch = next(batches)
        with accelerator.autocast():
            output = model(**batch)
        masked = batch["mask_time_indices"].sum()
        accelerator.backward(output.loss / masked)
        accelerator.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if bare.quantizer.output.stats is not None:
            bare.quantizer.quantizer.update_(bare.quantizer.output.stats)
        if step % 10 == 0:
            bar.set_postfix(contrastive=f"{output.contrastive_loss.item() / masked.item():.3f}", refresh=False)
    return bare.eval()


@torch.no_grad()
def evaluate(model: Wav2Vec2WithQuantizer, batches, device) -> dict:
    """Use of the codes on held-out clips, all frames, and the contrastive task on masked ones.

    Returns:
        "code_use" and "perplexity" a codebook; "contrastive_loss" a masked frame in nats.
    """
    np.random.seed(0)
    codes, loss, masked = [], 0.0, 0
    for batch in batches:
        batch = {name: value.to(device) for name, value in batch.items()}
        loss += model(**batch).contrastive_loss.item()
        masked += batch["mask_time_indices"].sum().item()
        vectors = model.vectors(batch["input_values"])
        codes.append(model.quantizer.quantizer.encode(vectors).flatten(0, -2).cpu())  # (B T, M)
    used = usage(code_counts(torch.cat(codes), model.quantizer.quantizer.codebook_size))
    return {
        "code_use": used["cur"].tolist(),
        "perplexity": used["perplexity"].tolist(),
        "contrastive_loss": loss / masked,
    }


def summary_row(results: dict) -> dict[str, str]:
    """One line of the table."""
    return {
        "method": results["method"],
        "code use %": " ".join(f"{100 * share:.1f}" for share in results["code_use"]),
        "perplexity": " ".join(f"{value:.0f}" for value in results["perplexity"]),
        "contrastive loss": f"{results['contrastive_loss']:.3f}",
        "minutes": f"{results['minutes']:.1f}",
    }
