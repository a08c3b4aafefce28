"""The optimiser that the settings ask for."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from sslfast._suggest import did_you_mean
from sslfast.ema import EMATeacher
from sslfast.optim import LARS, AdamW
from sslfast.training.config import ConfigError, TrainConfig

CLASSES: Mapping[str, type[AdamW] | type[LARS]] = {"adamw": AdamW, "lars": LARS, "sgd": LARS}
# Settings of their own, or none that a file can hold.
_ELSEWHERE = {
    "lr": "lr",
    "weight_decay": "weight_decay",
    "momentum": "momentum",
    "max_norm": "clip_grad",
}
_NOT_HERE = ("self", "params", "ema", "trust")


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
    kind, options = CLASSES[config.optimizer], _options(config)
    keywords: dict[str, Any] = {
        "lr": config.lr,
        "weight_decay": config.weight_decay,
        "max_norm": math.inf if config.clip_grad is None else config.clip_grad,
        "ema": list(teachers),
        **options,
    }
    if kind is LARS:
        keywords["momentum"] = config.momentum
        keywords["trust"] = None if config.optimizer == "lars" else False
    try:
        return kind(groups, **keywords)
    except (TypeError, ValueError) as error:
        if not options:
            raise
        raise ConfigError(f"optimizer_args {options}: {error}") from error


def _options(config: TrainConfig) -> dict[str, Any]:
    """optimizer_args, with tuples for YAML's lists; errors by name."""
    kind = CLASSES[config.optimizer]
    known = [name for name in inspect.signature(kind).parameters if name not in _NOT_HERE]
    for name in config.optimizer_args:
        if name in _ELSEWHERE:
            raise ConfigError(f"optimizer_args.{name}: that is the setting {_ELSEWHERE[name]}")
        if name not in known:
            free = [name for name in known if name not in _ELSEWHERE]
            raise ConfigError(
                f"optimizer_args.{name}: {config.optimizer} has no such option."
                f"{did_you_mean(name, free)} It takes: {', '.join(free)}"
            )
    return {k: tuple(v) if isinstance(v, list) else v for k, v in config.optimizer_args.items()}


def scaled_lr(config: TrainConfig) -> float:
    """The peak learning rate for the batch size: lr is for 256 where lr_scaling says so."""
    factor = config.batch_size / 256
    return config.lr * {"none": 1.0, "linear": factor, "sqrt": math.sqrt(factor)}[config.lr_scaling]


def layered(groups: list[dict[str, Any]], encoder: nn.Module, decay: float) -> list[dict[str, Any]]:
    """The groups divided by the encoder's layers, whose rates fall by ``decay`` with each one down.

    Layer-wise decay of BEiT (Bao et al. 2022, arXiv:2106.08254, appendix) and MAE: of L layers,
    number l has the rate lr decay^(L - l); what is not the encoder's has lr.

    Args:
        groups: as ``Method.param_groups`` returns them.
        encoder: with ``layers()``: its modules and parameters from the input up, in lists.
        decay: in (0, 1].

    Raises:
        ConfigError: an encoder that does not say what its layers are.
    """
    layers_of: Callable[[], Sequence[Sequence[nn.Module | nn.Parameter]]] | None
    layers_of = getattr(encoder, "layers", None)
    if not callable(layers_of):
        raise ConfigError(
            f"layer_decay: {type(encoder).__name__} does not say what its layers are (a method "
            "layers()): choose a Vision Transformer, or leave layer_decay out"
        )
    layers = layers_of()
    depth: dict[nn.Parameter, int] = {}
    for number, parts in enumerate(layers):
        for part in parts:
            for parameter in part.parameters() if isinstance(part, nn.Module) else [part]:
                depth[parameter] = number
    found: dict[tuple[int, int | None], dict[str, Any]] = {}
    for index, group in enumerate(groups):
        for parameter in group["params"]:
            place = depth.get(parameter)
            scale = 1.0 if place is None else decay ** (len(layers) - 1 - place)
            rate = group.get("lr_scale", 1.0) * scale
            home = found.setdefault((index, place), {**group, "params": [], "lr_scale": rate})
            home["params"].append(parameter)
    return list(found.values())
