"""Tables on the pages are what the results say."""

from pathlib import Path

import pytest

from benchmarks import report


def test_tables_and_plots_are_what_the_results_say() -> None:
    stale = [path.name for path in report.stale()]
    assert not stale, f"{stale}: run python -m benchmarks.report"


def test_every_table_stands_once() -> None:
    found = [m["name"] for p in report.pages() for m in report.MARKED.finditer(p.read_text())]
    assert len(found) >= 10
    assert len(found) == len(set(found))


def test_a_changed_plot_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = report.plots()
    assert len(drawn) >= 2
    monkeypatch.setattr(report, "plots", lambda: {tmp_path / p.name: t for p, t in drawn.items()})
    assert len(report.stale()) == len(drawn)  # none is there
    for path, text in report.plots().items():
        path.write_text(text)
    assert not report.stale()
    path.write_text(text.replace("<circle", "<ellipse", 1))
    assert list(report.stale()) == [path]


def test_a_changed_figure_is_noticed() -> None:
    text = "<!-- table similarity-softmax-cpu -->\n| 9 ms |\n<!-- end -->"
    assert "9 ms |\n<!-- end" not in report.rewritten(text)
    assert "sslfast cpu" in report.rewritten(text)
