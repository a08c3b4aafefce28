"""Results of the learning benchmark: runs made apart come together in one table."""

from typing import Any

from benchmarks import learning, report


def run(method: str, seed: int, trained: float, commit: str = "a" * 40) -> dict[str, Any]:
    scores = {"random": 0.5, "trained": trained}
    made = {"commit": commit, "epochs": 3, "cpu_seconds": 100.0 + seed}
    return {"method": method, "seed": seed, "scores": scores, **made}


def test_new_runs_take_the_place_of_old_ones_and_the_others_stay() -> None:
    old = [run("ijepa", 0, 0.6), run("mae", 1, 0.7), run("mae", 0, 0.6)]
    new = [run("mae", 0, 0.8, "b" * 40)]
    together = learning.merged(old, new)
    assert [(r["method"], r["seed"]) for r in together] == [("mae", 0), ("mae", 1), ("ijepa", 0)]
    assert [r["scores"]["trained"] for r in together] == [0.8, 0.7, 0.6]


def test_the_table_shows_each_seed_their_mean_and_all_commits() -> None:
    facts = {"date": "2026-01-02T03:04:05", "cpu": "x", "threads": 1, "isa": "y", "torch": "z"}
    runs = [run("mae", 0, 0.8, "b" * 40), run("mae", 1, 0.7), run("ijepa", 0, 0.6)]
    table = report.learning({"environment": facts | {"commit": "c" * 40}, "runs": runs})
    lines = table.splitlines()
    assert lines[0] == "| method | epochs | CPU time | seed 0 | seed 1 | mean gain |"
    assert lines[2] == "| mae | 3 | 101 s | 50.0% to 80.0% | 50.0% to 70.0% | +25.0 points |"
    assert lines[3] == "| ijepa | 3 | 100 s | 50.0% to 60.0% | - | +10.0 points |"
    assert f"at commit {'b' * 10}, {'a' * 10}: x" in lines[-1]
