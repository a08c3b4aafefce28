"""Exponential moving averages of lists of tensors."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sslfast.kernels.dtypes import FLOATS
from sslfast.kernels.ema.op import ema_update_ as op
from sslfast.kernels.tensors import Rows, plain_rows

PLAIN, REAL = {Tensor, torch.nn.Parameter}, set(FLOATS)
_DTYPE, _DEVICE, _SHAPE = map(operator.attrgetter, ("dtype", "device", "shape"))


def ema_update_(
    teacher_tensors: Sequence[Tensor], student_tensors: Sequence[Tensor], momentum: float | Tensor
) -> None:
    """Move teachers towards students, in place: t <- momentum t + (1 - momentum) s.

    All tensors in one launch, in any mix of dtypes (a bfloat16 student of a float32 teacher):
    arithmetic is in float32, or float64 where one of a pair is, and rounded once. Momentum 1 leaves
    the teacher as it is, whatever the student holds. Integer and bool tensors are copied. Of a
    DTensor the local shards are updated, without communication. Works under torch.compile and in
    CUDA graphs, and reads no number off a GPU.

    Args:
        teacher_tensors: tensors of any shapes, all on one device.
        student_tensors: as many, each of the shape of its teacher, on the same device.
        momentum: in [0, 1]: a number, or a tensor of one element on the same device, which is not
            checked. A float64 tensor gives the same result as a number.

    Raises:
        TypeError: not tensors, or an integer tensor beside one of another dtype.
        ValueError: numbers of tensors, shapes, devices or shardings that do not fit, a momentum
            outside [0, 1]. Nothing has been written then.
    """
    teacher, student = list(teacher_tensors), list(student_tensors)
    if len(teacher) != len(student):
        raise ValueError(f"{len(teacher)} teacher tensors, but {len(student)} student tensors")
    table = plain_rows((teacher, student), second=1)
    if table is None:
        check_pairs([f"tensor {n}" for n in range(len(teacher))], teacher, student)
    weight = as_momentum(momentum, teacher[0].device if teacher else torch.device("cpu"))
    with torch.no_grad():
        move(teacher, student, weight, table)


def move(
    teacher: list[Tensor], student: list[Tensor], momentum: Tensor, table: Rows | None = None
) -> None:
    """``ema_update_`` of tensors that have been checked; momentum float64 [] on their device."""
    if table is not None:
        op(teacher, student, momentum, table)
        return
    local = [(local_shard(t), local_shard(s)) for t, s in zip(teacher, student, strict=True)]
    floats = [(_real(t), _real(s)) for t, s in local if _is_number(t)]
    others = [(t, s) for t, s in local if not _is_number(t)]
    if floats:
        ours, theirs = [t for t, _ in floats], [s for _, s in floats]
        op(ours, theirs, momentum, plain_rows((ours, theirs), second=1))
    if others:
        torch._foreach_copy_([t for t, _ in others], [s for _, s in others])


def as_momentum(momentum: float | Tensor, device: torch.device) -> Tensor:
    """A momentum as the float64 [] tensor that the op takes.

    Raises:
        ValueError: a number outside [0, 1], a tensor of more than one element or elsewhere.
    """
    if not isinstance(momentum, Tensor):
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        return torch.full((), momentum, dtype=torch.float64, device=device)
    if momentum.numel() != 1:
        raise ValueError(f"momentum must be one number, got shape {list(momentum.shape)}")
    if momentum.device != device:
        raise ValueError(
            f"momentum is on {momentum.device}, but the teacher on {device}: move it there, or "
            "pass a float"
        )
    return momentum.detach().reshape(()).to(torch.float64)


def check_pairs(names: Sequence[str], teacher: Sequence[Tensor], student: Sequence[Tensor]) -> None:
    """Raise, by name, for the first pair that cannot be updated; see ``ema_update_``."""
    if _clearly_fit([*teacher], [*student]):
        return
    for name, t, s in zip(names, teacher, student, strict=True):
        for who, x in (("teacher", t), ("student", s)):
            if not isinstance(x, Tensor):
                raise TypeError(f"{name} of the {who} must be a tensor, got {type(x).__name__}")
            if x.device.type == "meta":
                raise ValueError(f"{name} of the {who} is on the meta device and has no values")
        if t.shape != s.shape:
            raise ValueError(
                f"{name} has shape {list(t.shape)} in the teacher, but {list(s.shape)} in the "
                "student"
            )
        if t.device != s.device:
            raise ValueError(
                f"{name} is on {t.device} in the teacher, but on {s.device} in the student: move "
                "one of them"
            )
        if t.device != teacher[0].device:
            raise ValueError(
                f"{name} is on {t.device}, but {names[0]} on {teacher[0].device}: update the "
                "tensors of each device in a call of their own"
            )
        for who, x in (("teacher", t), ("student", s)):
            if x.is_floating_point() and x.dtype not in REAL:
                raise TypeError(
                    f"{name} of the {who} is {x.dtype}, which has no arithmetic: cast it"
                )
        if t.dtype != s.dtype and not (t.dtype in FLOATS and s.dtype in FLOATS):
            raise TypeError(f"{name} is {t.dtype} in the teacher, but {s.dtype} in the student")
        if _sharding(t) != _sharding(s):
            raise ValueError(
                f"{name} is sharded differently in teacher and student: apply fully_shard to both, "
                "over the same mesh (to the teacher's after it was made of the unsharded student)"
            )


def _clearly_fit(teacher: list[Tensor], student: list[Tensor]) -> bool:
    """Whether all are ordinary tensors that can be updated: the usual case, seen quickly."""
    both = teacher + student
    if torch.compiler.is_compiling() or not PLAIN.issuperset(map(type, both)):
        return False
    devices = set(map(_DEVICE, both))
    if len(devices) != 1 or devices == {torch.device("meta")}:
        return False
    # Pair by pair: thousands of shapes held at once set off the garbage collector.
    if not all(map(operator.eq, map(_SHAPE, teacher), map(_SHAPE, student))):
        return False
    dtypes = set(map(_DTYPE, both))
    if not REAL.issuperset(d for d in dtypes if d.is_floating_point):
        return False
    same_dtypes = map(operator.eq, map(_DTYPE, teacher), map(_DTYPE, student))
    return dtypes <= REAL or all(same_dtypes)


def local_shard(tensor: Tensor) -> Tensor:
    """The part of a DTensor on this rank; other tensors as they are."""
    return tensor if _sharding(tensor) is None else tensor.to_local()  # type: ignore[attr-defined]


def whole(value: Tensor) -> Tensor:
    """A number over all ranks of a DTensor; other tensors as they are."""
    return value if _sharding(value) is None else value.full_tensor()  # type: ignore[attr-defined]


def none_turned_bad(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Whether no student's tensor turned NaN or infinite, on any rank that has a shard: bool [].

    One whose teacher holds an infinity already turns bad with a NaN, and none does beside a NaN.
    """
    pairs = [(local_shard(t), local_shard(s)) for t, s in zip(teacher, student, strict=True)]
    pairs = [(t, s) for t, s in pairs if s.numel()]
    good = torch.ones((), dtype=torch.bool, device=student[0].device if student else None)
    if pairs:
        columns = zip(*pairs, strict=True)
        before, now = (torch.stack(torch._foreach_norm(c, math.inf)) for c in columns)
        good = (now.isfinite() | (now == before) | before.isnan()).all()
    mesh = next((t.device_mesh for t in student if _sharding(t) is not None), None)  # type: ignore[attr-defined]
    if mesh is None:
        return good
    from torch.distributed.tensor import DTensor, Partial

    # A sum: the greatest of a NaN and a number may be the number.
    count = DTensor.from_local((~good).float(), mesh, [Partial()] * mesh.ndim, run_check=False)
    return count.full_tensor() == 0


def _sharding(tensor: Any) -> object:
    """How a DTensor is sharded; its class is not imported, which takes half a second."""
    mesh = getattr(tensor, "device_mesh", None)
    return None if mesh is None else (mesh, tensor.placements)


def _is_number(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
