"""FID and inception score of reconstructed images, by torchmetrics."""

import logging

import torch

logger = logging.getLogger(__name__)


class Fidelity:
    """Both scores over batches of images; without torchmetrics or the weights of Inception, the reason in their place.

    The weights are downloaded at the first use, by torch-fidelity.
    """

    def __init__(self, device: torch.device):
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance
            from torchmetrics.image.inception import InceptionScore

            self.distance = FrechetInceptionDistance(normalize=True).to(device)
            self.score = InceptionScore(normalize=True).to(device)
            self.missing = None
        except (ImportError, OSError) as error:  # a download that fails is an OSError
            self.missing = f"not measured: {error}"
            logger.warning("FID and IS are %s", self.missing)

    def update_(self, images: torch.Tensor, reconstructions: torch.Tensor) -> None:
        """Adds a batch, (B, 3, H, W) in [-1, 1] both."""
        if self.missing is None:
            real, made = ((x / 2 + 0.5).clamp(0, 1) for x in (images, reconstructions))
            self.distance.update(real, real=True)
            self.distance.update(made, real=False)
            self.score.update(made)

    def compute(self) -> dict[str, float | str]:
        """`fid` and `inception_score`."""
        if self.missing is not None:
            return {"fid": self.missing, "inception_score": self.missing}
        return {"fid": self.distance.compute().item(), "inception_score": self.score.compute()[0].item()}
