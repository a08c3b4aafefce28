"""What the benchmarks of a GPU compute, on toy sizes without one."""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import (
    cached,
    clip_batch,
    ema,
    gpu,
    loss_memory,
    profiling,
    report,
    sanitize,
    similarity_softmax,
    train_step,
)
from benchmarks.harness import floors, gpu_report, phases, plots, predictions
from benchmarks.harness.arguments import arguments
from benchmarks.harness.record import Record
from benchmarks.harness.rows import Row
from sslfast import losses
from sslfast.kernels import registry

CPU = torch.device("cpu")
PROGRAMS = sorted(
    file.stem
    for file in Path(report.__file__).parent.glob("*.py")
    if "\ndef main(" in file.read_text()
)


def record(name: str, file: Path, *more: str) -> Record:
    options = arguments("").parse_args(["--out", str(file), "--device", "cpu", *more])
    return Record(name, options)


@pytest.mark.parametrize("preset", ["tiny", "tiny-mae"])
def test_a_training_step_and_its_phases(tmp_path: Path, preset: str) -> None:
    results = record("train_step", tmp_path / "out.json")
    train_step.run(results, train_step.PRESETS[preset])
    assert results.failures == []
    bare, trainer = results.rows
    assert (bare.provider, trainer.provider) == (train_step.BARE, train_step.TRAINER)
    extra = trainer.extra
    assert list(extra["shares"]) == list(phases.PHASES)
    assert sum(extra["shares"].values()) == pytest.approx(1)
    assert all(t > 0 for times in extra["phases"].values() for t in times)
    size = train_step.PRESETS[preset].batch
    assert extra["images_per_second"] == pytest.approx(size / trainer.seconds)
    peak = extra["peak_flop_per_second"]
    assert extra["mfu"] == pytest.approx(extra["flop"] / trainer.seconds / peak)
    table = gpu_report.train_step({"environment": ENVIRONMENT, "rows": [vars(trainer)]})
    assert f"| {extra['images_per_second']:.0f} |" in table


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_says_what_it_takes(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"benchmarks.{name}").main()
    assert end.value.code == 0
    assert "--" in capsys.readouterr().out


def test_flop_of_a_step_are_those_of_its_products() -> None:
    """SimCLR's head alone, counted by hand: three products a layer, the first layer two."""

    class Features(torch.nn.Module):
        num_features = 48

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    from sslfast import methods
    from sslfast.data import Batch

    method = methods.create("simclr", Features(), hidden_dim=40, out_dim=8)
    views = tuple(torch.randn(6, 3, 4, 4) for _ in range(2))
    flop = phases.flop_of_a_step(method, Batch(views, torch.arange(6)))
    assert flop == 2 * 12 * (2 * 48 * 40 + 3 * 40 * 8)


@given(st.integers(0, 100_000), st.integers(1, 64), st.integers(1, 1 << 17), st.integers(0, 1000))
def test_the_largest_that_fits(limit: int, start: int, most: int, constant: int) -> None:
    most = max(start, most)
    tried = []

    def fits(n: int) -> bool:
        assert start <= n <= most
        tried.append(n)
        return n + constant <= limit

    found, best = clip_batch.largest(fits, start, most), min(limit - constant, most)
    if best < start:
        assert found == 0
    else:
        assert found <= best <= found + max(1, int(clip_batch.FINENESS * found))
        assert found == best or found + 1 < best or best - found <= 1
    assert len(tried) < 40


@pytest.mark.parametrize("n", [20, 33])
def test_a_trial_in_chunks_is_the_whole_step(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every chunk encoded it has the gradients of the plain step; else those of the first."""
    torch.manual_seed(0)
    trial = clip_batch.Trial(clip_batch.TOY, CPU, 8)
    given = trial.inputs(n)
    given[0].normal_()
    given[1].random_(clip_batch.TOY.words)
    monkeypatch.setattr(trial, "inputs", lambda n: given)
    gradients: list[list[torch.Tensor]] = []
    monkeypatch.setattr(
        trial,
        "finish",
        lambda loss: gradients.append(list(torch.autograd.grad(loss, trial.parameters))),
    )
    trial.plain(n)
    monkeypatch.setattr(clip_batch, "REAL_CHUNKS", 9)
    trial.cached(n)
    monkeypatch.setattr(clip_batch, "REAL_CHUNKS", 2)
    trial.cached(n)
    plain, chunked, first = (torch.cat([g.flatten() for g in each]) for each in gradients)
    assert (plain - chunked).norm() < 0.02 * plain.norm()  # of bfloat16
    assert (plain - first).norm() > 0.1 * plain.norm()
    assert first.isfinite().all()


def test_a_step_in_chunks_has_the_gradients_of_the_whole_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The peer's too: what is timed is the same work."""
    gradients: dict[str, torch.Tensor] = {}
    for name, run in cached.runs("vit_micro", 5, 2, CPU).items():
        encoder = run.args[0]
        monkeypatch.setattr(encoder, "zero_grad", lambda **_: None)
        run(1)
        parameters = [p for p in encoder.parameters() if p.requires_grad]
        gradients[name] = torch.cat([p.grad.flatten() for p in parameters])
        for p in parameters:
            p.grad = None
    assert list(gradients) == [cached.WHOLE, cached.GRAD_CACHE, "sslfast cached"]
    for gradient in gradients.values():
        torch.testing.assert_close(gradient, gradients[cached.WHOLE], rtol=1e-3, atol=1e-6)


def test_batches_of_both_ways_within_a_toy_memory(tmp_path: Path) -> None:
    results = record("clip_batch", tmp_path / "out.json")
    clip_batch.measure(results, toy=True, limit=3 << 20, chunk=16, most=256)
    assert results.failures == []
    plain, ours = (row.extra for row in results.rows)
    assert 0 < plain["batch"] < ours["batch"]
    assert all(peak <= 3 << 20 for n, peak in ours["peaks"].items() if int(n) <= ours["batch"])


def test_memory_of_every_loss_is_looked_at() -> None:
    found = loss_memory.cases(CPU, torch.float32)
    classes = {name for name in losses.__all__ if inspect.isclass(getattr(losses, name))}
    assert set(found) == classes
    for make in found.values():
        make(12)(0)


def test_growth_tells_a_square_from_a_line() -> None:
    def peaks(function: Callable[[int], int]) -> list[int]:
        return [function(m) for m in (1 << 14, 1 << 15, 1 << 16)]

    assert loss_memory.growth(peaks(lambda m: 10**8 + 900 * m), 1 << 20) == pytest.approx(2)
    assert loss_memory.growth(peaks(lambda m: 10**8 + 900 * m + m * m // 8), 1 << 20) > 2.5
    assert loss_memory.growth(peaks(lambda m: 10**8), 1 << 20) == 2


def test_the_sanitized_program_reaches_every_cuda_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()

    def watch(op: str, problem: registry.Problem, **more: bool) -> Any:
        seen.add(op)
        return pick(op, problem, **more)

    pick = registry.pick
    monkeypatch.setattr(registry, "pick", watch)
    monkeypatch.setattr(sanitize, "DEVICE", "cpu")
    monkeypatch.setattr(sanitize, "TYPES", (torch.float32,))
    monkeypatch.setattr(sanitize, "SHAPES", sanitize.SHAPES[:2])
    monkeypatch.setattr(sanitize, "ARITHMETICS", ("ieee",))
    ran = [name for name, work in sanitize.works("reference") if work() is None]
    assert any(name.startswith("similarity_softmax") for name in ran)
    on_gpus = {
        op
        for op in registry.ops()
        if any(b.name in ("cuda", "triton") for b in registry.candidates(op))
    }
    assert on_gpus <= seen | {"similarity_softmax"}


NCU = """==PROF== Connected
"ID","Kernel Name","gpu__time_duration.sum","dram__throughput.avg.pct_of_peak_sustained_elapsed"
"","","nsecond","%"
"0","_update","12,480","91.5"
"1","_merge","640",""
"""


def test_kernels_from_ncu_and_from_torch(tmp_path: Path) -> None:
    first, second = profiling.parsed(NCU)
    assert (first["kernel"], first["nanoseconds"], first["memory %"]) == ("_update", 12480, 91.5)
    assert second["memory %"] is None
    assert list(profiling.parsed("==ERROR== no counters")) == []
    x = torch.randn(64, 64)
    kernels = profiling.by_torch(lambda turn: x @ x, CPU)
    assert any("mm" in kernel["kernel"] and kernel["nanoseconds"] > 0 for kernel in kernels)


def test_profiled_work_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = profiling.works(CPU)
    monkeypatch.setattr(profiling, "works", lambda device: {k: made[k] for k in ("EMA", "CLIP")})
    results = record("profile", tmp_path / "out.json")
    profiling.measure(results, None)
    assert results.failures == []
    assert [row.problem for row in results.rows] == ["EMA", "CLIP"]


def test_dali_on_one_device_differs_by_nothing(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    from benchmarks import dali

    results = record("dali", tmp_path / "out.json", "--quick")
    dataset = dali.photographs(tmp_path, 20)
    assert dali.differences(dataset, dali.recipe("simclr_small"), 4, CPU, 3, 2) == {
        "mean levels": 0.0,
        "share above 16 levels": 0.0,
    }
    dali.steady(results, dataset, 2, 12)
    assert results.failures == []
    assert len(results.rows[0].extra["bytes in use"]) > 5


def test_dali_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import dali

    monkeypatch.setattr(dali.importlib.util, "find_spec", lambda name: None)
    assert "nvidia.dali is not installed" in (dali.missing() or "")


ENVIRONMENT = {
    "date": "2026-01-02T03:04:05+00:00",
    "commit": "c0ffee",
    "gpu": "NVIDIA H200",
    "cpu": "x",
    "threads": 1,
    "torch": "2.11.0",
}


def a_row(problem: str, provider: str, seconds: float) -> dict[str, Any]:
    return vars(Row("b", problem, provider, seconds, flop=1e12, peak_bytes=1 << 20))


def test_a_run_becomes_results_tables_and_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = [f"NT-Xent M={m} D=128 tau=0.1 bfloat16" for m in (8192, 32768)]
    rows = [
        a_row(problem, provider, seconds * (1 + 15 * n))
        for n, problem in enumerate(problems)
        for provider, seconds in (
            ("eager", 2e-3),
            ("sslfast triton", 5e-4),
            (floors.PRODUCTS, 4e-4),
        )
    ]
    failure = {"problem": problems[1], "provider": "lightly", "error": "out of memory"}
    part = {"environment": ENVIRONMENT, "rows": rows, "failures": [failure]}
    empty = {"environment": ENVIRONMENT, "rows": [], "failures": []}
    trained = {**part, "rows": [a_row("vit", "bare loop", 1.0)]}
    results = {
        "similarity_softmax": part, "ema": empty, "train_vit": trained,
        "train_mae": {**trained, "rows": [a_row("mae", "bare loop", 1.0)]},
    }  # fmt: skip
    assert {"trainer", "contrast"} <= set(gpu_report.NAMES) <= set(gpu.BENCHMARKS)
    files = gpu_report.take({"environment": ENVIRONMENT, "results": results}, tmp_path)
    assert [f.name for f in files] == ["similarity_softmax-h200.json", "train_step-h200.json"]
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert len(report.load("train_step-h200")["rows"]) == 2
    table = report.make_table("similarity-softmax-h200")
    assert "| 32768 | sslfast triton | 8 ms | 4.0x | 0.80 | 1.0 MiB |" in table
    assert "Without a result: lightly (NT-Xent M=32768" in table
    drawn = report.plots()
    assert {p.name for p in drawn} == {
        "similarity-softmax-h200-time.svg",
        "similarity-softmax-h200-floor.svg",
    }
    with pytest.raises(ValueError, match="had no GPU"):
        gpu_report.take({"environment": {}, "results": {}}, tmp_path)


def test_points_lie_where_the_numbers_say() -> None:
    series = {"a": [(10.0, 1.0), (100.0, 10.0), (1000.0, 100.0)], "bound": [(10.0, 1.0)]}
    text = plots.line_plot("<t>", "x", "y", series, dashed=["bound"])
    marks = [line for line in text.splitlines() if line.startswith("<circle")]
    at = [tuple(float(v) for v in line.split('"')[1:4:2]) for line in marks]
    assert len(at) == 3
    (x0, y0), (x1, y1), (x2, y2) = at
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert "&lt;t&gt;" in text
    assert text.count("stroke-dasharray") == 2


def test_predictions_are_of_what_is_measured() -> None:
    """By the names that the benchmarks give; each stands once in the table, measured or not."""
    found = predictions.predictions()
    assert len({(p.problem, p.provider) for p in found}) == len(found)
    assert all(1e-6 < p.seconds < 1 for p in found)
    problems = {p.problem for p in found}
    cuda = torch.device("cuda")
    sizes = similarity_softmax.sizes(cuda, quick=False)
    assert {str(size) for size in sizes} == {p for p in problems if p.startswith("NT-Xent")}
    trained = {f"{preset}, cuda" for preset in train_step.PRESETS.values()}
    assert {p.problem for p in found if p.provider.endswith("trainer")} <= trained
    assert {str(size) for size in ema.sizes(cuda, quick=False)} <= problems
    first = found[0]
    table = predictions.table({(first.problem, first.provider): 1.25e-3})
    assert table.count("not yet") == len(found) - 1
    assert "| 1.25 ms |" in table
