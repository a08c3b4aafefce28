"""The op of all prefixes: oracle, gradcheck, opcheck, what is kept, determinism, compile."""

import pytest
import torch
from torch import Tensor

import sslfast
from sslfast.functional import ntxent
from sslfast.kernels import registry
from sslfast.kernels import similarity_softmax as one_prefix
from sslfast.kernels.library import NAMESPACE
from sslfast.kernels.matryoshka_softmax import Prefixes, inverse_norms, kept_prefixes, reference
from sslfast.kernels.matryoshka_softmax.op import matryoshka_softmax
from sslfast.kernels.similarity_softmax import Pairing
from sslfast.losses import MatryoshkaLoss, NTXentLoss

OPS = getattr(torch.ops, NAMESPACE)
FORMS = {  # name: (columns, pairing, column_lse)
    "ntxent": (None, Pairing(6, 3, leave_out_self=True), False),
    "ntxent_both": (None, Pairing(6, 3, leave_out_self=True), True),
    "clip": (6, Pairing(6), True),
    "shifted": (6, Pairing(6, 2), True),
    "one_sided": (6, Pairing(6), False),
}
DIMS = (2, 3, 5)


def inputs(columns: int | None, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
    x = torch.randn(6, 5, dtype=dtype, requires_grad=True)
    y = None if columns is None else torch.randn(columns, 5, dtype=dtype, requires_grad=True)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    return [x, y, torch.tensor(1.7, dtype=acc, requires_grad=True)]


@pytest.mark.parametrize(
    ("form", "frozen"),
    [(f, k) for f in FORMS for k in (None, 0, 1) if k is None or FORMS[f][0] is not None],
)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_gradcheck(form: str, normalize: bool, frozen: int | None, backend: str) -> None:
    columns, pairing, column_lse = FORMS[form]
    tensors = inputs(columns)
    if frozen is not None:
        tensors[frozen] = tensors[frozen].detach()

    def call(*args: Tensor) -> tuple[Tensor, ...]:
        x, y, s = args if columns is not None else (args[0], None, args[1])
        found = matryoshka_softmax(
            x, y, s, DIMS, pairing, normalize=normalize, column_lse=column_lse
        )
        return found if column_lse else found[:2]

    with sslfast.use_backend(backend):
        assert torch.autograd.gradcheck(call, [t for t in tensors if t is not None])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep", [0, 100])
def test_opcheck(form: str, dtype: torch.dtype, keep: int) -> None:
    columns, pairing, column_lse = FORMS[form]
    torch.library.opcheck(
        OPS.matryoshka_softmax.default,
        (*inputs(columns, dtype), DIMS, pairing.numbers, True, column_lse, keep),
        # What is kept lies in memory that is not set beyond the first number.
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
        + (() if keep else ("test_aot_dispatch_dynamic",)),
    )


def names() -> list[str]:
    """Those that run here, but the oracle and what interpreted_prefixes.py tests."""
    found = registry.candidates("matryoshka_softmax")
    return [b.name for b in found if b.name not in ("reference", "triton")]


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(
    ("m", "n", "dims"),
    [(10, None, (3, 8)), (650, None, (16, 32, 100)), (700, 650, (32, 64, 96)), (1, 1, (1, 2))],
)
def test_against_the_oracle(name: str, m: int, n: int | None, dims: tuple[int, ...]) -> None:
    """Forward and backward of float32 rows, against float64."""
    x = torch.randn(m, dims[-1])
    y = None if n is None else torch.randn(n, dims[-1])
    pairing = Pairing(m, m // 2, leave_out_self=True) if y is None else Pairing(min(m, n), 0)
    backend = next(b for b in registry.candidates("matryoshka_softmax") if b.name == name).module
    results = []
    for run, wide in ((backend, False), (reference, True)):
        rows, columns = (None if t is None else t.double() if wide else t for t in (x, y))
        scale = torch.tensor(6.0, dtype=rows.dtype)
        of_rows = inverse_norms(rows, dims, True)
        of_columns = of_rows if columns is None else inverse_norms(columns, dims, True)
        problem = rows, columns, scale, Prefixes(dims, of_rows, of_columns), pairing
        lse, positive, lse_columns = run.forward(*problem, True)
        g, h = (1 + torch.arange(t.numel()).reshape(t.shape) % 3 for t in (lse, lse_columns))
        sides = (lse, g.double()), (lse_columns, h.double())
        if columns is None:
            sides = sides[0], sides[0]
        back = run.backward(*problem, *sides, torch.ones_like(lse) / 3, columns is not None)
        results.append((lse, positive, lse_columns, *back))
    for ours, truth in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), truth.double(), rtol=1e-4, atol=1e-4)


def step(x: Tensor, y: Tensor | None, dims: tuple[int, ...]) -> tuple[Tensor, ...]:
    x = x.detach().requires_grad_()
    pairing = Pairing(len(x), len(x) // 2, leave_out_self=True) if y is None else Pairing(len(x))
    lse, positive, _ = matryoshka_softmax(
        x, y, torch.tensor(9.0), dims, pairing, normalize=True, column_lse=y is not None
    )
    (gradient,) = torch.autograd.grad((lse - positive).square().sum(), x)
    return lse.detach(), gradient


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("floats", [1, 16 + 128 * 128, 200_000, 2**21])
def test_what_is_kept_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, two: bool, floats: int
) -> None:
    x, dims = torch.randn(500, 96), (32, 64, 96)
    y = torch.randn(500, 96) if two else None
    with monkeypatch.context() as nothing:
        nothing.setattr(one_prefix, "KEPT_FLOATS", 0)
        expected = step(x, y, dims)
    monkeypatch.setattr(one_prefix, "KEPT_FLOATS", floats)
    for found, truth in zip(step(x, y, dims), expected, strict=True):
        assert torch.equal(found, truth)


def test_the_inner_products_that_are_kept_are_used() -> None:
    """Rows of the unit matrix: what is kept is 0 off the diagonal, until it is written over."""
    x, dims = torch.eye(300, 320), (32, 320)
    assert kept_prefixes(dims) == [False, True]
    pairing, scale = Pairing(300, leave_out_self=True), torch.tensor(1.0)
    keep = one_prefix.kept_size(x, None)
    lse, _, _, kept, inverse, _ = OPS.matryoshka_softmax.default(
        x, None, scale, dims, pairing.numbers, False, False, keep
    )
    assert kept[0] == 1
    kept[16:] = 1.0
    ones = torch.ones_like(lse)
    d_rows, _, _ = OPS.matryoshka_softmax_backward.default(
        *(ones, torch.zeros_like(lse), None, x, None, scale, 0 * lse, None, inverse, None),
        *(dims, pairing.numbers, False, False, kept),
    )
    weights = d_rows[100, 100:300]  # beyond the first prefix; 2 exp(1) off the diagonal
    expected = torch.full((200,), 2 * torch.e).index_fill(0, torch.tensor(0), 0)
    torch.testing.assert_close(weights, expected)


def test_bits_are_the_same_for_any_number_of_threads() -> None:
    x, y = torch.randn(2, 900, 64)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append((*step(x, None, (32, 64)), *step(x, y, (32, 64))))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_compiles_whole_and_refuses_a_second_derivative() -> None:
    loss = MatryoshkaLoss(NTXentLoss(0.2), (4, 8))
    a, b = torch.randn(2, 20, 8)
    made = torch.compile(loss, backend="aot_eager", fullgraph=True)
    results = []
    for run in (loss, made):
        x = a.clone().requires_grad_()
        value = run(x, b)
        results.append((value.detach(), *torch.autograd.grad(value, x)))
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)
    x = a.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x, b), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_one_prefix_is_the_loss_itself() -> None:
    a, b = torch.randn(2, 40, 64)
    z, pairing = torch.cat((a, b)), Pairing(80, 40, leave_out_self=True)
    lse, positive, _ = matryoshka_softmax(
        z, None, torch.tensor(5.0), (64,), pairing, normalize=True
    )
    value = torch.nn.functional.softplus(lse - positive).mean()
    torch.testing.assert_close(value.float(), ntxent(a, b, 0.2))
