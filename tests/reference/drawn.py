"""What tests of quantizers draw: vectors and modules of a small size, the same at every call."""

import torch

DIM, CODES = 8, 12


def vectors(*shape, seed=0, dim=DIM):
    return torch.randn(*shape, dim, generator=torch.manual_seed(seed))


def seeded(cls, *sizes, **options):
    torch.manual_seed(7)
    return cls(*sizes, **options)
