"""The configuration of a run: one dataclass, read from YAML, flags or Python alike."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Number
from pathlib import Path
from typing import Any, Literal

from sslfast._arguments import (
    BadArgument,
    NonNegativeFloat,
    Part,
    PositiveFloat,
    PositiveInt,
    Probability,
    Rate,
    Seed,
    Side,
    Threads,
    check_arguments,
)
from sslfast._extras import require
from sslfast._renamed import VIEW, with_new_names
from sslfast._suggest import did_you_mean
from sslfast._versions import check_version
from sslfast.training.storage import write_atomically
from sslfast.training.yaml_file import DEEPEST, load

SCHEMA_VERSION = 1
# What torch raises at sizes that no memory holds.
TOO_LARGE = (RuntimeError, MemoryError, OverflowError)


class ConfigError(ValueError):
    """A setting that cannot work; the message says which, and what to write instead."""


@dataclass
class TrainConfig:
    """Settings of one pre-training run.

    Args:
        method: the self-supervised method; ``sslfast doctor`` lists them.
        data: a folder of images or videos (in sub-folders or not), or builtin:mnist,
            builtin:photos, or builtin:clips, which are videos.
        out: the run's folder: settings, metrics, checkpoints and the encoder.
        method_args: the method's hyperparameters, such as temperature.
        model: the encoder; ``sslfast doctor`` lists them; timm:NAME is one of timm's.
        model_args: keywords of the encoder, such as cifar_stem.
        drop_path: the encoder's drop_path_rate, the largest share of blocks that a sample skips;
            null: that of model_args.
        init: start from these weights: a run's folder, a .safetensors file, or a checkpoint.
        recipe: the augmentations; null: those of the method.
        recipe_args: changed fields of the recipe, such as crop_scale, for all views or by group.
        image_size: side of the square views (of videos, their frames) in pixels; null: that of the
            recipe.
        local_size: side of the local views, of recipes that have such; null: that of the recipe.
        epochs: passes over the data. Exactly one of epochs and steps must be given; as a flag, it
            takes the place of a file's steps.
        steps: optimiser steps. Exactly one of epochs and steps must be given; as a flag, it takes
            the place of a file's epochs.
        batch_size: images per optimiser step, over all ranks and accumulated micro-batches.
        accumulate: micro-batches per step. A contrastive loss sees one at a time, unless
            contrastive_batch says more: negatives and batch norm are those of a micro-batch, which
            must hold two images or more.
        contrastive_batch: images that a contrastive loss compares at once, over all ranks: as many
            micro-batches, encoded one at a time, twice, with the memory of one; null: those of one
            micro-batch. Batch norm stays that of a micro-batch.
        sync_batch_norm: batch norm takes its statistics over the micro-batch of all ranks, so that
            several ranks learn what one does; false: each over its own images.
        optimizer: adamw, lars (layer-wise rates, for large batches) or sgd.
        optimizer_args: its other options: betas and eps of adamw; trust_coefficient, eps and
            nesterov of lars and sgd.
        lr: the peak learning rate, or with lr_scaling that of a batch of 256.
        lr_scaling: none takes lr as it is; linear multiplies it by batch_size / 256, sqrt by the
            square root of that.
        min_lr: what the cosine of the learning rate falls to.
        layer_decay: the learning rate falls by this factor with every layer of the encoder towards
            its input; null: one rate for all.
        weight_decay: of weights; biases and norms take none.
        weight_decay_end: weight decay goes from weight_decay to this by a cosine; null: it stays.
        momentum: of lars and sgd.
        clip_grad: clip the gradients to this Euclidean norm over all parameters; null: do not.
        clip_each: clip the gradient of each parameter to this norm by itself (DINO); null: do not.
        warmup_epochs: the learning rate rises linearly over these, then falls as a cosine.
        seed: of the weights, the order of the data and the augmentations.
        device: auto takes a GPU where there is one.
        precision: fp32, or automatic mixed precision in bf16, or in fp16 (GPU only).
        compile: compile the model and the loss with torch.compile.
        threads: CPU threads for loading data, for each rank; null: chosen by the loader.
        on_bad_image: skip leaves out unreadable images and names them in the log; raise stops.
        checkpoint_every: steps between checkpoints; the end of the run always saves one.
        keep_checkpoints: how many of the newest checkpoints stay.
        resume: auto goes on where the same out stopped; never starts anew, in an empty folder;
            or the path of a checkpoint to go on from.
        log_every: steps between two entries of metrics.jsonl. Numbers are read off the device,
            and non-finite losses found, at this interval only.
        schema_version: of this file; written by sslfast.
    """

    method: str = "simclr"
    data: str = ""
    out: str = ""
    method_args: dict[str, Any] = field(default_factory=dict)
    model: str = "convnet_small"
    model_args: dict[str, Any] = field(default_factory=dict)
    drop_path: Probability | None = None
    init: str | None = None
    recipe: str | None = None
    recipe_args: dict[str, Any] = field(default_factory=dict)
    image_size: Side | None = None
    local_size: Side | None = None
    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None
    batch_size: PositiveInt = 256
    accumulate: PositiveInt = 1
    contrastive_batch: PositiveInt | None = None
    sync_batch_norm: bool = True
    optimizer: Literal["adamw", "lars", "sgd"] = "adamw"
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    lr: NonNegativeFloat = 1e-3
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    min_lr: NonNegativeFloat = 0.0
    layer_decay: Part | None = None
    weight_decay: NonNegativeFloat = 1e-4
    weight_decay_end: NonNegativeFloat | None = None
    momentum: Rate = 0.9
    clip_grad: PositiveFloat | None = None
    clip_each: PositiveFloat | None = None
    warmup_epochs: NonNegativeFloat = 0.0
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    threads: Threads | None = None
    on_bad_image: Literal["skip", "raise"] = "skip"
    checkpoint_every: PositiveInt = 1000
    keep_checkpoints: PositiveInt = 3
    resume: str = "auto"
    log_every: PositiveInt = 50
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Paths as text, those that are written with ~ for the home folder; plain values.

        Old names of a recipe's fields become the new ones.
        What config.yaml will hold is compared with these settings when the run goes on.
        """
        for item in dataclasses.fields(self):
            setattr(self, item.name, _plain(getattr(self, item.name)))
        for name in ("data", "out", "init", "resume"):
            value = getattr(self, name)
            if isinstance(value, os.PathLike) or (name != "data" and isinstance(value, str)):
                setattr(self, name, user_path(value))
        if isinstance(self.recipe_args, Mapping):
            try:
                self.recipe_args = with_new_names(self.recipe_args, VIEW, stacklevel=4)
            except ValueError as error:
                raise ConfigError(f"recipe_args: {error}") from error
        if isinstance(self.method_args, Mapping):
            paths = {k: v for k, v in self.method_args.items() if isinstance(v, os.PathLike)}
            self.method_args = {**self.method_args, **{k: os.fspath(v) for k, v in paths.items()}}

    def validate(self) -> None:
        """Check every setting that can be checked without data, models or devices.

        Raises:
            ConfigError: a value of the wrong type or out of range, or a needed one is missing.
        """
        self.check_values()
        for name in ("data", "out"):
            if not getattr(self, name):
                raise ConfigError(f"'{name}' is missing: set --{name}, or '{name}:' in the YAML")
        if (self.epochs is None) == (self.steps is None):
            given = "neither is" if self.steps is None else "both are"
            raise ConfigError(f"set exactly one of epochs and steps: {given} given")
        if self.optimizer == "lars" and self.weight_decay == 0:
            raise ConfigError(
                "lars scales the layers that have weight decay: set weight_decay (to 1.0e-6, as "
                "SimCLR did), or take sgd"
            )
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}"
            )
        if self.drop_path is not None and "drop_path_rate" in self.model_args:
            raise ConfigError("drop_path and model_args.drop_path_rate are the same: give one")
        if self.contrastive_batch is not None:
            self._check_contrastive_batch(self.contrastive_batch)

    def check_values(self) -> None:
        """Check every value by itself.

        Raises:
            ConfigError: one of the wrong type or out of range.
        """
        check_version("the configuration", self.schema_version, SCHEMA_VERSION, ConfigError)
        try:
            check_arguments(TrainConfig, vars(self), none="null")
        except BadArgument as error:
            raise ConfigError(str(error)) from error
        for name in ("method", "model", "init", "recipe", "resume"):
            if getattr(self, name) == "":
                raise ConfigError(f"{name} is empty: give it a value, or leave it out")
        for name in ("method_args", "model_args", "recipe_args", "optimizer_args"):
            for key, value in getattr(self, name).items():
                check_plain(f"{name}.{key}", value)

    def _check_contrastive_batch(self, images: int) -> None:
        micro = self.batch_size // self.accumulate
        if images % micro or self.batch_size % images:
            raise ConfigError(
                f"contrastive_batch {images} must be a multiple of the micro-batch, batch_size / "
                f"accumulate = {micro}, and divide batch_size {self.batch_size}"
            )
        if self.compile and self.micro_batches > 1:
            raise ConfigError(
                "contrastive_batch encodes twice, which compile does not take: set compile to "
                "false, or contrastive_batch to null"
            )

    @property
    def encoder_args(self) -> dict[str, Any]:
        """The keywords of the encoder: model_args, with drop_path."""
        if self.drop_path is None:
            return self.model_args
        return {**self.model_args, "drop_path_rate": self.drop_path}

    @property
    def compared(self) -> int:
        """Images, over all ranks, that a contrastive loss sees at once."""
        return self.contrastive_batch or self.batch_size // self.accumulate

    @property
    def micro_batches(self) -> int:
        """How many micro-batches the loss sees at once."""
        return self.compared * self.accumulate // self.batch_size

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values."""
        return dataclasses.asdict(self)

    def shared(self) -> dict[str, Any]:
        """The settings that all ranks of a run must have in common."""
        return {name: value for name, value in self.to_dict().items() if name not in _OF_A_RANK}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], source: str = "the settings") -> "TrainConfig":
        """Build from a mapping, and validate.

        Raises:
            ConfigError: an unknown key (the message suggests the nearest), or a bad value.
        """
        check_keys(settings, source)
        config = cls(**settings)
        config.validate()
        return config

    @classmethod
    def read(cls, path: Path | str) -> "TrainConfig":
        """Read a YAML file, and validate.

        Raises:
            ConfigError: the file is missing, no YAML mapping, of a newer version, has an unknown
                key, or a bad value.
        """
        return cls.from_dict(read_yaml(path), source=str(path))

    def write(self, path: Path | str) -> None:
        """Write all settings as YAML, in a file that ``read`` takes, whole or not at all."""
        yaml = require("yaml", extra="train", purpose="writing config.yaml")
        text = yaml.safe_dump(self.to_dict(), sort_keys=False)
        write_atomically(Path(path), lambda file: file.write(text.encode()))


def _plain(value: Any, depth: int = 0) -> Any:
    """Python's own numbers for NumPy's, and lists for tuples, as YAML has them."""
    if depth > DEEPEST:  # check_plain refuses it
        return value
    if isinstance(value, Mapping):
        return {key: _plain(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, depth + 1) for inner in value]
    if isinstance(value, Number) and hasattr(value, "item"):
        return value.item()
    return value


_OF_A_RANK = ("data", "threads")  # machines may keep the same data in other folders


def known_keys() -> list[str]:
    """The names of all settings."""
    return [item.name for item in dataclasses.fields(TrainConfig)]


def check_keys(keys: Iterable[str], source: str) -> None:
    """Raise ConfigError at the first unknown key, with the nearest known one."""
    known = known_keys()
    for key in keys:
        if key not in known:
            raise ConfigError(
                f"unknown setting '{key}' in {source}.{did_you_mean(str(key), known)} "
                "(sslfast train --help lists all)"
            )


def setting_error(setting: str, keywords: Mapping[str, Any], error: Exception) -> ConfigError:
    """The error of a constructor as one that names the setting, such as model_args.depth.

    Args:
        setting: "method", "model" or "recipe", whose keywords are in method_args and so on.
        keywords: what was given there.
        error: what the constructor raised.
    """
    if isinstance(error, BadArgument) and error.name.partition(".")[0] in keywords:
        return ConfigError(f"{setting}_args.{error}")
    if isinstance(error, TOO_LARGE):
        return ConfigError(f"{setting}: cannot be built with {dict(keywords)}: {error}")
    return ConfigError(f"{setting}: {error}")


def check_plain(name: str, value: Any, depth: int = 0) -> None:
    """Raise ConfigError where a value cannot be written to config.yaml."""
    if depth > DEEPEST:
        raise ConfigError(f"{name[:80]} nests values more than {DEEPEST} deep")
    if isinstance(value, (list, tuple)):
        for item in value:
            check_plain(name, item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            check_plain(f"{name}.{key}", item, depth + 1)
    elif not isinstance(value, (str, int, float, bool, type(None))):
        raise ConfigError(
            f"{name} must be a plain value, which config.yaml can hold, got "
            f"{type(value).__name__}: write a path as text"
        )


def user_path(path: str | os.PathLike[str]) -> str:
    """A path as text, with a leading ~ for the home folder, as in a shell.

    Raises:
        ConfigError: there is no home folder.
    """
    text = os.path.expanduser(os.fspath(path))
    if text == "~" or text.startswith("~/"):
        raise ConfigError(f"{path}: there is no home folder for ~ (set HOME): write the whole path")
    return text


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The mapping in a YAML file, with its keys and version checked."""
    try:
        settings = load(user_path(path))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold 'name: value' lines, such as 'method: simclr'")
    # The version first: a newer file's unknown keys are no spelling mistakes.
    version = settings.get("schema_version", SCHEMA_VERSION)
    check_version(str(path), version, SCHEMA_VERSION, ConfigError)
    check_keys(settings, str(path))
    return settings
