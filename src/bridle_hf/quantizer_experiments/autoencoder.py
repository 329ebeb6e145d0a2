"""The convolutional autoencoder of discrete autoencoding, with any quantizer between its halves."""

from collections.abc import Sequence

import torch
from torch import nn

# Images come as [-1, 1]; 3 channels.
IMAGE_CHANNELS = 3


def check_channels(channels: Sequence[int]) -> None:
    """Raise a `ValueError` for `channels` that `DiscreteAutoencoder` cannot take."""
    if len(channels) < 2 or any(width < 8 or width % 8 for width in channels):
        raise ValueError(f"`channels` is {list(channels)}; it takes two or more multiples of 8.")


def separable(channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Depthwise 3 x 3 and pointwise convolution: (B, channels, H, W) -> (B, out_channels, H / stride, W / stride)."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels),
        nn.Conv2d(channels, out_channels, 1),
    )


class ResidualBlock(nn.Module):
    """x + conv(act(conv(act(x)))) with depthwise separable convolutions, each after a group norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            separable(channels, channels),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            separable(channels, channels),
        )

    def forward(self, x):
        return x + self.layers(x)


class DiscreteAutoencoder(nn.Module):
    """Images to codes and back: appendix B.1 and table 4 of T. Morita (2026).

    The encoder is a convolution at the size of the image, then for each further entry of `channels` a convolution of
    stride 2 and a residual block, then a convolution to the d channels that are quantized. The decoder is its mirror,
    with nearest-neighbour upsampling before a convolution in place of the stride. All convolutions are 3 x 3, and
    depthwise separable except for the first and the last. The quantizer sees every pixel of the small image as a
    vector. The paper does not give norm, activation, interpolation and the inside of a block; here they are group norm,
    SiLU, nearest neighbour, and two convolutions.

    Args:
        quantizer: of dimension d; its interface is that of `build_quantizer`.
        channels: of the convolution at full size, then at each halved size; multiples of 8.

    Raises:
        ValueError: fewer than two entries in `channels`, or one that is no multiple of 8.
    """

    def __init__(self, quantizer: nn.Module, channels: Sequence[int] = (128, 64, 32)):
        super().__init__()
        check_channels(channels)
        down, up = [nn.Conv2d(IMAGE_CHANNELS, channels[0], 3, padding=1)], []
        for width, narrow in zip(channels, channels[1:], strict=False):
            down += [separable(width, narrow, stride=2), ResidualBlock(narrow)]
            up = [ResidualBlock(narrow), nn.Upsample(scale_factor=2), separable(narrow, width), *up]
        self.encoder = nn.Sequential(*down, separable(channels[-1], quantizer.dim))
        self.quantizer = quantizer
        last = nn.Conv2d(channels[0], IMAGE_CHANNELS, 3, padding=1)
        self.decoder = nn.Sequential(separable(quantizer.dim, channels[-1]), *up, last)

    def encode(self, images):
        """Input of the quantizer: (B, 3, H, W) -> (B, h, w, d)."""
        return self.encoder(images).movedim(1, -1)

    def forward(self, images):
        """Returns the reconstruction (B, 3, H, W) and the `QuantizerOutput`, codes (B, h, w, M)."""
        output = self.quantizer(self.encode(images))
        return self.decoder(output.quantized.movedim(-1, 1)), output

    @torch.no_grad()
    def individual_perplexity(self, images):
        """exp(entropy) of each assignment, 1 for one-hot ones: (B * h * w,); None where assignments are always hard."""
        book = next(iter(self.quantizer.codebooks), None)
        if not hasattr(book, "log_assignments"):
            return None
        rows = self.quantizer.flatten(self.encode(images))
        p = book.log_assignments(rows).exp()  # (n, K)
        return torch.special.entr(p).sum(-1).exp()
