"""What no loss may depend on: the order of pairs, constants that cancel, which tower is which."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import peers
from sslfast.functional import clip, info_nce, linear_cross_entropy, ntxent, siglip, supcon
from sslfast.losses import DCLLoss, DCLWLoss, InfoNCE, NTXentLoss, SupConLoss

sizes = st.integers(2, 70), st.integers(1, 40), st.integers(0, 10**6)


def pairs(n: int, d: int, seed: int) -> tuple[Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (F.normalize(torch.randn(n, d, generator=generator), dim=1) for _ in "xy")
    return x, y, generator


@given(*sizes)
@settings(max_examples=25, deadline=None)
def test_order_of_pairs(n: int, d: int, seed: int) -> None:
    x, y, generator = pairs(n, d, seed)
    order = torch.randperm(n, generator=generator)
    labels = torch.randint(3, (n,), generator=generator)
    close = {"rtol": 1e-4, "atol": 1e-5}
    rows = ntxent(x, y, 0.1, reduction="none").view(2, n)
    shuffled = ntxent(x[order], y[order], 0.1, reduction="none").view(2, n)
    torch.testing.assert_close(shuffled, rows[:, order], **close)
    for loss in (
        lambda x, y: clip(x, y, 10.0, reduction="none"),
        lambda x, y: siglip(x, y, 10.0, -5.0, reduction="none"),
        lambda x, y: info_nce(x, y, reduction="none"),
    ):
        torch.testing.assert_close(loss(x[order], y[order]), loss(x, y)[order], **close)
    shuffled = supcon(x[order], labels[order], reduction="none")
    torch.testing.assert_close(shuffled, supcon(x, labels, reduction="none")[order], **close)


@given(*sizes)
@settings(max_examples=25, deadline=None)
def test_exchanging_views_or_towers(n: int, d: int, seed: int) -> None:
    x, y, _ = pairs(n, d, seed)
    for loss in (
        lambda x, y: ntxent(x, y, 0.1),
        lambda x, y: clip(x, y, 10.0),
        lambda x, y: siglip(x, y, 10.0, -5.0),
    ):
        torch.testing.assert_close(loss(y, x), loss(x, y), rtol=1e-4, atol=1e-5)


@given(
    n=st.integers(1, 40), v=st.integers(2, 90), shift=st.floats(-30, 30), seed=st.integers(0, 99)
)
@settings(max_examples=25, deadline=None)
def test_a_constant_added_to_all_logits_cancels(n: int, v: int, shift: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.randn(n, 8, generator=generator), torch.randn(v, 8, generator=generator)
    targets = torch.randint(v, (n,), generator=generator)
    plain = linear_cross_entropy(x, w, targets, reduction="none")
    moved = linear_cross_entropy(x, w, targets, torch.full((v,), shift), reduction="none")
    torch.testing.assert_close(moved, plain, rtol=1e-4, atol=1e-4)


@given(*sizes)
@settings(max_examples=25, deadline=None)
def test_length_of_embeddings(n: int, d: int, seed: int) -> None:
    x, y, generator = pairs(n, d, seed)
    lengths = torch.rand(n, 1, generator=generator) + 0.5
    scaled, plain = ntxent(lengths * x, 3 * y, 0.1), ntxent(x, y, 0.1)
    torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(info_nce(lengths * x, 3 * y), info_nce(x, y), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 0.07, 0.01])
def test_equals_pytorch_metric_learning(temperature: float) -> None:
    theirs = peers.load("pytorch_metric_learning.losses")
    a, b = (torch.randn(9, 6, dtype=torch.float64, requires_grad=True) for _ in "ab")
    ours = NTXentLoss(temperature)(a, b)
    truth = theirs.SelfSupervisedLoss(theirs.NTXentLoss(temperature))(a, b)
    torch.testing.assert_close(ours, truth)
    found, expected = torch.autograd.grad(ours, (a, b)), torch.autograd.grad(truth, (a, b))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("loss", [NTXentLoss, InfoNCE, SupConLoss, DCLLoss, DCLWLoss])
def test_a_temperature_may_be_a_parameter(loss: Any) -> None:
    temperature = torch.nn.Parameter(torch.tensor(0.3))
    x, y = torch.randn(2, 6, 5).unbind()
    inputs = (x, torch.arange(6) % 2) if loss is SupConLoss else (x, y)
    value = loss(temperature)(*inputs)
    torch.testing.assert_close(value, loss(0.3)(*inputs))
    (gradient,) = torch.autograd.grad(value, temperature)
    assert gradient.isfinite()
    assert gradient != 0
