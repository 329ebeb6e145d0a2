"""Masks: what stays visible, worked out by hand or with plain Python loops."""

import pytest
import torch

from bridle_hf.layers_bridle import take
from bridle_hf.masking_bridle import (
    hide_lines,
    mask_from_noise,
    mask_from_positions,
    num_kept,
    structured_noise,
)


def noise_for(grid, rows=4, seed=0):
    size = torch.Size(grid).numel()
    return torch.rand(rows, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("grid", "ratio", "kind", "kept"),
    [
        ((64, 8), 0.8, "random", 102),  # 102.4 of 512
        ((14, 14), 0.75, "random", 49),
        ((2, 2), 0.99, "random", 1),  # never none
        ((8, 14, 14), 0.9, "tube", 8 * 19),  # 19.6 of the 196 places, in each of 8 frames
        ((2, 2, 2), 0.99, "tube", 2),
        ((64, 8), 0.75, "2d", 32 * 4),  # half of each axis
        ((10, 10), 0.36, "2d", 64),  # 0.8 of each axis
        ((2, 2), 0.99, "2d", 1),
    ],
)
def test_number_of_kept_patches(grid, ratio, kind, kept):
    assert num_kept(grid, ratio, kind) == kept
    plan = mask_from_noise(structured_noise(noise_for(grid), grid, ratio, kind), kept)
    total = torch.Size(grid).numel()
    assert plan.kept.shape == (4, kept) and plan.masked.shape == (4, total - kept)
    assert plan.mask.dtype == torch.long and plan.mask.sum(1).tolist() == [total - kept] * 4


def test_kept_patches_have_the_smallest_noise_in_its_order():
    noise = torch.tensor([[0.5, 0.1, 0.9, 0.3, 0.7], [0.2, 0.8, 0.0, 0.6, 0.4]])
    plan = mask_from_noise(noise, 2)
    assert plan.kept.tolist() == [[1, 3], [2, 0]]
    assert plan.masked.tolist() == [[0, 2, 4], [1, 3, 4]]
    assert plan.mask.tolist() == [[1, 0, 1, 0, 1], [0, 1, 0, 1, 1]]
    assert plan.kept_valid is None and plan.masked_valid is None


def test_tube_hides_the_same_places_in_every_frame():
    # 2 frames of 2 x 2 places; the first frame's noise decides, whatever the second's is
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.3, 0.0, 0.0, 0.0, 0.0]])
    grid, kept = (2, 2, 2), num_kept((2, 2, 2), 0.5, "tube")
    plan = mask_from_noise(structured_noise(noise, grid, 0.5, "tube"), kept)
    assert sorted(plan.kept[0].tolist()) == [1, 3, 5, 7]
    assert plan.masked[0].tolist() == [0, 2, 4, 6]


def test_2d_hides_whole_rows_and_columns():
    # row means .9 .2 .5 .4, column means .65 .5 .35: rows 1 and 3 and column 2 are the smallest
    noise = torch.tensor([[0.95, 0.9, 0.85], [0.35, 0.2, 0.05], [0.65, 0.5, 0.35], [0.65, 0.4, 0.15]])
    hidden = hide_lines(noise.view(1, 12), (4, 3), [2, 1])
    assert (hidden < 1).view(4, 3).nonzero().tolist() == [[1, 2], [3, 2]]
    plan = mask_from_noise(hidden, 2)
    assert plan.kept.tolist() == [[5, 11]]  # 0.05 before 0.15


@pytest.mark.parametrize(("grid", "kind"), [((8, 6), "2d"), ((4, 3, 5), "2d"), ((4, 3, 5), "tube")])
def test_structured_masks_are_products_of_lines(grid, kind):
    kept = num_kept(grid, 0.7, kind)
    plan = mask_from_noise(structured_noise(noise_for(grid), grid, 0.7, kind), kept)
    for row in plan.kept:
        field = torch.zeros(grid).flatten().index_fill(0, row, 1.0).view(grid)
        if kind == "tube":
            assert all(torch.equal(frame, field[0]) for frame in field)
        else:
            lines = [field.amax([d for d in range(len(grid)) if d != axis]) for axis in range(len(grid))]
            assert torch.Size(int(line.sum()) for line in lines).numel() == kept


def test_padded_rows_keep_and_predict_their_own_patches_alone():
    noise = noise_for((12,), rows=3)
    valid = torch.arange(12) < torch.tensor([[12], [6], [1]])
    plan = mask_from_noise(noise, 4, valid)
    for row, count in enumerate([12, 6, 1]):
        keep = max(1, count * 4 // 12)
        order = sorted(range(count), key=lambda n, row=row: noise[row, n].item())
        assert plan.kept[row][plan.kept_valid[row]].tolist() == order[:keep]
        assert plan.masked[row][plan.masked_valid[row]].tolist() == sorted(order[keep:])
        assert plan.mask[row].nonzero().flatten().tolist() == sorted(order[keep:])
    assert plan.kept.shape == (3, 4) and plan.masked.shape == (3, 8)
    assert plan.kept.max() < 12 and plan.masked.max() < 12  # empty slots still point somewhere


def test_a_row_without_padding_has_the_mask_it_has_alone():
    noise = noise_for((12,), rows=2)
    padded = mask_from_noise(noise, 4, torch.arange(12) < torch.tensor([[12], [5]]))
    alone = mask_from_noise(noise[:1], 4)
    assert torch.equal(padded.kept[:1], alone.kept) and torch.equal(padded.masked[:1], alone.masked)
    assert padded.kept_valid[0].all() and padded.masked_valid[0].all()


@pytest.mark.parametrize("padded", [False, True])
def test_a_share_of_the_masked_patches_is_predicted(padded):
    noise = noise_for((20,), rows=3)
    valid = torch.arange(20) < torch.tensor([[20], [20], [9]]) if padded else None
    whole, part = mask_from_noise(noise, 5, valid), mask_from_noise(noise, 5, valid, predict_ratio=0.4)
    assert torch.equal(part.kept, whole.kept) and torch.equal(part.mask, whole.mask)
    assert part.masked.shape == (3, 6)  # 0.4 of 15
    for row in range(3):
        masked = whole.mask[row].nonzero().flatten().tolist()
        count = len(masked) * 6 // 15  # the same share of a padded row's own
        smallest = sorted(sorted(masked, key=lambda n, row=row: noise[row, n].item())[:count])
        found = part.masked[row] if part.masked_valid is None else part.masked[row][part.masked_valid[row]]
        assert found.tolist() == smallest


def test_chosen_positions():
    chosen = torch.tensor([[True, False, True, False, False], [False, False, False, True, True]])
    plan = mask_from_positions(chosen)
    assert plan.kept.tolist() == [[1, 3, 4], [0, 1, 2]]
    assert plan.masked.tolist() == [[0, 2], [3, 4]]
    assert torch.equal(plan.mask, chosen.long())

    valid = torch.tensor([[True] * 5, [True, True, True, True, False]])
    plan = mask_from_positions(chosen, valid)
    assert plan.mask.tolist() == [[1, 0, 1, 0, 0], [0, 0, 0, 1, 0]]
    assert plan.masked_valid.tolist() == [[True, True], [True, False]]
    assert plan.kept_valid.all()


def test_take_shares_samples_between_masks():
    tokens = torch.arange(2 * 3).view(2, 3, 1).float()  # sample 0: 0 1 2, sample 1: 3 4 5
    index = torch.tensor([[0, 2], [1, 1], [2, 1], [0, 0]])  # row c * B + b picks from sample b
    assert take(tokens, index)[..., 0].tolist() == [[0, 2], [4, 4], [2, 1], [3, 3]]


def test_wrong_positions_are_named():
    uneven = torch.tensor([[True, False, False], [True, True, False]])
    with pytest.raises(ValueError, match=r"`bool_masked_pos` masks \[1, 2\] patches; it takes the same number"):
        mask_from_positions(uneven)
    with pytest.raises(ValueError, match="`bool_masked_pos` masks every patch"):
        mask_from_positions(torch.ones(2, 3, dtype=torch.bool))
