"""Laws that hold for every input: hypothesis looks for one that breaks them.

Inputs are small whole numbers where sums must not depend on their order: float32 adds those exactly, ties included.
"""

from math import prod

import hypothesis.extra.numpy as arrays
import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bridle_hf.codebook_bridle import Codebook, code_statistics
from bridle_hf.masking_bridle import mask_from_noise, num_kept, structured_noise
from bridle_hf.quantization_bridle import ResidualQuantizer

DIM, CODES = 4, 5
# the same examples in every run, however slow the machine
LAWS = settings(derandomize=True, deadline=None, max_examples=60, database=None)


def whole(*shape, most=8):
    return arrays.arrays(np.float32, shape, elements=st.integers(-most, most).map(np.float32))


vectors = st.integers(1, 20).flatmap(lambda n: whole(n, DIM))
floats = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)


def quantizer_with(books, **options):
    """A residual quantizer with these codes (M, K, d)."""
    stages, size, dim = books.shape
    quantizer = ResidualQuantizer(dim, stages, size, **options)
    for book, codes in zip(quantizer.codebooks, books, strict=True):
        book.set_(torch.from_numpy(codes), torch.ones(size))
    return quantizer


def residual_norms(quantizer, z):
    """Lengths of the residuals before the first and after each stage: (M + 1, n)."""
    residual = quantizer.flatten(z)
    norms = [residual.norm(dim=-1)]
    for book in quantizer.codebooks:
        residual, _ = quantizer.subtract(residual, book)
        norms.append(residual.norm(dim=-1))
    return torch.stack(norms)


@LAWS
@given(
    arrays.arrays(np.float32, (6, DIM), elements=floats),
    arrays.arrays(np.float32, (3, CODES, DIM), elements=floats),
    st.sampled_from(["none", "once"]),
)
def test_residuals_never_grow_where_zero_is_a_code(z, books, normalize):
    books[:, 0] = 0
    norms = residual_norms(quantizer_with(books, normalize=normalize), torch.from_numpy(z))
    # a code that is nearer by less than float32 can tell may be taken: the slack is for the squares it compares
    slack = 1e-6 * (norms[0].max() ** 2 + np.square(books).sum(-1).max())
    assert (norms[1:] ** 2 <= norms[:-1] ** 2 + slack).all()


@LAWS
@given(whole(1, CODES, DIM), vectors)
def test_a_decoded_code_is_its_own_nearest(books, z):
    quantizer = quantizer_with(books, normalize="none")
    decoded = quantizer.decode(quantizer.encode(torch.from_numpy(z)))
    assert torch.equal(quantizer.decode(quantizer.encode(decoded)), decoded)


@LAWS
@given(whole(3, CODES, DIM, most=2), st.data())
def test_codes_survive_decoding_where_stages_have_scales_of_their_own(books, data):
    assume(all(len(np.unique(book, axis=0)) == CODES for book in books))
    books *= np.float32([256, 16, 1])[:, None, None]  # a stage's codes are farther apart than all later ones reach
    codes = data.draw(arrays.arrays(np.int64, (7, 3), elements=st.integers(0, CODES - 1)))
    quantizer = quantizer_with(books, normalize="none")
    assert np.array_equal(quantizer.encode(quantizer.decode(torch.from_numpy(codes))), codes)


@LAWS
@given(whole(3, CODES, DIM), vectors, st.randoms(use_true_random=False))
def test_codes_depend_neither_on_the_order_nor_on_the_size_of_a_batch(books, z, random):
    quantizer, z = quantizer_with(books, normalize="none"), torch.from_numpy(z)
    codes = quantizer.encode(z)
    order = random.sample(range(len(z)), len(z))
    assert torch.equal(quantizer.encode(z[order]), codes[order])
    cut = random.randrange(len(z) + 1)
    assert torch.equal(torch.cat([quantizer.encode(z[:cut]), quantizer.encode(z[cut:])]), codes)


@LAWS
@given(
    st.lists(st.integers(1, 7), min_size=2, max_size=3).map(tuple),
    st.floats(0.01, 0.99),
    st.sampled_from(["random", "2d", "tube"]),
    st.integers(0, 2**32 - 1),
)
def test_every_row_of_a_mask_keeps_as_many(grid, ratio, kind, seed):
    assume(kind != "tube" or len(grid) == 3)
    noise = torch.rand(4, prod(grid), generator=torch.Generator().manual_seed(seed))
    count = num_kept(grid, ratio, kind)
    plan = mask_from_noise(structured_noise(noise, grid, ratio, kind), count)
    assert 1 <= count <= prod(grid)
    assert plan.kept.shape == (4, count) and plan.mask.sum(dim=1).tolist() == [prod(grid) - count] * 4
    for row in range(4):
        together = plan.kept[row].tolist() + plan.masked[row].tolist()
        assert sorted(together) == list(range(prod(grid)))


@LAWS
@given(whole(CODES, DIM), vectors, st.lists(st.floats(0.5, 100, width=32), min_size=CODES, max_size=CODES))
def test_without_memory_a_used_code_is_the_mean_of_its_inputs(codes, z, counts):
    book = Codebook(CODES, DIM, decay=0.0, epsilon=1e-9)
    book.set_(torch.from_numpy(codes), torch.tensor(counts))
    rows = torch.from_numpy(z)
    index = book.nearest(rows)
    book.update_(*code_statistics(rows, index, CODES))
    for code in index.unique().tolist():
        torch.testing.assert_close(book.embed[code], rows[index == code].mean(dim=0), rtol=1e-5, atol=1e-5)
