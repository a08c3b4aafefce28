"""Which tiles the Triton kernels get: the static tables, or a file measured on this GPU."""

import itertools
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources

from benchmarks import tune
from benchmarks.harness.compiling import Outcome
from benchmarks.harness.launches import Launch
from sslfast.kernels import tiles
from sslfast.kernels import tuning as tuning
from sslfast.kernels.tiles import Tile, splits

GPU = "NVIDIA H200 (test)"
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of its own, on a machine that seems to have an H200."""
    monkeypatch.setenv("SSLFAST_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "gpu_name", lambda index: GPU)
    monkeypatch.setattr(tuning, "capability", lambda device: 90)
    tuning.measured.cache_clear()
    yield tmp_path
    tuning.measured.cache_clear()


def test_tables_hold_without_a_file(folder: Path) -> None:
    for kind, dim in itertools.product(tiles.KINDS, (1, 64, 100, 128, 256, 1000, 4096)):
        tile = tuning.tile_for(kind, dim, "16-bit", CPU)
        assert tile == tiles.static_tile(kind, dim, "16-bit", 90)
        assert tile.depth >= 16
        assert tile.depth < 2 * max(dim, 16)
    assert not list(folder.iterdir())


def test_the_fastest_tile_is_kept_and_used(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = Tile(128, 64, 64, 64, 8, 3)
    saved = []

    def seconds(trial: tune.Trial) -> float | None:
        if trial.kind == "contrast":
            return None if trial.tile.rows >= 128 else 1.0
        fast = (trial.dim, trial.tile) == (64, target)
        return 0.5 if fast else 1.0 - 0.005 * trial.tile.stages

    plan = tune.trials(90, ("gradient", "contrast"), ("16-bit",), (64, 128, 256))
    tables = tune.tune(seconds, 90, plan, lambda tables: saved.append(dict(tables)))
    assert len(saved) == len(plan)
    assert saved[-1] == tables
    path = tuning.write(GPU, tables)
    assert path.parent == folder
    with caplog.at_level(logging.INFO, logger="sslfast"):
        assert tuning.tile_for("gradient", 64, "16-bit", CPU) == target
        assert tuning.tile_for("gradient", 17, "16-bit", CPU) == target._replace(
            depth=32, output=32
        )
        for dim in (128, 200, 256):  # a gain of 1 % may be noise
            static = tiles.static_tile("gradient", dim, "16-bit", 90)
            assert tuning.tile_for("gradient", dim, "16-bit", CPU) == static
        assert tuning.tile_for("contrast", 64, "16-bit", CPU).rows == 64
        assert tuning.tile_for("statistics", 64, "16-bit", CPU) == tiles.static_tile(
            "statistics", 64, "16-bit", 90
        )
    assert [str(path) in m for m in caplog.messages] == [True]  # said once


def test_what_is_saved_before_the_end_is_of_use(folder: Path) -> None:
    """A run that is cut off leaves the tables' own tiles where nothing was measured."""
    plan = tune.short_trials(90)
    for count in range(1, len(plan)):
        with pytest.raises(InterruptedError):
            tune.tune(cut_off(count), 90, plan, lambda tables: tuning.write(GPU, tables))
        fastest = {(t.kind, t.dim): t.tile for t in plan[:count]}  # the last of each
        for kind, dim in tune.SHORT:
            static = tiles.static_tile(kind, dim, "16-bit", 90)
            tile = tuning.tile_for(kind, dim, "16-bit", CPU)
            assert tile == fastest.get((kind, dim), static)


def cut_off(count: int) -> tune.Seconds:
    """Later tiles are faster; after ``count`` of them the run ends."""
    left = iter(range(count, 0, -1))

    def seconds(trial: tune.Trial) -> float | None:
        n = next(left, None)
        if n is None:
            raise InterruptedError
        return float(n)

    return seconds


def test_the_short_list_is_short_and_new() -> None:
    for architecture in (80, 90, 100):
        plan = tune.short_trials(architecture)
        assert len(set(plan)) == len(plan) <= 14
        for trial in plan:
            static = tiles.static_tile(trial.kind, trial.dim, "16-bit", architecture)
            tried = [t.tile for t in plan if (t.kind, t.dim) == (trial.kind, trial.dim)]
            assert tried[0] == static
            assert len(tried) > 1


def test_candidates_can_be_kept(folder: Path) -> None:
    for kind, dim, arithmetic in itertools.product(
        tiles.KINDS, (16, 64, 100, 256, 512, 1024), tiles.ARITHMETICS
    ):
        if not tune.is_launched(kind, arithmetic, dim):
            continue
        static = tiles.static_tile(kind, dim, arithmetic, 90)
        found = list(tune.candidates(kind, dim, static))
        assert found[0] == static
        assert len({tile._replace(programs=1) for tile in found}) == len(found) > 3
        assert {tile.warps for tile in found} >= {4, 8}
        tuning.write(GPU, {(kind, arithmetic): tuple((dim, tile) for tile in found)})
        assert len(tuning.measured(GPU)[kind, arithmetic]) == len(found)
    static = tiles.static_tile("gradient", 128, "16-bit", 90)
    assert Tile(64, 128, 128, 128, 4, 2) in tune.candidates("gradient", 128, static)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("triton", "1.0", "its triton is '1.0'"),
        ("gpu", "another", "its gpu is 'another'"),
        ("schema", 7, "its schema is 7"),
        ("tiles", [], "no tiles"),
        ("tiles", {"gradient 4-bit": [[0, [128, 64, 64, 64, 8, 2, 1]]]}, "gradient 4-bit"),
        ("tiles", {"gradient 16-bit": [[0, [128, 64, 64]]]}, "is no [D"),
        ("tiles", {"gradient 16-bit": [[0, [128, 64, 64, 64, 8, 2, 0]]]}, "no tile of a gradient"),
        ("tiles", {"gradient 16-bit": []}, "no entries"),
        ("tiles", {"gradient 16-bit": [[0, [128, 48, 64, 64, 8, 2, 1]]]}, "no tile of a gradient"),
        ("tiles", {"gradient 16-bit": [[0, [128, 64, 128, 64, 8, 2, 1]]]}, "no tile of a gradient"),
    ],
)
def test_a_file_of_no_use_is_ignored_with_a_warning(
    key: str, value: object, reason: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tuning.write(GPU, {("gradient", "16-bit"): ((0, Tile(128, 64, 64, 64, 8, 2)),)})
    assert tuning.measured(GPU)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {key: value}))
    tuning.measured.cache_clear()
    static = tiles.static_tile("gradient", 64, "16-bit", 90)
    assert tuning.tile_for("gradient", 64, "16-bit", CPU) == static
    assert tuning.tile_for("gradient", 64, "16-bit", CPU) == static
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert str(path) in record.message
    assert reason in record.message
    path.write_text("{")
    tuning.measured.cache_clear()
    assert tuning.measured(GPU) == {}


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SSLFAST_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuning.file_for(GPU) == tmp_path / "sslfast" / "tiles-NVIDIA-H200-test-.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert tuning.file_for(GPU).parent == tmp_path / "home" / ".cache" / "sslfast"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", dict[int, object]().__getitem__)  # an unknown user
    tuning.measured.cache_clear()
    assert tuning.measured(GPU) == {}
    tuning.measured.cache_clear()


def test_a_trial_ends(folder: Path) -> None:
    tile = Tile(64, 16, 16, 16, 4, 2)
    with tuning.trying("gradient", "16-bit", tile):
        assert tuning.tile_for("gradient", 64, "16-bit", CPU) == tile
    assert tuning.tile_for("gradient", 64, "16-bit", CPU) != tile


def test_splits_fill_the_multiprocessors() -> None:
    assert splits(64, 64, 132) == 2  # 8192 rows of 128, one program a multiprocessor
    assert splits(64, 128, 264) == 4  # and two
    assert splits(2, 512, 132) == 64  # 256 queries against a queue of 65,536
    for resident in (132, 264):
        for blocks in (resident, 2 * resident - 8, 1024, 10_000):
            assert splits(blocks, blocks, resident) == 1
    assert splits(1, 1, 132) == splits(1, 0, 132) == splits(0, 5, 132) == splits(3, 9, 1) == 1
    for blocks, count in itertools.product((1, 3, 70, 140, 200), (1, 2, 7, 100)):
        parts = splits(blocks, count, 132)
        assert 1 <= parts <= max(count, 1)
        assert parts == 1 or parts * blocks <= 4 * 132


def test_programs_that_share_a_multiprocessor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "multiprocessors", lambda device: 132)
    tile = tiles.static_tile("statistics", 128, "16-bit", 90)
    assert tiles.resident(tile, CPU) == 264
    assert tiles.resident(tile._replace(programs=1), CPU) == 132


@pytest.fixture
def _hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "limits", lambda: (65536, 233472, 2048))


@pytest.mark.usefixtures("_hopper")
@pytest.mark.parametrize(
    ("registers", "shared", "warps", "expected"),
    [(121, 81920, 8, 2), (255, 99328, 8, 1), (255, 82944, 4, 2), (32, 0, 4, 16), (129, 0, 8, 1)],
)
def test_room_for_programs(registers: int, shared: int, warps: int, expected: int) -> None:
    metadata = SimpleNamespace(num_warps=warps, shared=shared)
    kernel = SimpleNamespace(run=None, n_regs=registers, metadata=metadata)
    assert tune.programs(kernel) == expected


def test_what_does_not_fit_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every trial is a launch of the kernel it is about, and its tile learns of its room."""
    plan = [t for t in tune.short_trials(90) if t.dim == 128]
    launched = tune.launches(plan, 90)
    kernels = {"statistics": "forward_kernel", "gradient": "backward_kernel"}
    for trial, some in launched:
        launch = [launch for launch in some if "OPERAND" in launch.constants][-1]
        assert launch.name.endswith(kernels[trial.kind])
        assert launch.options["num_warps"] == trial.tile.warps

    def room(kernel: Any) -> int:
        if kernel.warps == 4:
            raise OutOfResources(2, 1, "shared memory")
        return 7

    monkeypatch.setattr(
        Launch, "compiled", lambda launch: SimpleNamespace(warps=launch.options["num_warps"])
    )
    monkeypatch.setattr(tune, "programs", room)
    failed = [launch.name for launch in launched[3][1]]  # the table's own for statistics
    found = list(tune.fitting(launched, 90, dict.fromkeys(failed, "no reason")))
    assert found == [plan[0], replace(plan[4], tile=plan[4].tile._replace(programs=7))]
    assert "out of resource" in capsys.readouterr().out


@pytest.mark.usefixtures("_hopper")
def test_the_command_adds_to_what_was_measured_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the compiler and the clock."""
    before = ((0, Tile(64, 32, 64, 64, 8, 2)),)
    tuning.write(GPU, {("contrast", "16-bit"): before})
    monkeypatch.setattr(sys, "argv", ["tune", "--short", "--seconds", "0.1"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tune, "unavailable", lambda: None)
    monkeypatch.setattr(tune, "capability", lambda device: 90)
    monkeypatch.setattr(tune, "compile_all", lambda launches: Outcome(set(), len(launches), {}))
    monkeypatch.setattr(
        Launch,
        "compiled",
        lambda launch: SimpleNamespace(
            run=None,
            n_regs=255,
            metadata=SimpleNamespace(num_warps=launch.options["num_warps"], shared=82944),
        ),
    )
    monkeypatch.setattr(
        tune, "measure", lambda trial, seconds: seconds / (2 if trial.tile.warps == 4 else 1)
    )
    tune.main()
    assert str(tuning.file_for(GPU)) in capsys.readouterr().out
    tables = tuning.measured(GPU)
    assert tables["contrast", "16-bit"] == before
    assert tables["gradient", "16-bit"][0] == (128, Tile(64, 128, 128, 128, 4, 2, programs=2))
    static = tiles.static_tile("statistics", 256, "16-bit", 90)
    assert tables["statistics", "16-bit"][-1] == (0, static)
