"""The ops of masked models as torch sees them: gradcheck, opcheck, compile, autocast."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sslfast
from sslfast.functional import gather_patches, masked_mse, patchify_visible, restore_with_tokens
from sslfast.kernels.gather_patches import op as gather
from sslfast.kernels.masked_mse import op as mse
from sslfast.kernels.patch_mask import op as masks
from sslfast.kernels.patchify_visible import op as patchify
from sslfast.kernels.restore_with_tokens import op as restore_op
from sslfast.masking import random_mask

F64 = torch.float64


def leaf(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def ids_of(batch: int, length: int, keep: int) -> Tensor:
    return torch.rand(batch, length).argsort(1)[:, :keep]


def problems(dtype: torch.dtype) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    ids, restore = torch.randint(3, (2, 2)), torch.rand(2, 3).argsort(1)
    images, weight = leaf(1, 2, 2, 2, 4, dtype=dtype), leaf(2, 2, 1, 2, 2, dtype=dtype)
    mask = torch.tensor([True, False, True])
    patches = torch.randint(4, (1, 3))
    return {
        "gather": (gather.gather_patches, (leaf(2, 3, 2, dtype=dtype), ids)),
        "scatter": (gather.scatter_patches, (leaf(2, 2, 2, dtype=dtype), ids, 3)),
        "restore": (
            restore_op.restore_with_tokens,
            (leaf(2, 2, 2, dtype=dtype), leaf(2, dtype=dtype), restore, leaf(3, 2, dtype=dtype)),
        ),
        "restore_plain": (
            restore_op.restore_with_tokens,
            (leaf(2, 2, 2, dtype=dtype), leaf(2, dtype=dtype), restore, None),
        ),
        "patchify": (
            patchify.patchify_visible,
            (images, weight, leaf(2, dtype=dtype), leaf(4, 2, dtype=dtype), patches),
        ),
        "patchify_plain": (patchify.patchify_visible, (images, weight, None, None, patches)),
        "cut": (patchify.cut_patches, (images, [1, 2, 2], patches)),
        "mse": (
            mse.masked_mse,
            (leaf(3, 3, dtype=dtype), leaf(3, 3, dtype=dtype), mask, False, 1e-6),
        ),
        "mse_normalised": (
            mse.masked_mse,
            (leaf(3, 3, dtype=dtype), leaf(3, 3, dtype=dtype), mask, True, 0.1),
        ),
    }


NAMES = list(problems(F64))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["reference", "tiled", "auto"])
def test_gradcheck(name: str, backend: str) -> None:
    op, arguments = problems(F64)[name]
    with sslfast.use_backend(backend):
        assert torch.autograd.gradcheck(op, arguments)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    op, arguments = problems(dtype)[name]
    torch.library.opcheck(op, arguments)


def test_opcheck_of_the_selection() -> None:
    step = torch.tensor(2)
    torch.library.opcheck(masks.random_patch_mask, (torch.arange(3), step, 7, 1, 9, 4))
    keys = torch.randint(2**33, (3, 9))
    torch.library.opcheck(masks.smallest_keys, (keys, torch.tensor([0, 4, 9])))
    torch.library.opcheck(masks.compact_mask, (torch.rand(3, 9) < 0.5, 4))


def test_gather_has_a_second_derivative() -> None:
    ids = torch.randint(6, (2, 4))
    assert torch.autograd.gradgradcheck(gather.gather_patches, (leaf(2, 6, 3), ids))


@pytest.mark.parametrize("name", ["restore", "mse"])
def test_double_backward_says_what_to_do(name: str) -> None:
    op, arguments = problems(F64)[name]
    (first,) = torch.autograd.grad(op(*arguments).square().sum(), arguments[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()


def test_autoencoder_compiles_in_one_graph() -> None:
    images, weight = torch.randn(2, 3, 8, 8), torch.randn(6, 3, 2, 2, requires_grad=True)
    token, positions = torch.randn(6, requires_grad=True), torch.randn(16, 6)
    target = torch.randn(2, 16, 6)

    def loss(images: Tensor, step: Tensor) -> Tensor:
        kept = random_mask(2, 16, 0.75, seed=1, step=step)
        seen = patchify_visible(images, kept.ids_keep, weight, None, positions)
        seen = seen + gather_patches(positions.expand(2, -1, -1), kept.ids_keep)
        decoded = restore_with_tokens(seen, token, kept.ids_restore, positions)
        return masked_mse(decoded, target, kept.mask, norm_target=True)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for step in (torch.tensor(3), torch.tensor(4)):
        expected = torch.autograd.grad(loss(images, step), (weight, token))
        got = torch.autograd.grad(compiled(images, step), (weight, token))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_patchify_visible_is_a_convolution() -> None:
    """Pictures and videos, values and all gradients, against conv and gather."""
    for images, weight in (
        (leaf(2, 3, 8, 12), leaf(5, 3, 4, 4)),
        (leaf(2, 3, 4, 8, 8), leaf(5, 3, 2, 4, 4)),
    ):
        stride = weight.shape[2:]
        convolution = F.conv2d if weight.dim() == 4 else F.conv3d
        bias = leaf(5)
        every = convolution(images, weight, bias, stride=stride).flatten(2).transpose(1, 2)
        positions, ids = leaf(1, every.shape[1], 5), ids_of(2, every.shape[1], 3)
        expected = (every + positions).gather(1, ids[..., None].expand(-1, -1, 5))
        got = patchify_visible(images, ids, weight, bias, positions)
        torch.testing.assert_close(got, expected)
        inputs, above = (images, weight, bias, positions), torch.randn_like(got)
        for a, b in zip(
            torch.autograd.grad(got, inputs, above),
            torch.autograd.grad(expected, inputs, above),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_patchify_visible_under_autocast() -> None:
    images, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = patchify_visible(images, ids_of(2, 4, 2), weight, positions=torch.randn(4, 5))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_masked_mse_is_the_loss_of_mae() -> None:
    """Against the published formula, written out."""
    prediction, target, mask = (
        leaf(3, 10, 12),
        torch.randn(3, 10, 12).double(),
        random_mask(3, 10, 0.7, seed=5).mask,
    )
    normal = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
    for norm_target, wanted in ((True, normal), (False, target)):
        loss = (prediction - wanted).square().mean(-1)
        expected = (loss * mask).sum() / mask.sum()
        got = masked_mse(prediction, target, mask, norm_target=norm_target)
        torch.testing.assert_close(got, expected)
        for a, b in zip(
            torch.autograd.grad(got, prediction),
            torch.autograd.grad(expected, prediction),
            strict=True,
        ):
            torch.testing.assert_close(a, b)
        rows = masked_mse(prediction, target, mask, norm_target=norm_target, reduction="none")
        torch.testing.assert_close(rows, loss * mask)
        total = masked_mse(prediction, target, mask, norm_target=norm_target, reduction="sum")
        torch.testing.assert_close(total, rows.sum())


X, IDS = torch.randn(2, 6, 4), torch.zeros(2, 3, dtype=torch.int64)
IMAGES, WEIGHT, MASK = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 4, 4), torch.ones(2, 6) > 0
BAD = [
    (lambda: gather_patches([1], IDS), TypeError, "tokens must be a torch.Tensor"),
    (lambda: gather_patches(X.long(), IDS), TypeError, "floating-point"),
    (lambda: gather_patches(X[0], IDS), ValueError, r"\[B, L, D\]"),
    (lambda: gather_patches(X, IDS.int()), TypeError, "int64"),
    (lambda: gather_patches(X, IDS[:1]), ValueError, r"\[2, any\]"),
    (lambda: restore_with_tokens(X, torch.zeros(3), IDS), ValueError, "only 3"),
    (lambda: restore_with_tokens(X[:, :2], torch.zeros(3), IDS), ValueError, r"token .*\[4\]"),
    (
        lambda: restore_with_tokens(X[:, :2], torch.zeros(4), IDS, torch.zeros(2, 4)),
        ValueError,
        r"positions must have shape \[3, 4\]",
    ),
    (lambda: patchify_visible(IMAGES[..., :7], IDS, WEIGHT), ValueError, "whole number of patches"),
    (lambda: patchify_visible(IMAGES, IDS, WEIGHT[:, :2]), ValueError, "weight must have shape"),
    (lambda: patchify_visible(IMAGES, IDS, WEIGHT.half()), ValueError, "weight must be"),
    (lambda: patchify_visible(IMAGES, IDS, WEIGHT, torch.zeros(4)), ValueError, "bias"),
    (
        lambda: patchify_visible(IMAGES, IDS, WEIGHT, None, torch.zeros(5, 5)),
        ValueError,
        r"positions must have shape \[4, 5\]",
    ),
    (lambda: masked_mse(X, X[:, :5], MASK), ValueError, "target must have shape"),
    (lambda: masked_mse(X, X, MASK.float()), TypeError, "bool"),
    (lambda: masked_mse(X, X, MASK[:1]), ValueError, "mask must be"),
    (lambda: masked_mse(X[..., :1], X[..., :1], MASK, norm_target=True), ValueError, "variance"),
    (lambda: masked_mse(X, X, MASK, reduction="median"), ValueError, "reduction"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
