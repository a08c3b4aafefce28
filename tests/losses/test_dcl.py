"""DCLLoss and DCLWLoss against lightly's own classes; test_distributed.py has several ranks."""

import math
import warnings

import pytest
import torch
from torch import Tensor

import peers
from sslfast.losses import DCLLoss, DCLWLoss

lightly = peers.load("lightly.loss.dcl_loss")


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """The example of lightly's documentation."""
    return torch.sum((x - y) ** 2, dim=1)


def of_the_batch(x: Tensor, y: Tensor) -> Tensor:
    """A weight that depends on all pairs, through which gradients pass; not symmetric."""
    return (x * (y.mean(0) + x[:, :1])).sum(1).softmax(0) * len(x)


WEIGHTS = [None, squared_distance, of_the_batch]


def pair(n: int, d: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(n, d, dtype=dtype, requires_grad=True) for _ in "ab"]


def same(ours: Tensor, truth: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, truth)
    gradients = torch.autograd.grad(ours, inputs)
    for value, expected in zip(gradients, torch.autograd.grad(truth, inputs), strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("n", [2, 3, 41])
def test_equal_lightly(n: int, temperature: float) -> None:
    views = pair(n, 24)
    for weight_fn in WEIGHTS:
        theirs = lightly.DCLLoss(temperature, weight_fn)(*views)
        same(DCLLoss(temperature, weight_fn)(*views), theirs, views)
    for sigma in (0.5, 0.05):
        with warnings.catch_warnings():  # theirs copies a tensor by torch.tensor
            warnings.simplefilter("ignore", UserWarning)
            theirs = lightly.DCLWLoss(temperature, sigma)(*views)
        same(DCLWLoss(temperature, sigma)(*views), theirs, views)


def test_defaults_are_lightlys() -> None:
    a, b = pair(9, 5)
    assert DCLLoss()(a, b) == DCLLoss(0.1)(a, b)
    same(DCLLoss()(a, b), lightly.DCLLoss()(a, b), [a, b])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        same(DCLWLoss()(a, b), lightly.DCLWLoss()(a, b), [a, b])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_stays_near_float64(dtype: torch.dtype) -> None:
    a, b = (t.detach().to(dtype) for t in pair(70, 32))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for loss in (DCLLoss(0.1), DCLLoss(0.1, squared_distance), DCLWLoss(0.1)):
        value = loss(a, b)
        assert value.dtype == torch.float32
        truth = loss(a.double(), b.double())
        torch.testing.assert_close(value.double(), truth, rtol=tolerance, atol=0)


def test_one_pair_has_no_negatives() -> None:
    for loss in (DCLLoss(), DCLWLoss()):
        with pytest.raises(ValueError, match="needs at least one negative: two pairs"):
            loss(*torch.randn(2, 1, 4))


def test_bad_arguments() -> None:
    a, b = torch.randn(2, 4, 3)
    for temperature in (0.0, math.nan):
        with pytest.raises(
            ValueError, match=r"temperature must be (a finite number|at least 1e-8)"
        ):
            DCLLoss(temperature)(a, b)
    with pytest.raises(ValueError, match=r"same shape.*\[4, 3\] and \[3, 3\]"):
        DCLWLoss()(a, b[1:])


def test_without_a_process_group_nothing_is_gathered() -> None:
    a, b = torch.randn(2, 6, 4).unbind()
    assert torch.equal(DCLWLoss(0.2, gather_distributed=True)(a, b), DCLWLoss(0.2)(a, b))
