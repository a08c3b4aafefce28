"""What a run is made of, built once from its settings; the loop gets these objects."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sslfast import __version__
from sslfast.data import Loader
from sslfast.ema import EMATeacher
from sslfast.methods.base import Method, Progress
from sslfast.models.batch_norm import synchronize_batch_norm
from sslfast.optim import LARS, AdamW
from sslfast.training import checkpoint
from sslfast.training.config import ConfigError, TrainConfig
from sslfast.training.distributed import Ranks
from sslfast.training.monitors import Clock, Meter
from sslfast.training.optimizers import build_optimizer, parameter_groups, scaled_lr
from sslfast.training.run_folder import RunFolder
from sslfast.training.schedule import Curve, Rates
from sslfast.training.state import TrainState
from sslfast.training.strategy import Strategy, strategy_for

logger = logging.getLogger("sslfast")

AMP_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Plan:
    """The numbers of a run.

    Attributes:
        total_steps: optimiser steps.
        steps_per_epoch: of one pass over the data; may be a fraction.
        parts: of a step, each with a loss of its own.
        micro_batches: of a part, which its loss sees at once.
        seed: of the run.
        log_every: steps between two readings of the device.
        checkpoint_every: steps between two checkpoints.
        amp: the dtype of automatic mixed precision, or None.
    """

    total_steps: int
    steps_per_epoch: float
    parts: int
    micro_batches: int
    seed: int
    log_every: int
    checkpoint_every: int
    amp: torch.dtype | None

    @classmethod
    def of(cls, config: TrainConfig, loader: Loader) -> "Plan":
        """The plan that the settings and the number of samples make."""
        steps_per_epoch = loader.steps_per_epoch / config.accumulate
        return cls(
            total_steps=config.steps or max(1, int((config.epochs or 0) * steps_per_epoch)),
            steps_per_epoch=steps_per_epoch,
            parts=config.accumulate // config.micro_batches,
            micro_batches=config.micro_batches,
            seed=config.seed,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
            amp=AMP_DTYPES[config.precision],
        )

    def at(self, step: int) -> Progress:
        """How far the run is after so many steps."""
        return Progress(step, self.total_steps, self.steps_per_epoch)

    def is_due(self, step: int, every: int) -> bool:
        """Whether something that is done every so many steps, and at the end, is done now."""
        return step % every == 0 or step == self.total_steps


@dataclass(frozen=True)
class Checkpointer:
    """Writes checkpoints, each with what it is a checkpoint of.

    Attributes:
        folder: of the checkpoints.
        keep: how many of the newest stay.
        stamp: plain values that every one of them holds.
    """

    folder: Path
    keep: int
    stamp: dict[str, Any]

    def save(self, step: int, epoch: int, captured: dict[str, Any]) -> None:
        """Write one; see ``checkpoint.save``."""
        state = {**self.stamp, "epoch": epoch, **captured}
        checkpoint.save(self.folder, step, state, self.keep)


@dataclass(frozen=True)
class Session:
    """All that the loop works with, on one rank.

    Attributes:
        plan: the numbers.
        ranks: this process and its peers.
        run: the folder that takes metrics (from rank 0).
        loader: yields micro-batches.
        method: what is trained, on the device.
        strategy: where its weights are, and what is called.
        optimizer: moves them, and the teachers.
        rates: of every parameter group in every step.
        scaler: of losses in float16; off otherwise.
        meter: means and non-finite values.
        clock: time spent, and waited.
        state: what a checkpoint holds of all these.
        checkpointer: writes it.
    """

    plan: Plan
    ranks: Ranks
    run: RunFolder
    loader: Loader
    method: Method
    strategy: Strategy
    optimizer: AdamW | LARS
    rates: Rates
    scaler: torch.amp.GradScaler
    meter: Meter
    clock: Clock
    state: TrainState
    checkpointer: Checkpointer


def build_session(
    config: TrainConfig, method: Method, loader: Loader, run: RunFolder, ranks: Ranks
) -> Session:
    """Put a run together.

    Args:
        config: the settings.
        method: on ``ranks.device``, with the weights to start from.
        loader: yields micro-batches of batch_size / (world_size * accumulate) samples.
        run: its folder.
        ranks: this process and its peers.

    Raises:
        ConfigError: options that the optimiser or the encoder does not have.
    """
    plan, device = Plan.of(config, loader), ranks.device
    if config.sync_batch_norm and ranks.world_size > 1:
        synchronize_batch_norm(method, ranks.group)
    strategy = strategy_for(ranks)(method, compile=config.compile)
    groups = parameter_groups(config, method)
    rates = Rates(groups, *_curves(config, plan, ranks), config.momentum)
    optimizer = build_optimizer(config, groups, method.teachers())
    scaler = torch.amp.GradScaler(device.type, enabled=plan.amp == torch.float16)
    meter = Meter(device)
    return Session(
        plan=plan,
        ranks=ranks,
        run=run,
        loader=loader,
        method=method,
        strategy=strategy,
        optimizer=optimizer,
        rates=rates,
        scaler=scaler,
        meter=meter,
        clock=Clock(),
        state=TrainState(strategy, optimizer, scaler, loader, meter, ranks),
        checkpointer=Checkpointer(
            run.checkpoints,
            config.keep_checkpoints,
            {"sslfast": __version__, "config": config.to_dict()},
        ),
    )


def check_method(config: TrainConfig, method: Method, world_size: int = 1) -> None:
    """Find out before anything is written whether a session can be built around the method.

    Args:
        config: the settings.
        method: what is to be trained.
        world_size: ranks that train together.

    Raises:
        ConfigError: a batch that is too small for it, or a contrastive_batch that it has no use
            for; groups, teachers or a module for export that cannot be used.
    """
    _check_batch(config, method, world_size)
    name, groups = type(method).__name__, parameter_groups(config, method)
    Rates(groups, Curve(1.0), Curve(1.0))  # takes out what the optimiser does not know
    teachers = method.teachers()
    if not isinstance(teachers, (list, tuple)) or not all(
        isinstance(teacher, EMATeacher) for teacher in teachers
    ):
        raise ConfigError(f"teachers of {name} must be a list of EMATeacher, got {teachers!r:.80}")
    if len(set(map(id, teachers))) < len(teachers):
        raise ConfigError(f"teachers of {name}: a teacher is named twice")
    try:
        build_optimizer(config, groups, teachers)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {error}") from error
    exported, encoder = method.exported(), method.encoder
    found, wanted = (
        {key: tuple(value.shape) for key, value in module.state_dict().items()}
        for module in (exported, encoder)
    )
    if found != wanted:
        raise ConfigError(
            f"exported of {name} must return an encoder like its own, such as teacher.module; the "
            f"{type(exported).__name__} that it returns holds other weights"
        )


def _check_batch(config: TrainConfig, method: Method, world_size: int) -> None:
    name, least, accumulate = config.method, method.smallest_batch, config.accumulate
    if config.micro_batches > 1 and not method.contrastive:
        raise ConfigError(
            f"contrastive_batch is for methods that compare images of a batch, and {name} does "
            "not: accumulate alone does it (batch norm, and what a method remembers of earlier "
            "batches, are those of a micro-batch either way)"
        )
    ranks = 1 if config.sync_batch_norm else world_size
    if config.batch_size < least * accumulate * ranks:
        counted = " / accumulate" * (accumulate > 1) + " / ranks" * (ranks > 1)
        raise ConfigError(
            f"{name} needs {least} images or more at a time, for its batch norm or its loss, and "
            f"would see {config.batch_size // (accumulate * ranks)} (batch_size{counted}): set "
            f"batch_size to {least * accumulate * ranks} or more"
        )
    if method.contrastive and config.compared == 1:
        if config.contrastive_batch:
            raise ConfigError(
                f"{name} compares images, and its loss would see one at a time: set "
                "contrastive_batch to 2 or more (larger is better)"
            )
        other = ", or set contrastive_batch" if accumulate > 1 else ""
        raise ConfigError(
            f"{name} compares images, and its loss would see one at a time: set batch_size to "
            f"{2 * accumulate} or more (larger is better){other}"
        )


def _curves(config: TrainConfig, plan: Plan, ranks: Ranks) -> tuple[Curve, Curve]:
    """Learning rate and weight decay over the steps."""
    peak, total = scaled_lr(config), plan.total_steps
    warmup = int(config.warmup_epochs * plan.steps_per_epoch)
    if warmup > total and ranks.is_main:
        logger.warning(
            "warmup_epochs %g is longer than the run of %.3g epochs: the learning rate rises to "
            "%.3g and not to lr %g",
            *(config.warmup_epochs, total / plan.steps_per_epoch),
            *(peak * total / warmup, peak),
        )
    decay, end = config.weight_decay, config.weight_decay_end
    return Curve(peak, config.min_lr, warmup), Curve(decay, decay if end is None else end)
