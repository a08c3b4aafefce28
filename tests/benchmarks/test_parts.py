"""A run in parts: limits, the budget, failures that stay where they are, all in one file."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.harness import parts
from benchmarks.harness.parts import TIMED_OUT, Outcome, Part, Run
from sslfast.kernels.extension import extension

ROOT = Path(__file__).resolve().parents[2]

# Takes --out and --go-on as a benchmark does; crashes in its second problem unless told to go on.
CRASHING = """
import json, os, sys
out = sys.argv[sys.argv.index("--out") + 1]
content = {"rows": [1], "failures": [], "trying": {"problem": "p", "provider": "q"}}
if "--go-on" in sys.argv:
    content = json.load(open(out))
    content |= {"rows": content["rows"] + [2], "failures": [content["trying"]], "trying": None}
open(out, "w").write(json.dumps(content))
if content["trying"]:
    os.abort()
"""
HANGING = CRASHING.replace("os.abort()", "import time; time.sleep(60)")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LEAST", 0.2)
    monkeypatch.setattr(parts, "RESERVE", 0.1)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def a_run(folder: Path, budget: float = 60.0) -> Run:
    return Run(folder / "out" / "gpu.json", folder / "parts", {"facts": 1}, budget, folder)


def journal(run: Run) -> dict[str, Any]:
    return json.loads(run.file.read_text())


def test_a_failure_loses_nothing_else(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.do(Part("good", python("print('fine')"), 30))
    run.do(Part("bad", python("raise SystemExit('no such luck')"), 30))
    run.do(Part("absent", ["/nonexistent/program"], 30))
    run.do(Part("last", python("print('still here')"), 30))
    found = journal(run)["parts"]
    assert [p["status"] for p in found] == [0, 1, 127, 0]
    assert "no such luck" in found[1]["output"]
    assert "still here" in found[3]["output"]
    assert journal(run)["facts"] == run.status() == 1


def test_what_takes_too_long_is_stopped_with_all_it_started(tmp_path: Path) -> None:
    started = tmp_path / "started"
    code = (
        "import subprocess, sys, time; print('began', flush=True)\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(started)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    begin = time.monotonic()
    outcome = a_run(tmp_path).do(Part("slow", python(code), 2))
    assert outcome.status == TIMED_OUT
    assert "began" in outcome.output
    assert time.monotonic() - begin < 30
    grandchild = int(started.read_text())
    for _ in range(100):
        state = Path(f"/proc/{grandchild}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        os.kill(grandchild, 9)
        pytest.fail("it left a process running")


def test_the_budget_binds_all_parts_together(tmp_path: Path) -> None:
    run = a_run(tmp_path, budget=1.5)
    first = run.do(Part("first", python("import time; time.sleep(60)"), 100))
    second = run.do(Part("second", python("print()"), 100))
    assert first.status == TIMED_OUT
    assert first.limit <= 1.5
    assert second.status is None
    assert "NOT RUN" in str(second)
    assert run.status() == 1


def test_a_benchmark_that_crashes_goes_on_with_the_next_problem(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    outcome = run.do(Part("crashing", python(CRASHING), 30, benchmark=True))
    assert (outcome.status, outcome.restarts) == (0, 1)
    assert journal(run)["results"]["crashing"]["rows"] == [1, 2]
    assert journal(run)["results"]["crashing"]["failures"][0]["provider"] == "q"


def test_results_of_an_unfinished_benchmark_are_kept(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    outcome = run.do(Part("hanging", python(HANGING), 2, benchmark=True))
    assert (outcome.status, outcome.restarts) == (TIMED_OUT, 0)
    assert journal(run)["results"]["hanging"]["rows"] == [1]


def test_every_part_exists() -> None:
    for plan in gpu.BENCHMARKS.values():
        assert importlib.util.find_spec(f"benchmarks.{plan.module}"), plan
    named = {name for names in gpu.TESTS.values() for name in names}
    assert named <= set(gpu.BENCHMARKS)
    files = {str(p.relative_to(ROOT)) for p in (ROOT / "tests" / "gpu").glob("test_*.py")}
    assert files == set(gpu.TESTS)


def parts_of(folder: Path, *given: str) -> dict[str, Part]:
    options = gpu.arguments().parse_args(["--out", str(folder), "--device", "cpu", *given])
    return {part.name: part for part in gpu.chosen_parts(options, a_run(folder))}


def test_runs_have_their_parts_in_order(tmp_path: Path) -> None:
    for name, (budget, names) in gpu.RUNS.items():
        found = parts_of(tmp_path, f"--{name}")
        assert list(found) == [n for n in names if n != "tune"]  # there is nothing to tune here
        assert budget <= {"first": 240, "main": 360}[name] - 10  # seconds to start and to end in
        # What comes first must not leave the last without time, were each to take half of its own.
        assert sum(part.seconds for part in found.values()) / 2 < budget
    assert set(gpu.RUNS["first"][1]) | set(gpu.RUNS["main"][1]) <= {
        "kernels",
        "tests",
        *gpu.BENCHMARKS,
    }


def test_parts_that_were_asked_for(tmp_path: Path) -> None:
    (part,) = parts_of(tmp_path, "--only", "train_vit").values()
    small = ["--preset", "tiny-compiled", "--device", "cpu", "--quick", "--no-memory"]
    assert part.command[-len(small) :] == small
    found = parts_of(tmp_path, "--only", "ema", "tests")
    assert list(found) == ["ema", "tests"]
    assert "tests/gpu/test_tensors.py" in found["tests"].command
    assert "tests/gpu/test_kernels.py" not in found["tests"].command
    archive = str(tmp_path / "kernels.tar.xz")
    (part,) = parts_of(tmp_path, "--only", "kernels", "--kernels", archive).values()
    assert part.command[part.command.index("--take") + 1] == archive


OUTPUT = """
[gw3] [ 10%] PASSED tests/gpu/test_kernels.py::test_a[bf16]@test_a-bf16
[gw1] [ 20%] FAILED tests/gpu/test_kernels.py::test_b[0.1-fp16]@test_b-fp16
tests/gpu/test_tensors.py::test_c SKIPPED (needs an NVIDIA GPU)          [ 30%]
tests/gpu/test_tensors.py::test_d ERROR                                  [ 40%]
=================== short test summary info ===================
FAILED tests/gpu/test_kernels.py::test_b[0.1-fp16]@test_b-fp16 - AssertionError: 3 > 2
and more
"""


def test_failed_tests_of_the_first_run_are_those_of_the_main_one(tmp_path: Path) -> None:
    part = {"name": "tests", "status": 1, "seconds": 1.0, "output": OUTPUT}
    (tmp_path / "gpu.json").write_text(json.dumps({"parts": [part]}))
    after = "--main", "--after", str(tmp_path / "gpu.json")
    command = parts_of(tmp_path, *after)["tests"].command
    names = [n for n in command if n.startswith("tests/")]
    assert names == [
        "tests/gpu/test_kernels.py::test_b[0.1-fp16]",
        "tests/gpu/test_tensors.py::test_d",
    ]
    (tmp_path / "gpu.json").write_text(json.dumps({"parts": [{**part, "output": ""}]}))
    assert "tests" not in parts_of(tmp_path, *after)


def test_wheels_are_unpacked_and_missing_peers_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "memeff-0.3.1-py3-none-any.whl", "w") as archive:
        archive.writestr("memeff/__init__.py", "")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    run = a_run(tmp_path)
    gpu.bring_peers(run, wheels)
    assert (tmp_path / "build" / "peers" / "memeff" / "__init__.py").exists()
    said = capsys.readouterr().out
    assert "unpacked memeff-0.3.1" in said
    missing = said.split("missing: ")[1]
    assert "inf_cl" in missing
    assert "memeff" not in missing


def test_a_rehearsal_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, no build: one part, in a tree of links of its own."""
    # Which later tests, and the processes that they start, must not import from.
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("PYTHONPATH", gpu.COMMIT):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    given = ["--only", "peaks", "--work", str(tmp_path / "work"), "--skip-build"]
    status = gpu.main(["--out", str(tmp_path), "--device", "cpu", "--commit", "c0ffee", *given])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert status == 0, found["parts"]
    assert [p["name"] for p in found["parts"]] == ["peers", "peaks"]
    assert {row["problem"] for row in found["results"]["peaks"]["rows"]} >= {"copy"}
    assert found["environment"]["torch"] == torch.__version__
    assert all(len(row["samples"]) >= 5 for row in found["results"]["peaks"]["rows"])


def test_an_extension_is_taken_if_it_is_of_these_sources(tmp_path: Path) -> None:
    from benchmarks import build

    tree, kept = tmp_path / "tree", tmp_path / "kept"
    build.link(tree)
    file = kept / "_C.so"
    assert "missing" in (build.bring(file, tree, False) or "")
    kept.mkdir()
    file.write_bytes(b"no library")
    note = kept / "_C.so.sources"
    note.write_text("of another commit")
    assert "built from other sources" in (build.bring(file, tree, False) or "")
    note.write_text(build.sources())
    assert "does not load" in (build.bring(file, tree, False) or "")
    assert not (tree / "sslfast" / "_C.so").exists()
    module = extension()
    if module is None:
        pytest.skip("there is no extension to take")
    own = tmp_path / "own"
    (own / "sslfast").mkdir(parents=True)
    shutil.copy(module.__file__, own / "sslfast")
    there = build.keep(own, kept)
    assert build.bring(there, tree, False) is None
    assert (tree / "sslfast" / there.name).exists()


def test_it_starts_where_nothing_is_installed(tmp_path: Path) -> None:
    """The program imports nothing of the package before its tree of links is there."""
    code = (
        "import sys; from pathlib import Path\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "sys.path = [p for p in sys.path if not (Path(p) / 'sslfast/kernels').exists()]\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from benchmarks import gpu\n"
        f"given = ['--out', {str(tmp_path)!r}, '--work', {str(tmp_path)!r}, '--skip-build']\n"
        "sys.exit(gpu.main([*given, '--device', 'cpu', '--only', 'kernels', '--seconds', '1']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "kernels NOT RUN" in done.stdout, done.stderr


def test_without_a_gpu_nothing_is_claimed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main(["--first", "--out", str(tmp_path)]) == 1
    assert "--device cpu is a rehearsal" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_outcomes_in_words() -> None:
    said = [str(Outcome("x", status, 2.0, 3.0, "")) for status in (0, 1, None, TIMED_OUT)]
    assert said == ["x: ok (2 s)", "x: FAILED (2 s)", "x: NOT RUN (2 s)", "x: OUT OF TIME (2 s)"]
