"""Effective rank and spread, where they are known."""

import math

import pytest
import torch

from sslfast.eval import feature_health, health


def test_equal_singular_values_have_full_rank_and_a_decay_less() -> None:
    rows = torch.eye(8).repeat(4, 1)
    assert feature_health(rows)["effective_rank"] == pytest.approx(8, rel=1e-4)
    values = torch.tensor([4.0, 2.0, 1.0, 1.0])
    part = values / values.sum()
    expected = math.exp(-float((part * part.log()).sum()))
    for shape in (rows[:4, :4], rows[:4]):  # square, and wide
        scaled = torch.diag(values) @ shape
        assert feature_health(scaled)["effective_rank"] == pytest.approx(expected, rel=1e-4)
        # No unit, no length, nothing that a rotation changes.
        turn, _ = torch.linalg.qr(torch.randn(shape.shape[1], shape.shape[1]))
        found = feature_health(1e4 * scaled @ turn)["effective_rank"]
        assert found == pytest.approx(expected, rel=1e-4)


def test_spread_of_every_direction_is_one_over_the_root_of_the_width() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(4000, 64, generator=generator)
    assert feature_health(normal)["feature_std"] == pytest.approx(1 / 8, rel=0.01)
    assert feature_health(100 * normal)["feature_std"] == pytest.approx(1 / 8, rel=0.01)
    both = torch.cat([torch.eye(16), -torch.eye(16)])  # exactly: no mean, 1/16 the variance of each
    assert feature_health(both)["feature_std"] == pytest.approx(1 / 4)
    # What a ReLU leaves has a mean, and less spread about it.
    assert feature_health(normal.relu())["feature_std"] < 0.9 / 8


def test_collapse_is_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    point = torch.randn(1, 32, generator=generator)
    for collapsed in (point.repeat(100, 1), torch.zeros(100, 32), point.repeat(100, 1) * 1e4):
        found = feature_health(collapsed)
        assert found["effective_rank"] == pytest.approx(1, abs=1e-3)
        assert found["feature_std"] < 1e-7
    line = torch.randn(100, 1, generator=generator) @ point  # spread, in one dimension
    found = feature_health(line)
    assert found["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert found["feature_std"] > 0.05


def test_many_rows_are_thinned_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MOST_ROWS", 50)
    rows = torch.eye(2).repeat_interleave(100, dim=0)  # one after the other
    assert feature_health(rows)["effective_rank"] == pytest.approx(2, rel=1e-4)
    monkeypatch.setattr(health, "MOST_SQUARE", 1)
    monkeypatch.setattr(health, "MOST_ROWS", 200)
    assert feature_health(rows)["effective_rank"] == pytest.approx(1, abs=1e-3)


def test_the_rank_stays_in_its_range() -> None:
    assert feature_health(torch.eye(8).repeat(4, 1))["effective_rank"] <= 8
    assert feature_health(torch.ones(5, 1))["effective_rank"] >= 1


def test_what_has_no_health() -> None:
    with pytest.raises(ValueError, match="there are no features: the tensor is empty"):
        feature_health(torch.zeros(0, 4))
    for wrong, got in (
        ([[1.0, 2.0]], "got list"),
        (torch.zeros(2, 3, 4), r"got torch.float32 \[2, 3, 4\]"),
        (torch.eye(4, dtype=torch.int64), r"got torch.int64 \[4, 4\]"),
    ):
        with pytest.raises(ValueError, match=r"floating-point tensor \[N, D\], " + got):
            feature_health(wrong)
    with pytest.raises(ValueError, match="1 of 3 rows"):
        feature_health(torch.tensor([[1.0], [math.nan], [2.0]]))
