"""A benchmark's results are on disk after every problem, whatever a provider does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness.arguments import arguments
from benchmarks.harness.environment import ROOT
from benchmarks.harness.peers import Lazy
from benchmarks.harness.record import Record
from benchmarks.harness.timing import Run


def record(file: Path, *more: str) -> Record:
    given = ["--out", str(file), "--device", "cpu", "--seconds", "0.01", *more]
    return Record("test", arguments("").parse_args(given))


def works(turn: int) -> None:
    torch.ones(10).sum()


def fails(turn: int) -> None:
    raise RuntimeError("no such kernel")


def content(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def test_one_that_fails_leaves_the_others_their_times(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    results = record(file)
    rows = results.measure("p", lambda: {"eager": works, "peer": fails, "sslfast": works}, 1.0)
    assert [row.provider for row in rows] == ["eager", "sslfast"]
    assert all(row.seconds > 0 and len(row.samples) >= 5 for row in rows)
    (failure,) = content(file)["failures"]
    assert failure == {"problem": "p", "provider": "peer", "error": "RuntimeError: no such kernel"}
    assert results.finish() == 0  # a peer's failure is theirs
    results.measure("q", lambda: {"eager": works, "sslfast triton": fails}, 1.0)
    assert results.finish() == 1


def test_a_set_up_that_fails_leaves_the_other_problems(tmp_path: Path) -> None:
    def broken() -> dict[str, Run]:
        raise MemoryError("inputs do not fit")

    results = record(tmp_path / "out.json")
    assert results.measure("p", broken, 1.0) == []
    assert len(results.measure("q", lambda: {"sslfast": works}, 1.0)) == 1
    assert results.finish() == 1


def test_a_failure_within_the_timing_is_one_of_the_problem(tmp_path: Path) -> None:
    calls = []

    def later(turn: int) -> None:
        calls.append(turn)
        if len(calls) > 3:
            raise RuntimeError("only then")

    results = record(tmp_path / "out.json")
    results.measure("p", lambda: {"sslfast": later}, 1.0)
    assert results.rows == []
    assert "timing" in results.failures[0].provider
    assert results.finish() == 1


def test_going_on_repeats_nothing(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    first = record(file)
    first.measure("p", lambda: {"sslfast": works}, 1.0)
    first.measure("q", lambda: {"peer": fails, "sslfast": works}, 1.0)

    def never() -> dict[str, Run]:
        raise AssertionError("this problem was done")

    second = record(file, "--go-on")
    assert [row.samples for row in second.measure("p", never, 1.0)] == [first.rows[0].samples]
    assert len(second.failures) == 1
    third = record(file)  # without it, from the beginning
    assert third.rows == []


HANGS = """
import sys, time
from benchmarks.harness import record
from benchmarks.harness.arguments import arguments
record.ATTEMPT_SECONDS["cpu"] = 2.0
results = record.Record("test", arguments("").parse_args())
hang = lambda turn: time.sleep(60)
results.measure("p", lambda: {"sslfast a": hang, "sslfast b": lambda turn: None}, 0.01)
sys.exit(results.finish())
"""


def test_one_that_hangs_is_named_and_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    command = [sys.executable, "-c", HANGS, "--out", str(file), "--device", "cpu"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more], capture_output=True, text=True, check=False, cwd=ROOT
        )

    done = run()
    assert done.returncode != 0
    assert "time.sleep" in done.stderr or "<lambda>" in done.stderr
    assert content(file)["trying"] == {"problem": "p", "provider": "sslfast a"}
    done = run("--go-on")
    assert done.returncode == 1, done.stderr
    assert [row["provider"] for row in content(file)["rows"]] == ["sslfast b"]
    assert content(file)["failures"][0]["provider"] == "sslfast a"
    assert content(file)["trying"] is None


def test_an_attempt_leaves_time_for_the_rest_of_its_part(tmp_path: Path) -> None:
    text = HANGS.replace('record.ATTEMPT_SECONDS["cpu"] = 2.0', "")
    command = [sys.executable, "-c", text, "--out", str(tmp_path / "out.json"), "--device", "cpu"]
    few = {**os.environ, "SSLFAST_ATTEMPT_SECONDS": "2"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=few, timeout=50
    )
    assert "Timeout" in done.stderr


def test_what_failed_is_over(tmp_path: Path) -> None:
    results = record(tmp_path / "out.json")
    with results.attempt("p", "sslfast"):
        raise ValueError("no")
    again = record(tmp_path / "out.json", "--go-on")
    assert again.over("p")
    assert again.over("p", "sslfast")
    assert not again.over("p", "peer")
    assert not again.over("q")


def test_a_peer_is_imported_when_it_is_called(tmp_path: Path) -> None:
    def load() -> Any:
        raise ModuleNotFoundError("No module named 'memeff'")

    results = record(tmp_path / "out.json")
    rows = results.measure("p", lambda: {"memeff": Lazy(load), "sslfast": works}, 1.0)
    assert [row.provider for row in rows] == ["sslfast"]
    assert "memeff" in results.failures[0].error
    doubled = Lazy(lambda: lambda x: 2 * x)
    assert (doubled(2), doubled(3)) == (4, 6)


def test_the_environment_of_a_copy_without_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.harness import environment

    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setenv("SSLFAST_COMMIT", "c0ffee")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.environment(torch.device("cpu"))["commit"] == "c0ffee"
    monkeypatch.setenv("PATH", "")
    assert environment.output("git", "status") == ""
    assert "does not say" in environment.nvidia_smi(environment.CLOCKS)


def test_memory_is_taken_in_a_process_of_its_own(tmp_path: Path) -> None:
    """As a program: the same problems and providers, with peaks that do not depend on the heap."""
    command = [sys.executable, "-m", "benchmarks.losses", "--quick", "--only", "clip"]
    file = tmp_path / "out.json"
    command += ["--seconds", "0.01", "--device", "cpu", "--out", str(file)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE)
    rows = {row["provider"]: row for row in content(file)["rows"]}
    assert all(row["seconds"] > 0 for row in rows.values())
    eager, ours = rows["open_clip"]["peak_bytes"], rows["sslfast"]["peak_bytes"]
    assert eager > 3 * 2048 * 2048 * 4
    assert 2**20 < ours < eager
    given = arguments("").parse_args(["--out", str(file), "--device", "cpu", "--no-memory"])
    without = Record("test", given)
    without.measure("problem", lambda: {"eager": works}, 0.01)
    assert [(row.provider, row.peak_bytes) for row in without.rows] == [("eager", None)]
