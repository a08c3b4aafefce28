"""Masks are as uniform as they say: chi-square tests with fixed seeds, so never a false alarm.

A statistic of n - 1 degrees of freedom has mean n - 1 and variance 2 (n - 1); the bounds are five
standard deviations.
"""

import math

import pytest
import torch
from torch import Tensor

from sslfast.masking import (
    block_mask,
    image_ratio_mask,
    multiblock_mask,
    random_mask,
    span_mask,
    token_mask,
    tube_mask,
)


def excess(counts: Tensor, expected: float, variance: float, freedom: int) -> float:
    """Chi-square sum (n - m)^2 / v, in its standard deviations above its mean."""
    statistic = ((counts.double() - expected) ** 2 / variance).sum().item()
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("ratio", [0.25, 0.75])
def test_random_mask_positions_and_pairs(ratio: float) -> None:
    samples, length = 20_000, 40
    mask = random_mask(samples, length, ratio, seed=11).mask
    p = mask[0].sum().item() / length
    # The number hidden is fixed, so positions are weakly dependent: n - 1 degrees of freedom with
    # the variance enlarged by n / (n - 1).
    variance = samples * p * (1 - p) * length / (length - 1)
    assert abs(excess(mask.sum(0), samples * p, variance, length - 1)) < 5
    together = mask.float().T @ mask.float()
    pairs = together[torch.triu(torch.ones(length, length, dtype=torch.bool), 1)]
    q = p * (length * p - 1) / (length - 1)
    deviations = (pairs.double() - samples * q) / math.sqrt(samples * q * (1 - q))
    assert deviations.abs().max() < 5
    # Given both totals, pair counts vary a little less than if they were independent.
    assert 0.8 < deviations.square().mean() < 1.2


def test_random_mask_of_consecutive_samples_and_steps_is_independent() -> None:
    one = random_mask(20_000, 30, 0.5, seed=7).mask
    later = random_mask(20_000, 30, 0.5, seed=7, step=1).mask
    for other in (one.roll(1, 0), later, random_mask(20_000, 30, 0.5, seed=8).mask):
        agree = (one & other).sum(1)
        # Both hide 15 of 30: hypergeometric, mean 7.5, variance 15 * 15 * 15 * 15 / (30^2 * 29).
        variance = 15**4 / (30**2 * 29)
        z = (agree.double().mean() - 7.5) / math.sqrt(variance / 20_000)
        assert abs(z) < 5
        assert abs(agree.double().var() / variance - 1) < 0.06


def test_tubes_are_uniform() -> None:
    mask = tube_mask(20_000, 2, 30, seed=3).mask[:, :30]
    p = 27 / 30
    assert abs(excess(mask.sum(0), 20_000 * p, 20_000 * p * (1 - p) * 30 / 29, 29)) < 5


def test_span_starts_are_uniform() -> None:
    """One span of 5 in 24 steps: 20 places, equally likely."""
    mask = span_mask(20_000, 24, 1 / 24, 5, min_spans=1, seed=5)
    assert (mask.sum(1) == 5).all()
    starts = mask.long().argmax(1).bincount(minlength=20)
    assert len(starts) == 20
    assert abs(excess(starts, 1000, 1000, 19)) < 5


def test_image_ratios_and_positions_are_uniform() -> None:
    mask = image_ratio_mask(40_000, (4, 5), blocks=False, seed=3)
    counts = mask.sum(1).bincount(minlength=21)
    assert abs(counts[0] - 20_000) < 5 * 100  # half of the images stay whole
    # Ratios from 0.1 to 0.5 of 20 patches, rounded down: 2 to 9, equally likely.
    masked = 40_000 - counts[0].item()
    assert counts[2:10].sum() == masked
    p = 1 / 8
    assert abs(excess(counts[2:10], masked * p, masked * p, 7)) < 5
    hidden = mask.sum(1).double()
    each = (hidden * (20 - hidden)).sum().item() / 20 / 19  # given how many of each image
    assert abs(excess(mask.sum(0), hidden.sum().item() / 20, each, 19)) < 5


def test_tokens_are_chosen_and_replaced_uniformly() -> None:
    tokens = torch.full((20_000, 40), 7)
    drawn = token_mask(tokens, 30, 3, special_ids=(0, 1, 2), seed=3)
    assert (drawn.mask.sum(1) == 6).all()
    p = 6 / 40
    assert abs(excess(drawn.mask.sum(0), 20_000 * p, 20_000 * p * (1 - p) * 40 / 39, 39)) < 5
    becomes = drawn.tokens[drawn.mask].bincount(minlength=30).double()
    assert not becomes[:3].any()
    chosen, other = becomes.sum().item(), 0.1 / 26  # of 26 tokens that are not special
    expected = torch.full((30,), chosen * other, dtype=torch.float64)
    expected[3], expected[7] = 0.8 * chosen, (0.1 + other) * chosen
    assert abs(excess(becomes[3:] - expected[3:], 0, expected[3:], 26)) < 5


def test_targets_lie_anywhere_alike() -> None:
    """Every place where a target fits, and with it every patch, is equally likely."""
    drawn = multiblock_mask(20_000, (14, 14), seed=5, step=2)
    rows, columns = (drawn.targets[0, 0, [0, -1]] // 14, drawn.targets[0, 0, [0, -1]] % 14)
    places = [14 - int(last - first) for first, last in (rows, columns)]
    for target in drawn.targets.unbind(1):
        corner = target[:, 0]
        counts = (corner // 14 * places[1] + corner % 14).bincount()
        assert len(counts) == places[0] * places[1]
        mean = 20_000 / len(counts)
        assert abs(excess(counts, mean, mean, len(counts) - 1)) < 5


def test_blocks_have_no_side() -> None:
    """Top and bottom, left and right, height and width are hidden alike; the middle most."""
    hidden = block_mask(20_000, (14, 14), seed=3).mask.view(-1, 14, 14).sum(0).double() / 20_000
    deviation = 5 * math.sqrt(2 * 0.25 / 20_000)
    for turned in (hidden.flip(0), hidden.flip(1), hidden.T):
        assert (turned - hidden).abs().max() < deviation
    assert hidden.min() > 0.03


def rates(steps: range, compat: bool) -> tuple[Tensor, Tensor]:
    """How often each of 14 x 14 patches is in the context, and in a target."""
    context, target, n = torch.zeros(196), torch.zeros(196), 0
    for step in steps:
        drawn = multiblock_mask(256, (14, 14), seed=9, step=step, compat=compat)
        context += drawn.context.flatten().bincount(minlength=196)
        target += drawn.targets.flatten().bincount(minlength=196)
        n += 256
    return (context / n).view(14, 14), (target / n / 4).view(14, 14)


def test_multiblock_has_no_side_where_the_published_code_has() -> None:
    context, target = rates(range(60), compat=False)
    for rate in (context, target):
        assert rate.min() > 0.01  # every position is reached
        for turned in (rate.flip(0), rate.flip(1)):
            # Sizes are shared by a step: 15,360 samples, of 60 sizes.
            assert (turned - rate).abs().max() < 5 * math.sqrt(2 * 0.25 / 15_360)
    context, target = rates(range(60), compat=True)
    assert target[-1].max() == target[:, -1].max() == 0  # never the last row and column
    assert context[:3].mean() > 1.5 * context[-4:-1].mean()  # truncation favours the top


def test_multiblock_shapes_and_exclusion() -> None:
    sizes, published = set(), set()
    for step in range(40):
        drawn = multiblock_mask(64, (14, 14), seed=2, step=step)
        small = multiblock_mask(3, (14, 14), seed=2, step=step)
        assert drawn.context.shape[1] == small.context.shape[1]  # not a matter of the batch
        assert drawn.targets.shape[1:] == small.targets.shape[1:]
        area = drawn.targets.shape[2]
        assert 0.7 * 0.15 * 196 < area < 1.25 * 0.2 * 196
        assert (drawn.context.diff(dim=1) > 0).all()
        assert (drawn.targets.diff(dim=2) > 0).all()
        seen = torch.zeros(64, 196, dtype=torch.bool).scatter_(1, drawn.context, True)
        assert not seen.gather(1, drawn.targets.flatten(1)).any()
        assert drawn.context.shape[1] >= 10
        blocks = torch.stack((drawn.targets // 14, drawn.targets % 14), -1)
        extent = blocks.amax(2) - blocks.amin(2) + 1
        assert (extent.prod(-1) == area).all()  # every target is a full rectangle
        sizes.add(tuple(extent[0, 0].tolist()))
        drawn = multiblock_mask(1, (14, 14), seed=2, step=step, compat=True)
        blocks = torch.stack((drawn.targets // 14, drawn.targets % 14), -1)
        published.add(tuple((blocks.amax(2) - blocks.amin(2) + 1)[0, 0].tolist()))
    # Large and wide: one number for scale and aspect cannot give that.
    assert (6, 7) in sizes - published


def test_compat_contexts_are_what_the_targets_leave() -> None:
    drawn = multiblock_mask(64, (14, 14), seed=2, step=5, compat=True)
    seen = torch.zeros(64, 196, dtype=torch.bool).scatter_(1, drawn.context, True)
    assert not seen.gather(1, drawn.targets.flatten(1)).any()
    assert drawn.context.shape[1] > 10
    alone = multiblock_mask(1, (14, 14), seed=2, step=5, compat=True)
    assert alone.context.shape[1] >= drawn.context.shape[1]
    assert torch.equal(alone.targets[0], drawn.targets[0])
