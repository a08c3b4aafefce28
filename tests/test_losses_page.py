"""docs/guide/losses.md: its snippets run in order, in one namespace, and it names every loss."""

import re
from pathlib import Path
from typing import Any

import torch

from sslfast import functional, losses

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "guide" / "losses.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
# Functions that are no contrastive loss have pages of their own.
ELSEWHERE = {
    "ema_update_", "gather_patches", "masked_mse", "patchify_visible", "restore_with_tokens",
}  # fmt: skip


def test_snippets_run() -> None:
    namespace: dict[str, Any] = {}
    ran = 0
    for text in SNIPPETS:
        exec(compile(text, "docs/guide/losses.md", "exec"), namespace)
        ran += 1
        if "loss = " in text:
            loss = namespace.pop("loss")
            assert loss.requires_grad
            assert torch.isfinite(loss)
    assert ran >= 11


def test_every_loss_is_named() -> None:
    for name in {*functional.__all__, *losses.__all__} - ELSEWHERE:
        assert re.search(rf"\b{name}\b", PAGE), name


def test_the_first_table_has_every_loss_as_a_class_and_as_a_function() -> None:
    lines = PAGE.split("| you have |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [line.split(" | ") for line in lines]
    named = set(re.findall(r"\w+", " ".join(f"{row[1]} {row[2]}" for row in cells)))
    assert {*functional.__all__, *losses.__all__} - ELSEWHERE <= named
