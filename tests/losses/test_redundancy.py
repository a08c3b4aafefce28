"""Barlow Twins and VICReg: values and gradients are those of lightly's classes, in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import peers
from sslfast.functional import barlow_twins, vicreg
from sslfast.losses import BarlowTwinsLoss, VICRegLoss

lightly_barlow = peers.load("lightly.loss.barlow_twins_loss").BarlowTwinsLoss
lightly_vicreg = peers.load("lightly.loss.vicreg_loss").VICRegLoss
PAIRS = [
    (BarlowTwinsLoss(), lightly_barlow()),
    (BarlowTwinsLoss(0.3), lightly_barlow(0.3)),
    (VICRegLoss(), lightly_vicreg()),
    (VICRegLoss(3.0, 2.0, 0.5, eps=0.1), lightly_vicreg(3.0, 2.0, 0.5, eps=0.1)),
]
NAMES = ["barlow_twins", "barlow_twins 0.3", "vicreg", "vicreg 3 2 0.5"]


def views(n: int, d: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shared = torch.randn(n, d)
    # Deviations on both sides of VICReg's hinge, and means far from 0.
    made = (torch.linspace(0.3, 2, d) * (shared + 0.5 * torch.randn(n, d)) + 3 for _ in "ab")
    return [z.to(dtype).requires_grad_() for z in made]


def results(loss: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, inputs)]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=NAMES)
@pytest.mark.parametrize(("n", "d"), [(2, 5), (7, 4), (24, 32), (40, 300), (300, 40)])
def test_lightlys_values_and_gradients(ours: nn.Module, theirs: nn.Module, n: int, d: int) -> None:
    inputs = views(n, d)
    for found, truth in zip(results(ours, inputs), results(theirs, inputs), strict=True):
        # Two standardized rows are -1 and 1 whatever they are: their gradient is almost nothing.
        torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=NAMES)
@pytest.mark.parametrize(("n", "d"), [(40, 300), (300, 40)])
def test_errors_are_no_larger_than_lightlys(
    ours: nn.Module, theirs: nn.Module, n: int, d: int
) -> None:
    for dtype, slack in ((torch.float32, 5e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)):
        inputs = views(n, d, dtype)
        wide = [z.detach().double().requires_grad_() for z in inputs]
        exact, base = results(theirs, wide), results(theirs, inputs)
        for found, eager, truth in zip(results(ours, inputs), base, exact, strict=True):
            error, allowed = ((x.double() - truth).norm() for x in (found, eager))
            assert error <= allowed + slack * truth.norm()


def test_half_precision_gives_a_loss_in_float32() -> None:
    for ours, _ in PAIRS:
        loss = ours(*views(6, 5, torch.bfloat16))
        assert loss.dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            exact = ours(*views(6, 5, torch.float32))
        assert exact.dtype == torch.float32


def test_autocast_leaves_float32_features_as_they_are() -> None:
    for ours, _ in PAIRS:
        inputs = views(12, 30, torch.float32)
        plain = results(ours, inputs)
        with torch.autocast("cpu", torch.bfloat16):
            value = ours(*inputs)
        assert torch.equal(value, plain[0])


def test_parts_make_up_the_loss() -> None:
    a, b = views(9, 20)
    parts = BarlowTwinsLoss(0.1).parts(a, b)
    assert set(parts) == {"loss", "invariance", "redundancy"}
    standard = [F.batch_norm(z, None, None, training=True) for z in (a, b)]
    c = standard[0].T @ standard[1] / 9
    torch.testing.assert_close(parts["invariance"], (1 - c.diagonal()).square().sum().detach())
    off = c - c.diag().diag()
    torch.testing.assert_close(parts["redundancy"], off.square().sum().detach())
    torch.testing.assert_close(parts["loss"], parts["invariance"] + 0.1 * parts["redundancy"])

    parts = VICRegLoss(2.0, 3.0, 4.0, eps=0.1).parts(a, b)
    assert set(parts) == {"loss", "invariance", "variance", "covariance"}
    torch.testing.assert_close(parts["invariance"], F.mse_loss(a, b).detach())
    hinge = [F.relu(1 - (z.var(0) + 0.1).sqrt()).mean() for z in (a, b)]
    torch.testing.assert_close(parts["variance"], (sum(hinge) / 2).detach())
    covariances = [z.T.cov() for z in (a, b)]
    squares = [(c - c.diag().diag()).square().sum() / 20 for c in covariances]
    torch.testing.assert_close(parts["covariance"], sum(squares).detach())
    weighted = 2 * parts["invariance"] + 3 * parts["variance"] + 4 * parts["covariance"]
    torch.testing.assert_close(parts["loss"], weighted)
    assert all(parts[name].requires_grad == (name == "loss") for name in parts)


def test_functions_are_the_classes() -> None:
    inputs = views(9, 20)
    assert torch.equal(barlow_twins(*inputs, 0.1), BarlowTwinsLoss(0.1)(*inputs))
    assert torch.equal(
        vicreg(*inputs, 2.0, 3.0, 4.0, eps=0.1), VICRegLoss(2.0, 3.0, 4.0, eps=0.1)(*inputs)
    )


def test_gradcheck() -> None:
    for loss, (n, d) in itertools.product((barlow_twins, vicreg), ((3, 5), (6, 4))):
        assert torch.autograd.gradcheck(loss, views(n, d))


def test_torch_compile_takes_them_whole() -> None:
    for ours, _ in PAIRS[::2]:
        compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
        for n, d in ((9, 30), (30, 9)):
            inputs = views(n, d, torch.float32)
            for found, truth in zip(results(compiled, inputs), results(ours, inputs), strict=True):
                assert torch.equal(found, truth)


@pytest.mark.parametrize("loss", [BarlowTwinsLoss, VICRegLoss])
def test_bad_input_is_refused_in_words(loss: type[nn.Module]) -> None:
    a, b = (z.detach() for z in views(4, 3, torch.float32))
    for given, message in (
        ((a, b[:3]), r"z_a and z_b must have the same shape, got \[4, 3\] and \[3, 3\]"),
        ((a[:1], b[:1]), "at least 2 rows, of all ranks together, got 1"),
        ((a[:0], b[:0]), "z_a is empty"),
        ((a[0], b[0]), r"z_a must have shape \[N, D\]"),
        ((a, b.double()), "z_a is torch.float32, but z_b is torch.float64"),
    ):
        with pytest.raises(ValueError, match=message):
            loss()(*given)
    with pytest.raises(TypeError, match="z_a must hold floating-point"):
        loss()(a.long(), b.long())
    with pytest.raises(ValueError, match="lambda_param must be at least 0"):
        loss(lambda_param=-1.0)


def test_settings_are_shown() -> None:
    assert "eps=0.1" in repr(VICRegLoss(eps=0.1))


def test_weights_that_are_no_weights_are_refused() -> None:
    a, b = (z.detach() for z in views(4, 3, torch.float32))
    for call, name in (
        (lambda: barlow_twins(a, b, -1.0), "lambda_param"),
        (lambda: barlow_twins(a, b, eps=float("nan")), "eps"),
        (lambda: vicreg(a, b, mu_param=-1.0), "mu_param"),
        (lambda: VICRegLoss(nu_param=float("inf")), "nu_param"),
        (lambda: VICRegLoss(eps=-1e-4), "eps"),
        # A constant column would have no gradient, but NaN.
        (lambda: VICRegLoss(eps=0.0), "eps"),
        (lambda: vicreg(a, b, eps=0.0), "eps"),
        (lambda: barlow_twins(a, b, eps=0.0), "eps"),
    ):
        with pytest.raises(ValueError, match=f"{name} must be"):
            call()


@pytest.mark.parametrize("kind", [BarlowTwinsLoss, VICRegLoss])
def test_gathering_without_a_process_group_is_one_rank(kind: type[nn.Module]) -> None:
    inputs = views(6, 4)
    assert torch.equal(kind(gather_distributed=True)(*inputs), kind()(*inputs))
