"""How the momentum of a teacher changes with its updates."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


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


@dataclass(frozen=True)
class PowerMomentum:
    """1 - (1 + j / gamma)^-power after j + ``update_after_step`` updates, and 0 for j <= 0.

    The warm-up of timm's ModelEmaV3 (by K. Crowson), whose ``step`` is one more than the updates
    before it. ``power`` 1 averages all that came so far alike; 2/3 reaches 0.999 after 31,600
    updates and 0.9999 after a million, 3/4 after 10,000 and 215,000; infinity is ``limit`` at once.

    Args:
        limit: never more than this; timm's ``decay``.
        power: timm's ``warmup_power``.
        gamma: updates; timm's ``warmup_gamma``.
        minimum: never less than this once j > 0; timm's ``min_decay``.
        update_after_step: the teacher is a copy of the student up to then.
    """

    limit: float
    power: float = 2 / 3
    gamma: float = 1.0
    minimum: float = 0.0
    update_after_step: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.limit <= 1:
            raise ValueError(
                f"0 <= minimum <= limit <= 1 must hold, got {self.minimum} and {self.limit}"
            )
        for name in ("power", "gamma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not self.update_after_step >= 0:
            raise ValueError(f"update_after_step must be at least 0, got {self.update_after_step}")

    def __call__(self, updates: Tensor) -> Tensor:
        """The momentum after ``updates`` (int64 []) updates, float64 [] on the same device."""
        j = (updates - self.update_after_step).double()
        momentum = 1 - (1 + j.clamp(min=0) / self.gamma) ** -self.power
        return torch.where(j > 0, momentum.clamp(self.minimum, self.limit), 0.0)
