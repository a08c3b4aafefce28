"""What a method keeps beside the encoder: heads.safetensors, which says how to rebuild each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslfast._versions import check_version
from sslfast.methods.base import Method
from sslfast.models.encoder_file import Description, WeightsError, read_safetensors
from sslfast.models.heads import ProjectionHead, VarianceHead
from sslfast.training.config import ConfigError
from sslfast.training.encoder import save_encoder

FILE_NAME = "heads.safetensors"
SCHEMA_VERSION = 1
_CLASSES = {kind.__name__: kind for kind in (ProjectionHead, VarianceHead)}


def check_heads(method: Method) -> None:
    """Find out before anything is written whether a method's heads can be kept.

    Raises:
        ConfigError: a name with a dot, or a module that a file cannot rebuild.
    """
    for name, head in method.heads().items():
        if "." in name or type(head) not in _CLASSES.values():
            raise ConfigError(
                f"heads of {type(method).__name__} must be {' or '.join(_CLASSES)} of "
                f"sslfast.models, by names without a dot, got '{name}', a {type(head).__name__}"
            )


def save_heads(
    path: Path,
    heads: Mapping[str, nn.Module],
    weights: Mapping[str, Tensor],
    description: Mapping[str, Any],
) -> bool:
    """Write heads with what it takes to rebuild them.

    Args:
        path: the file to write, whole or not at all.
        heads: by name; see ``check_heads``.
        weights: of all, as NAME.PARAMETER.
        description: plain values, as of the encoder's file.

    Returns:
        False where the file held exactly this already, and was left as it is.
    """
    built = {name: [type(head).__name__, head.settings] for name, head in heads.items()}
    told = {**description, "schema_version": SCHEMA_VERSION, "heads": built}
    return save_encoder(path, weights, told)


def load_heads(path: Path | str) -> dict[str, nn.Module]:
    """Rebuild the heads that a run has kept beside its encoder.

    They take the encoder's features [B, F]: ``load_heads(run)["uncertainty"](encoder(images))``.

    Args:
        path: a run's folder, or a heads.safetensors.

    Returns:
        The heads by name, in float32 on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file: most methods keep none.
        ValueError: the file is damaged, or was not written by sslfast, or by a newer one.
    """
    return read_heads(path)[0]


def read_heads(path: Path | str) -> tuple[dict[str, nn.Module], Description]:
    """``load_heads``, and what the file says beside."""
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"there are no heads at {path}: did the run finish, and is its method one that keeps "
            "heads, such as vssl?"
        )
    tensors, description = read_safetensors(path)
    if description is None or "heads" not in description:
        raise WeightsError(f"{path} holds no heads: give the folder of a run, or its {FILE_NAME}")
    check_version(str(path), description.get("schema_version"), SCHEMA_VERSION, WeightsError)
    try:
        with torch.random.fork_rng(devices=[]):
            heads = nn.ModuleDict(
                {
                    name: _CLASSES[kind](**settings)
                    for name, (kind, settings) in description["heads"].items()
                }
            )
        heads.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"the heads in {path} cannot be rebuilt ({' '.join(str(error).split())[:300]}): the "
            "file is damaged, or of another version of sslfast"
        ) from error
    return dict(heads.eval().items()), description
