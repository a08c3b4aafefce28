"""What a run writes while it trains: metrics.jsonl, TensorBoard events, the progress bar."""

import json
import logging
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from sslfast._extras import require
from sslfast.training.storage import write_atomically

logger = logging.getLogger("sslfast")


class RunLog:
    """metrics.jsonl, TensorBoard events and the progress bar (or log lines without a terminal).

    Args:
        metrics: metrics.jsonl; the events go to the folder that holds it.
        step: where the run goes on; what an interrupted run logged after it is dropped.
        total_steps: where it ends.
        steps_per_epoch: for the display.
    """

    def __init__(self, metrics: Path, step: int, total_steps: int, steps_per_epoch: float) -> None:
        require("tensorboard", extra="train", purpose="writing TensorBoard events")
        from torch.utils.tensorboard import SummaryWriter

        progress = require("rich.progress", extra="train", purpose="the progress bar")
        _drop_after(metrics, step)
        self._file = open(metrics, "a", encoding="utf-8")  # noqa: SIM115
        self._events = SummaryWriter(str(metrics.parent), purge_step=step + 1)
        self._steps_per_epoch = steps_per_epoch
        self._total_steps = total_steps
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[figures]}"),
            progress.TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("", completed=step, total=total_steps, figures="")

    def __enter__(self) -> "RunLog":
        if self._bar.console.is_terminal:
            self._bar.start()
        return self

    def advance(self, step: int) -> None:
        """Show in the progress bar that ``step`` optimiser steps are done."""
        self._bar.update(self._task, completed=step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write one entry; it is on the disk when this returns."""
        entry = {"step": step, "epoch": round(step / self._steps_per_epoch, 4), **values}
        # JSON has no infinity, which an overflowing fp16 gradient may have for a norm.
        finite = {k: v if math.isfinite(v) else None for k, v in entry.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())  # else a power cut may keep a later checkpoint, but not this
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        epochs = self._total_steps / self._steps_per_epoch
        digits = ".1f" if epochs >= 1 else ".3f"
        where = f"epoch {entry['epoch']:{digits}}/{epochs:.3g}"
        figures = (
            f"loss {values['loss']:.4f}  {values['images_per_second']:.0f} images/s  "
            f"waiting for data {values['data_wait']:.0%}"
        )
        self._bar.update(self._task, description=where, figures=figures)
        if not self._bar.console.is_terminal:
            logger.info("step %d/%d  %s  %s", step, self._total_steps, where, figures)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar.console.is_terminal:
            self._bar.stop()
        self._file.close()
        self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The entries of a metrics.jsonl; a warning names lines that cannot be read."""
    entries, damaged = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            entry = json.loads(line.decode())
            if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
                raise ValueError("no entry")
            entries.append(entry)
        except (ValueError, RecursionError):
            damaged.append(number)
    if damaged:
        listed = ", ".join(map(str, damaged[:10])) + ", ..." * (len(damaged) > 10)
        logger.warning(
            "%s: %d of its lines cannot be read (a kill cuts off the last) and are left out: %s",
            path,
            len(damaged),
            listed,
        )
    return entries


def _drop_after(metrics: Path, step: int) -> None:
    """Leave out what cannot be read, and what an interrupted run logged after ``step``."""
    if not metrics.exists():
        return
    kept = [entry for entry in read_metrics(metrics) if entry["step"] <= step]
    content = "".join(json.dumps(entry) + "\n" for entry in kept).encode()
    if metrics.read_bytes() != content:
        write_atomically(metrics, lambda file: file.write(content))
