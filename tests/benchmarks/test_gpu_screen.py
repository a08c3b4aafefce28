"""The last screen of a run: everything that matters, first what failed, within its lines."""

from typing import Any

from benchmarks.gpu_screen import LINES, MOST_FAILURES, WIDTH, outcomes, screen

FACTS = {
    "gpu": "NVIDIA H100",
    "torch": "2.11",
    "triton": "3.6",
    "python": "3.12",
    "commit": "c0ffee",
}


def a_row(problem: str, provider: str, seconds: float, **more: Any) -> dict[str, Any]:
    return {"problem": problem, "provider": provider, "seconds": seconds, "extra": {}, **more}


def a_part(name: str, status: int | None = 0, output: str = "") -> dict[str, Any]:
    return {"name": name, "status": status, "seconds": 2.0, "output": output}


def journal(parts: list[dict[str, Any]], **results: Any) -> dict[str, Any]:
    return {"environment": FACTS, "parts": parts, "results": results}


def test_timings_have_ratio_and_share_of_the_floor() -> None:
    rows = [
        a_row("CLIP", "open_clip", 3e-3, flop=1e12, peak_bytes=1 << 30),
        a_row("CLIP", "memeff", 2e-3, flop=1e12, peak_bytes=1 << 20),
        a_row("CLIP", "sslfast", 1e-3, flop=1e12, peak_bytes=1 << 20),
        a_row("CLIP", "floor: torch.mm", 5e-4, flop=1e12, peak_bytes=None),
    ]
    lines = screen(journal([a_part("losses")], losses={"rows": rows, "failures": []}))
    ours = next(line for line in lines if line.startswith("  sslfast"))
    assert "1 ms" in ours
    assert "2.00x the fastest other" in ours
    assert "50 % of the floor" in ours
    assert "1e+03 TFLOP/s" in ours
    assert "1 MiB" in ours
    assert "losses ok 2 s" in lines[1]


def test_failures_are_named_with_their_first_line() -> None:
    output = (
        "tests/gpu/test_x.py::test_a PASSED [ 50%]\ntests/gpu/test_x.py::test_b FAILED [100%]\n"
        "FAILED tests/gpu/test_x.py::test_b - AssertionError: off by one\nassert 1 == 2\n"
    )
    assert list(outcomes(output).values()) == ["PASSED", "FAILED"]
    failure = {"problem": "CLIP", "provider": "sslfast", "error": "OutOfResources: smem\nmore"}
    parts = [a_part("tests", 1, output), a_part("kernels", 1, "something\nFAILED x: ptxas\n")]
    found = journal([*parts, a_part("ema", None)], losses={"rows": [], "failures": [failure]})
    text = "\n".join(screen(found))
    assert "tests: 1 failed, 1 passed" in text
    assert "FAILED test_x.py::test_b: AssertionError: off by one" in text
    assert "FAILED losses: CLIP: sslfast: OutOfResources: smem" in text
    assert "FAILED kernels: FAILED x: ptxas" in text
    assert "ema NOT RUN" in text
    assert "more" not in text


def test_whatever_happens_it_stays_within_its_lines() -> None:
    names = [f"tests/gpu/test_x.py::test_{n} FAILED [ 1%]" for n in range(200)]
    rows = [a_row(f"p{n}", who, 1.0) for n in range(60) for who in ("peer" * 20, "sslfast " * 20)]
    found = journal([a_part("tests", 1, "\n".join(names))], losses={"rows": rows, "failures": []})
    lines = screen(found)
    assert len(lines) == LINES
    assert all(len(line) <= WIDTH + 2 for line in lines)
    assert sum("FAILED test_x" in line for line in lines) == MOST_FAILURES - 2
    assert "more failures" in "\n".join(lines)
    assert not any("peer" in line for line in lines)
    assert lines[-1].endswith("see the file")
