"""Links of the pages, and paths of pages in the code, lead to what exists."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MADE = {"build", "dist", "runs"}  # by commands; not of the repository
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)|(?:src|href)=\"([^\"]+)\"")


def files(*endings: str) -> Iterator[Path]:
    """Those of the repository with these endings, hidden folders apart."""
    for place in sorted(ROOT.iterdir()):
        if place.name.startswith(".") or place.name in MADE:
            continue
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.name.endswith(endings) and path.is_file():
                yield path


PAGES = list(files(".md"))


def anchors(page: Path) -> set[str]:
    """What GitHub calls a page's headings."""
    found: list[str] = []
    for title in re.findall(r"^#+ +(.*)", FENCED.sub("", page.read_text()), re.MULTILINE):
        text = LINK.sub("]", title).lower()
        name = re.sub(r"[^\w -]", "", text).replace(" ", "-")
        again = sum(
            re.fullmatch(rf"{re.escape(name)}(-\d+)?", other) is not None for other in found
        )
        found.append(f"{name}-{again}" if again else name)
    return set(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for match in LINK.finditer(FENCED.sub("", page.read_text())):
        link = match[1] or match[2]
        if re.match(r"\w+:", link):
            continue  # another site's
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_index_names_every_page() -> None:
    docs = ROOT / "docs"
    linked = {
        match[1].partition("#")[0] for match in LINK.finditer((docs / "README.md").read_text())
    }
    missing = {str(page.relative_to(docs)) for page in PAGES if docs in page.parents} - linked
    assert missing == {"README.md"}


def test_code_names_pages_that_exist() -> None:
    for path in files(".py", ".h", ".cpp", ".cu", ".yaml", "Makefile"):
        for name in re.findall(r"docs/[\w/]*\w+\.md", path.read_text()):
            assert (ROOT / name).exists(), f"{path.relative_to(ROOT)}: {name}"


def test_pages_name_files_that_exist() -> None:
    pattern = r"`((?:benchmarks|csrc|docs|examples|kernels|sslfast|tests)/[a-z0-9_./-]+)`"
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue  # of its time
        for name in re.findall(pattern, page.read_text()):
            assert (ROOT / name).exists(), f"{page.relative_to(ROOT)}: {name}"
