"""Tables on the pages are what the results say."""

from benchmarks import report


def test_tables_are_what_the_results_say() -> None:
    for page in report.pages():
        text = page.read_text()
        assert report.rewritten(text) == text, f"{page.name}: run python -m benchmarks.report"


def test_a_changed_figure_is_noticed() -> None:
    text = "<!-- table similarity-softmax-cpu -->\n| 9 ms |\n<!-- end -->"
    assert "9 ms |\n<!-- end" not in report.rewritten(text)
    assert "sslfast cpu" in report.rewritten(text)
