"""One codebook against hand computation and scikit-learn."""

import numpy as np
import pytest
import torch

from bridle_hf.codebook_bridle import (
    SEARCHED_ON_CPU,
    Codebook,
    all_reduce_sum_,
    broadcast_,
    code_statistics,
    gather_rows,
    kmeans,
    nearest_codes,
    straight_through,
    sum_of_codes,
    uniform_codes,
)

# Four codes of dimension 5 and rows whose distances can be checked by eye.
CODES = torch.tensor([[1.0, 0, 0, 0, 0], [0, 2.0, 0, 0, 0], [0, 0, 0, 0, -1.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
ROWS = torch.tensor(
    [
        [1.0, 0.5, 0, 0, 0],  # squared distances 0.25 3.25 2.25 3.25
        [0, 1.5, 0, 0, 0],  # 3.25 0.25 3.25 4.25
        [0, 0, 0, 0, 0],  # 1 4 1 5: the first of equals
        [2.0, 2.0, 2.0, 2.0, 2.0],  # 17 16 25 5
        [3.0, 0, 0, 0, 0],  # 4 13 10 8
    ]
)


def filled(codes=CODES, counts=None, **options):
    book = Codebook(len(codes), codes.shape[1], **options)
    book.set_(codes, torch.ones(len(codes)) if counts is None else counts)
    return book


def test_nearest_code_and_statistics_by_hand():
    index = filled().nearest(ROWS)
    assert index.tolist() == [0, 1, 0, 3, 0]
    counts, sums = code_statistics(ROWS, index, 4)
    assert counts.tolist() == [3, 1, 0, 1]
    assert sums.tolist() == [[4, 0.5, 0, 0, 0], [0, 1.5, 0, 0, 0], [0] * 5, [2] * 5]
    counts, sums = code_statistics(ROWS, index, 4, weight=torch.tensor([1.0, 1, 1, 1, 0]))
    assert counts.tolist() == [2, 1, 0, 1] and sums[0].tolist() == [1, 0.5, 0, 0, 0]


def test_nearest_agrees_with_exact_distances():
    generator = torch.Generator().manual_seed(0)
    rows, codes = torch.randn(500, 24, generator=generator), torch.randn(64, 24, generator=generator)
    exact = ((rows.double()[:, None] - codes.double()) ** 2).sum(-1).argmin(-1)
    assert torch.equal(filled(codes).nearest(rows), exact)


@pytest.mark.parametrize("count", [0, 1, SEARCHED_ON_CPU, 2 * SEARCHED_ON_CPU + 3])
def test_a_search_in_parts_finds_what_exact_distances_say(count):
    generator = torch.Generator().manual_seed(count)
    rows = torch.randint(-8, 9, (count, 3), generator=generator).float()  # float32 is exact on whole numbers
    codes = torch.randint(-8, 9, (7, 3), generator=generator).float()
    distances = np.square(rows.double().numpy()[:, None] - codes.double().numpy()).sum(-1)
    assert nearest_codes(rows, codes).tolist() == distances.argmin(1).tolist()


def test_sums_of_codes_by_hand():
    books = [torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[10.0, 10.0], [20.0, 0.0], [0.0, 30.0]])]
    index = [torch.tensor([[0], [1]]), torch.tensor([[2], [1]])]
    assert sum_of_codes(index, books).tolist() == [[1, 30], [20, 1]]
    pairs = [torch.tensor([[0, 1]]), torch.tensor([[2, 0]])]
    weights = [torch.tensor([[0.75, 0.25]]), torch.tensor([[0.5, 0.5]])]
    assert sum_of_codes(pairs, books, weights).tolist() == [[5.75, 20.25]]


def test_soft_codes_weigh_by_inverse_squared_distance():
    index, weights = filled().soft_nearest(ROWS[:1], 2)
    assert index.tolist() == [[0, 2]]
    assert weights[0].tolist() == pytest.approx([2.25 / 2.5, 0.25 / 2.5])  # 1/0.25 : 1/2.25
    _, weights = filled().soft_nearest(CODES[3:] * (1 + 1e-7), 4)
    assert weights[0, 0] > 0.9999 and weights.isfinite().all()  # a row on a code is that code


def one_step_by_hand(book):
    index = book.nearest(ROWS)
    book.update_(*code_statistics(ROWS, index, 4))


def test_one_ema_step_by_hand():
    book = filled(decay=0.5, epsilon=1.0)  # N 1 1 1 1
    one_step_by_hand(book)
    assert book.cluster_size.tolist() == [2, 1, 0.5, 1]  # (1 + 3) / 2 ..., S = 4.5
    assert book.embed_sum[0].tolist() == [2.5, 0.25, 0, 0, 0]
    # N^ = (N + 1) * 4.5 / 8.5: 3 * 0.52941 = 1.588235
    assert book.embed[0].tolist() == pytest.approx([2.5 / 1.588235, 0.25 / 1.588235, 0, 0, 0], rel=1e-5)
    assert book.embed[2, 4].item() == pytest.approx(-0.5 / (1.5 * 4.5 / 8.5), rel=1e-5)


def test_unused_code_stays_where_it_is_for_many_steps():
    book = filled(torch.tensor([[1.0, 0], [50.0, 0]]), torch.tensor([10.0, 0.1]))
    for _ in range(100):
        rows = torch.tensor([[1.0, 0.1]]).expand(20, 2)
        book.update_(*code_statistics(rows, book.nearest(rows), 2))
    assert book.embed[1].tolist() == pytest.approx([50, 0], rel=1e-3)


def test_without_memory_the_code_is_the_batch_mean():
    book = filled(decay=0.0)
    one_step_by_hand(book)
    assert book.embed[0].tolist() == pytest.approx([4 / 3, 0.5 / 3, 0, 0, 0], rel=1e-4)
    assert book.embed[3].tolist() == pytest.approx([2] * 5, rel=1e-4)


@pytest.mark.parametrize("rule", ["blend", "blend_unit"])
def test_blend_rules_by_hand(rule):
    book = filled(decay=0.75, rule=rule)
    one_step_by_hand(book)
    direction = np.array([4, 0.5, 0, 0, 0]) / np.hypot(4, 0.5)
    code = 0.75 * np.array([1, 0, 0, 0, 0]) + 0.25 * direction
    kept = CODES[2].numpy()
    if rule == "blend_unit":
        code = code / np.linalg.norm(code)
    np.testing.assert_allclose(book.embed[0].numpy(), code, rtol=1e-5)
    np.testing.assert_allclose(book.embed[2].numpy(), kept)  # no input: stays
    assert book.cluster_size.tolist() == [1.5, 1, 0.75, 1]


def clusters(seed=0, count=4, each=50, dim=5):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.eye(count, dim) * 10
    rows = centres.repeat_interleave(each, 0) + torch.randn(count * each, dim, generator=generator) * 0.1
    return rows[torch.randperm(len(rows), generator=generator)]


def test_kmeans_is_as_good_as_sklearn():
    from sklearn.cluster import KMeans

    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1000, 8, generator=generator)
    centres = kmeans(rows, 16, 30, generator=generator)
    inertia = torch.cdist(rows, centres).min(-1).values.square().sum().item()
    reference = KMeans(16, n_init=10, random_state=0).fit(rows.numpy()).inertia_
    assert inertia < 1.05 * reference


def test_kmeans_refills_empty_clusters():
    # Seven of eight seeds can only come from the big clump: the far rows are found because empty clusters move there.
    clump = torch.zeros(2000, 2)
    far = torch.tensor([[9.0, 0], [0, 9], [-9, 0], [0, -9]])
    centres = kmeans(torch.cat([clump, far]), 5, 10, generator=torch.Generator().manual_seed(0))
    assert torch.cdist(far, centres).min(-1).values.max() < 1e-5


def test_cosine_kmeans_gives_unit_directions():
    rows = clusters() * torch.linspace(0.1, 9, 200)[:, None]
    centres = kmeans(rows, 4, 10, cosine=True, generator=torch.Generator().manual_seed(3))
    np.testing.assert_allclose(centres.norm(dim=-1).numpy(), 1, rtol=1e-6)


@pytest.mark.parametrize("method", ["kmeans", "sample", "uniform"])
def test_initialize_sets_counts_and_sums(method):
    rows = clusters()
    book, other = Codebook(16, 5), Codebook(16, 5)
    assert book.initialized == 0
    book.initialize_(rows, method, generator=torch.Generator().manual_seed(0))
    other.initialize_(rows, method, generator=torch.Generator().manual_seed(0))
    assert torch.equal(book.embed, other.embed) and book.initialized == 1
    counts = np.bincount(((rows[:, None] - book.embed) ** 2).sum(-1).argmin(-1).numpy(), minlength=16)
    used = counts > 0
    np.testing.assert_array_equal(book.cluster_size.numpy()[used], counts[used])
    np.testing.assert_allclose(book.cluster_size.numpy()[~used], 0.01 * 200 / 16, rtol=1e-6)
    np.testing.assert_allclose(book.embed_sum.numpy(), book.embed.numpy() * book.cluster_size.numpy()[:, None])
    if method == "uniform":
        assert used.all()
    if method == "sample":
        assert all((rows == code).all(-1).any() for code in book.embed)
    before = book.embed.clone()
    book.update_(*code_statistics(rows, book.nearest(rows), 16))
    assert (book.embed - before).norm(dim=-1).max() < 0.2  # no code is thrown away by its first step


def is_row(codes, rows):
    return (codes[:, None] == rows).all(-1).any(-1)


def test_uniform_codes_take_their_range_from_the_rows():
    """Few codes in few dimensions, so that most of them are chosen where they were drawn."""
    scales = torch.tensor([2.0, 0.01])
    rows = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0)) * scales
    codes = uniform_codes(rows, 64, torch.Generator().manual_seed(1))
    drawn = codes[~is_row(codes, rows)]
    bounds = (rows.numpy().astype(np.float64) ** 2).mean(0) ** 0.5
    np.testing.assert_allclose(bounds, scales.numpy(), rtol=0.05)
    assert (
        len(drawn) > 50 and (drawn.abs().numpy() <= bounds).all() and (drawn.abs().numpy().max(0) > 0.9 * bounds).all()
    )
    assert drawn.min() < 0
    # The paper's [-1, 1] where inputs are normalised to unit variance; and whatever the scale, the same codes in it.
    draws = torch.rand(64, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    kept = ~is_row(codes, rows)
    np.testing.assert_allclose((codes / torch.from_numpy(bounds))[kept].numpy(), draws[kept].numpy(), atol=1e-5)


def test_every_uniform_code_is_chosen_by_a_row():
    """In 64 dimensions most codes drawn uniformly are nearest to no row, and in [-1, 1] nearly all."""
    rows = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -3, 64)
    rows = torch.nn.functional.normalize(rows, dim=-1)
    drawn = torch.rand(128, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert len(nearest_codes(rows, drawn).unique()) < 64
    codes = uniform_codes(rows, 128, torch.Generator().manual_seed(1))
    chosen = torch.cdist(rows.double(), codes.double()).argmin(-1)
    assert len(chosen.unique()) == 128


def test_uniform_codes_of_too_few_values_end():
    codes = uniform_codes(torch.ones(40, 3), 8, torch.Generator().manual_seed(0))
    assert torch.isfinite(codes).all() and codes.shape == (8, 3)
    assert torch.equal(uniform_codes(torch.zeros(40, 3), 8), torch.zeros(8, 3))


@pytest.mark.parametrize(("min_count", "moved"), [(1, [2]), (3, [2, 1]), (6, [2, 1, 3])])
def test_reset_by_the_count_of_rows(min_count, moved):
    """Rows choose code 0 seven times, 1 twice, 2 never and 3 five times; what N says counts for nothing."""
    codes = torch.eye(4, 5) * 10
    rows = torch.cat([codes[0].repeat(7, 1), codes[1].repeat(2, 1), codes[3].repeat(5, 1)]) + 0.01
    book = filled(codes, torch.tensor([0.001, 50, 50, 50]), rule="counts")
    before, total = book.embed.clone(), book.cluster_size.sum()
    assert book.reset_dead_(rows, 0.1, torch.Generator().manual_seed(0), min_count) == len(moved)
    others = [code for code in range(4) if code not in moved]
    assert torch.equal(book.embed[others], before[others]) and is_row(book.embed[moved], rows).all()
    assert (book.cluster_size[moved] >= 0.999 * min_count * total / 14).all()
    assert book.cluster_size[0] == np.float32(0.001)
    torch.testing.assert_close(book.embed_sum, book.embed * book.cluster_size[:, None])


def test_reset_moves_dead_codes_only():
    rows = clusters()
    codes = torch.cat([torch.eye(3, 5) * 10, torch.full((1, 5), 80.0)])
    book = filled(codes, torch.tensor([50.0, 50, 50, 0.5]), rule="counts")
    assert book.reset_dead_(rows, 0.1, torch.Generator().manual_seed(0)) == 1
    assert torch.equal(book.embed[:3], codes[:3])
    assert (rows == book.embed[3]).all(-1).any()
    assert 0.1 * 37.6 <= book.cluster_size[3] <= 200
    np.testing.assert_allclose(book.embed_sum[3].numpy(), (book.embed[3] * book.cluster_size[3]).numpy(), rtol=1e-6)
    # The next step starts from the new code instead of writing the old one back.
    moved = book.embed[3].clone()
    book.update_(*code_statistics(rows, book.nearest(rows), 4))
    assert (book.embed[3] - moved).norm() < 0.5
    assert book.reset_dead_(rows, 0.01) == 0


def test_reset_with_few_rows_takes_the_emptiest_first():
    book = filled(CODES, torch.tensor([100.0, 0.2, 0.1, 0.3]))
    assert book.reset_dead_(ROWS[:1], 0.1) == 1
    assert torch.equal(book.embed[2], ROWS[0]) and torch.equal(book.embed[1], CODES[1])


def test_construction_is_deterministic_float32_and_possible_on_meta():
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        book = Codebook(8, 3, seed=2)
    finally:
        torch.set_default_dtype(default)
    torch.rand(1)
    other = Codebook(8, 3, seed=2)
    for name, value in other.default_state().items():
        assert getattr(book, name).dtype == torch.float32
        assert torch.equal(getattr(book, name), value) and torch.equal(getattr(other, name), value)
    assert not torch.equal(Codebook(8, 3, seed=3).embed, other.embed)
    assert book.embed.min() < 0 and book.embed.abs().max() <= 1
    with torch.device("meta"):
        meta = Codebook(8, 3, seed=2)
        state = meta.default_state()
    assert meta.embed.is_meta and torch.equal(state["embed"], other.embed)


def test_collectives_alone_change_nothing():
    rows = ROWS.clone()
    assert gather_rows(rows) is rows
    assert torch.equal(all_reduce_sum_(rows), ROWS) and torch.equal(broadcast_(rows), ROWS)


def test_unknown_rule_is_named():
    with pytest.raises(ValueError, match="`rule` is 'mean'; it takes one of 'counts', 'blend', 'blend_unit'"):
        Codebook(4, 5, rule="mean")


def test_straight_through_gives_the_value_to_the_bit_and_the_gradient_to_the_source():
    generator = torch.Generator().manual_seed(0)
    source, value = torch.randn(50, 8, generator=generator, requires_grad=True), torch.randn(50, 8) * 1e-4
    assert torch.equal(straight_through(source, value), value)
    (gradient,) = torch.autograd.grad((straight_through(source, value) * 3).sum(), source)
    assert torch.equal(gradient, torch.full_like(source, 3))
