"""EMA teachers: a copy of a network that follows it as an exponential moving average.

Mean teachers (Tarvainen and Valpola 2017, arXiv:1703.01780), BYOL, MoCo, DINO, I-JEPA and others.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sslfast.ema.copies import copy_of, unwrap
from sslfast.ema.pairs import Pairs, Way, pair_by_name
from sslfast.ema.update import as_momentum, local_shard, move, none_turned_bad
from sslfast.kernels.tensors import Rows

Schedule = Callable[[Tensor], Tensor]


class EMATeacher(nn.Module):
    """A teacher: a copy of ``student`` whose values follow as t <- m t + (1 - m) s.

    Calling it runs the copy without gradients. Parameters (tied ones once, frozen ones too) are
    averaged in one launch, integer buffers copied; no number is read off the device, so that an
    update can be part of a CUDA graph. Buffers that ``state_dict`` leaves out are caches, which
    each network fills by itself. ``state_dict`` has the copy as ``module.*``, and the counts;
    states of timm's ModelEmaV3, which has none, load too.

    The copy is in eval mode, with neither gradients nor the graphs of activations that the student
    keeps. ``teacher.train()`` gives it dropout and the statistics of its batches (BYOL, MoCo).

    DistributedDataParallel and compiled students are unwrapped; update after the optimiser's step,
    alike on every rank. For FSDP2 make the teacher first, then ``fully_shard`` the student and
    ``teacher.module`` alike: each rank then updates its own shards, without communication.

    Args:
        student: the network to follow.
        momentum: m: a number in [0, 1]; a tensor of one element on the teacher's device, which may
            change from step to step; or a schedule, called with the number of updates done
            (int64 [] on the device) for a tensor (``CosineMomentum``, ``WarmupMomentum``,
            ``PowerMomentum``).
        buffers: "average" floating-point buffers (batch-norm statistics) or "copy" them.
        dtype: of the teacher's floating-point values, by default the student's. A 16-bit teacher
            rounds small updates away: keep it in float32 beside a 16-bit student.
        device: of the teacher; an update then brings the student's values there first. By default
            the student's, and both must stay on one.
        skip_non_finite: make no update where a tensor of the student has turned NaN or infinite,
            and count in ``skipped``; costs one more read of both networks. A tensor that holds
            infinities in the teacher too (a mask) is followed until it holds a NaN.

    Attributes:
        module: the copy.
        updates: updates done, int64 [].
        skipped: updates skipped, int64 [].

    Raises:
        TypeError: a momentum that is neither a number, a tensor nor a schedule, a student in
            TorchScript or one that cannot be copied.
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
        device: torch.device | str | None = None,
        skip_non_finite: bool = False,
    ) -> None:
        super().__init__()
        if buffers not in ("average", "copy"):
            raise ValueError(f"buffers must be 'average' or 'copy', got {buffers!r}")
        student = unwrap(student)
        self.elsewhere = device is not None
        self.module = copy_of(student, dtype, None if device is None else torch.device(device))
        tensors = [*self.module.parameters(), *self.module.buffers()]
        where = tensors[0].device if tensors else torch.device(device or "cpu")
        self.momentum = momentum
        self.buffers_are = buffers
        self.skip_non_finite = skip_non_finite
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=where))
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64, device=where))
        self._student = (student,)  # in a tuple: not a part of this module
        self._known: Pairs | None = None
        self._ready(student)
        self._check_momentum()
        self.eval()

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
        pairs, tables = self._ready(student)
        m = self.next_momentum(momentum)
        self._student = (student,)
        self.follow(pairs, m, tables)

    @torch.no_grad()
    def set(self, student: nn.Module) -> None:
        """Take over all values of the student, buffers too; it counts as no update.

        Raises:
            TypeError, ValueError: as ``update``.
        """
        student = unwrap(student)
        pairs, tables = self._ready(student)
        self._student = (student,)
        copy = self.next_momentum(0.0)
        for way, (ours, theirs) in pairs.by_way.items():
            move(ours, theirs, copy, tables[way])

    @torch.no_grad()
    def adopt(self, student: nn.Module) -> None:
        """Take over the structure of a student that has gained or lost parameters since.

        Values of the same name and shape stay the teacher's; new ones are the student's.
        """
        student = unwrap(student)
        old = self.module.state_dict()
        dtypes = {p.dtype for p in self.module.parameters() if p.is_floating_point()}
        dtype = dtypes.pop() if len(dtypes) == 1 else None
        module = copy_of(student, dtype, self.updates.device if self.elsewhere else None)
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
        self._ready(unwrap(student))
        pairs = self.pairs(unwrap(student))
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
            taken = none_turned_bad(*pairs.numbers)
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

    @property
    def student(self) -> nn.Module:
        """The network that was last followed.

        Raises:
            ValueError: none is known, as this teacher is a copy of another.
        """
        if not self._student:
            raise ValueError("this teacher is a copy: call its update(student) once first")
        return self._student[0]

    def pairs(self, student: nn.Module | None = None) -> Pairs:
        """Teacher and student tensors by name; of the student that was last followed by default.

        Raises:
            ValueError: a name that only one of them has, or no student is known.
        """
        student = self.student if student is None else student
        known = self._known
        if known is None or not known.still_hold(self.module, student):
            known = pair_by_name(self.module, student, self.buffers_are)
        if not torch.compiler.is_compiling():
            self._known = known
        return known

    def _ready(self, student: nn.Module) -> tuple[Pairs, dict[Way, Rows | None]]:
        """The pairs, all on the teacher's device, and their tables; see ``Pairs.checked``."""
        pairs = self.pairs(student)
        if self.elsewhere:
            here = [s.to(t.device) for t, s in zip(pairs.teacher, pairs.student, strict=True)]
            pairs = replace(pairs, student=here)
        return pairs, pairs.checked()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """As torch's; a state without counts, such as timm's, leaves them as they are."""
        counts = {f"{prefix}updates": self.updates, f"{prefix}skipped": self.skipped}
        if not counts.keys() & state_dict.keys():
            state_dict = {**state_dict, **counts}
        super()._load_from_state_dict(state_dict, prefix, *args)

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
