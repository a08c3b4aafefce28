"""Rejection curves: closed forms, bounds, and independence of the order of equal samples."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sslfast.eval import Features
from sslfast.eval.linear import LinearProbe
from sslfast.eval.rejection import probe_curves, rejection_bounds, rejection_curve

SAMPLES = st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=30)


def tensors(samples: list[tuple[bool, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    correct, uncertainty = zip(*samples, strict=True)
    return torch.tensor(correct), torch.tensor(uncertainty, dtype=torch.float32)


def test_by_hand() -> None:
    correct = torch.tensor([True, False, True, False])
    curve = rejection_curve(correct, torch.tensor([0.1, 0.9, 0.4, 0.2]))
    # Rejected in this order: 0.9 (wrong), 0.4 (right), 0.2 (wrong), 0.1 (right).
    torch.testing.assert_close(curve.accuracy, torch.tensor([1 / 2, 2 / 3, 1 / 2, 1.0]).double())
    assert curve.rejected.tolist() == [0, 0.25, 0.5, 0.75]
    assert curve.area == pytest.approx(2 / 3)


@pytest.mark.parametrize(("right", "total"), [(0, 5), (3, 5), (5, 5), (700, 1000)])
def test_bounds_in_closed_form(right: int, total: int) -> None:
    ideal, random = rejection_bounds(torch.arange(total) >= total - right)
    best = [min(1.0, right / kept) for kept in range(total, 0, -1)]
    torch.testing.assert_close(ideal.accuracy, torch.tensor(best, dtype=torch.float64))
    torch.testing.assert_close(random.accuracy, torch.full((total,), right / total).double())
    assert random.area == pytest.approx(right / total)


def test_ties_are_the_mean_over_all_orders() -> None:
    correct = torch.tensor([True, False, False, True, False])
    level = torch.tensor([0.0, 1.0, 1.0, 1.0, 2.0])
    orders = [
        rejection_curve(correct, level + 0.1 * torch.tensor([0, *order, 0])).accuracy
        for order in itertools.permutations(range(3))
    ]
    torch.testing.assert_close(
        rejection_curve(correct, level).accuracy, torch.stack(orders).mean(0)
    )


@settings(deadline=None)
@given(SAMPLES, st.randoms(use_true_random=False))
def test_only_the_order_of_uncertainties_counts(samples, random) -> None:
    curve = rejection_curve(*tensors(samples))
    correct, uncertainty = tensors(random.sample(samples, len(samples)))
    shuffled = rejection_curve(correct, (3 * uncertainty).exp() - 7)
    torch.testing.assert_close(shuffled.accuracy, curve.accuracy)


@settings(deadline=None)
@given(SAMPLES)
def test_between_the_best_order_and_the_worst(samples) -> None:
    correct, uncertainty = tensors(samples)
    curve = rejection_curve(correct, uncertainty)
    ideal, random = rejection_bounds(correct)
    assert (curve.accuracy <= ideal.accuracy + 1e-12).all()
    assert (curve.accuracy >= rejection_curve(correct, correct.double()).accuracy - 1e-12).all()
    assert float(curve.accuracy[0]) == pytest.approx(random.area)
    assert 0 <= curve.area <= ideal.area + 1e-12


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"\[N\] alike, N >= 1, got \[3\] and \[2\]"):
        rejection_curve(torch.ones(3), torch.ones(2))
    with pytest.raises(ValueError, match=r"N >= 1, got \[0\]"):
        rejection_curve(torch.ones(0), torch.ones(0))
    with pytest.raises(ValueError, match="2 uncertainties are not a number"):
        rejection_curve(torch.ones(3), torch.tensor([1.0, torch.nan, torch.nan]))


def test_curves_of_probes_are_means_of_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    noisy = torch.nn.functional.one_hot(labels, 5) + torch.randn(60, 5, generator=generator)
    features = Features(noisy, labels, torch.arange(60))
    probes = [LinearProbe.fit(features, 5, seed=seed) for seed in range(2)]
    variance = torch.rand(60, generator=generator)
    curves = probe_curves(probes, features, variance)
    right = torch.stack([probe.predict(features)[0] == labels for probe in probes])
    assert 0 < right.double().mean() < 1
    mean = rejection_curve(right.double().mean(0), variance)
    torch.testing.assert_close(curves["variance"].accuracy, mean.accuracy)
    assert curves["random"].area == pytest.approx(float(right.double().mean()))
    areas = [
        rejection_curve(correct, -probe.predict(features)[1]).area
        for correct, probe in zip(right, probes, strict=True)
    ]
    assert curves["confidence"].area == pytest.approx(sum(areas) / 2)
    ideal = [rejection_bounds(correct)[0].area for correct in right]
    assert curves["ideal"].area == pytest.approx(sum(ideal) / 2)
