"""The training loop, whole, in one file."""

import logging
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslfast import __version__, methods
from sslfast.data import Batch, Loader
from sslfast.data.batch import map_tensors
from sslfast.methods.base import Context, Method
from sslfast.optim import LARS, AdamW
from sslfast.training import checkpoint, distributed
from sslfast.training.config import TOO_LARGE, ConfigError, TrainConfig, setting_error, user_path
from sslfast.training.distributed import Ranks
from sslfast.training.encoder import build_encoder, place, save_encoder
from sslfast.training.monitors import NEVER, Clock, Meter, NonFiniteError
from sslfast.training.pipeline import build_loader, build_recipe, check_image_size
from sslfast.training.run_folder import RunFolder
from sslfast.training.run_log import RunLog
from sslfast.training.schedule import warmup_cosine
from sslfast.training.signals import StopPoll, TrainingStopped, catch_signals
from sslfast.training.state import TrainState
from sslfast.training.storage import explain_full_disk
from sslfast.training.weights import first_few, load_weights

logger = logging.getLogger("sslfast")

AMP_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def train(config: TrainConfig | Mapping[str, Any]) -> Path:
    """Pre-train an encoder without labels, or go on with a run that was interrupted.

    Seeds the global random generators of Python, numpy and torch.

    Args:
        config: the settings, or a dict of them as for ``TrainConfig.from_dict``; ``config.out``
            becomes the run's folder.

    Returns:
        The run's folder: config.yaml, metrics.jsonl, TensorBoard events, checkpoints/ and
        encoder.safetensors (see ``load_encoder``).

    Raises:
        ConfigError: a setting that cannot work.
        RunFolderError: ``config.out`` cannot be used.
        CheckpointError: the run's checkpoints cannot be used.
        NonFiniteError: the loss became NaN or infinite.
        StorageError: the disk is full.
        TrainingStopped: SIGINT, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2 arrived.
        RankError: ranks differ, or another one did not come, ended, or hangs.
    """
    if isinstance(config, Mapping):
        config = TrainConfig.from_dict(config)
    if not isinstance(config, TrainConfig):
        raise ConfigError(
            f"train takes a TrainConfig, or a dict of settings, got {type(config).__name__}: read "
            "a file with TrainConfig.read"
        )
    config.validate()
    run = RunFolder(config.out)
    with ExitStack() as stack:
        ranks = stack.enter_context(distributed.ranks(config.device))
        method = build_method(config, ranks.device, run)
        check_image_size(build_recipe(config, method), method.encoder)
        loader = stack.enter_context(closing(build_loader(config, method, ranks)))
        data = {
            "samples": loader.num_samples,
            "batches an epoch": loader.steps_per_epoch,
            "names and sizes": loader.manifest.fingerprint,
        }
        ranks.must_agree({"settings": config.shared(), "data": data})
        # Up to here nothing is written: a wrong setting leaves no folder behind.
        saved = None
        stack.enter_context(explain_full_disk(run.path))
        if ranks.is_main:
            stack.enter_context(run.locked())
            saved = run.resume_state(config, loader.manifest)
        # The other ranks read the checkpoint that rank 0 found to be whole.
        path = ranks.share(saved and saved["path"])
        if path and not saved:
            saved = checkpoint.load(Path(path))
        if config.init and not saved:
            extra = load_weights(method.encoder, config.init)
            method.after_load()
            if extra and ranks.is_main:
                names = first_few(extra)
                logger.warning("init: %s has more than the model: %s", config.init, names)
        step = fit(config, method, loader, run, ranks, saved)
        if saved and step == saved["step"]:
            method.load_state_dict(saved["model"])
            logger.info("%s holds a finished run: there is nothing left to do", run.path)
        # Also of a finished run: it may have been killed between its last checkpoint and this.
        if ranks.is_main and save_encoder(
            run.encoder, method.encoder, describe(config, method, step)
        ):
            logger.info("the encoder is in %s", run.encoder)
        ranks.barrier()
    return run.path


def fit(
    config: TrainConfig,
    method: Method,
    loader: Loader,
    run: RunFolder,
    ranks: Ranks,
    saved: dict[str, Any] | None = None,
) -> int:
    """Train ``method`` to the end of the run: the loop.

    Args:
        config: the settings.
        method: on ``ranks.device``.
        loader: yields micro-batches of batch_size / (world_size * accumulate) samples.
        run: takes metrics and checkpoints (from rank 0).
        ranks: this process and its peers.
        saved: a checkpoint to go on from.

    Returns:
        The step at the end: that of ``saved`` if none was left to do; then nothing is touched.
    """
    device, single = ranks.device, ranks.world_size == 1
    steps_per_epoch = loader.steps_per_epoch / config.accumulate
    total_steps = config.steps or max(1, int((config.epochs or 0) * steps_per_epoch))
    warmup = int(config.warmup_epochs * steps_per_epoch)
    if warmup > total_steps and ranks.is_main:
        logger.warning(
            "warmup_epochs %g is longer than the run of %.3g epochs: the learning rate rises to "
            "%.3g and not to lr %g",
            *(config.warmup_epochs, total_steps / steps_per_epoch),
            *(config.lr * total_steps / warmup, config.lr),
        )
    parts = config.accumulate // config.micro_batches  # of a step, each with a loss of its own

    step = saved["step"] if saved is not None else 0
    if step >= total_steps:
        return step

    optimizer = build_optimizer(config, method)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    meter, clock = Meter(device), Clock()
    state = TrainState(method, optimizer, scaler, loader, meter, ranks)
    model: Any = ranks.parallel(method)
    if config.compile:
        model = torch.compile(model)
    amp = torch.autocast(device.type, AMP_DTYPES[config.precision], config.precision != "fp32")
    batches = endless(loader)
    method.train()

    with ExitStack() as stack:
        log = None
        if ranks.is_main:
            config.write(run.config)
            run.keep_manifest(loader.manifest)
            run.keep_copies(method_files(type(method), config, run))
            log = stack.enter_context(RunLog(run.metrics, step, total_steps, steps_per_epoch))
        poll = StopPoll(ranks, stack.enter_context(catch_signals()))
        stack.enter_context(ranks.watched())  # while signals are caught: torchrun sends one
        # As late as possible: importing some packages draws random numbers.
        seed_all(config.seed + ranks.rank)
        if saved is not None:
            state.restore(saved)
            logger.info("going on after step %d of %d", step, total_steps)
        while step < total_steps:
            lr = warmup_cosine(step, peak=config.lr, warmup=warmup, total=total_steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            scheduled = method.schedules(step / total_steps)
            ctx = Context(
                step=step,
                epoch=int(step / steps_per_epoch),
                total_steps=total_steps,
                seed=config.seed,
                schedules={k: torch.full((), v, device=device) for k, v in scheduled.items()},
                device_step=torch.full((), step, device=device),
            )

            for part in range(parts):
                with clock.waiting():
                    micro = [next(batches) for _ in range(config.micro_batches)]
                    batch = to_device(Batch.join(micro), device)
                meter.saw(step + 1, batch.sample_ids)
                clock.count(len(batch) * ranks.world_size)
                # Ranks exchange gradients once a step, with the last part.
                alone = single or part + 1 == parts
                with nullcontext() if alone else model.no_sync():
                    with amp:
                        values = model(batch, ctx, len(micro[0]) if len(micro) > 1 else None)
                    scaler.scale(values["loss"] / parts).backward()
                meter.add(step + 1, values)

            scaler.step(optimizer)  # unscales, clips, and leaves out what overflowed, in one pass
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

            log_due = step % config.log_every == 0 or step == total_steps
            save_due = step % config.checkpoint_every == 0 or step == total_steps
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
                if not state.is_finite():
                    raise NonFiniteError("a weight", step, meter.samples_of(step), run.last_good())
                captured = state.capture()
                if ranks.is_main:
                    stamp = {"sslfast": __version__, "config": config.to_dict(), "epoch": ctx.epoch}
                    checkpoint.save(
                        run.checkpoints, step, {**stamp, **captured}, config.keep_checkpoints
                    )
            meter.forget_samples()
            if stop_signal and step < total_steps:
                raise TrainingStopped(stop_signal, step, run.path)
    return step


def build_method(config: TrainConfig, device: torch.device, run: RunFolder | None = None) -> Method:
    """The method around its encoder, on the device: the same weights on every rank.

    Args:
        config: the settings.
        device: where to put it.
        run: read the method's files from the copies that this run keeps, if it has any.

    Raises:
        ConfigError: an unknown name or keyword, or a precision that the device lacks.
    """
    if config.precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision fp16 needs a GPU: use bf16 or fp32 on the CPU")
    encoder = build_encoder(config.model, config.model_args, config.seed)
    seed_all(config.seed)
    try:
        if config.micro_batches > 1 and not methods.get(config.method).contrastive:
            raise ConfigError(
                f"contrastive_batch is for methods that compare images of a batch, and "
                f"{config.method} does not: accumulate alone gives the same gradient"
            )
        if methods.get(config.method).contrastive and config.compared == 1:
            raise ConfigError(
                f"{config.method} compares images, and its loss would see one at a time: the "
                "micro-batch, batch_size / accumulate over all ranks, must be 2 or more (larger is "
                "better), or set contrastive_batch"
            )
        files = method_files(methods.get(config.method), config, run)
        keywords = config.method_args | files
        method = methods.create(config.method, encoder, **keywords)
    except (TypeError, ValueError, *TOO_LARGE) as error:
        raise setting_error("method", config.method_args, error) from error
    return place(method, device)


def method_files(
    method: type[Method], config: TrainConfig, run: RunFolder | None
) -> dict[str, Any]:
    """The method's files: the run's own copies, those of the run it branches off, or as given."""
    names = method.files
    given = {name: config.method_args[name] for name in names if name in config.method_args}
    files = {k: user_path(v) if isinstance(v, (str, Path)) else v for k, v in given.items()}
    if config.resume not in ("auto", "never"):
        files |= RunFolder.of_checkpoint(config.resume).copies(names)
    return files | (run.copies(names) if run else {})


def build_optimizer(config: TrainConfig, method: Method) -> AdamW | LARS:
    """AdamW, LARS or SGD over the method's parameter groups; it also measures the gradients."""
    groups, decay = method.param_groups(), config.weight_decay
    max_norm = math.inf if config.clip_grad is None else config.clip_grad
    if config.optimizer == "adamw":
        return AdamW(groups, config.lr, weight_decay=decay, max_norm=max_norm)
    trust = None if config.optimizer == "lars" else False
    return LARS(groups, config.lr, config.momentum, decay, trust=trust, max_norm=max_norm)


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


def describe(config: TrainConfig, method: Method, step: int) -> dict[str, Any]:
    """What the encoder's file says of it: its model, the views it expects, where it comes from."""
    # What a recipe for other data says of its views is its own matter.
    inputs: dict[str, Any] = getattr(build_recipe(config, method), "inputs", dict)()
    return {
        "model": config.model,
        "model_args": config.model_args,
        "method": config.method,
        **inputs,
        "sslfast": __version__,
        "step": step,
        "checkpoint": checkpoint.fingerprint(method.state_dict()),
    }


def seed_all(seed: int) -> None:
    """Seed every global generator that a method or model may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
