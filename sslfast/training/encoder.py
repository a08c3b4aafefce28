"""The end product of a run: encoder.safetensors, which holds weights and how to rebuild them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sslfast import models
from sslfast._extras import require
from sslfast.models.positions import fit_positions
from sslfast.training.config import TOO_LARGE, ConfigError, setting_error
from sslfast.training.storage import write_atomically

FILE_NAME = "encoder.safetensors"
SCHEMA_VERSION = 1
_KEY = "sslfast"

Module = TypeVar("Module", bound=nn.Module)


def build_encoder(model: str, model_args: Mapping[str, Any], seed: int) -> nn.Module:
    """A randomly initialised encoder: the same weights for the same seed, wherever it is built.

    The global random state is left as it was.

    Raises:
        ConfigError: an unknown model or keyword (the message suggests the nearest).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return models.create(model, **model_args)
        except (TypeError, ValueError, *TOO_LARGE) as error:
            raise setting_error("model", model_args, error) from error


def place(module: Module, device: torch.device) -> Module:
    """The module on the device, its 2-D convolutions in channels-last order."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            child.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module.to(device)


def save_encoder(path: Path, encoder: nn.Module, description: Mapping[str, Any]) -> None:
    """Write an encoder's weights (floats as float32) and buffers with its description.

    Args:
        path: the file to write, whole or not at all.
        encoder: any module.
        description: plain values; "model" and "model_args" are what load_encoder needs.
    """
    safetensors = require("safetensors.torch", extra="train", purpose="writing the encoder")
    tensors = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in encoder.state_dict().items()
    }
    metadata = {_KEY: json.dumps({"schema_version": SCHEMA_VERSION, **description})}
    payload = safetensors.save(tensors, metadata)
    write_atomically(path, lambda file: file.write(payload))


def read_description(path: Path | str) -> dict[str, Any]:
    """The description in an encoder file, or in the one of a run's folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file was not written by sslfast, or by a newer one.
    """
    path = encoder_path(path)
    safetensors = require("safetensors", extra="train", purpose="reading an encoder")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged or no .safetensors file ({error})") from error
    if _KEY not in metadata:
        raise ValueError(
            f"{path} does not say which model it holds: it was not written by sslfast. Build the "
            "model with sslfast.models.create and load the weights into it"
        )
    description = json.loads(metadata[_KEY])
    if description["schema_version"] > SCHEMA_VERSION:
        raise ValueError(
            f"{path} was written by a newer sslfast (schema {description['schema_version']}; this "
            f"one reads {SCHEMA_VERSION} at most). Upgrade with: pip install --upgrade sslfast"
        )
    return description


def load_encoder(path: Path | str) -> nn.Module:
    """Rebuild a pre-trained encoder.

    Args:
        path: a run's folder, or an encoder.safetensors.

    Returns:
        The encoder in float32 on the CPU, in evaluation mode, with ``num_features``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file was not written by sslfast, or by a newer one.
    """
    description = read_description(path)
    encoder = build_encoder(description["model"], description["model_args"], seed=0)
    encoder.load_state_dict(_tensors(encoder_path(path)))
    return encoder.eval()


def load_weights(encoder: nn.Module, path: Path | str) -> list[str]:
    """Start ``encoder`` from released weights: every one of its tensors must be in the file.

    A VisionTransformer may be for other image sizes than the weights: positions are interpolated.

    Args:
        encoder: is changed in place.
        path: a run's folder, a .safetensors file, or a .pt/.pth file with a state dict.

    Returns:
        The names in the file that the encoder has no place for (a classifier, mostly).

    Raises:
        ConfigError: no such file, or it lacks a tensor or has one of another shape.
        FileNotFoundError: the folder holds no encoder.
    """
    if not Path(path).exists():
        raise ConfigError(f"init: there is no {path}")
    weights = dict(_tensors(encoder_path(path)))
    own = encoder.state_dict()
    if isinstance(encoder, models.VisionTransformer) and "pos_embed" in own.keys() & weights:
        try:
            weights["pos_embed"] = fit_positions(
                weights["pos_embed"], encoder.grid_size, encoder.embedded_prefix
            )
        except ValueError as error:
            raise ConfigError(f"init: {path}: {error}") from error
    for name, tensor in own.items():
        if name not in weights:
            raise ConfigError(f"init: {path} has no tensor '{name}': is it of another model?")
        if weights[name].shape != tensor.shape:
            raise ConfigError(
                f"init: '{name}' has shape {tuple(weights[name].shape)} in {path}, but the model "
                f"needs {tuple(tensor.shape)}"
            )
    encoder.load_state_dict({name: weights[name] for name in own})
    return sorted(set(weights) - set(own))


def encoder_path(path: Path | str) -> Path:
    """``path``, or the encoder file in it where it is a folder."""
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"there is no encoder at {path}: did the run finish?")
    return path


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        safetensors = require("safetensors.torch", extra="train", purpose="reading weights")
        return safetensors.load_file(path)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return weights.get("state_dict", weights)
