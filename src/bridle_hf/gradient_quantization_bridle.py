"""Hard quantizers whose codes learn by gradient: codebook and commitment loss, straight-through or rotated gradients.

`GradientQuantizer` is the VQ of VQ-VAE (arXiv 1711.00937), `SimVQQuantizer` learns one linear map of frozen codes
(arXiv 2411.02038), the rotation is arXiv 2410.06424. Equations are those of T. Morita (2026).
"""

import torch
from torch import nn
from torch.nn import functional as F

from .codebook_bridle import check_choice, mean_square, nearest_codes, to_default_
from .learned_quantization_bridle import (
    LearnedQuantizer,
    Stage,
    initial_codes,
    nearest_directions,
    straight_through,
)

DISTANCES = ("euclidean", "cosine")
ESTIMATORS = ("ste", "rotation")


def rotate(source, target):
    """`target` exactly, with the gradient of the rotation and scaling that leads `source` to it (eq. 3-4).

    q = (|q| / |e|) R e with R = I - 2 r r^T + 2 q^ e^^T and r the unit vector between e^ and q^; rotation and scale are
    constants for the gradient, which thus keeps its angle to q instead of its direction. Both (n, d).
    """
    target = target.detach()
    e, q = F.normalize(source.detach(), dim=-1), F.normalize(target, dim=-1)
    r = F.normalize(e + q, dim=-1)
    scale = target.norm(dim=-1, keepdim=True) / source.detach().norm(dim=-1, keepdim=True).clamp(min=1e-6)

    def along(x):
        return (source * x).sum(-1, keepdim=True)

    rotated = scale * (source - 2 * along(r) * r + 2 * along(e) * q)
    return straight_through(rotated, target)  # what rounding left of the difference


class NearestCodebook(nn.Module):
    """One codebook with hard codes: loss |sg[e] - c|^2 + beta |e - sg[c]|^2, mean over rows and dimensions.

    Args:
        distance: of the search, "euclidean" or "cosine"; codes and losses are the same vectors either way.
        commitment_weight: beta.
    """

    def __init__(self, distance, commitment_weight):
        super().__init__()
        check_choice("distance", distance, DISTANCES)
        self.distance, self.commitment_weight = distance, commitment_weight

    @torch.no_grad()
    def nearest(self, rows):
        """(n, d) -> (n,) int64."""
        return (nearest_codes if self.distance == "euclidean" else nearest_directions)(rows, self.embed)

    def forward(self, rows, valid=None):
        index = self.nearest(rows)
        code = F.embedding(index, self.embed)  # (n, d)
        loss = mean_square(rows.detach() - code, valid)
        loss = loss + self.commitment_weight * mean_square(rows - code.detach(), valid)
        return Stage(code.detach(), index, loss)


class GradientCodebook(NearestCodebook):
    """Codes that are parameters: `embed` (K, d) float32."""

    def __init__(self, num_codes, dim, *, distance="euclidean", commitment_weight=1.0):
        super().__init__(distance, commitment_weight)
        self.embed = nn.Parameter(torch.empty(num_codes, dim, dtype=torch.float32))
        to_default_(self)

    def default_state(self):
        """Name -> tensor of the state before any training, drawn anew at every call."""
        return {"embed": initial_codes(*self.embed.shape)}


class SimVQCodebook(NearestCodebook):
    """Codes Q = Q' W: frozen normal Q' (K, d), a buffer, and a learned W (d, d), `weight`. Every code moves with each.

    W starts as the identity. Q' is the same at every construction.
    """

    def __init__(self, num_codes, dim, *, distance="euclidean", commitment_weight=1.0, seed=0):
        super().__init__(distance, commitment_weight)
        self.seed = seed
        self.register_buffer("frozen", torch.empty(num_codes, dim, dtype=torch.float32))
        self.weight = nn.Parameter(torch.empty(dim, dim, dtype=torch.float32))
        to_default_(self)

    def default_state(self):
        """Name -> tensor of the state before any training, on the CPU, equal at every call."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        frozen = torch.randn(self.frozen.shape, generator=generator, dtype=torch.float32, device="cpu")
        return {
            "frozen": frozen * self.frozen.shape[1] ** -0.5,
            "weight": torch.eye(len(self.weight), dtype=torch.float32, device="cpu"),
        }

    @property
    def embed(self):
        """(K, d)."""
        return self.frozen @ self.weight


class GradientQuantizer(LearnedQuantizer):
    """Hard codes that are parameters, M residual stages.

    Args:
        dim: d, last dimension of z and of the codes.
        num_codebooks: M.
        codebook_size: K.
        distance: "euclidean" or "cosine", of the search.
        estimator: gradient of q for z: "ste", unchanged, or "rotation". With several stages it is that of their sum.
        commitment_weight: beta.
        normalize: "once" scales z to length 1, "none" takes it as it is.
    """

    def __init__(
        self,
        dim,
        num_codebooks=1,
        codebook_size=1024,
        *,
        distance="euclidean",
        estimator="ste",
        commitment_weight=1.0,
        normalize="none",
    ):
        check_choice("estimator", estimator, ESTIMATORS)
        options = {"distance": distance, "commitment_weight": commitment_weight}
        super().__init__(self.make_codebooks(dim, num_codebooks, codebook_size, options), normalize=normalize)
        self.estimator = estimator

    def make_codebooks(self, dim, num_codebooks, codebook_size, options):
        return [GradientCodebook(codebook_size, dim, **options) for _ in range(num_codebooks)]

    def estimate(self, rows, total):
        return (straight_through if self.estimator == "ste" else rotate)(rows, total)


class SimVQQuantizer(GradientQuantizer):
    """`GradientQuantizer` with codes Q = Q' W, Q' frozen and W learned, in every stage."""

    def make_codebooks(self, dim, num_codebooks, codebook_size, options):
        return [SimVQCodebook(codebook_size, dim, seed=stage, **options) for stage in range(num_codebooks)]
