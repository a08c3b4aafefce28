"""The end product of a run: encoder.safetensors, which holds weights and how to rebuild them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sslfast import data, models
from sslfast.data import Recipe
from sslfast.eval.preprocess import Preprocess
from sslfast.models.encoder_file import (
    SCHEMA_VERSION,
    WeightsError,
    checked_description,
    described_bytes,
    encoder_path,
    read_encoder,
)
from sslfast.models.encoder_file import read_description as read_file_description
from sslfast.training import checkpoint
from sslfast.training.config import TOO_LARGE, setting_error
from sslfast.training.storage import write_atomically

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


def save_encoder(
    path: Path | str, weights: Mapping[str, Tensor], description: Mapping[str, Any]
) -> bool:
    """Write an encoder's weights (floats as float32) and buffers with its description.

    Args:
        path: the file to write, whole or not at all.
        weights: the state dict of any module.
        description: plain values; "model" and "model_args" are what load_encoder needs; "step" and
            "checkpoint" (the fingerprint of its model) say where the weights come from.

    Returns:
        False where the file held exactly this already, and was left as it is.
    """
    tensors = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in weights.items()
    }
    payload = described_bytes({"schema_version": SCHEMA_VERSION, **description}, tensors)
    path = Path(path)
    if path.is_file() and path.read_bytes() == payload:
        return False
    write_atomically(path, lambda file: file.write(payload))
    return True


def read_description(path: Path | str) -> dict[str, Any]:
    """The description in an encoder file, or in the one of a run's folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file was not written by sslfast, or by a newer one.
    """
    path = encoder_path(path)
    return checked_description(path, read_file_description(path))


def load_encoder(path: Path | str) -> nn.Module:
    """Rebuild a pre-trained encoder; one that is behind its run's checkpoints is named in the log.

    Its inputs are normalised images: ``encoder(encoder.preprocess(images))`` takes images as they
    are and makes of them what ``sslfast eval`` does (see ``sslfast.eval.Preprocess``).

    Args:
        path: a run's folder, or an encoder.safetensors.

    Returns:
        The encoder in float32 on the CPU, in evaluation mode, with ``num_features``, ``preprocess``
        and what that goes by: ``mean`` and ``std``, of three channels, in units of [0, 1], and
        ``image_size``, the side in pixels. Where the file says nothing of images, because the
        encoder takes other data, these four are None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or was not written by sslfast, or by a newer one.
    """
    path = encoder_path(path)
    encoder, description = read_encoder(path)
    _tell_inputs(encoder, path, description)
    checkpoint.say_if_behind(path, description)
    return encoder


def evaluation_recipe(path: Path | str, description: Mapping[str, Any]) -> Recipe:
    """One view as an encoder expects it, without randomness.

    Args:
        path: the encoder's file, for errors.
        description: what it says.

    Raises:
        ValueError: it says nothing of images or videos, or what cannot be.
    """
    missing = _unsaid(description)
    if missing:
        raise WeightsError(
            f"{path} does not say what images its encoder takes ({', '.join(missing)} missing): it "
            "is for other data. Compute features by sslfast.eval.extract and a loader of that"
        )
    try:
        view: dict[str, Any] = {k: tuple(map(float, description[k])) for k in ("mean", "std")}
        # Encoders of older files take images.
        if description.get("num_frames") is not None:
            view |= {key: description[key] for key in ("num_frames", "sampling_rate")}
        return data.recipe("eval", size=description["image_size"], **view)
    except (KeyError, TypeError, ValueError) as error:
        short = str(error).partition("; got")[0]
        raise WeightsError(
            f"{path} is damaged: it asks for views that cannot be made ({short})"
        ) from error


def _unsaid(description: Mapping[str, Any]) -> list[str]:
    """What is needed to make an encoder's images, and its file does not say."""
    return [name for name in ("image_size", "mean", "std") if description.get(name) is None]


def _tell_inputs(encoder: nn.Module, path: Path, description: Mapping[str, Any]) -> None:
    """Set ``preprocess`` and its constants: plain attributes, no part of the state dict."""
    told: dict[str, Any] = dict.fromkeys(("preprocess", "mean", "std", "image_size"))
    if not _unsaid(description):
        view = evaluation_recipe(path, description).views[0]
        told = {
            "preprocess": Preprocess(view),
            "mean": view.mean,
            "std": view.std,
            "image_size": view.size,
        }
    for name, value in told.items():
        if not hasattr(encoder, name):  # a model may have a buffer of that name
            setattr(encoder, name, value)
