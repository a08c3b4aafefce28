import math

import pytest

from sslfast.optim.schedules import warmup_cosine


def test_values() -> None:
    rates = [warmup_cosine(step, peak=2.0, warmup=4, total=12) for step in range(12)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[8] == pytest.approx(1.0)  # half of the cosine
    assert rates[11] == pytest.approx(1 + math.cos(math.pi * 7 / 8))
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_without_warmup_it_starts_at_the_peak() -> None:
    assert warmup_cosine(0, peak=0.3, warmup=0, total=10) == 0.3


def test_a_run_shorter_than_its_warmup_only_rises() -> None:
    rates = [warmup_cosine(step, peak=1.0, warmup=10, total=5) for step in range(5)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
