"""Which tiles the Triton kernels get: the static tables, or a file measured on this GPU."""

import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import tune
from sslfast.kernels import _tiles, _tuning
from sslfast.kernels._tiles import Tile, splits

GPU = "NVIDIA H200 (test)"
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of its own, on a machine that seems to have an H200."""
    monkeypatch.setenv("SSLFAST_CACHE", str(tmp_path))
    monkeypatch.setattr(_tuning, "gpu_name", lambda index: GPU)
    monkeypatch.setattr(_tuning, "capability", lambda device: 90)
    _tuning.measured.cache_clear()
    yield tmp_path
    _tuning.measured.cache_clear()


def test_tables_hold_without_a_file(folder: Path) -> None:
    for kind, dim in itertools.product(_tiles.KINDS, (1, 64, 100, 128, 256, 1000, 4096)):
        tile = _tuning.tile_for(kind, dim, "16-bit", CPU)
        assert tile == _tiles.static_tile(kind, dim, "16-bit", 90)
        assert tile.depth >= 16
        assert tile.depth < 2 * max(dim, 16)
    assert not list(folder.iterdir())


def test_the_fastest_tile_is_kept_and_used(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = Tile(128, 64, 64, 64, 8, 3)

    def seconds(kind: str, arithmetic: str, dim: int, tile: Tile) -> float | None:
        if kind == "contrast":
            return None if tile.rows == 128 else 1.0
        return 0.5 if (dim, tile) == (64, target) else 1.0 - 0.01 * tile.stages

    tables = tune.tune(seconds, 90, ("gradient", "contrast"), ("16-bit",), (64, 128, 512))
    path = _tuning.write(GPU, tables)
    assert path.parent == folder
    with caplog.at_level(logging.INFO, logger="sslfast"):
        assert _tuning.tile_for("gradient", 64, "16-bit", CPU) == target
        assert _tuning.tile_for("gradient", 17, "16-bit", CPU) == target._replace(
            depth=32, output=32
        )
        for dim in (128, 300, 4000):  # a gain of 1 % may be noise
            static = _tiles.static_tile("gradient", min(dim, 512), "16-bit", 90)
            assert _tuning.tile_for("gradient", dim, "16-bit", CPU) == static
        assert _tuning.tile_for("contrast", 64, "16-bit", CPU).rows == 64
        assert _tuning.tile_for("statistics", 64, "16-bit", CPU) == _tiles.static_tile(
            "statistics", 64, "16-bit", 90
        )
    assert [str(path) in m for m in caplog.messages] == [True]  # said once


def test_candidates_can_be_kept(folder: Path) -> None:
    for kind, dim, arithmetic in itertools.product(
        _tiles.KINDS, (16, 64, 100, 256, 1024), _tiles.ARITHMETICS
    ):
        static = _tiles.static_tile(kind, dim, arithmetic, 90)
        found = list(tune.candidates(kind, dim, static))
        assert found[0] == static
        assert len(set(found)) == len(found) > 3
        _tuning.write(GPU, {(kind, arithmetic): tuple((dim, tile) for tile in found)})
        assert len(_tuning.measured(GPU)[kind, arithmetic]) == len(found)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("triton", "1.0", "its triton is '1.0'"),
        ("gpu", "another", "its gpu is 'another'"),
        ("schema", 7, "its schema is 7"),
        ("tiles", [], "no tiles"),
        ("tiles", {"gradient 4-bit": [[0, [128, 64, 64, 64, 8, 2]]]}, "gradient 4-bit"),
        ("tiles", {"gradient 16-bit": [[0, [128, 64, 64]]]}, "is no [D"),
        ("tiles", {"gradient 16-bit": []}, "no entries"),
        ("tiles", {"gradient 16-bit": [[0, [128, 48, 64, 64, 8, 2]]]}, "no tile of a gradient"),
        ("tiles", {"gradient 16-bit": [[0, [128, 64, 128, 64, 8, 2]]]}, "no tile of a gradient"),
    ],
)
def test_a_file_of_no_use_is_ignored_with_a_warning(
    key: str, value: object, reason: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _tuning.write(GPU, {("gradient", "16-bit"): ((0, Tile(128, 64, 64, 64, 8, 2)),)})
    assert _tuning.measured(GPU)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {key: value}))
    _tuning.measured.cache_clear()
    static = _tiles.static_tile("gradient", 64, "16-bit", 90)
    assert _tuning.tile_for("gradient", 64, "16-bit", CPU) == static
    assert _tuning.tile_for("gradient", 64, "16-bit", CPU) == static
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert str(path) in record.message
    assert reason in record.message
    path.write_text("{")
    _tuning.measured.cache_clear()
    assert _tuning.measured(GPU) == {}


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SSLFAST_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _tuning.file_for(GPU) == tmp_path / "sslfast" / "tiles-NVIDIA-H200-test-.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert _tuning.file_for(GPU).parent == tmp_path / "home" / ".cache" / "sslfast"


def test_a_trial_ends(folder: Path) -> None:
    tile = Tile(64, 16, 16, 16, 4, 2)
    with _tuning.trying("gradient", "16-bit", tile):
        assert _tuning.tile_for("gradient", 64, "16-bit", CPU) == tile
    assert _tuning.tile_for("gradient", 64, "16-bit", CPU) != tile


def test_splits_fill_the_multiprocessors() -> None:
    assert splits(64, 64, 132) == 2  # 8192 rows of 128
    assert splits(2, 512, 132) == 64  # 256 queries against a queue of 65,536
    for blocks in (132, 256, 1024, 10_000):
        assert splits(blocks, blocks, 132) == 1
    assert splits(1, 1, 132) == splits(1, 0, 132) == splits(0, 5, 132) == splits(3, 9, 1) == 1
    for blocks, tiles in itertools.product((1, 3, 70, 140, 200), (1, 2, 7, 100)):
        parts = splits(blocks, tiles, 132)
        assert 1 <= parts <= max(tiles, 1)
        assert parts == 1 or parts * blocks <= 4 * 132
