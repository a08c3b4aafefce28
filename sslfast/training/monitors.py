"""What watches a run: means and non-finite values, kept on the device, and the clock."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NEVER = torch.iinfo(torch.int64).max


class NonFiniteError(RuntimeError):
    """The loss, a gradient or a weight became NaN or infinite; the message names the samples.

    Attributes:
        step: the first such step, counted from 1.
        sample_ids: the samples of that step on this rank.
    """

    def __init__(self, what: str, step: int, sample_ids: list[int], last_good: Path | None) -> None:
        listed = ", ".join(map(str, sample_ids[:16]))
        more = f" and {len(sample_ids) - 16} more" if len(sample_ids) > 16 else ""
        kept = f"the last good checkpoint is {last_good}" if last_good else "no checkpoint yet"
        super().__init__(
            f"{what} is not finite at step {step}; {kept}. Sample ids of that step: "
            f"{listed}{more}. Look at these, or lower lr, lengthen warmup_epochs, or take "
            "precision bf16 or fp32"
        )
        self.step = step
        self.sample_ids = sample_ids


class Meter:
    """Means over the steps since the last log entry, kept on the device until they are read.

    A step whose values are not finite leaves its number in a flag on the device, and the samples
    of all steps since the last reading stay in a ring, so that the step that went wrong can be
    named although nothing is read in between.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._bad_step = torch.full((), NEVER, dtype=torch.int64, device=device)
        self._ring: dict[int, list[Tensor]] = {}

    def saw(self, step: int, sample_ids: Tensor) -> None:
        """Remember the samples of a (micro-)batch of ``step``."""
        self._ring.setdefault(step, []).append(sample_ids)

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        """Take in the 0-dim device tensors of a (micro-)batch, of which "loss" is watched."""
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1
        self.watch(step, values["loss"])

    def watch(self, step: int, value: Tensor) -> None:
        """Keep ``step`` in the flag if ``value`` is not finite and no earlier step was."""
        bad = torch.where(torch.isfinite(value), NEVER, step)
        torch.minimum(self._bad_step, bad, out=self._bad_step)

    @property
    def bad_step(self) -> Tensor:
        """Int64 0-dim device tensor: the first step that was not finite, or int64's maximum."""
        return self._bad_step

    def samples_of(self, step: int) -> list[int]:
        """The sample ids of a step that is still in the ring."""
        return [int(i) for ids in self._ring.get(step, []) for i in ids.tolist()]

    def forget_samples(self) -> None:
        """Empty the ring, once its steps are known to be good."""
        self._ring.clear()

    def read(self) -> dict[str, float]:
        """The means since the last call, read off the device; starts the next interval."""
        means = {name: float(total) / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """The running sums, so that a resumed run logs the same means."""
        sums = {name: total.cpu() for name, total in self._sums.items()}
        return {"sums": sums, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state_dict."""
        device = self._bad_step.device
        self._sums = {name: total.to(device) for name, total in state["sums"].items()}
        self._count = state["count"]


class Clock:
    """Images per second, and the share of the time that the loop waits for data."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0
        self._images = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of a ``with`` block as waiting."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def count(self, images: int) -> None:
        """Count images that the training used."""
        self._images += images

    def read(self) -> dict[str, float]:
        """Figures since the last call; starts the next interval."""
        elapsed = time.perf_counter() - self._start
        figures = {
            "images_per_second": self._images / elapsed,
            "data_wait": self._waited / elapsed,
        }
        self.__init__()  # type: ignore[misc]
        return figures
