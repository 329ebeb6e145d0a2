"""Discrete autoencoding: train the autoencoder with each quantizer of a recipe and measure codes and pictures.

Section 4.1 of T. Morita (2026), its tables 1 and 2 and figure 2.
"""

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

from ..codebook_metrics import code_counts, usage
from ..losses_bridle import LossSum
from ..quantization_bridle import build_quantizer
from .autoencoder import DiscreteAutoencoder
from .batches import ordered_batches
from .fidelity import Fidelity
from .table import DatasetArguments, Method, RowOutput, TableRecipe, open_split

logger = logging.getLogger(__name__)

PERCENTILES = (75, 90, 99, 100)
SHOWN = 16  # test images in a picture of reconstructions


@dataclass
class ImageArguments(DatasetArguments):
    """Where the images come from.

    Attributes:
        size: images are scaled and cut at the centre to this many pixels a side; for training, mirrored at random.
    """

    size: int = 256


@dataclass
class AutoencoderArguments:
    """Keyword arguments of `DiscreteAutoencoder`."""

    channels: int = 256
    downsampling: int = 4
    num_blocks: int = 2


@dataclass(kw_only=True)
class AutoencodingRecipe(TableRecipe):
    """One autoencoder a method, trained on mean squared error and the quantizer's loss.

    Attributes:
        fidelity: also measure FID and IS, which takes torchmetrics and the weights of Inception.
    """

    data: ImageArguments
    model: AutoencoderArguments = field(default_factory=AutoencoderArguments)
    fidelity: bool = False

    def build(self, method: Method) -> DiscreteAutoencoder:
        torch.manual_seed(self.seed)
        model = DiscreteAutoencoder(build_quantizer(method.config(self.quantizer)), **asdict(self.model))
        # Channels last: a step on CPUs takes a quarter less, and the quantizer's vectors lie in one piece.
        return model.to(memory_format=torch.channels_last)

    def quantizer_of(self, model):
        return model.quantizer

    def vectors(self, model, batch):
        return model.encode(batch["images"])

    def objective(self):
        return {"reconstruction": 1.0, "quantizer": 1.0}

    def count(self, batch):
        return len(batch["images"])

    def forward(self, model, bare, batch):
        images = batch["images"]
        reconstruction, output = model(images)
        count = torch.tensor(float(len(images)), device=images.device)
        losses = {"reconstruction": F.mse_loss(reconstruction.float(), images), "quantizer": output.loss}
        return RowOutput({name: LossSum.of_mean(loss, count) for name, loss in losses.items()}, output)

    def open_samples(self, train):
        return open_split(self.data, train)

    def collate(self, examples, seed, train):
        pixels = [to_pixels(example[self.data.column], self.data.size) for example in examples]
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, 3, H, W)
        if train:
            mirrored = torch.rand(len(images), 1, 1, 1, generator=torch.Generator().manual_seed(seed)) < 0.5
            images = torch.where(mirrored, images.flip(-1), images)
        return {"images": images}

    def measure(self, model, device, folder):
        batches = (batch["images"] for batch in ordered_batches(self, device))
        first = next(batches)
        save_pairs(model, first[:SHOWN], folder / "reconstructions.png")
        return evaluate(model, chain([first], batches), device, self.fidelity)

    def columns(self, results):
        individual = results["individual_perplexity"].values()
        row = {
            "rMSE": f"{results['rmse']:.4f}",
            "codes per image": f"{results['codes_per_image']:.1f}",
            "individual perplexity 75 / 90 / 99 / max": " / ".join(f"{value:.2f}" for value in individual),
        }
        if "fid" in results:
            row |= {"FID": str(results["fid"]), "IS": str(results["inception_score"])}
        return row

    def draw(self, results):
        try:
            from .popularity import plot_popularity
        except ImportError:
            logger.warning('popularity.svg is not drawn without matplotlib: pip install "bridle-hf[report]"')
        else:
            plot_popularity(results, Path(self.output_dir) / "popularity.svg")


def to_pixels(image: Image.Image, size: int) -> np.ndarray:
    """An image, scaled and cut at the centre: (size, size, 3) uint8."""
    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size)))


@torch.no_grad()
def evaluate(model: DiscreteAutoencoder, images: Iterable[torch.Tensor], device, fidelity: bool = False) -> dict:
    """What the codes and the pictures of a trained autoencoder are like.

    Args:
        images: batches (B, 3, H, W) in [-1, 1], on the device.
        fidelity: also FID and IS; a reason in their place where they cannot be had.

    Returns:
        "code_use" and "perplexity" a codebook; "rmse" of pixels in [0, 1]; "codes_per_image", mean number of different
        codes; "popularity", share of the places that each code of the first codebook has, falling;
        "individual_perplexity", percentile -> exp(entropy) of single assignments in training, 1 for one-hot ones;
        "temperature" of a softmax.
    """
    squares, pixels, codes, spread, scores = 0.0, 0, [], [], Fidelity(device) if fidelity else None
    for batch in images:
        reconstruction, output = model(batch)
        squares += ((reconstruction - batch) / 2).square().sum().item()
        pixels += batch.numel()
        codes.append(output.codes.flatten(1, -2).cpu())  # (B, h w, M)
        individual = model.individual_perplexity(batch)
        if individual is not None:
            spread.append(individual.cpu())
        if scores is not None:
            scores.update_(batch, reconstruction)
    codes = torch.cat(codes)
    counts = code_counts(codes, model.quantizer.codebook_size)  # (M, K)
    used = usage(counts)
    spread = torch.cat(spread).numpy() if spread else np.ones(1)
    book = next(iter(model.quantizer.codebooks), None)
    return {
        "code_use": used["cur"].tolist(),
        "perplexity": used["perplexity"].tolist(),
        "rmse": (squares / pixels) ** 0.5,
        "codes_per_image": float(np.mean([[len(book.unique()) for book in image.T] for image in codes])),
        "popularity": np.sort(counts[0] / counts[0].sum())[::-1].tolist(),
        "individual_perplexity": {str(p): float(np.percentile(spread, p)) for p in PERCENTILES},
        "temperature": book.temperature.item() if hasattr(book, "temperature") else None,
        **(scores.compute() if scores is not None else {}),
    }


@torch.no_grad()
def save_pairs(model: DiscreteAutoencoder, images: torch.Tensor, path: Path) -> None:
    """Images (B, 3, H, W) in [-1, 1] in a line, and what codes make of them below, as a PNG of 2 H x B W pixels."""
    pairs = torch.stack([images, model(images)[0].clamp(-1, 1)])  # (2, B, 3, H, W)
    pixels = (127.5 * (pairs + 1)).round().byte().permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    Image.fromarray(pixels.cpu().numpy()).save(path)
