"""Checkpoint files: written whole or not at all, checked when read, the newest few kept."""

import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from sslfast.training.storage import write_atomically

logger = logging.getLogger("sslfast")

SCHEMA_VERSION = 1


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says why and what to do."""


class NewerCheckpointError(CheckpointError):
    """Written by a newer sslfast: not damaged, so no older one is taken in its place."""


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` optimiser steps is kept."""
    return folder / f"step_{step:08d}.pt"


def listed(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step_*.pt"))


def step_of(path: Path) -> int:
    """The step of a checkpoint, from its name."""
    return int(path.stem.removeprefix("step_"))


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
    write_atomically(path, lambda file: torch.save(whole, file))
    # Newer ones can only be damaged ones that a resume went past: they protect nothing.
    for old in [p for p in listed(folder) if step_of(p) <= step][:-keep]:
        old.unlink()
    return path


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint onto the CPU; no code in it is run (``weights_only``).

    Raises:
        CheckpointError: the file is missing, damaged, no checkpoint, or of a newer sslfast.
    """
    try:
        # torch does not compare the checksums that it writes.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"checksum of {damaged} differs")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint of sslfast ({error})") from error
    if not isinstance(state, dict) or "schema_version" not in state:
        raise CheckpointError(f"{path} is no checkpoint of sslfast")
    if state["schema_version"] > SCHEMA_VERSION:
        raise NewerCheckpointError(
            f"{path} has schema_version {state['schema_version']}, but this sslfast reads "
            f"{SCHEMA_VERSION} at most: it was written by a newer one. Upgrade with: "
            "pip install --upgrade sslfast"
        )
    return {**state, "path": str(path)}


def load_newest(folder: Path) -> dict[str, Any] | None:
    """Read the newest checkpoint that is whole, or None where the folder has none.

    A damaged one is passed over with a warning, and the one before it is read.

    Raises:
        CheckpointError: all are damaged, or the newest is of a newer sslfast.
    """
    paths = listed(folder)
    for path in reversed(paths):
        try:
            return load(path)
        except NewerCheckpointError:
            raise
        except CheckpointError as error:
            logger.warning("%s; going back to the checkpoint before it", error)
    if paths:
        raise CheckpointError(
            f"every checkpoint in {folder} is damaged. Start anew with another --out, or remove "
            "the folder"
        )
    return None
