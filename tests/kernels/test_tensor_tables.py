"""Tables of tensors: the walk in C++ against the one in Python, and what it leaves to Python."""

import itertools
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sslfast import EMATeacher
from sslfast.functional import ema_update_
from sslfast.kernels import tensors
from sslfast.kernels.extension import extension
from sslfast.kernels.tensors import TYPES, dtypes_of, plain_rows, rows, types_of

pytestmark = pytest.mark.skipif(
    extension() is None or not hasattr(Tensor, "__dlpack_c_exchange_api__"),
    reason="needs the extension, and PyTorch 2.10 or later",
)


def in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "plain_rows", lambda *_: None)


def test_types_go_round() -> None:
    for pair in itertools.product(TYPES, (*TYPES, None)):
        assert dtypes_of(types_of(*pair)) == pair


def layouts(dtype: torch.dtype, kind: int) -> Tensor:
    x = torch.randn(2, 3, 4, 5).to(dtype)
    return (
        x.contiguous(memory_format=torch.channels_last),
        x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2),
        nn.Parameter(x.flatten()[3:50].view(47, 1)),
        torch.ones((), dtype=dtype),
        torch.ones(0, 3, dtype=dtype),
        x[:1].transpose(2, 3),
    )[kind]


@given(
    kinds=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(TYPES), st.sampled_from((*TYPES, None))),
        max_size=9,
    )
)
@settings(max_examples=50, deadline=None)
def test_same_table_as_in_python(kinds: list[tuple[int, torch.dtype, torch.dtype | None]]) -> None:
    """Property: addresses, counts, types and groups of whatever fits, as an optimiser has them."""
    params = [layouts(p, kind) for kind, p, _ in kinds]
    grads = [p.detach().clone() for p in params]
    steps = [torch.zeros(()) for _ in params]
    teachers = [None if e is None else layouts(e, kind) for kind, _, e in kinds]
    columns = (params, grads, grads, [None] * len(params), steps, teachers)
    groups = [n % 3 for n in range(len(params))]
    table = plain_rows(columns, 5, groups)
    assert table is not None
    with pytest.MonkeyPatch.context() as patch:
        in_python(patch)
        want = rows(columns, 5, groups)
    assert table == want
    assert len(table) == len(kinds)


class Subclass(Tensor):
    pass


UNUSUAL = {
    "an object": ([3], [torch.ones(1)]),
    "a subclass": ([torch.ones(2).as_subclass(Subclass)], [torch.ones(2)]),
    "integers": ([torch.ones(2).long()], [torch.ones(2).long()]),
    "complex": ([torch.ones(2) + 1j], [torch.ones(2) + 1j]),
    "float8": ([torch.ones(2).to(torch.float8_e5m2)], [torch.ones(2)]),
    "meta": ([torch.ones(2, device="meta")], [torch.ones(2, device="meta")]),
    "devices": ([torch.ones(2)], [torch.ones(2, device="meta")]),
    "shapes": ([torch.ones(2, 3)], [torch.ones(3, 2)]),
    "dimensions": ([torch.ones(2, 3)], [torch.ones(6)]),
    "orders": ([torch.ones(2, 3)], [torch.ones(3, 2).T]),
    "orders, the other way": ([torch.ones(3, 2).T], [torch.ones(2, 3)]),
    "holes": ([torch.ones(4, 4)[:, ::2]], [torch.ones(4, 4)[:, ::2]]),
    "repeats": ([torch.ones(1, 4).expand(3, 4)], [torch.ones(1, 4).expand(3, 4)]),
    "overlaps": ([torch.ones(9).as_strided((2, 2), (1, 1))] * 2,) * 2,
    "sparse": ([torch.ones(2).to_sparse()], [torch.ones(2)]),
    "nothing": ([None], [torch.ones(2)]),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_is_left_to_python(name: str) -> None:
    teacher, student = UNUSUAL[name]
    usual = [torch.ones(5), torch.ones(6)]
    assert plain_rows((usual, usual), second=1) is not None
    assert plain_rows((teacher, student), second=1) is None
    assert plain_rows((usual + teacher, usual + student), second=1) is None


def test_within_a_row_only_one_column_has_a_dtype_of_its_own() -> None:
    p, g = torch.ones(3), torch.ones(3, dtype=torch.float64)
    assert plain_rows(([p], [g]), second=1) is not None
    assert plain_rows(([p], [g], [p]), second=2) is None


def test_lists_that_do_not_fit_are_refused() -> None:
    x = torch.ones(3)
    with pytest.raises(ValueError, match="of one length"):
        plain_rows(([x], [x, x]), second=1)
    with pytest.raises(ValueError, match="six addresses"):
        plain_rows(([x],) * 7, second=1)


def test_a_walk_keeps_nothing() -> None:
    """No reference to a tensor is left behind, neither by success nor by a refusal."""
    x, y = torch.ones(3), torch.ones(4)
    before = sys.getrefcount(x), sys.getrefcount(y)
    assert plain_rows(([x], [x]), second=1) is not None
    assert plain_rows(([x], [y]), second=1) is None
    assert (sys.getrefcount(x), sys.getrefcount(y)) == before


def test_updates_without_the_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch before 2.10 gets: the same results and refusals."""
    in_python(monkeypatch)
    for module in ("sslfast.ema.pairs", "sslfast.ema.update"):
        monkeypatch.setattr(f"{module}.plain_rows", lambda *_, **__: None)
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    teacher = EMATeacher(student, 0.5, dtype=torch.float64)
    with torch.no_grad():
        student[0].weight.add_(1)
    student[1].num_batches_tracked += 3
    teacher.update(student)
    torch.testing.assert_close(teacher.module[0].weight, student[0].weight.double() - 0.5)
    assert teacher.module[1].num_batches_tracked == 3
    with pytest.raises(ValueError, match=r"tensor 1 has shape \[2\]"):
        ema_update_([torch.ones(1), torch.ones(2)], [torch.ones(1), torch.ones(3)], 0.5)
