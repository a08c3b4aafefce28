"""What docs/guide/masking.md shows runs, and its pictures can be drawn."""

import re
from pathlib import Path

import pytest

from benchmarks.mask_pictures import pictures

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "masking.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippets(number: int) -> None:
    names: dict[str, object] = {}
    exec(SNIPPETS[number], names)
    if "loss" in names:
        assert names["seen"].shape == (8, 49, 64)
        assert names["decoded"].shape == (8, 196, 64)
        assert names["loss"].isfinite()
    else:
        assert (names["hidden"].sum((1, 2)) == 75).all()
        assert not names["spans"][:, 350:].any()


def test_every_picture_is_shown_and_every_sampler_of_patches_has_one() -> None:
    shown = set(re.findall(r"\(\.\./images/(\w+)\.png\)", PAGE.read_text()))
    drawn = pictures()
    assert shown == set(drawn)
    for picture in drawn.values():
        assert len(picture.getcolors()) >= 2  # light and dark
