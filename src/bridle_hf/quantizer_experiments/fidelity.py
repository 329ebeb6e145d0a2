"""FID and inception score of reconstructed images, by torchvision's Inception V3."""

import torch
from torch import nn
from torchvision.models import Inception_V3_Weights, inception_v3

WEIGHTS = Inception_V3_Weights.IMAGENET1K_V1
SIDE = 299  # pixels, the size that Inception V3 was trained with


class Fidelity:
    """Frechet inception distance of reconstructions from their images, and their inception score (one split).

    FID (arXiv 1706.08500, eq. 6) compares mean and covariance of the 2,048 pooled features; IS (arXiv 1606.03498,
    section 4) is exp(mean KL(p(y|x) || p(y))) of the 1,000 class probabilities. Sums are float64.

    Args:
        device: of the images.
        inception: maps preprocessed images to features (B, 2048) and class logits (B, 1000).
    """

    def __init__(self, device: torch.device | str, inception: nn.Module):
        self.inception = inception.to(device).eval()
        self.preprocess = WEIGHTS.transforms(crop_size=SIDE, resize_size=SIDE)
        self.images, self.reconstructions = Moments(), Moments()
        self.class_sum, self.entropy_sum = 0.0, 0.0

    @torch.no_grad()
    def update_(self, images: torch.Tensor, reconstructions: torch.Tensor) -> None:
        """Add a batch, (B, 3, H, W) in [-1, 1] both."""
        for moments, batch in ((self.images, images), (self.reconstructions, reconstructions)):
            features, logits = self.inception(self.preprocess((batch.float() / 2 + 0.5).clamp(0, 1)))
            moments.update_(features.double())
        p = logits.double().softmax(-1)  # of the reconstructions
        self.class_sum += p.sum(0)
        self.entropy_sum += torch.special.entr(p).sum()

    def compute(self) -> dict[str, float]:
        """`fid` and `inception_score`.

        Raises:
            ValueError: fewer than two images, which have no covariance.
        """
        count = self.images.count
        if count < 2:
            raise ValueError(f"FID takes two images or more; the test split has {count}.")
        divergence = torch.special.entr(self.class_sum / count).sum() - self.entropy_sum / count
        distance = frechet_distance(*self.images.compute(), *self.reconstructions.compute())
        return {"fid": distance, "inception_score": divergence.exp().item()}


class Moments:
    """Mean (d,) and covariance (d, d) of vectors that come in batches."""

    def __init__(self):
        self.count, self.sum, self.products = 0, 0.0, 0.0

    def update_(self, vectors: torch.Tensor) -> None:
        self.count += len(vectors)
        self.sum += vectors.sum(0)
        self.products += vectors.T @ vectors

    def compute(self) -> tuple[torch.Tensor, torch.Tensor]:
        mean = self.sum / self.count
        return mean, (self.products - self.count * mean.outer(mean)) / (self.count - 1)


def frechet_distance(
    mean: torch.Tensor, covariance: torch.Tensor, other_mean: torch.Tensor, other_covariance: torch.Tensor
) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two normal distributions."""
    # C1 C2 has the eigenvalues of the symmetric C1^(1/2) C2 C1^(1/2); rounding makes some that are 0 negative.
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp(min=0).sqrt().sum()
    distance = (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * shared
    return distance.item()


class Inception(nn.Module):
    """torchvision's Inception V3 in evaluation mode: images (B, 3, 299, 299) -> features (B, 2048), logits (B, 1000).

    Args:
        weights: None draws random ones.

    Raises:
        OSError: the weights are not on disk and cannot be downloaded; the message has their address.
    """

    def __init__(self, weights: Inception_V3_Weights | None = WEIGHTS):
        super().__init__()
        try:
            self.body = inception_v3(weights=weights, init_weights=False)  # its own way to draw them takes a minute
        except OSError as error:
            raise OSError(f"the weights of Inception V3 cannot be had from {weights.url} ({error})") from error
        self.classifier, self.body.fc = self.body.fc, nn.Identity()

    def forward(self, images):
        features = self.body(images)
        return features, self.classifier(features)
