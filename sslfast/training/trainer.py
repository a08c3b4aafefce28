"""Pre-training from beginning to end: from the settings of a run to its encoder."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslfast import __version__, methods
from sslfast.data.executors.executor import AnyRecipe
from sslfast.methods.base import Method
from sslfast.training import checkpoint, distributed
from sslfast.training.config import TOO_LARGE, ConfigError, TrainConfig, setting_error, user_path
from sslfast.training.encoder import build_encoder, place, save_encoder
from sslfast.training.heads import FILE_NAME as HEADS
from sslfast.training.heads import check_heads, save_heads
from sslfast.training.loop import fit, seed_all
from sslfast.training.pipeline import build_loader, build_recipe, check_image_size
from sslfast.training.run_folder import RunFolder
from sslfast.training.session import Plan, build_session, check_method
from sslfast.training.storage import explain_full_disk
from sslfast.training.weights import first_few, load_weights

logger = logging.getLogger("sslfast")


def train(config: TrainConfig | Mapping[str, Any]) -> Path:
    """Pre-train an encoder without labels, or go on with a run that was interrupted.

    Seeds the global random generators of Python, numpy and torch.

    Args:
        config: the settings, or a dict of them as for ``TrainConfig.from_dict``; ``config.out``
            becomes the run's folder.

    Returns:
        The run's folder: config.yaml, metrics.jsonl, TensorBoard events, checkpoints/ and
        encoder.safetensors (see ``load_encoder``); of some methods heads.safetensors (see
        ``load_heads``).

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
        recipe = build_recipe(config, method)
        check_image_size(recipe, method.encoder)
        try:
            method.check_views(recipe)
        except ValueError as error:
            raise setting_error("method", {getattr(error, "name", ""): None}, error) from error
        check_method(config, method, ranks.world_size)
        check_heads(method)
        loader = stack.enter_context(closing(build_loader(config, recipe, ranks)))
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
        step, heads = Plan.of(config, loader).total_steps, method.heads()
        if saved and saved["step"] >= step:
            step = saved["step"]
            method.load_state_dict(saved["model"])
            weights, kept = method.exported().state_dict(), nn.ModuleDict(heads).state_dict()
            logger.info("%s holds a finished run: there is nothing left to do", run.path)
        else:
            session = build_session(config, method, loader, run, ranks)
            if ranks.is_main:
                for remark in method.remarks(loader.num_samples):
                    logger.info("%s: %s", config.method, remark)
                run.begin(config, loader.manifest, method_files(type(method), config, run))
            fit(session, saved)
            weights, kept = session.strategy.exported(), session.strategy.heads()
        # Also of a finished run: it may have been killed between its last checkpoint and this.
        described = describe(config, method, recipe, step)
        if ranks.is_main and save_encoder(run.encoder, weights, described):
            logger.info("the encoder is in %s", run.encoder)
        if ranks.is_main and heads:
            save_heads(run.path / HEADS, heads, kept, described)
        ranks.barrier()
    return run.path


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
    try:
        encoder = build_encoder(config.model, config.encoder_args, config.seed)
    except ConfigError as error:
        if config.drop_path is None or "drop_path_rate" not in str(error):
            raise
        raise ConfigError(
            f"drop_path: {config.model} skips no blocks: leave it out, or take a Vision Transformer"
        ) from error
    seed_all(config.seed)
    try:
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


def describe(config: TrainConfig, method: Method, recipe: AnyRecipe, step: int) -> dict[str, Any]:
    """What the encoder's file says of it: its model, the views it expects, where it comes from."""
    # What a recipe for other data says of its views is its own matter.
    inputs: dict[str, Any] = getattr(recipe, "inputs", dict)()
    return {
        "model": config.model,
        "model_args": config.encoder_args,
        "method": config.method,
        **inputs,
        "sslfast": __version__,
        "step": step,
        "checkpoint": checkpoint.fingerprint(method.state_dict()),
    }
