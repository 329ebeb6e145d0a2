"""wav2vec 2.0 pretraining with any quantizer in place of its own: section 4.2 of T. Morita (2026), table 3."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import datasets
import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForPreTraining
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices

from ..codebook_metrics import code_counts, usage
from ..data.audio_decoding import decode_audio
from ..losses_bridle import LossSum
from ..quantization_bridle import build_quantizer
from .batches import ordered_batches
from .table import DatasetArguments, Method, RowOutput, TableRecipe, open_split

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

    def __init__(self, config: Wav2Vec2Config, quantizer: nn.Module, quantizer_loss_weight: float = 1.0):
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
            # where the library has the loss that keeps its own codes in use
            output.diversity_loss = masked * self.quantizer.output.loss
            output.loss = output.loss + self.quantizer_loss_weight * output.diversity_loss
        return output


@dataclass
class SpeechArguments(DatasetArguments):
    """Where the clips come from.

    Attributes:
        seconds: training clips are cropped to this length at a random place; shorter ones are padded and the padding is
            masked. Tests take whole clips.
    """

    seconds: float = 10.0


@dataclass(kw_only=True)
class Wav2Vec2Recipe(TableRecipe):
    """One pretraining a method.

    Attributes:
        model: fields of transformers' `Wav2Vec2Config`.
        quantizer_loss_weight: of the quantizer's loss beside the contrastive one (eq. 9: 1).
    """

    data: SpeechArguments
    model: dict = field(default_factory=dict, metadata={"keys": lambda _: dict.fromkeys(Wav2Vec2Config().to_dict())})
    quantizer_loss_weight: float = 1.0
    batch_size: int = 8
    learning_rate: float = 5e-4
    final_share: float = 0.01
    weight_decay: float = 0.0

    def most_vectors(self):
        return self.batch_size * count_frames(self.config, int(self.data.seconds * RATE))

    @cached_property
    def config(self) -> Wav2Vec2Config:
        """As every batch needs it; each model has one of its own."""
        try:
            return Wav2Vec2Config(**self.model)
        except StrictDataclassError as error:
            raise ValueError(f"`model`: {error.__cause__ or error}") from error

    @cached_property
    def extractor(self) -> Wav2Vec2FeatureExtractor:
        return Wav2Vec2FeatureExtractor()

    def build(self, method: Method) -> Wav2Vec2WithQuantizer:
        torch.manual_seed(self.seed)
        quantizer = build_quantizer(method.config(self.quantizer))
        return Wav2Vec2WithQuantizer(Wav2Vec2Config(**self.model), quantizer, self.quantizer_loss_weight)

    def quantizer_of(self, model):
        return model.quantizer.quantizer

    def vectors(self, model, batch):
        vectors = model.vectors(batch["input_values"])  # (B, T, d)
        if "attention_mask" not in batch:
            return vectors
        frames = [count_frames(self.config, samples) for samples in batch["attention_mask"].sum(-1).tolist()]
        return torch.cat([clip[:length] for clip, length in zip(vectors, frames, strict=True)])

    def objective(self):
        return {"contrastive": 1.0, "quantizer": self.quantizer_loss_weight}

    def count(self, batch):
        return batch["mask_time_indices"].sum()

    def forward(self, model, bare, batch):
        output, count = model(**batch), batch["mask_time_indices"].sum(dtype=torch.float32)
        losses = {"contrastive": output.contrastive_loss, "quantizer": output.diversity_loss}
        return RowOutput({name: LossSum(loss, count) for name, loss in losses.items()}, bare.quantizer.output)

    def open_samples(self, train):
        return open_split(self.data, train).cast_column(self.data.column, datasets.Audio(decode=False))

    def collate(self, examples, seed, train):
        """Normalised waveforms (B, samples) at 16 kHz, with masks and negatives for the contrastive loss."""
        waves = [decode_audio(example[self.data.column], RATE) for example in examples]
        if train:
            random, length = np.random.default_rng(seed), int(self.data.seconds * RATE)
            waves = [crop(wave, length, random) for wave in waves]
        samples = [len(wave) for wave in waves]
        batch = self.extractor(waves, sampling_rate=RATE, padding=True, return_attention_mask=True, return_tensors="pt")
        padded = {} if min(samples) == max(samples) else {"attention_mask": batch["attention_mask"]}
        return {"input_values": batch["input_values"], **padded, **draw_masks(self.config, samples, seed)}

    def measure(self, model, device, folder):
        # one clip at a time, since the feature encoder's norm over time would see the padding of a batch
        return evaluate(model, ordered_batches(self, device, batch_size=1))

    def columns(self, results):
        return {"contrastive loss": f"{results['contrastive_loss']:.3f}"}


def crop(wave: np.ndarray, length: int, random: np.random.Generator) -> np.ndarray:
    """`length` samples from a random place of a clip; a shorter clip as it is."""
    start = random.integers(max(0, len(wave) - length) + 1)
    return wave[start : start + length]


def draw_masks(config: Wav2Vec2Config, samples: list[int], seed: int) -> dict[str, torch.Tensor]:
    """Masks and negatives of a batch of clips with these lengths; neither touches a frame of padding.

    Returns:
        Masked frames (B, T) bool and, for each frame, the negatives' numbers in the batch (B, T, n).

    Raises:
        ValueError: a clip shorter than one span of the mask.
    """
    frames = [count_frames(config, length) for length in samples]
    if min(frames) < config.mask_time_length:
        raise ValueError(
            f"a clip has {min(samples)} samples, that is {min(frames)} frames; with `model.mask_time_length` "
            f"{config.mask_time_length} it takes at least so many."
        )
    shape, real = (len(frames), max(frames)), np.arange(max(frames)) < np.array(frames)[:, None]
    before = np.random.get_state()
    np.random.seed(seed % 2**32)  # the library draws from numpy's global state
    mask = _compute_mask_indices(
        shape, config.mask_time_prob, config.mask_time_length, torch.from_numpy(real).long(), min_masks=2
    )
    negatives = _sample_negative_indices(shape, config.num_negatives, mask_time_indices=mask)
    np.random.set_state(before)
    return {"mask_time_indices": torch.from_numpy(mask), "sampled_negative_indices": torch.from_numpy(negatives)}


def count_frames(config: Wav2Vec2Config, samples: int) -> int:
    """Frames that the feature encoder makes of a clip."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


@torch.no_grad()
def evaluate(model: Wav2Vec2WithQuantizer, batches: Iterable[dict]) -> dict:
    """Use of the codes on held-out clips, all frames, and the contrastive task on masked ones.

    Args:
        batches: what `Wav2Vec2Recipe.collate` returns, on the model's device.

    Returns:
        "code_use" and "perplexity" a codebook; "contrastive_loss" a masked frame in nats.
    """
    codes, loss, masked = [], 0.0, 0
    for batch in batches:
        loss += model(**batch).contrastive_loss.item()
        masked += batch["mask_time_indices"].sum().item()
        vectors = model.vectors(batch["input_values"])
        codes.append(model.quantizer.quantizer.encode(vectors).flatten(0, -2).cpu())  # (B T, M)
    sizes = model.quantizer.quantizer.codebook_sizes
    used = usage(code_counts(torch.cat(codes), sizes), sizes)
    return {
        "code_use": used["cur"].tolist(),
        "perplexity": used["perplexity"].tolist(),
        "contrastive_loss": loss / masked,
    }
