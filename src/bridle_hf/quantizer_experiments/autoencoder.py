"""The convolutional autoencoder of discrete autoencoding, with any quantizer between its halves."""

import torch
from torch import nn

# Images come as [-1, 1]; 3 channels.
IMAGE_CHANNELS = 3


def separable(channels, kernel=3, stride=1):
    """Depthwise and pointwise convolution, the same size out but for the stride."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel, stride, padding=(kernel - stride + 1) // 2, groups=channels),
        nn.Conv2d(channels, channels, 1),
    )


class ResidualBlock(nn.Module):
    """x + conv(act(conv(act(x)))) with depthwise separable convolutions, each after a group norm."""

    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            separable(channels),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            separable(channels),
        )

    def forward(self, x):
        return x + self.layers(x)


class DiscreteAutoencoder(nn.Module):
    """Images to codes and back.

    The encoder halves the image log2(`downsampling`) times, by strided convolutions with residual blocks after each;
    the decoder is its mirror with nearest-neighbour upsampling. All convolutions but the outermost are depthwise
    separable. The quantizer sees every place of the small image as a vector.

    Args:
        quantizer: of dimension d; its interface is that of `build_quantizer`.
        channels: of every layer inside; a multiple of 8.
        downsampling: a power of 2 from 2 on, image size over the size of the small image.
        num_blocks: residual blocks at each size.

    Raises:
        ValueError: a `downsampling` that is no power of 2.
    """

    def __init__(self, quantizer, *, channels=256, downsampling=4, num_blocks=2):
        super().__init__()
        halvings = downsampling.bit_length() - 1
        if downsampling < 2 or 2**halvings != downsampling:
            raise ValueError(f"downsampling is {downsampling}, must be a power of 2 from 2 on")

        def blocks():
            return [ResidualBlock(channels) for _ in range(num_blocks)]

        down = [nn.Conv2d(IMAGE_CHANNELS, channels, 4, 2, padding=1), *blocks()]
        up = [*blocks(), nn.Upsample(scale_factor=2), nn.Conv2d(channels, IMAGE_CHANNELS, 3, padding=1)]
        for _ in range(halvings - 1):
            down += [separable(channels, kernel=4, stride=2), *blocks()]
            up = [*blocks(), nn.Upsample(scale_factor=2), separable(channels), *up]
        self.encoder = nn.Sequential(*down, nn.Conv2d(channels, quantizer.dim, 1))
        self.quantizer = quantizer
        self.decoder = nn.Sequential(nn.Conv2d(quantizer.dim, channels, 1), *up)

    def encode(self, images):
        """What the quantizer receives: (B, 3, H, W) -> (B, h, w, d)."""
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
