"""The optimiser that the settings ask for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sslfast._arguments import (
    BadArgument,
    NonNegativeFloat,
    PositiveFloat,
    Rate,
    check_arguments,
)
from sslfast._suggest import did_you_mean
from sslfast.ema import EMATeacher
from sslfast.methods.base import Method
from sslfast.optim import LARS, AdamW
from sslfast.optim.layers import layered
from sslfast.training.config import ConfigError, TrainConfig


@dataclass(frozen=True)
class AdamWOptions:
    """optimizer_args of adamw; see ``sslfast.optim.AdamW``."""

    betas: tuple[Rate, Rate] = (0.9, 0.999)
    eps: NonNegativeFloat = 1e-8


@dataclass(frozen=True)
class SGDOptions:
    """optimizer_args of sgd; see ``sslfast.optim.LARS``."""

    nesterov: bool = False


@dataclass(frozen=True)
class LARSOptions(SGDOptions):
    """optimizer_args of lars; see ``sslfast.optim.LARS``."""

    trust_coefficient: PositiveFloat = 1e-3
    eps: NonNegativeFloat = 1e-8


OPTIONS = {"adamw": AdamWOptions, "lars": LARSOptions, "sgd": SGDOptions}
_ELSEWHERE = {
    **{"lr": "lr", "weight_decay": "weight_decay", "momentum": "momentum"},
    **{"max_norm": "clip_grad", "max_norm_each": "clip_each"},
}


@dataclass(frozen=True)
class _Group:
    """What a group of parameters may say beside ``params``; see ``Rates``."""

    lr_scale: NonNegativeFloat = 1.0
    fix_lr: bool = False
    freeze_until: NonNegativeFloat = 0.0
    weight_decay: NonNegativeFloat = 0.0


def checked_options(optimizer: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """optimizer_args, with tuples for YAML's lists.

    Raises:
        ConfigError: an option that the optimiser does not have, or a value out of its range.
    """
    kind = OPTIONS[optimizer]
    known = [item.name for item in fields(kind)]
    for name in given:
        if name in _ELSEWHERE:
            raise ConfigError(f"optimizer_args.{name}: that is the setting {_ELSEWHERE[name]}")
        if name not in known:
            raise ConfigError(
                f"optimizer_args.{name}: {optimizer} has no such option."
                f"{did_you_mean(name, known)} It takes: {', '.join(known)}"
            )
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    try:
        check_arguments(kind, values)
    except BadArgument as error:
        raise ConfigError(f"optimizer_args.{error}") from error
    return values


def parameter_groups(config: TrainConfig, method: Method) -> list[dict[str, Any]]:
    """The method's groups of parameters, divided by layers where the settings say so.

    Raises:
        ConfigError: what no group may say, or an encoder without layers.
    """
    whose = f"param_groups of {type(method).__name__}"
    groups = []
    for group in method.param_groups():
        if not isinstance(group, dict) or "params" not in group:
            raise ConfigError(f"{whose} must be dicts with 'params', got {type(group).__name__}")
        if "lr" in group:
            raise ConfigError(f"{whose}: the trainer sets lr; give a factor of it as lr_scale")
        known = ["params", *(item.name for item in fields(_Group))]
        for name in group:
            if name not in known:
                raise ConfigError(f"{whose}: unknown '{name}'.{did_you_mean(name, known)}")
        try:
            check_arguments(_Group, {k: v for k, v in group.items() if k != "params"})
        except BadArgument as error:
            raise ConfigError(f"{whose}: {error}") from error
        groups.append(dict(group))  # of our own: what the optimiser does not know is taken out
    if config.layer_decay is not None:
        try:
            groups = layered(groups, method.encoder, config.layer_decay)
        except ValueError as error:
            raise ConfigError(f"layer_decay: {error}") from error
    return groups


def build_optimizer(
    config: TrainConfig, groups: list[dict[str, Any]], teachers: Sequence[EMATeacher] = ()
) -> AdamW | LARS:
    """AdamW, LARS or SGD, which also measures the gradients and moves the teachers.

    Args:
        config: the settings.
        groups: of parameters.
        teachers: follow in every step, the first within the optimiser's pass.

    Raises:
        ConfigError: an option that the optimiser does not have, or a value that it refuses.
    """
    options = checked_options(config.optimizer, config.optimizer_args)
    max_norm = math.inf if config.clip_grad is None else config.clip_grad
    if config.clip_grad is not None and config.clip_each is not None:
        raise ConfigError("clip_grad clips all gradients together, clip_each each one: set one")
    decay = config.weight_decay
    common: dict[str, Any] = {"max_norm": max_norm, "max_norm_each": config.clip_each}
    common["ema"] = list(teachers)
    if config.optimizer == "adamw":
        return AdamW(groups, config.lr, weight_decay=decay, **common, **options)
    if config.optimizer == "lars":  # for good: a schedule may let weight decay begin at 0
        groups = [{"trust": group.get("weight_decay", decay) > 0, **group} for group in groups]
    trust = None if config.optimizer == "lars" else False
    keywords = {"trust": trust, **common, **options}
    return LARS(groups, config.lr, config.momentum, decay, **keywords)


def scaled_lr(config: TrainConfig) -> float:
    """The peak learning rate for the batch size: lr is for 256 where lr_scaling says so."""
    factor = config.batch_size / 256
    return config.lr * {"none": 1.0, "linear": factor, "sqrt": math.sqrt(factor)}[config.lr_scaling]
