"""Learning rate and weight decay of every parameter group over the steps of a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from sslfast.methods.base import Method, Progress
from sslfast.optim.schedules import warmup_cosine
from sslfast.training.config import ConfigError


@dataclass(frozen=True)
class Curve:
    """A value over the steps of a run: ``warmup_cosine`` with all but the step."""

    peak: float
    end: float = 0.0
    warmup: int = 0

    def at(self, progress: Progress) -> float:
        """The value of one step."""
        return warmup_cosine(
            progress.step,
            peak=self.peak,
            warmup=self.warmup,
            total=progress.total_steps,
            end=self.end,
        )


def scheduled(method: Method, progress: Progress) -> dict[str, float]:
    """What the method's schedules say now.

    Raises:
        ConfigError: a value that is no finite number, or one for the trainer that is out of range.
    """
    found = method.schedules(progress)
    for name, value in found.items():
        number = isinstance(value, (int, float)) and math.isfinite(value)
        if not number or (name in _LARGEST and not 0 <= value <= _LARGEST[name]):
            wanted = "a finite number"
            if name in _LARGEST:
                wanted += " not below 0" if _LARGEST[name] == math.inf else " in [0, 1]"
            raise ConfigError(
                f"schedules of {type(method).__name__}: {name} must be {wanted}, got {value!r}"
            )
    return found


_LARGEST = {"lr": math.inf, "weight_decay": math.inf, "momentum": 1.0}


@dataclass(frozen=True)
class _Group:
    lr_scale: float
    fix_lr: bool  # no warm-up, no cosine
    decays: bool  # by the run's weight decay; else the group has one of its own
    freeze_until: float


class Rates:
    """Sets learning rates and weight decays before every step, and holds frozen groups still.

    A group of parameters may say, beside what the optimiser knows: ``lr_scale``, a factor of the
    learning rate; ``fix_lr``, whether that is the peak in every step; ``weight_decay``, its own,
    which no schedule changes; ``freeze_until``, the epoch (a fraction may be given) before which
    its parameters have no gradient.

    Args:
        groups: as ``Method.param_groups`` returns them; what only this class knows is taken out.
        lr: the learning rate.
        weight_decay: of the groups that have none of their own.
        momentum: of optimisers that have one; an older one may come with a checkpoint.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: Curve, weight_decay: Curve, momentum: float = 0.9
    ) -> None:
        self._lr, self._weight_decay, self._momentum = lr, weight_decay, momentum
        self._groups = [
            _Group(
                group.pop("lr_scale", 1.0),
                group.pop("fix_lr", False),
                "weight_decay" not in group,
                group.pop("freeze_until", 0.0),
            )
            for group in groups
        ]

    def set(
        self, optimizer: Optimizer, progress: Progress, scheduled: Mapping[str, float]
    ) -> float:
        """Set the rates of a step.

        Args:
            optimizer: of the groups that this was made of, in their order.
            progress: where the training stands.
            scheduled: the method's own schedules, of which "lr" and "weight_decay" take the place
                of the run's.

        Returns:
            The learning rate.
        """
        lr = scheduled.get("lr", self._lr.at(progress))
        weight_decay = scheduled.get("weight_decay", self._weight_decay.at(progress))
        for own, group in zip(self._groups, optimizer.param_groups, strict=True):
            group["lr"] = own.lr_scale * (self._lr.peak if own.fix_lr else lr)
            if own.decays:
                group["weight_decay"] = weight_decay
            if "momentum" in group:
                group["momentum"] = self._momentum
        return lr

    def freeze(self, optimizer: Optimizer, progress: Progress) -> None:
        """Take the gradients from the groups that are still frozen: a step then leaves them out."""
        for own, group in zip(self._groups, optimizer.param_groups, strict=True):
            if progress.epoch < own.freeze_until:
                for parameter in group["params"]:
                    parameter.grad = None
