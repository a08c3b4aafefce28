"""Every loss where torch allows deterministic algorithms only, and the same bits twice."""

from collections.abc import Iterator

import every_loss
import pytest
import torch
from torch import nn

from sslfast import losses

STEPS = every_loss.steps(70, 16, "cpu", torch.float32)


@pytest.fixture
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_no_loss_is_left_out() -> None:
    classes = {n for n in losses.__all__ if isinstance(vars(losses)[n], type)}
    assert all(issubclass(vars(losses)[n], nn.Module) for n in classes)
    assert {name.split()[0] for name in STEPS} == classes


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("name", list(STEPS))
def test_the_same_bits_twice(name: str) -> None:
    first, second = (every_loss.step(STEPS[name]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(gradient.count_nonzero() for gradient in first)
