"""Every loss under deterministic algorithms only, the same bits twice, and backward twice."""

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
    classes = {n for n in losses.__all__ if isinstance(getattr(losses, n), type)}
    assert all(issubclass(getattr(losses, n), nn.Module) for n in classes)
    assert {name.split()[0] for name in STEPS} == classes


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("name", list(STEPS))
def test_the_same_bits_twice(name: str) -> None:
    first, second = (every_loss.step(STEPS[name]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(gradient.count_nonzero() for gradient in first)


@pytest.mark.parametrize("name", list(STEPS))
def test_backward_twice_after_gradients_were_changed_in_place(name: str) -> None:
    """As zero_grad(set_to_none=False) and clipping change them, between two backward passes."""
    loss, inputs = STEPS[name]()
    needed = [x for x in inputs if x.requires_grad]
    value = loss(*inputs)
    value.backward(retain_graph=True)
    once = [x.grad.clone() for x in needed if x.grad is not None]
    for x in needed:
        x.grad.mul_(3)  # type: ignore[union-attr]
    value.backward()
    for x, gradient in zip(needed, once, strict=True):
        torch.testing.assert_close(x.grad, 4 * gradient)
