"""MatryoshkaLoss: what it cuts, weighs and refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast.losses import ClipLoss, InfoNCE, MatryoshkaLoss, NTXentLoss, SupConLoss

DIMS, WEIGHTS = (2, 5, 8), (1.0, 0.5, 0.25)


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def same(ours: Tensor, truth: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, truth)
    gradients = torch.autograd.grad(ours, inputs)
    for value, expected in zip(gradients, torch.autograd.grad(truth, inputs), strict=True):
        torch.testing.assert_close(value, expected)


def test_sum_over_prefixes_of_every_embedding() -> None:
    a, b, negatives = leaf(7, 8), leaf(7, 8), leaf(7, 3, 8)
    labels = torch.randint(3, (7,))
    for loss, inputs, rest in (
        (NTXentLoss(0.2), [a, b], []),
        (InfoNCE(0.2, negative_mode="paired"), [a, b, negatives], []),
        (SupConLoss(0.2), [a], [labels]),
    ):
        truth = sum(
            c * loss(*(x[..., :m] for x in inputs), *rest)
            for m, c in zip(DIMS, WEIGHTS, strict=True)
        )
        same(MatryoshkaLoss(loss, DIMS, WEIGHTS)(*inputs, *rest), truth, inputs)
    equal = MatryoshkaLoss(NTXentLoss(0.2), DIMS)(a, out1=b)
    same(equal, sum(NTXentLoss(0.2)(a[:, :m], b[:, :m]) for m in DIMS), [a, b])


def test_towers_are_normalised_where_asked() -> None:
    image, text = leaf(6, 8), leaf(6, 8)
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)

    def clip(m: int) -> Tensor:
        return ClipLoss()(*(F.normalize(x[:, :m], dim=1) for x in (image, text)), scale)

    truth = sum(c * clip(m) for m, c in zip(DIMS, WEIGHTS, strict=True))
    ours = MatryoshkaLoss(ClipLoss(), DIMS, WEIGHTS, normalize=True)
    same(ours(image, text, logit_scale=scale), truth, [image, text, scale])


def test_a_plain_loss_with_a_class_matrix() -> None:
    """The classifier's columns are cut with the features."""
    hidden, weight, targets = leaf(6, 8), leaf(4, 8), torch.randint(4, (6,))

    def loss(x: Tensor, w: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(x @ w.T, t, reduction="none")

    truth = loss(hidden[:, :3], weight[:, :3], targets) + loss(hidden, weight, targets)
    ours = MatryoshkaLoss(loss, (3, 8))(hidden, weight, targets)
    assert ours.shape == (6,)
    same(ours.mean(), truth.mean(), [hidden, weight])


def test_learned_parameters_of_the_loss_are_its_own() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(3.0))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return ClipLoss()(x, y, self.scale)

    loss = MatryoshkaLoss(Learned(), DIMS)
    loss(*torch.randn(2, 5, 8)).backward()
    assert [name for name, _ in loss.named_parameters()] == ["loss.scale"]
    assert loss.loss.scale.grad != 0


def test_bad_arguments() -> None:
    for dims in ((), (0,), (4, -1), (2.0,), (True, 2), 4, "24"):
        with pytest.raises(ValueError, match=r"dims must be (a list of )?positive integers, got"):
            MatryoshkaLoss(NTXentLoss(), dims)
    for weights in ("12", ("a", "b"), (1.0, math.nan), (math.inf, 1.0), (True, 1.0), 2.0):
        with pytest.raises(ValueError, match=r"weights must be (a list of )?finite numbers, got"):
            MatryoshkaLoss(NTXentLoss(), (2, 4), weights)
    with pytest.raises(ValueError, match="2 dims need as many weights, got 1"):
        MatryoshkaLoss(NTXentLoss(), (2, 4), (1.0,))
    x = torch.randn(4, 8)
    with pytest.raises(ValueError, match=r"at least 9 numbers, got \[8, 8\]"):
        MatryoshkaLoss(NTXentLoss(), (2, 9))(x, x)
    with pytest.raises(ValueError, match="got none"):
        MatryoshkaLoss(NTXentLoss(), (2,))(torch.tensor(1.0))


def test_dims_and_weights_may_be_any_iterable() -> None:
    plain = MatryoshkaLoss(InfoNCE(), [2, 4], [0.5, 1.0])
    made = MatryoshkaLoss(InfoNCE(), (m for m in (2, 4)), torch.tensor([0.5, 1.0]))
    x, y = torch.randn(2, 6, 4).unbind()
    torch.testing.assert_close(made(x, y), plain(x, y))
