"""Checkpoint files: written whole or not at all, checked when read, the newest few kept."""

import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslfast._digest import digest
from sslfast._versions import check_version
from sslfast.models.encoder_file import FILE_NAME
from sslfast.training.storage import has_good_checksum, write_atomically

logger = logging.getLogger("sslfast")

FOLDER_NAME = "checkpoints"
SCHEMA_VERSION = 1
_NAME = re.compile(r"step_(\d+)\.pt", re.ASCII)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says why and what to do."""


class NewerCheckpointError(CheckpointError):
    """Written by a newer sslfast: not damaged, so no older one is taken in its place."""


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` optimiser steps is kept."""
    return folder / f"step_{step:08d}.pt"


def listed(folder: Path) -> list[Path]:
    """The checkpoints of a folder, by their names, oldest first."""
    paths = folder.iterdir() if folder.exists() else ()
    return sorted((path for path in paths if _NAME.fullmatch(path.name)), key=step_of)


def step_of(path: Path) -> int:
    """The step of a checkpoint, from its name."""
    return int(path.stem.removeprefix("step_"))


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Tells whose weights these are, by names, types, shapes and values."""
    return digest(tensors)[:16]


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write ``state`` and remove all but the newest ``keep`` checkpoints.

    Args:
        folder: is created if need be.
        step: optimiser steps done.
        state: tensors and plain Python values in dicts, lists and tuples.
        keep: at least 1.

    Raises:
        StorageError: the disk is full; earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = path_of(folder, step)
    whole = {"schema_version": SCHEMA_VERSION, "step": step, **state}
    write_atomically(path, lambda file: torch.save(whole, file), checksum=True)
    # Newer ones can only be damaged ones that a resume went past: they protect nothing.
    for old in [p for p in listed(folder) if p.is_file() and step_of(p) <= step][:-keep]:
        old.unlink()
    return path


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint onto the CPU; no code in it is run (``weights_only``).

    Raises:
        CheckpointError: the file is missing, damaged, no checkpoint, or of a newer sslfast; or it
            may not be read.
    """
    try:
        if not path.is_file():
            what = "is a folder, or no plain file" if path.exists() else "does not exist"
            raise CheckpointError(f"there is no checkpoint {path}: it {what}")
        if not has_good_checksum(path):
            _compare_zip_checksums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes make torch and zipfile raise almost anything
        raise CheckpointError(
            f"{path} cannot be read: it is damaged, or no checkpoint of sslfast ({_reason(error)})"
        ) from error
    numbers = [state.get(key) if isinstance(state, dict) else None for key in _NUMBERS]
    if not all(isinstance(number, int) for number in numbers):
        raise CheckpointError(f"{path} is no checkpoint of sslfast")
    check_version(str(path), state["schema_version"], SCHEMA_VERSION, NewerCheckpointError)
    return {**state, "path": str(path)}


_NUMBERS = ("schema_version", "step")


def _compare_zip_checksums(path: Path) -> None:
    """For files of an older sslfast; torch.load does not compare what torch.save writes."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"checksum of {damaged} differs")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, pickle.UnpicklingError):  # whose text advises to run the file's code
        return "it holds more than tensors and plain values"
    return f"{type(error).__name__}: {error}".splitlines()[0]


def load_newest(folder: Path) -> dict[str, Any] | None:
    """Read the newest checkpoint that is whole, or None where the folder has none.

    One that cannot be read, or has another name than it should, is passed over with a warning, and
    the one before it is read.

    Raises:
        CheckpointError: none can be read, or the newest is of a newer sslfast.
    """
    paths = listed(folder)
    if odd := sorted(path.name for path in folder.glob("step_*") if path not in paths):
        logger.warning("%s: these are not the names of checkpoints: %s", folder, ", ".join(odd))
    for path in reversed(paths):
        try:
            state = load(path)
            if state["step"] == step_of(path):
                return state
            raise CheckpointError(f"{path} is of step {state['step']}, whatever its name says")
        except NewerCheckpointError:
            raise
        except CheckpointError as error:
            logger.warning("%s; going back to the checkpoint before it", error)
    if paths:
        raise CheckpointError(
            f"no checkpoint in {folder} can be read. Start anew with another --out, or remove "
            "the folder"
        )
    return None


def difference(folder: Path, step: int, weights: str) -> str | None:
    """What sets the newest checkpoint apart from an encoder, in words; None: it is of that one.

    Args:
        folder: of the checkpoints of the encoder's run.
        step: of the checkpoint that the encoder was made from.
        weights: the fingerprint of that checkpoint's model.
    """
    paths = listed(folder)
    if not paths:
        return None
    if (newest := step_of(paths[-1])) != step:
        return f"it is of step {step}, and the newest checkpoint of step {newest}"
    try:  # the few numbers alone: the tensors stay on the disk
        state = torch.load(paths[-1], map_location="cpu", weights_only=True, mmap=True)
        same = state.get("fingerprint", weights) == weights
    except Exception as error:
        return f"the checkpoint of its step cannot be read ({_reason(error)})"
    return None if same else "it has other weights than the checkpoint of its step"


def say_if_behind(path: Path, description: Mapping[str, Any]) -> None:
    """A warning where a run was lengthened, but ended before it wrote its encoder.

    Args:
        path: an encoder's file.
        description: what it says.
    """
    checkpoints = path.parent / FOLDER_NAME
    # A file of an older sslfast does not say where it comes from.
    if path.name != FILE_NAME or not checkpoints.is_dir() or "checkpoint" not in description:
        return
    why = difference(checkpoints, description["step"], description["checkpoint"])
    if why is not None:
        logger.warning(
            "%s is not of its run's newest checkpoint: %s. To bring it up to date, let the run "
            "finish: give the command that started it again",
            path,
            why,
        )
