"""The op as torch sees it: gradcheck, opcheck, compile, autocast, double backward, memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import sslfast
from sslfast.functional import ntxent
from sslfast.kernels import similarity_softmax as kernels
from sslfast.kernels.library import NAMESPACE
from sslfast.kernels.similarity_softmax import Pairing
from sslfast.kernels.similarity_softmax.op import similarity_softmax as op

OPS = getattr(torch.ops, NAMESPACE)

NTXENT = Pairing(6, 3, leave_out_self=True)
FORMS = {  # name: (columns, pairing, column_lse)
    "ntxent": (None, NTXENT, False),
    "ntxent_both": (None, NTXENT, True),
    "clip": (6, Pairing(6), True),
    "slab": (14, Pairing(6, 3, 0, 4, leave_out_self=True), True),
    "one_sided": (9, Pairing(6, 0, 0, 2), False),
    "negatives_only": (9, None, False),
}


def inputs(columns: int | None, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
    x = torch.randn(6, 4, dtype=dtype, requires_grad=True)
    y = None if columns is None else torch.randn(columns, 4, dtype=dtype, requires_grad=True)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    return [x, y, torch.tensor(1.7, dtype=acc, requires_grad=True)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_gradcheck(form: str, normalize: bool, backend: str) -> None:
    columns, pairing, column_lse = FORMS[form]
    tensors = inputs(columns)

    def call(*args: Tensor) -> tuple[Tensor, ...]:
        x, y, s = args if columns is not None else (args[0], None, args[1])
        lse, positive, lse_columns = op(
            x, y, s, pairing, normalize=normalize, column_lse=column_lse
        )
        return tuple(
            t
            for t, used in ((lse, True), (positive, pairing is not None), (lse_columns, column_lse))
            if used
        )

    with sslfast.use_backend(backend):
        assert torch.autograd.gradcheck(call, [t for t in tensors if t is not None])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep", [0, 100])
def test_opcheck(form: str, dtype: torch.dtype, keep: int) -> None:
    columns, pairing, column_lse = FORMS[form]
    torch.library.opcheck(
        OPS.similarity_softmax.default,
        (*inputs(columns, dtype), pairing and pairing.numbers, True, column_lse, keep),
        # What is kept lies in memory that is not set beyond the first number.
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
        + (() if keep else ("test_aot_dispatch_dynamic",)),
    )


def gradients(columns: Tensor | None, rows: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    m = len(rows)
    pairing = Pairing(m) if columns is not None else Pairing(m, m // 2, leave_out_self=True)
    lse, positive, lse_columns = op(
        rows, columns, scale, pairing, normalize=True, column_lse=columns is not None
    )
    loss = (lse - positive).square().sum() + lse_columns.sum()
    wanted = [t for t in (rows, columns, scale) if t is not None]
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    for once, again in zip(first, torch.autograd.grad(loss, wanted), strict=True):
        assert torch.equal(once, again)
    return first


@pytest.mark.parametrize("n", [None, 700])
@pytest.mark.parametrize("floats", [0, 1, 16 + 128 * 128, 200_000, 2**21, 4 * 2**18])
def test_what_is_kept_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, n: int | None, floats: int
) -> None:
    """None of the logits, some or all of them; more than once, and for several threads."""
    rows = torch.randn(900, 40, requires_grad=True)
    columns = None if n is None else torch.randn(n + 200, 40, requires_grad=True)
    scale = torch.tensor(9.0, requires_grad=True)
    with monkeypatch.context() as nothing:
        nothing.setattr(kernels, "KEPT_FLOATS", 0)
        expected = gradients(columns, rows, scale)
    monkeypatch.setattr(kernels, "KEPT_FLOATS", floats)
    for found, truth in zip(gradients(columns, rows, scale), expected, strict=True):
        assert torch.equal(found, truth)


@pytest.mark.parametrize(
    ("m", "n"), [(700, None), (1100, None), (300, None), (300, 500), (1100, 700)]
)
def test_all_logits_are_kept_where_there_is_room(m: int, n: int | None) -> None:
    """Rows of the unit matrix: the gradient is the matrix of weights, so every logit shows."""
    width = max(m, n or 0)
    rows = torch.eye(m, width)
    columns = None if n is None else torch.eye(n, width)
    scale, length = torch.tensor(1.0), n or m
    pairing = None if columns is not None else Pairing(m, leave_out_self=True).numbers
    forward = OPS.similarity_softmax.default
    keep = kernels.kept_size(rows, columns)
    _, _, _, kept, *_ = forward(rows, columns, scale, pairing, False, n is not None, keep)
    assert kept[0] == 1
    kept[16:] = 3.0  # to base 2; they were 0
    ones = torch.zeros(m), torch.ones(m), torch.zeros(length)
    lse, g, lse_columns = ones
    found, _, _ = OPS.similarity_softmax_backward.default(
        g,
        torch.zeros(m),
        None,
        rows,
        columns,
        scale,
        lse,
        lse_columns,
        pairing,
        False,
        False,
        kept,
    )
    weights = found[:, :length]
    expected = torch.full_like(weights, 8.0 if n is not None else 16.0)
    if n is None:
        expected.fill_diagonal_(0)
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize("kept_by", ["tiled", "reference"])
def test_nothing_is_taken_from_a_backend_that_kept_nothing(kept_by: str) -> None:
    a, b = (torch.randn(300, 8, requires_grad=True) for _ in "ab")
    (truth,) = torch.autograd.grad(ntxent(a, b, 0.1), a)
    for forward, backward in ((kept_by, "cpu"), ("cpu", kept_by)):
        with sslfast.use_backend(forward):
            loss = ntxent(a, b, 0.1)
        with sslfast.use_backend(backward):
            (found,) = torch.autograd.grad(loss, a)
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-7)


def test_memory_for_logits_only_where_it_can_pay() -> None:
    x = torch.randn(10, 4)
    assert kernels.kept_size(x, None) == 16 + 256 * 256
    assert kernels.kept_size(torch.empty(300_000, 4), x) == kernels.KEPT_FLOATS
    assert kernels.kept_size(x.double(), None) == 0
    assert kernels.kept_size(x.to("meta"), None) == 0


def test_results_are_contiguous_whatever_the_inputs_are() -> None:
    """Compiled code relies on the strides that the fakes have."""
    x, y = (torch.randn(4, 6).T for _ in "xy")
    scale, lse, g = torch.tensor(3.0), *torch.rand(2, 6, dtype=torch.float64)
    for columns in (None, y):
        pairing = (NTXENT if columns is None else Pairing(6)).numbers
        side = None if columns is None else g
        torch.library.opcheck(
            OPS.similarity_softmax_backward.default,
            (g, g, side, x, columns, scale, lse, lse, pairing, columns is not None, True),
            test_utils=("test_schema", "test_faketensor"),
        )
        torch.library.opcheck(
            OPS.similarity_softmax_backward.default,
            (
                g,
                g,
                None,
                x,
                columns,
                scale,
                lse,
                lse,
                pairing,
                False,
                False,
                None,
                *[g.float()] * 2,
            ),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_compile_fullgraph() -> None:
    a, b = torch.randn(20, 8, requires_grad=True), torch.randn(20, 8)
    t = torch.tensor(0.2, requires_grad=True)

    def loss(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        return ntxent(a, b, t, reduction="none").square().sum()

    expected = torch.autograd.grad(loss(a, b, t), (a, t))
    compiled = torch.compile(loss, fullgraph=True)
    for value, truth in zip(torch.autograd.grad(compiled(a, b, t), (a, t)), expected, strict=True):
        torch.testing.assert_close(value, truth)


def test_autocast_does_not_reach_the_sums() -> None:
    x = F.normalize(torch.randn(64, 16), dim=1)
    for backend in ("reference", "tiled"):
        with sslfast.use_backend(backend):
            expected = ntxent(x[:32], x[32:], 0.05)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(ntxent(x[:32], x[32:], 0.05), expected)


def test_activation_checkpointing_gives_the_same_gradient() -> None:
    a, b = torch.randn(12, 8, requires_grad=True), torch.randn(12, 8)
    (plain,) = torch.autograd.grad(ntxent(a, b), a)
    (again,) = torch.autograd.grad(checkpoint(ntxent, a, b, use_reentrant=False), a)
    assert torch.equal(plain, again)


def test_double_backward_says_what_to_do() -> None:
    a, b = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
    (first,) = torch.autograd.grad(ntxent(a, b), a, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()


def test_double_backward_of_the_log_sum_exps_alone() -> None:
    """Nothing that comes from above needs a gradient, and unit rows have none."""
    x, _, scale = inputs(None)
    lse, _, _ = op(x, None, scale.detach(), NTXENT, normalize=True)
    (first,) = torch.autograd.grad(lse.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()


def test_nothing_is_kept_without_gradients() -> None:
    a = torch.randn(4, 8)
    with torch.no_grad():
        assert ntxent(a.requires_grad_(), a).grad_fn is None


def test_only_what_needs_a_gradient_gets_one() -> None:
    x, y, s = inputs(9)
    assert x is not None
    assert y is not None
    lse, _, _ = op(x, y.detach(), s, None, normalize=True)
    lse.sum().backward()
    assert x.grad is not None
    assert s.grad is not None
    assert y.grad is None
    lse, _, _ = op(x.detach(), y, s.detach(), None, normalize=True)
    lse.sum().backward()
    assert y.grad is not None


def test_rows_of_zeros_give_the_others_the_gradient_of_normalize() -> None:
    """A row of zeros has finite logits; its own gradient is 0, where F.normalize has 1e12."""
    x = torch.randn(6, 4, dtype=torch.float64)
    x[2] = 0
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    scale = torch.tensor(2.0, dtype=torch.float64)
    lse, positive, _ = op(a, None, scale, NTXENT, normalize=True)
    (lse - positive).sum().backward()
    z = F.normalize(b, dim=1)
    lse, positive, _ = op(z, None, scale, NTXENT)
    (lse - positive).sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    b.grad[2] = 0
    torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_zero_rows_are_finite(dtype: torch.dtype) -> None:
    out, other = torch.zeros(4, 8, dtype=dtype), torch.randn(4, 8).to(dtype)
    out[1] = 1
    out.requires_grad_()
    loss = ntxent(out, other)
    assert loss.isfinite()
    (65536 * loss).backward()
    assert out.grad is not None
    assert out.grad.isfinite().all()
    assert (out.grad != 0).any(1).tolist() == [False, True, False, False]
