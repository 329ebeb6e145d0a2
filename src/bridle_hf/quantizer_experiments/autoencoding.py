"""Discrete autoencoding: train the autoencoder with each quantizer of a recipe and measure codes and pictures.

Section 4.1 of T. Morita (2026), its tables 1 and 2 and figure 2.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

from ..codebook_metrics import code_counts, usage
from ..losses_bridle import LossSum
from ..quantization_bridle import build_quantizer
from .autoencoder import DiscreteAutoencoder, check_channels
from .batches import ordered_batches
from .fidelity import Fidelity, Inception
from .table import DatasetArguments, Method, RowOutput, TableRecipe, open_split

logger = logging.getLogger(__name__)

PERCENTILES = (75, 90, 99, 100)
SHOWN = 16  # test images in a picture of reconstructions


@dataclass
class ImageArguments(DatasetArguments):
    """Where the images come from.

    Attributes:
        size: images are scaled and cropped at the centre to this many pixels per side.
    """

    size: int = 256


@dataclass
class AutoencoderArguments:
    """Keyword arguments of `DiscreteAutoencoder`."""

    channels: list[int] = field(default_factory=lambda: [128, 64, 32])

    def __post_init__(self):
        check_channels(self.channels)

    @property
    def downsampling(self) -> int:
        """Side of the image over the side of its feature map."""
        return 2 ** (len(self.channels) - 1)


@dataclass(kw_only=True)
class AutoencodingRecipe(TableRecipe):
    """One autoencoder a method, trained on mean squared error and the quantizer's loss.

    Attributes:
        fidelity: also measure FID and IS, with torchvision's weights of Inception V3.

    Raises:
        ValueError: a size that the autoencoder cannot halve so often, or more neighbours than a step has vectors.
    """

    data: ImageArguments
    model: AutoencoderArguments = field(default_factory=AutoencoderArguments)
    fidelity: bool = False

    def __post_init__(self):
        size, downsampling = self.data.size, self.model.downsampling
        if size % downsampling:
            raise ValueError(f"`data.size` is {size}; `model.channels` takes multiples of {downsampling}.")
        super().__post_init__()

    def most_vectors(self):
        return self.batch_size * (self.data.size // self.model.downsampling) ** 2

    def check(self, num_processes: int = 1) -> None:
        super().check(num_processes)
        if self.fidelity:
            try:
                Inception()
            except OSError as error:
                raise ValueError(f"`fidelity` is true; {error}. fidelity=false goes without FID and IS.") from error

    def build(self, method: Method) -> DiscreteAutoencoder:
        torch.manual_seed(self.seed)
        model = DiscreteAutoencoder(build_quantizer(method.config(self.quantizer)), self.model.channels)
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
        return {"images": torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1}  # (B, 3, H, W)

    def measure(self, model, device, folder):
        batches = (batch["images"] for batch in ordered_batches(self, device))
        first = next(batches)
        save_pairs(model, first[:SHOWN], folder / "reconstructions.png")
        return evaluate(model, chain([first], batches), Fidelity(device, Inception()) if self.fidelity else None)

    def columns(self, results):
        individual = results["individual_perplexity"].values()
        row = {
            "rMSE": f"{results['rmse']:.4f}",
            "codes per image": f"{mean_key(results['images_by_codes']):.1f}",
            "individual perplexity 75 / 90 / 99 / max": " / ".join(f"{value:.2f}" for value in individual),
        }
        if "fid" in results:
            row |= {"FID": f"{results['fid']:.2f}", "IS": f"{results['inception_score']:.2f}"}
        return row

    def draw(self, results):
        try:
            from .histograms import plot_code_histograms
        except ImportError:
            logger.warning('code_histograms.svg is not drawn without matplotlib: pip install "bridle-hf[report]"')
        else:
            plot_code_histograms(results, Path(self.output_dir) / "code_histograms.svg")


def to_pixels(image: Image.Image, size: int) -> np.ndarray:
    """An image, scaled and cut at the centre: (size, size, 3) uint8."""
    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size)))


@torch.no_grad()
def evaluate(
    model: DiscreteAutoencoder, images: Iterable[torch.Tensor], fidelity: Fidelity | None = None
) -> dict[str, Any]:
    """Measures of the codes and the reconstructions of a trained autoencoder.

    Args:
        images: batches (B, 3, H, W) in [-1, 1], on the model's device.
        fidelity: collects FID and IS.

    Returns:
        "code_use" and "perplexity", one value per codebook; "rmse" of pixels in [0, 1]; "images", their number; for the
        first codebook "images_by_codes", number of different codes -> number of images that use so many, and
        "images_with_code", number of images that contain each code (figure 2); "individual_perplexity",
        percentile -> exp(entropy) of single assignments in training, 1 for one-hot ones (table 2); "temperature" of a
        softmax; "fid" and "inception_score" where `fidelity` is given.
    """
    squares, pixels, codes, spread = 0.0, 0, [], []
    for batch in images:
        reconstruction, output = model(batch)
        squares += ((reconstruction - batch) / 2).square().sum().item()
        pixels += batch.numel()
        codes.append(output.codes.flatten(1, -2).cpu())  # (B, h w, M)
        individual = model.individual_perplexity(batch)
        if individual is not None:
            spread.append(individual.cpu())
        if fidelity is not None:
            fidelity.update_(batch, reconstruction)
    codes, sizes = torch.cat(codes), model.quantizer.codebook_sizes
    used = usage(code_counts(codes, sizes), sizes)
    contained = [image.unique() for image in codes[..., 0]]
    spread = torch.cat(spread).numpy() if spread else np.ones(1)
    book = next(iter(model.quantizer.codebooks), None)
    return {
        "code_use": used["cur"].tolist(),
        "perplexity": used["perplexity"].tolist(),
        "rmse": (squares / pixels) ** 0.5,
        "images": len(codes),
        "images_by_codes": {str(number): images for number, images in sorted(Counter(map(len, contained)).items())},
        "images_with_code": torch.cat(contained).bincount(minlength=sizes[0]).tolist(),
        "individual_perplexity": {str(p): float(np.percentile(spread, p)) for p in PERCENTILES},
        "temperature": book.temperature.item() if hasattr(book, "temperature") else None,
        **(fidelity.compute() if fidelity is not None else {}),
    }


def mean_key(counts: dict[str, int]) -> float:
    """Mean of the numbers that are the keys, each weighted by its count."""
    return sum(int(number) * count for number, count in counts.items()) / sum(counts.values())


@torch.no_grad()
def save_pairs(model: DiscreteAutoencoder, images: torch.Tensor, path: Path) -> None:
    """Images (B, 3, H, W) in [-1, 1] in a line, and what codes make of them below, as a PNG of 2 H x B W pixels."""
    pairs = torch.stack([images, model(images)[0].clamp(-1, 1)])  # (2, B, 3, H, W)
    pixels = (127.5 * (pairs + 1)).round().byte().permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    Image.fromarray(pixels.cpu().numpy()).save(path)
