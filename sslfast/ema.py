"""EMA teachers: a copy of a network that follows it as an exponential moving average.

Mean teachers (Tarvainen and Valpola 2017, arXiv:1703.01780), BYOL, MoCo, DINO, I-JEPA and others.
"""

import math
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sslfast.functional._ema import all_finite, as_momentum, check_pairs, local_shard, move
from sslfast.kernels._tensors import Rows, plain_rows

__all__ = ["CosineMomentum", "EMATeacher", "WarmupMomentum"]

Schedule = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CosineMomentum:
    """Half a cosine from ``start`` to ``end`` over ``steps`` updates, then ``end``.

    1 - (1 - start)(cos(pi k / K) + 1) / 2 for ``end`` 1: BYOL (Grill et al. 2020, arXiv:2006.07733,
    section 3.3), DINO.

    Args:
        start: of the first update.
        end: after ``steps`` updates.
        steps: K.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        if not (0 <= self.start <= 1 and 0 <= self.end <= 1):
            raise ValueError(f"momenta must be in [0, 1], got {self.start} and {self.end}")
        if not self.steps >= 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def __call__(self, updates: Tensor) -> Tensor:
        """The momentum after ``updates`` (int64 []) updates, float64 [] on the same device."""
        progress = (updates.double() / self.steps).clamp(max=1)
        return self.end - (self.end - self.start) * ((progress * math.pi).cos() + 1) / 2


@dataclass(frozen=True)
class WarmupMomentum:
    """min(limit, (1 + k) / (10 + k)) after k updates: an average that forgets its start quickly."""

    limit: float

    def __post_init__(self) -> None:
        if not 0 <= self.limit <= 1:
            raise ValueError(f"limit must be in [0, 1], got {self.limit}")

    def __call__(self, updates: Tensor) -> Tensor:
        """The momentum after ``updates`` (int64 []) updates, float64 [] on the same device."""
        k = updates.double()
        return ((1 + k) / (10 + k)).clamp(max=self.limit)


Way = Literal["average", "copy", "integers"]  # integers are copied whatever the momentum


@dataclass
class Pairs:
    """What follows what, and the contents of both networks when that was found out."""

    networks: tuple[nn.Module, nn.Module]  # teacher's and student's
    names: list[str]
    teacher: list[Tensor]
    student: list[Tensor]
    ways: list[Way]
    modules: list[nn.Module]
    contents: list[object]

    def still_hold(self, *networks: nn.Module) -> bool:
        """Whether these networks are meant, and nothing in them has come, gone or been replaced."""
        if not all(map(operator.is_, networks, self.networks)):
            return False
        now = _contents(self.modules)
        return len(now) == len(self.contents) and all(map(operator.is_, now, self.contents))

    @cached_property
    def by_way(self) -> dict[Way, tuple[list[Tensor], list[Tensor]]]:
        """Teacher's and student's tensors of every way that there is."""
        chosen: dict[Way, tuple[list[Tensor], list[Tensor]]] = {}
        for way, t, s in zip(self.ways, self.teacher, self.student, strict=True):
            ours, theirs = chosen.setdefault(way, ([], []))
            ours.append(t)
            theirs.append(s)
        return chosen

    def checked(self) -> dict[Way, Rows | None]:
        """The tables of the ways whose tensors are all ordinary, once every pair is found to fit.

        Raises:
            TypeError, ValueError: see ``check_pairs``.
        """
        tables: dict[Way, Rows | None] = {
            way: None if way == "integers" else plain_rows(both, second=1)
            for way, both in self.by_way.items()
        }
        one_device = len({ours[0].device for ours, _ in self.by_way.values()}) < 2
        if not one_device or None in tables.values():
            rest = [tables[way] is None or not one_device for way in self.ways]
            teacher, student = (list(compress(c, rest)) for c in (self.teacher, self.student))
            check_pairs(list(compress(self.names, rest)), teacher, student)
        return tables

    def without(self, done: set[int]) -> "Pairs":
        """The pairs but those of these numbers."""
        left = [n for n in range(len(self.names)) if n not in done]
        return replace(
            self,
            names=[self.names[n] for n in left],
            teacher=[self.teacher[n] for n in left],
            student=[self.student[n] for n in left],
            ways=[self.ways[n] for n in left],
        )


class EMATeacher(nn.Module):
    """A teacher: a copy of ``student`` whose values follow as t <- m t + (1 - m) s.

    Calling it runs the copy without gradients. Parameters (tied ones once, frozen ones too) are
    averaged in one launch, integer buffers copied; no number is read off the device, so that an
    update can be part of a CUDA graph. ``state_dict`` has the copy as ``module.*``, and the counts.

    DistributedDataParallel and compiled students are unwrapped; update after the optimiser's step,
    alike on every rank. For FSDP2 make the teacher first, then ``fully_shard`` the student and
    ``teacher.module`` alike: each rank then updates its own shards, without communication.

    Args:
        student: the network to follow.
        momentum: m: a number in [0, 1]; a tensor of one element on the student's device, which may
            change from step to step; or a schedule, called with the number of updates done
            (int64 [] on the device) for a tensor (``CosineMomentum``, ``WarmupMomentum``).
        buffers: "average" floating-point buffers (batch-norm statistics) or "copy" them.
        dtype: of the teacher's floating-point values, by default the student's. A 16-bit teacher
            rounds small updates away: keep it in float32 beside a 16-bit student.
        skip_non_finite: make no update where any value of the student is NaN or infinite, and count
            in ``skipped``; costs one more read of the student.

    Attributes:
        module: the copy.
        updates: updates done, int64 [].
        skipped: updates skipped, int64 [].

    Raises:
        TypeError: a momentum that is neither a number, a tensor nor a schedule.
        ValueError: a momentum outside [0, 1], an unknown ``buffers``, a student on the meta device
            or already sharded by FSDP.
    """

    updates: Tensor
    skipped: Tensor

    def __init__(
        self,
        student: nn.Module,
        momentum: float | Tensor | Schedule = 0.996,
        *,
        buffers: Literal["average", "copy"] = "average",
        dtype: torch.dtype | None = None,
        skip_non_finite: bool = False,
    ) -> None:
        super().__init__()
        if buffers not in ("average", "copy"):
            raise ValueError(f"buffers must be 'average' or 'copy', got {buffers!r}")
        student = unwrap(student)
        self.module = _copy(student, dtype)
        tensors = [*self.module.parameters(), *self.module.buffers()]
        device = tensors[0].device if tensors else torch.device("cpu")
        self.momentum = momentum
        self.buffers_are = buffers
        self.skip_non_finite = skip_non_finite
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64, device=device))
        self._student = (student,)  # in a tuple: not a part of this module
        self._known: Pairs | None = None
        pairs = self.pairs(student)
        pairs.checked()
        self._check_momentum()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the copy without gradients."""
        with torch.no_grad():
            return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float | Tensor | None = None) -> None:
        """Follow the student by one step.

        Args:
            student: the network that the teacher was made of, or one of the same structure.
            momentum: of this update, instead of the teacher's own.

        Raises:
            TypeError: a dtype that does not fit.
            ValueError: a name, shape, device or sharding that does not fit (the first that differs
                is named), or a momentum outside [0, 1]. Nothing has been written then.
        """
        student = unwrap(student)
        pairs = self.pairs(student)
        tables = pairs.checked()
        m = self.next_momentum(momentum)
        self._student = (student,)
        self.follow(pairs, m, tables)

    @torch.no_grad()
    def adopt(self, student: nn.Module) -> None:
        """Take over the structure of a student that has gained or lost parameters since.

        Values of the same name and shape stay the teacher's; new ones are the student's.
        """
        student = unwrap(student)
        old = self.module.state_dict()
        dtypes = {p.dtype for p in self.module.parameters() if p.is_floating_point()}
        module = _copy(student, dtypes.pop() if len(dtypes) == 1 else None)
        for name, value in module.state_dict().items():
            if name in old and old[name].shape == value.shape:
                value.copy_(old[name])
        self.module = module.train(self.module.training)
        self._student, self._known = (student,), None

    @contextmanager
    def swapped(self, student: nn.Module) -> Iterator[nn.Module]:
        """The student with the teacher's values, until the end of the ``with`` block.

        For evaluation through the student's own wrappers. The student's values come back as they
        were, whatever happens in the block; a copy of them is kept meanwhile.
        """
        pairs = self.pairs(unwrap(student))
        pairs.checked()
        ours, theirs = list(map(local_shard, pairs.teacher)), list(map(local_shard, pairs.student))
        saved = [s.detach().clone() for s in theirs]
        try:
            with torch.no_grad():
                torch._foreach_copy_(theirs, ours)
            yield student
        finally:
            with torch.no_grad():
                torch._foreach_copy_(theirs, saved)

    def next_momentum(self, momentum: float | Tensor | None = None) -> Tensor:
        """The momentum of the next update, float64 []: the one given, or the teacher's own."""
        own = self.momentum if momentum is None else momentum
        if not isinstance(own, (int, float, Tensor)):
            own = own(self.updates)
        return as_momentum(own, self.updates.device)

    def follow(
        self,
        pairs: Pairs,
        momentum: Tensor,
        tables: dict[Way, Rows | None],
        taken: Tensor | None = None,
    ) -> None:
        """Update pairs that have been ``checked``; optimisers leave out those that they did.

        Args:
            pairs: what follows what.
            momentum: of this update, float64 [].
            tables: of the pairs.
            taken: bool []: whether there is an update at all.
        """
        copy = torch.zeros_like(momentum)
        if self.skip_non_finite:
            numbers = [s for s in pairs.student if s.is_floating_point() or s.is_complex()]
            taken = all_finite(numbers)
            self.skipped += ~taken
        if taken is None:
            self.updates += 1
        else:
            momentum, copy = (torch.where(taken, m, 1.0) for m in (momentum, copy))
            self.updates += taken
        for way, (ours, theirs) in pairs.by_way.items():
            if way == "integers" and taken is not None:  # they are copied at any momentum
                theirs = [torch.where(taken, t, o) for o, t in zip(ours, theirs, strict=True)]
                move(ours, theirs, copy)
                continue
            move(ours, theirs, momentum if way == "average" else copy, tables[way])

    def pairs(self, student: nn.Module | None = None) -> Pairs:
        """Teacher and student tensors by name; of the student that was last followed by default.

        Raises:
            ValueError: a name that only one of them has, or no student is known.
        """
        if student is None:
            if not self._student:
                raise ValueError("this teacher is a copy: call its update(student) once first")
            student = self._student[0]
        known = self._known
        if known is None or not known.still_hold(self.module, student):
            known = self._pair(student)
        if not torch.compiler.is_compiling():
            self._known = known
        return known

    def _pair(self, student: nn.Module) -> Pairs:
        ours, theirs = _named(self.module), _named(student)
        for name in theirs:
            if name not in ours:
                raise ValueError(
                    f"the student has {name!r} and the teacher has not: call "
                    "teacher.adopt(student) after a change of the student's structure"
                )
        for name in ours:
            if name not in theirs:
                raise ValueError(
                    f"the teacher has {name!r} and the student has not: call "
                    "teacher.adopt(student) after a change of the student's structure"
                )
        buffers = {name for name, _ in self.module.named_buffers()}

        def way(name: str) -> Way:
            if not (ours[name].is_floating_point() or ours[name].is_complex()):
                return "integers"
            return self.buffers_are if name in buffers else "average"

        modules = [*self.module.modules(), *student.modules()]
        return Pairs(
            networks=(self.module, student),
            names=list(ours),
            teacher=list(ours.values()),
            student=[theirs[name] for name in ours],
            ways=[way(name) for name in ours],
            modules=modules,
            contents=_contents(modules),
        )

    def _check_momentum(self) -> None:
        momentum = self.momentum
        if not isinstance(momentum, (int, float, Tensor)) and not callable(momentum):
            raise TypeError(
                "momentum must be a number, a tensor or a schedule such as CosineMomentum, got "
                f"{type(momentum).__name__}"
            )
        if not isinstance(momentum, (int, float, Tensor)):
            momentum = momentum(torch.full_like(self.updates, 2**40))
        last = self.next_momentum(momentum)
        half = (torch.float16, torch.bfloat16)
        if any(p.dtype in half for p in self.module.parameters()) and last >= 0.99:
            warnings.warn(
                "a 16-bit teacher rounds most updates away at a momentum of 0.99 or more: pass "
                "dtype=torch.float32 to EMATeacher",
                stacklevel=3,
            )

    def __getstate__(self) -> dict[str, Any]:
        """Without the student: a copy of a teacher does not copy it."""
        return {**self.__dict__, "_student": (), "_known": None}


def unwrap(module: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel, DataParallel or torch.compile."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while isinstance(module, wrappers) or "_orig_mod" in module._modules:
        module = module.get_submodule("module" if isinstance(module, wrappers) else "_orig_mod")
    return module


def _copy(student: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    for name, tensor in _named(student).items():
        if tensor.device.type == "meta":
            raise ValueError(f"{name} of the student is on the meta device: materialise it first")
        if hasattr(tensor, "device_mesh"):
            raise ValueError(
                f"{name} of the student is sharded: make the teacher first, then apply "
                "fully_shard to the student and to teacher.module"
            )
    copy = deepcopy(student).requires_grad_(False)
    return copy if dtype is None else copy.to(dtype)


def _named(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, tied ones once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _contents(modules: Sequence[nn.Module]) -> list[object]:
    found: list[object] = []
    for module in modules:
        for held in (module._parameters, module._buffers, module._modules):
            found += held.values()
    return found
