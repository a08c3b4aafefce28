"""Tiles that were measured on the GPU at hand: a file in the user's cache folder.

``python -m benchmarks.tune`` writes it; nothing here measures, so that results never depend on a
timing. Without a file, or with one of another Triton, the static tables of ``_tiles.py`` hold.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import triton

from sslfast._files import cache_folder, replacing
from sslfast.kernels.gpu import INTERPRETED, capability
from sslfast.kernels.tiles import ARITHMETICS, KINDS, Table, Tile, fitted, static_tile

logger = logging.getLogger("sslfast")

WITHOUT_OUTPUT = ("statistics", "block")  # kinds whose programs hold no gradient
SCHEMA = 2
Tables = Mapping[tuple[str, str], Table]  # by kind and arithmetic


def file_for(gpu: str) -> Path:
    """Where tiles measured on a GPU of this name are kept.

    Raises:
        ValueError: there is no cache folder.
    """
    return cache_folder() / f"tiles-{re.sub(r'[^A-Za-z0-9.]+', '-', gpu)}.json"


def write(gpu: str, tables: Tables) -> Path:
    """Write the file of a GPU, whole or not at all, and return its path."""
    path = file_for(gpu)
    content: dict[str, Any] = {"schema": SCHEMA, "gpu": gpu, "triton": triton.__version__}
    content["tiles"] = {f"{kind} {arithmetic}": t for (kind, arithmetic), t in tables.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, shared=True) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    measured.cache_clear()
    return path


@lru_cache
def measured(gpu: str) -> Tables:
    """What was measured on a GPU of this name; empty, with a warning, for a file of no use."""
    try:
        path = file_for(gpu)
    except ValueError:  # no home folder: nothing can have been kept
        return {}
    if not path.exists():
        return {}
    try:
        tables = _read(json.loads(path.read_text()), gpu)
    except (OSError, ValueError) as error:
        logger.warning(f"{path} is ignored: {error}; `python -m benchmarks.tune` makes it anew")
        return {}
    logger.info(f"tiles of {', '.join(map(' '.join, tables))} come from {path}")
    return tables


def _read(content: Any, gpu: str) -> Tables:
    wanted = {"schema": SCHEMA, "gpu": gpu, "triton": triton.__version__}
    if not isinstance(content, dict) or not isinstance(content.get("tiles"), dict):
        raise ValueError("it has no tiles")
    for key, value in wanted.items():
        if content.get(key) != value:
            raise ValueError(f"its {key} is {content.get(key)!r}, not {value!r}")
    tables: dict[tuple[str, str], Table] = {}
    for name, entries in content["tiles"].items():
        kind, _, arithmetic = name.partition(" ")
        known = kind in KINDS and arithmetic in ARITHMETICS
        if not known or not isinstance(entries, list) or not entries:
            raise ValueError(f"it has no entries for {name!r}, or there is no such kernel")
        tables[kind, arithmetic] = tuple(_entry(kind, entry) for entry in entries)
    return tables


def _entry(kind: str, entry: Any) -> tuple[int, Tile]:
    """One [largest D, [rows, ..., stages, programs]] (as in Tile) of a table, checked."""
    match entry:
        case [int(largest), [*numbers]] if [type(n) for n in numbers] == [int] * len(Tile._fields):
            tile = Tile(*numbers)
        case _:
            raise ValueError(f"{entry} is no [D, {list(Tile._fields)}]")
    blocks = (tile.rows, tile.columns, tile.depth)
    right = all(16 <= n <= 512 and n & (n - 1) == 0 for n in blocks)
    right &= tile.warps in (1, 2, 4, 8, 16) and 1 <= tile.stages <= 8 and 1 <= tile.programs <= 32
    # The columns that make the logits also make the gradient, wherever all features fit.
    right &= kind in WITHOUT_OUTPUT or tile.output in (256, 128, 64, 32, 16)
    if not right or (kind not in WITHOUT_OUTPUT and tile.output < tile.depth):
        raise ValueError(f"{tile} is no tile of a {kind} kernel")
    return largest, tile


_trials: dict[tuple[str, str], Table] = {}


@contextmanager
def trying(kind: str, arithmetic: str, tile: Tile) -> Iterator[None]:
    """Launch with this tile: for measuring it, in one thread."""
    _trials[kind, arithmetic] = ((0, tile),)
    try:
        yield
    finally:
        del _trials[kind, arithmetic]


@lru_cache
def gpu_name(index: int | None) -> str:
    """Name of a CUDA device, the current one for None; none has the name ""."""
    return "" if INTERPRETED else torch.cuda.get_device_name(index)


def tile_for(kind: str, dim: int, arithmetic: str, device: torch.device) -> Tile:
    """The tile to launch with: measured on this GPU if there is a file of it, else the tables'."""
    gpu, key = gpu_name(device.index), (kind, arithmetic)
    table = _trials.get(key) or (measured(gpu).get(key) if gpu else None)
    if table is None:
        return static_tile(kind, dim, arithmetic, capability(device))
    return fitted(table, dim)
