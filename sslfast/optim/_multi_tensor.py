"""What our optimisers share: one pass over all tensors, its numbers on the device, the teacher."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sslfast.ema import EMATeacher
from sslfast.ema.pairs import Pairs
from sslfast.ema.update import local_shard, whole
from sslfast.kernels.tensors import same_layout, to_device
from sslfast.optim._parts import check, gradient_of, without_holes


class MultiTensor(ABC):
    """Mixed into a class of torch.optim, before it, whose groups, state and state_dict remain."""

    UNSUPPORTED: ClassVar[tuple[str, ...]]  # options of torch's that must stay off

    # torch.amp.GradScaler then sets ``grad_scale`` and ``found_inf`` during ``step``, and reads
    # nothing off the device.
    _step_supports_amp_scaling = True

    param_groups: list[dict[str, Any]]
    state: Any  # torch's: a dict of every parameter's tensors

    def attach(
        self,
        ema: EMATeacher | Sequence[EMATeacher] | None,
        max_norm: float | None,
        max_norm_each: float | None = None,
    ) -> None:
        """Take the options that torch's classes do not have.

        Raises:
            TypeError: ``ema`` is no EMATeacher.
            ValueError: a max_norm that is not positive, a teacher that cannot follow in a step, or
                the first is one of another network.
        """
        teachers = [] if ema is None else list(ema) if isinstance(ema, Sequence) else [ema]
        for teacher in teachers:
            _check_teacher(teacher)
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm must be positive, got {max_norm}")
        self.ema, self.others = (teachers[0] if teachers else None), teachers[1:]
        if max_norm_each is not None:
            if not 0 < max_norm_each < math.inf:
                raise ValueError(f"max_norm_each must be positive, got {max_norm_each}")
            if max_norm is not None and max_norm < math.inf:
                raise ValueError("clip all gradients together, or each by itself: leave one out")
        self.max_norm, self.max_norm_each = max_norm, max_norm_each
        self._forget()
        # The parameters that have a teacher, by group and place: copies keep it.
        self._followed: dict[tuple[int, int], str] = {}
        if self.ema is not None:
            pairs = self.ema.pairs()
            names = dict(zip(map(id, pairs.student), pairs.names, strict=True))
            self._followed = {
                (g, n): names[id(p)]
                for g, group in enumerate(self.param_groups)
                for n, p in enumerate(group["params"])
                if id(p) in names
            }
            if not self._followed:
                raise ValueError(
                    "no parameter of this optimiser is one of the teacher's student: build both "
                    "of the same network"
                )

    def _forget(self) -> None:
        self.grad_norm: Tensor | None = None  # before clipping, where max_norm is given
        self._numbers: tuple[tuple[float | None, ...], Tensor] | None = None
        self._teachers: tuple[Pairs, dict[int, int]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        ours = "ema", "others", "max_norm", "max_norm_each", "_followed"
        extra = {name: getattr(self, name) for name in ours}
        return {**super().__getstate__(), **extra}  # type: ignore[misc]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        self._forget()
        for group in self.param_groups:
            group["fused"], group["foreach"] = True, None  # torch then keeps steps on the device
            for p in group["params"]:
                step = self.state.get(p, {}).get("step")
                if step is not None:
                    self.state[p]["step"] = step.to(local_shard(p).device, torch.float32)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch's optimisers do.

        Raises:
            ValueError: an option of torch's that this optimiser does not have, or a number that is
                none.
        """
        self._refuse_unsupported([param_group])
        super().add_param_group(param_group)  # type: ignore[misc]
        for name, value in self.param_groups[-1].items():
            if isinstance(value, float) and not 0 <= value < math.inf:  # NaN is none of it either
                raise ValueError(f"{name} must be a finite number, not below 0, got {value}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` of this optimiser, or of torch's of the same name, returned.

        Raises:
            ValueError: other groups, or options that this optimiser does not have. Nothing has been
                loaded then.
        """
        self._refuse_unsupported(state_dict["param_groups"])
        super().load_state_dict(state_dict)  # type: ignore[misc]

    def _refuse_unsupported(self, groups: Sequence[dict[str, Any]]) -> None:
        for group in groups:
            for option in self.UNSUPPORTED:
                if group.get(option):
                    name = type(self).__name__
                    raise ValueError(
                        f"{name} has no {option}, which an argument or a parameter group asks for: "
                        "leave it out, or use PyTorch's own class"
                    )

    # One launch already: a compiled step runs this as it is, between its graphs.
    @torch.compiler.disable(reason="sslfast's optimisers are one kernel, with nothing to compile")
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step, and the teacher's.

        Parameters without a gradient stay as they are; their teachers follow all the same.

        Args:
            closure: computes the loss anew, and its gradients.

        Returns:
            What the closure returned, else None.

        Raises:
            TypeError: a parameter that is not real, or a gradient that is sparse or of another
                dtype.
            ValueError: parameters on several devices or whose elements share memory, a gradient of
                another shape, a state or a teacher that no longer fits, an option of a group that
                this optimiser does not have. Nothing has been written then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._refuse_unsupported(self.param_groups)
        found = [(g, p) for g, group in enumerate(self.param_groups) for p in group["params"]]
        found = [(g, p) for g, p in found if p.grad is not None]
        params = [p for _, p in found]
        for p in params:
            check(p, params[0])
        rest = momentum = None
        teachers: list[Tensor | None] = [None] * len(params)
        if self.ema is not None:
            momentum = self.ema.next_momentum()
            teachers, rest = self._divide(params)
        # Without any gradient, GradScaler has a plain 0 here.
        found_inf: Tensor | int | None = getattr(self, "found_inf", None)
        taken = found_inf.reshape(()) == 0 if isinstance(found_inf, Tensor) else None
        if not params and self.max_norm is not None:
            self.grad_norm = torch.zeros(())
        if params:
            control, numbers = self._upload(params, momentum, taken)
            locals_ = list(map(local_shard, params))
            parts = list(map(without_holes, locals_))
            self._update([g for g, _ in found], params, parts, teachers, numbers, control)
            for local, part in zip(locals_, parts, strict=True):
                if part is not local:
                    local.copy_(part)
        if self.ema is not None and rest is not None and momentum is not None:
            self.ema.follow(rest, momentum, rest.checked(), taken)
        for teacher in self.others:
            pairs = teacher.pairs()
            teacher.follow(pairs, teacher.next_momentum(), pairs.checked(), taken)
        return loss

    @abstractmethod
    def _update(
        self,
        groups: list[int],
        params: list[Tensor],
        parts: list[Tensor],
        teachers: list[Tensor | None],
        numbers: Tensor,
        control: Tensor,
    ) -> None:
        """One step of parameters that have been checked; numbers [groups, fields], control [2].

        The parts are what is written: local, and without holes in memory.
        """

    @abstractmethod
    def _fields(self, group: dict[str, Any]) -> Sequence[float | Tensor]:
        """The numbers of a group, in the order of the kernel."""

    def _divide(self, params: list[Tensor]) -> tuple[list[Tensor | None], Pairs]:
        """The local teacher of every parameter that can follow in the step, and the other pairs."""
        assert self.ema is not None
        pairs = self.ema.pairs()
        if self._teachers is None or self._teachers[0] is not pairs:
            places = {id(s): n for n, s in enumerate(pairs.student)}
            for (g, n), name in self._followed.items():
                if id(self.param_groups[g]["params"][n]) not in places:
                    raise ValueError(
                        f"{name} of the teacher's student is no longer a parameter of this "
                        "optimiser: build it anew after replacing parameters"
                    )
            self._teachers = (pairs, places)
        pairs.checked()
        places = self._teachers[1]
        teachers: list[Tensor | None] = []
        done = set()
        for p in params:
            place = places.get(id(p))
            teacher = None if place is None else local_shard(pairs.teacher[place])
            if place is None or teacher is None or not same_layout(teacher, local_shard(p)):
                teachers.append(None)
            else:
                teachers.append(teacher)
                done.add(place)
        return teachers, pairs.without(done)

    def _upload(
        self, params: list[Tensor], momentum: Tensor | None, taken: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(gradient factor, teacher momentum) and the numbers of all groups, on the device."""
        fields = [value for group in self.param_groups for value in self._fields(group)]
        # None stands for what a tensor says, which is copied in every step.
        values = (1.0, 1.0, *(None if isinstance(v, Tensor) else float(v) for v in fields))
        device = local_shard(params[0]).device
        if self._numbers is None or self._numbers[0] != values or self._numbers[1].device != device:
            host = torch.tensor([v or 0.0 for v in values], dtype=torch.float64)
            self._numbers = (values, to_device(host, device))
        numbers = self._numbers[1]
        for n, value in enumerate(fields):
            if isinstance(value, Tensor):
                numbers[2 + n].copy_(value.squeeze())
        numbers[0].fill_(self._factor(params, taken))
        if momentum is not None:
            numbers[1].copy_(momentum)
        return numbers[:2], numbers[2:].view(len(self.param_groups), -1)

    def _factor(self, params: list[Tensor], taken: Tensor | None) -> Tensor | float:
        """Of the gradients: what undoes GradScaler's scale and clips; negative for no step."""
        factor: Tensor | float = 1.0
        scale: Tensor | None = getattr(self, "grad_scale", None)
        if scale is not None:
            factor = scale.squeeze().double().reciprocal()
        if self.max_norm is not None:
            norm = whole(torch.nn.utils.get_total_norm(list(map(gradient_of, params))))
            self.grad_norm = norm if scale is None else norm / scale.squeeze()
            if self.max_norm < math.inf:
                factor = factor * (self.max_norm / (self.grad_norm + 1e-6)).clamp(max=1)
        if self.max_norm_each is not None:
            gradients = list(map(gradient_of, params))
            limit = self.max_norm_each * (1.0 if scale is None else scale.squeeze())
            for gradient, norm in zip(gradients, torch._foreach_norm(gradients), strict=True):
                gradient.mul_((limit / (whole(norm) + 1e-6)).clamp(max=1).to(gradient.dtype))
        return factor if taken is None else torch.where(taken, factor, -1.0)

    def _moments(self, p: Tensor, part: Tensor, name: str) -> Tensor:
        """The local part of a state of the parameter's shape, made on first use."""
        state = self.state[p]
        if state.get(name) is None:
            state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        if state[name].shape != p.shape:
            raise ValueError(
                f"{name} of a parameter of shape {list(p.shape)} has shape "
                f"{list(state[name].shape)}: the state is of another network"
            )
        if state[name].dtype != p.dtype or state[name].device != p.device:
            raise ValueError(
                f"{name} of a parameter of shape {list(p.shape)} is {state[name].dtype} on "
                f"{state[name].device}, but the parameter {p.dtype} on {p.device}: after moving "
                "parameters call optimizer.load_state_dict(optimizer.state_dict())"
            )
        if not same_layout(part, local_shard(state[name])):  # as a state_dict had it
            state[name] = torch.empty_like(p).copy_(state[name])
        return local_shard(state[name])


def _check_teacher(ema: EMATeacher) -> None:
    """Raise for what cannot follow in a step."""
    if not isinstance(ema, EMATeacher):
        raise TypeError(f"ema must be an EMATeacher, got {type(ema).__name__}")
    if ema.skip_non_finite:
        raise ValueError(
            "a teacher with skip_non_finite looks at the whole student before it follows: call "
            "its update(student) after step() instead of passing ema="
        )
    if ema.elsewhere:
        raise ValueError(
            "a teacher on a device of its own cannot follow in the pass: call its "
            "update(student) after step() instead of passing ema="
        )
