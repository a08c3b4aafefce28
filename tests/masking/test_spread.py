"""Masks of evenly spread sizes: the same number in every step, over images at random."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sslfast.masking import spread_mask


@given(
    batch=st.integers(1, 20),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    probability=st.floats(0.01, 1),
    ratios=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    step=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_every_promise(
    batch: int, grid: tuple[int, int], probability: float, ratios: list[float], step: int
) -> None:
    settings: dict[str, Any] = {"probability": probability, "seed": 3, "step": step}
    mask, ids, weight = spread_mask(batch, grid, tuple(ratios), **settings)  # type: ignore[arg-type]
    assert torch.equal(mask.flatten().nonzero().squeeze(1), ids)
    hidden = mask.sum(1)
    torch.testing.assert_close(weight, 1 / hidden[ids // mask.shape[1]].float())
    length = grid[0] * grid[1]
    masked = hidden[hidden > 0]
    assert len(masked) == -int(-probability * batch // 1)
    assert (masked >= max(int(ratios[0] * length), 1)).all()
    assert (masked <= max(ratios[1] * length, 1)).all()
    again = spread_mask(batch, grid, tuple(ratios), **{**settings, "step": step + 1})  # type: ignore[arg-type]
    assert sorted(again.mask.sum(1).tolist()) == sorted(hidden.tolist())


def test_shares_are_spread_evenly_and_go_to_any_image() -> None:
    steps = [spread_mask(8, (10, 10), (0.1, 0.5), seed=1, step=s).mask.sum(1) for s in range(400)]
    hidden = torch.stack(steps)
    assert hidden.sort(1).values.unique(dim=0).tolist() == [[0, 0, 0, 0, 15, 25, 35, 45]]
    # Each of the eight places has each of the four sizes in an eighth of the steps: 50 +- 7.
    for size in (15, 25, 35, 45):
        assert ((hidden == size).sum(0) - 50).abs().max() < 33


def test_where_depends_on_the_sample_and_the_view_alone() -> None:
    ids = torch.tensor([7, 3, 900, 12])
    whole = {"probability": 1.0, "seed": 5, "sample_ids": ids}
    one = spread_mask(4, (6, 6), (0.4, 0.4), **whole).mask  # type: ignore[arg-type]
    other = spread_mask(4, (6, 6), (0.4, 0.4), **{**whole, "sample_ids": ids.flip(0)}).mask  # type: ignore[arg-type]
    assert torch.equal(one.flip(0), other)
    view = spread_mask(4, (6, 6), (0.4, 0.4), stream=1, **whole).mask  # type: ignore[arg-type]
    assert (view != one).any(1).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ratios": (0.5, 0.2)}, "ratios must be"),
        ({"probability": 0.0}, "probability must be more than 0"),
        ({"min_patches": 0}, "min_patches must be at least 1"),
        ({"grid": (0, 3)}, "grid"),
    ],
)
def test_bad_input(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spread_mask(**{"batch": 2, "grid": (4, 4), "seed": 0, **given})
