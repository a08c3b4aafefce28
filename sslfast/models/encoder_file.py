"""Files of weights: .safetensors, ours with a description and a checksum; encoders from them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslfast._digest import checksum
from sslfast._extras import require
from sslfast._versions import check_version
from sslfast.models.registry import create

FILE_NAME = "encoder.safetensors"
SCHEMA_VERSION = 1  # of descriptions
Description = dict[str, Any]
_KEY = "sslfast"  # of the metadata of our files
_CHECKSUM = "sha256"  # of the description
BUILD_IT = (
    "Build the model with sslfast.models.create, and load the weights into it with "
    "sslfast.training.weights.load_weights"
)


class WeightsError(ValueError):
    """A file of weights that cannot be used; one line names it and says what to do."""


def encoder_path(path: Path | str) -> Path:
    """``path``, or the encoder file in it where it is a run's folder.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: it is a pipe, a device or the like.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / FILE_NAME
    if not path.exists():
        raise FileNotFoundError(f"there is no encoder at {path}: did the run finish?")
    if not path.is_file():
        raise WeightsError(
            f"{path} is no ordinary file, but a folder, a pipe or a device: copy the weights into "
            "a file, and give that"
        )
    return path


def first_bytes(path: Path) -> bytes:
    """How a file begins."""
    with open(path, "rb") as file:
        return file.read(64)


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins so may be .safetensors: eight bytes of length, then JSON."""
    return head[8:9] == b"{"


def is_of_torch_save(head: bytes) -> bool:
    """Whether a file that begins so is of torch.save: a zip archive, or of old a pickle."""
    return head.startswith((b"PK\x03\x04", b"\x80")) and not is_safetensors(head)


def read_encoder(path: Path) -> tuple[nn.Module, Description]:
    """Rebuild the encoder in a file of ours; the global random state is left as it was.

    Returns:
        The encoder in float32 on the CPU, in evaluation mode, and what its file says of it.

    Raises:
        WeightsError: the file is damaged, or was not written by sslfast, or by a newer one.
        OSError: it cannot be opened.
    """
    tensors, stated = read_safetensors(path)
    description = checked_description(path, stated)
    try:
        with torch.random.fork_rng(devices=[]):
            encoder = create(description["model"], **description["model_args"])
        encoder.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
        raise WeightsError(
            f"the encoder in {path} cannot be rebuilt ({' '.join(str(error).split())[:300]}). "
            "Register its model first if that is your own; else the file is damaged, or of another "
            "version of sslfast"
        ) from error
    return encoder.eval(), description


def checked_description(path: Path, description: Description | None) -> Description:
    """The description of an encoder that this sslfast can build.

    Raises:
        WeightsError: there is none, or it is of a newer version, or names no model.
    """
    if description is None:
        raise WeightsError(
            f"{path} does not say which model it holds: it was not written by sslfast. {BUILD_IT}"
        )
    if "heads" in description:
        raise WeightsError(f"{path} holds heads, and no encoder: that is in {FILE_NAME} beside it")
    check_version(str(path), description.get("schema_version"), SCHEMA_VERSION, WeightsError)
    if not {"model", "model_args"} <= description.keys():
        raise WeightsError(f"{path} is damaged: its description does not name a model")
    return description


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Description | None]:
    """The tensors of a .safetensors file, and what we have written about them.

    Returns:
        The tensors; and the description, or None where the file is not ours.

    Raises:
        WeightsError: it is something else, or damaged; where it is ours, by its checksum.
        OSError: it cannot be opened.
    """
    description, expected = _described(path)
    safetensors = require("safetensors.torch", extra="train", purpose="reading weights")
    try:
        tensors = safetensors.load_file(path)
    except OSError:
        raise
    except Exception as error:  # each damage has its own
        raise _damaged(path, error) from error
    # Older files have none.
    if description and expected is not None and expected != checksum(description, tensors):
        raise WeightsError(
            f"{path} is damaged: its checksum differs. Copy it anew, or remove it and run sslfast "
            "train again, which writes it from the last checkpoint"
        )
    return tensors, description


def read_description(path: Path) -> Description | None:
    """What we have written about the tensors of a .safetensors file; None where it is not ours.

    Raises:
        WeightsError: it is damaged, or something else.
        OSError: it cannot be opened.
    """
    return _described(path)[0]


def _described(path: Path) -> tuple[Description | None, str | None]:
    """The description in a file and the checksum that it should have; tensors are not read."""
    if is_of_torch_save(first_bytes(path)):
        raise WeightsError(
            f"{path} is a file of torch.save, which does not say which model it holds: give the "
            f"folder of a run, or its {FILE_NAME}. {BUILD_IT}"
        )
    safetensors = require("safetensors", extra="train", purpose="reading weights")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except OSError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error
    if _KEY not in metadata:
        return None, None
    try:
        description = json.loads(metadata[_KEY])
        return description, description.pop(_CHECKSUM, None)
    except (ValueError, AttributeError, TypeError) as error:
        raise WeightsError(f"{path} is damaged: its description cannot be read") from error


def described_bytes(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a .safetensors file: tensors (on the CPU) with a description of plain values.

    The same content gives the same bytes.
    """
    safetensors = require("safetensors.torch", extra="train", purpose="writing weights")
    stated = {**description, _CHECKSUM: checksum(description, tensors)}
    # All under one key: safetensors writes several in any order.
    return safetensors.save(dict(tensors), {_KEY: json.dumps(stated)})


def _damaged(path: Path, error: Exception) -> WeightsError:
    return WeightsError(f"{path} is damaged or no .safetensors file ({error})")
