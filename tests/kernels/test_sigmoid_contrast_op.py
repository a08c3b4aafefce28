"""SigLIP: the op as torch sees it, and against open_clip's class in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import peers
import sslfast
from sslfast.functional import siglip
from sslfast.kernels.sigmoid_contrast.op import sigmoid_contrast as rows_op
from sslfast.kernels.sigmoid_contrast.op import weighted_sigmoid_contrast as sum_op
from sslfast.losses import SigLipLoss

open_clip = peers.load_file("open_clip/loss.py")


def inputs(n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Unit features of images and texts, scale and bias."""
    generator = torch.Generator().manual_seed(seed)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    towers = [
        F.normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1)
        for _ in range(2)
    ]
    numbers = [torch.tensor(value, dtype=acc).requires_grad_() for value in (7.0, -3.0)]
    return [x.to(dtype).requires_grad_() for x in towers] + numbers


@given(n=st.integers(1, 60), d=st.integers(1, 20), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_equals_open_clip(n: int, d: int, seed: int) -> None:
    tensors = inputs(n, d, seed=seed)
    truth = open_clip.SigLipLoss()(*tensors)
    expected = torch.autograd.grad(truth, tensors)
    for reduction in ("mean", "sum", "none"):
        factor = 1 if reduction == "mean" else n
        ours = siglip(*tensors, reduction=reduction)
        assert ours.shape == ((n,) if reduction == "none" else ())
        torch.testing.assert_close(ours.sum(), factor * truth)
        for value, gradient in zip(torch.autograd.grad(ours.sum(), tensors), expected, strict=True):
            torch.testing.assert_close(value, factor * gradient)


def test_module_equals_open_clip() -> None:
    image, text, scale, bias = inputs(9, 5)
    ours, theirs = SigLipLoss(), open_clip.SigLipLoss()
    torch.testing.assert_close(ours(image, text, 5.0, -2.0), theirs(image, text, 5.0, -2.0))
    both = ours(image, text, scale, bias, output_dict=True)
    torch.testing.assert_close(
        both, theirs(image, text, scale, bias, output_dict=True), check_stride=False
    )


@pytest.mark.parametrize("n", [300, 700])
def test_float32_of_several_tiles(n: int) -> None:
    tensors = inputs(n, 33, torch.float32)
    truth = siglip(*(x.double() for x in tensors))
    ours = siglip(*tensors)
    torch.testing.assert_close(ours.double(), truth, rtol=1e-6, atol=0)
    pairs = zip(
        torch.autograd.grad(ours, tensors), torch.autograd.grad(truth, tensors), strict=True
    )
    for value, expected in pairs:
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-7)


def test_tiny_losses_keep_their_digits() -> None:
    """A converged pair and certain negatives: no term is the difference of two large numbers."""
    x = torch.eye(3, requires_grad=True)
    scale, bias = torch.tensor(60.0), torch.tensor(-30.0)
    loss = siglip(x, torch.eye(3), scale, bias)
    torch.testing.assert_close(loss.item(), 3 * torch.tensor(-30.0).exp().item(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("base", [None, 0, 2])
def test_gradcheck(backend: str, base: int | None) -> None:
    image, text, scale, bias = inputs(6, 4)
    tensors = image[:4].detach().requires_grad_(), text, scale, bias
    weight = torch.rand(4, dtype=torch.float64)
    with sslfast.use_backend(backend):
        torch.autograd.gradcheck(lambda *a: rows_op(*a, base), tensors)
        torch.autograd.gradcheck(lambda *a: sum_op(*a, weight, base, True)[0], tensors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    tensors = inputs(6, 4, dtype)
    weight = torch.rand(6, dtype=tensors[2].dtype)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(rows_op, (*tensors, 0))
    # AOT dispatch differentiates all outputs; the gradients among these have none of their own.
    for columns_gradient in (True, False):
        torch.library.opcheck(sum_op, (*tensors, weight, 0, columns_gradient), test_utils=checks)


def test_compile_fullgraph() -> None:
    tensors = inputs(20, 4, torch.float32)
    for reduction in ("mean", "none"):

        def loss(*tensors: Tensor, reduction: str = reduction) -> Tensor:
            return siglip(*tensors, reduction=reduction).square().sum()

        expected = torch.autograd.grad(loss(*tensors), tensors)
        found = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*tensors), tensors)
        for value, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(value, truth)


def test_swapping_towers_changes_nothing() -> None:
    image, text, scale, bias = inputs(300, 8, torch.float32)
    torch.testing.assert_close(siglip(image, text, scale, bias), siglip(text, image, scale, bias))


def test_double_backward_says_what_to_do() -> None:
    tensors = inputs(5, 3)
    for reduction in ("mean", "none"):
        loss = siglip(*tensors, reduction=reduction).sum()
        (first,) = torch.autograd.grad(loss, tensors[0], create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            first.sum().backward()


def test_frozen_texts_get_no_gradient() -> None:
    image, text, scale, bias = inputs(5, 3)
    siglip(image, text.detach(), scale, bias).backward()
    assert image.grad is not None
    assert text.grad is None
    with torch.no_grad():
        assert siglip(image, text, scale, bias).grad_fn is None


def test_bad_arguments() -> None:
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="reduction must be"):
        siglip(x, x, 1.0, 0.0, reduction="average")
    with pytest.raises(ValueError, match="same shape"):
        siglip(x, x[:3], 1.0, 0.0)
    with pytest.raises(ValueError, match="scale must be one number"):
        siglip(x, x, 1.0, torch.ones(2))
    with pytest.raises(TypeError, match="logit_bias"):
        SigLipLoss()(x, x, 1.0)
