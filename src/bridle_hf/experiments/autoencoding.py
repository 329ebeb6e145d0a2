"""Discrete autoencoding: train the autoencoder with each quantizer of a recipe and measure codes and pictures.

Section 4.1 of T. Morita (2026), its tables 1 and 2 and figure 2.
"""

from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from PIL import ImageOps
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..build_quantizer_bridle import build_quantizer
from ..evaluation.codebooks import code_counts, usage
from ..training.phases import start_codebooks_
from .autoencoder import DiscreteAutoencoder
from .fidelity import Fidelity
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

PERCENTILES = (75, 90, 99, 100)


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


@dataclass
class AutoencodingRecipe:
    """One autoencoder a method, all else equal.

    Attributes:
        quantizer: fields of `BridleQuantizerConfig` that all methods share.
        methods: the rows of the table.
        batch_size: of a process; K of the KNN regularisers is per process too.
        learning_rate: falls as a cosine to `final_share` of itself.
        fidelity: also measure FID and IS, which takes torchmetrics and the weights of Inception.
    """

    output_dir: str
    data: ImageArguments
    quantizer: dict = field(metadata={"keys": quantizer_keys})
    methods: list[Method]
    model: AutoencoderArguments = field(default_factory=AutoencoderArguments)
    seed: int = 0
    steps: int = 100_000
    batch_size: int = 64
    learning_rate: float = 1e-4
    final_share: float = 0.5
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-4
    mixed_precision: str = "no"
    fidelity: bool = False

    def __post_init__(self):
        check_methods(self)

    def build(self, method: Method) -> DiscreteAutoencoder:
        """The autoencoder of a method, drawn from the recipe's seed."""
        torch.manual_seed(self.seed)
        quantizer = build_quantizer(method.config(self.quantizer))
        return DiscreteAutoencoder(quantizer, **asdict(self.model))

    def run(self, method: Method, accelerator: Accelerator) -> tuple[nn.Module, dict]:
        """Trains and measures a method."""
        model = train(self, method, accelerator)
        if not accelerator.is_main_process:
            return model, {}
        return model, evaluate(model, open_images(self, train=False), accelerator.device, self.fidelity)


def train(recipe: AutoencodingRecipe, method: Method, accelerator: Accelerator) -> DiscreteAutoencoder:
    """An autoencoder after `recipe.steps` steps on mean squared error and the quantizer's loss, in eval mode."""
    # Channels last: a step on CPUs takes a quarter less, and the quantizer's vectors lie in one piece.
    bare = recipe.build(method).to(accelerator.device, memory_format=torch.channels_last)
    optimizer, schedule = build_optimizer(bare, recipe, method)
    model, optimizer, loader = accelerator.prepare(bare, optimizer, open_images(recipe, train=True))
    batches = endless(loader)
    start_codebooks_(bare.quantizer, map(bare.encode, batches), torch.Generator().manual_seed(recipe.seed))
    model.train()
    bar = tqdm(range(recipe.steps), desc=method.name, disable=not accelerator.is_main_process, mininterval=5)
    for step in bar:
        images = next(batches)
        with accelerator.autocast():
            reconstruction, output = model(images)
        error = F.mse_loss(reconstruction.float(), images)
        accelerator.backward(error + output.loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if output.stats is not None:
            bare.quantizer.update_(output.stats)
        if step % 50 == 0:
            bar.set_postfix(error=f"{error.item():.4f}", loss=f"{output.loss.item():.3f}", refresh=False)
    return bare.eval()


def open_images(recipe: AutoencodingRecipe, train: bool) -> DataLoader:
    """Batches of images (B, 3, size, size) in [-1, 1]."""

    def collate(examples):
        pixels = [to_pixels(example[recipe.data.column], recipe.data.size) for example in examples]
        batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, 3, H, W)
        mirrored = (torch.rand(len(batch), 1, 1, 1) < 0.5) & train
        return torch.where(mirrored, batch.flip(-1), batch)

    return build_loader(recipe, open_split(recipe.data, train), collate, train)


def to_pixels(image, size: int) -> np.ndarray:
    """A PIL image, scaled and cut at the centre: (size, size, 3) uint8."""
    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size)))


@torch.no_grad()
def evaluate(model: DiscreteAutoencoder, images, device, fidelity: bool = False) -> dict:
    """What the codes and the pictures of a trained autoencoder are like.

    Args:
        images: batches (B, 3, H, W) in [-1, 1].
        fidelity: also FID and IS; a reason in their place where they cannot be had.

    Returns:
        "code_use" and "perplexity" a codebook; "rmse" of pixels in [0, 1]; "codes_per_image", mean number of different
        codes; "popularity", share of the places that each code of the first codebook has, falling;
        "individual_perplexity", percentile -> exp(entropy) of single assignments in training, 1 for one-hot ones;
        "temperature" of a softmax.
    """
    squares, pixels, codes, spread, scores = 0.0, 0, [], [], Fidelity(device) if fidelity else None
    for batch in images:
        batch = batch.to(device)
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
    book = getattr(model.quantizer, "codebooks", [None])[0]
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


def summary_row(results: dict) -> dict[str, str]:
    """One line of the table."""
    individual = results["individual_perplexity"].values()
    row = {
        "method": results["method"],
        "code use %": " ".join(f"{100 * share:.1f}" for share in results["code_use"]),
        "perplexity": " ".join(f"{value:.0f}" for value in results["perplexity"]),
        "rMSE": f"{results['rmse']:.4f}",
        "codes per image": f"{results['codes_per_image']:.1f}",
        "individual perplexity 75 / 90 / 99 / max": " / ".join(f"{value:.2f}" for value in individual),
    }
    if "fid" in results:
        row |= {"FID": str(results["fid"]), "IS": str(results["inception_score"])}
    return row | {"minutes": f"{results['minutes']:.1f}"}
