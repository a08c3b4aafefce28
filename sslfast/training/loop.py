"""The training loop, whole, in one file."""

import logging
import random
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sslfast._nests import map_tensors
from sslfast.data import Batch, Loader
from sslfast.methods.base import Context, Progress
from sslfast.training.monitors import NEVER, NonFiniteError
from sslfast.training.run_log import RunLog
from sslfast.training.schedule import scheduled
from sslfast.training.session import Session
from sslfast.training.signals import StopPoll, TrainingStopped, catch_signals

logger = logging.getLogger("sslfast")


def fit(session: Session, saved: dict[str, Any] | None = None) -> int:
    """Train to the end of the run.

    Args:
        session: what the run is made of.
        saved: a checkpoint to go on from, of fewer steps than the run has.

    Returns:
        The step at the end.

    Raises:
        NonFiniteError: the loss, a gradient or a weight became NaN or infinite.
        TrainingStopped: a signal arrived; a checkpoint has been written.
    """
    plan, ranks, run, method = session.plan, session.ranks, session.run, session.method
    strategy, optimizer, scaler = session.strategy, session.optimizer, session.scaler
    meter, clock, device = session.meter, session.clock, session.ranks.device
    amp = torch.autocast(device.type, plan.amp, enabled=plan.amp is not None)
    batches, step = endless(session.loader), 0 if saved is None else saved["step"]
    method.train()

    with ExitStack() as stack:
        log = None
        if ranks.is_main:
            log = stack.enter_context(
                RunLog(run.metrics, step, plan.total_steps, plan.steps_per_epoch)
            )
        poll = StopPoll(ranks, stack.enter_context(catch_signals()))
        stack.enter_context(ranks.watched())  # while signals are caught: torchrun sends one
        # As late as possible: importing some packages draws random numbers.
        seed_all(plan.seed + ranks.rank)
        if saved is not None:
            session.state.restore(saved)
            logger.info("going on after step %d of %d", step, plan.total_steps)
        while step < plan.total_steps:
            progress = plan.at(step)
            now = scheduled(method, progress)
            lr = session.rates.set(optimizer, progress, now)
            ctx = context(session, progress, now)
            for teacher in method.teachers() if "momentum" in now else ():
                teacher.momentum = ctx.schedules["momentum"]

            for part in range(plan.parts):
                with clock.waiting():
                    micro = [next(batches) for _ in range(plan.micro_batches)]
                    batch = to_device(Batch.join(micro), device)
                meter.saw(step + 1, batch.sample_ids)
                clock.count(len(batch) * ranks.world_size)
                # Ranks exchange gradients once a step, with the last part.
                with nullcontext() if part + 1 == plan.parts else strategy.no_sync():
                    with amp:
                        chunk = len(micro[0]) if len(micro) > 1 else None
                        values = strategy.model(batch, ctx, chunk)
                    scaler.scale(values["loss"] / plan.parts).backward()
                meter.add(step + 1, values)

            method.before_step(ctx)
            session.rates.freeze(optimizer, progress)
            # Unscales, clips, leaves out what overflowed and moves the teachers, in one pass.
            scaler.step(optimizer)
            scaler.update()
            norm = optimizer.grad_norm
            assert norm is not None  # build_optimizer has asked for it
            optimizer.zero_grad(set_to_none=True)
            method.after_step(ctx)
            step += 1
            if not scaler.is_enabled():  # whose gradients overflow now and then, and are skipped
                meter.watch(step, norm)
            if log is not None:
                log.advance(step)

            log_due = plan.is_due(step, plan.log_every)
            save_due = plan.is_due(step, plan.checkpoint_every)
            stop_signal = poll(step)
            if not (log_due or save_due or stop_signal):
                continue
            # From here on numbers are read off the device, for the only time.
            bad_step = ranks.first(meter.bad_step)
            if bad_step != NEVER:
                what = "the loss or its gradient"
                raise NonFiniteError(what, bad_step, meter.samples_of(bad_step), run.last_good())
            if log_due:
                numbers = {**meter.read(), "lr": lr, "grad_norm": float(norm), **clock.read()}
                if log is not None:
                    log.write(step, numbers)
            if save_due or stop_signal:
                if not session.state.is_finite():
                    raise NonFiniteError("a weight", step, meter.samples_of(step), run.last_good())
                captured = session.state.capture()
                if ranks.is_main:
                    session.checkpointer.save(step, ctx.epoch, captured)
            meter.forget_samples()
            if stop_signal and step < plan.total_steps:
                raise TrainingStopped(stop_signal, step, run.path)
    return step


def context(session: Session, progress: Progress, values: dict[str, float]) -> Context:
    """What a method is told in one step."""
    device, ranks = session.ranks.device, session.ranks
    return Context(
        step=progress.step,
        epoch=int(progress.epoch),
        total_steps=progress.total_steps,
        seed=session.plan.seed,
        schedules={k: torch.full((), float(v), device=device) for k, v in values.items()},
        device_step=torch.full((), progress.step, device=device),
        rank=ranks.rank,
        world_size=ranks.world_size,
        process_group=ranks.group,
    )


def endless(loader: Loader) -> Iterator[Batch]:
    """Epoch after epoch, beginning with the rest of a restored one."""
    while True:
        yield from loader


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device, images in channels-last order (which convolutions prefer)."""

    def place(tensor: torch.Tensor) -> torch.Tensor:
        order = torch.channels_last if tensor.dim() == 4 else torch.preserve_format
        return tensor.to(device, memory_format=order, non_blocking=True)

    batch = batch.to(device)
    return replace(batch, views=map_tensors(batch.views, place))


def seed_all(seed: int) -> None:
    """Seed every global generator that a method or model may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
