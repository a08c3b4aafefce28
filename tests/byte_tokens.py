"""A modality of its own in one file: text as byte tokens, with its source, recipe and executor.

Nothing of sslfast knows it; ``register`` makes it known for a test.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor

from sslfast.data.executors.executor import EXECUTORS, BadSampleError, Planned
from sslfast.data.executors.threads import ThreadedExecutor
from sslfast.data.sources.manifest import Manifest
from sslfast.data.sources.source import OPENERS, Opener, Request
from sslfast.data.views.recipes import RECIPES
from sslfast.kernels.philox.reference import random_bits

LENGTH = 64  # of a sequence
STREAM_NOISE = 0x7E570000
LICENSE = Path(__file__).resolve().parents[1] / "LICENSE"  # English, 177 sequences of it
SPEC = f"text:{LICENSE}"


@dataclass(frozen=True)
class TextSource:
    """Consecutive pieces of a text, as bytes; those in ``bad`` cannot be read."""

    modality: ClassVar[str] = "tokens"

    given: str
    text: bytes
    bad: frozenset[int] = frozenset()
    classes: list[str] | None = None

    @property
    def manifest(self) -> Manifest:
        contents = hashlib.sha256(self.text).hexdigest()
        return Manifest(self.given, None, ["text"], [len(self.text)], contents)

    def __len__(self) -> int:
        return len(self.text) // LENGTH

    def read(self, i: int) -> bytes:
        if i in self.bad:
            raise BadSampleError("smudged")
        return self.text[i * LENGTH : (i + 1) * LENGTH]

    def label(self, i: int) -> int | None:
        return None

    def sample_name(self, i: int) -> str:
        return f"{self.given}, piece {i}"


class TextOpener(Opener):
    """text:PATH, of which all but the last tenth is for training."""

    def modalities(self) -> list[str]:
        return ["tokens"]

    def claims(self, spec: str) -> bool:
        return spec.startswith("text:")

    def open(self, request: Request) -> TextSource:
        text = Path(request.spec.removeprefix("text:")).read_bytes()
        cut = len(text) * 9 // 10
        return TextSource(request.spec, text[:cut] if request.split == "train" else text[cut:])

    def has_split(self, spec: str, split: str, modality: str) -> bool:
        return True


@dataclass(frozen=True)
class TextRecipe:
    """One view: tokens, and the same with a part of them replaced by random ones."""

    modality: ClassVar[str] = "tokens"

    name: str
    noise: float = 0.1

    @property
    def view_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((LENGTH,), (LENGTH,))


class Tokens(NamedTuple):
    """Tokens int64 [B, LENGTH] in [0, 256)."""

    clean: Tensor
    noisy: Tensor


class TextExecutor(ThreadedExecutor):
    """Bytes -> Tokens."""

    def prepare(self, batch: Planned) -> Tensor:
        epoch, seed = torch.tensor(batch.epoch), self.options.seed
        return random_bits(batch.places, epoch, seed, STREAM_NOISE, LENGTH)

    def make(self, sample: int, place: int, epoch: int, extra: Tensor) -> Tokens:
        clean = torch.tensor(list(self.source.read(sample)))
        noisy = extra >= (1 - self.recipe.noise) * 2**32
        return Tokens(clean, torch.where(noisy, extra & 0xFF, clean))


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the modality known, as files in sslfast/data would, until the test is over."""
    monkeypatch.setitem(OPENERS.found, "text", TextOpener())
    monkeypatch.setitem(RECIPES.found, "noisy_text", TextRecipe("noisy_text"))
    monkeypatch.setitem(EXECUTORS.found, "tokens", TextExecutor)


def smudged(source: TextSource, *bad: int) -> TextSource:
    """The source with samples that cannot be read."""
    return replace(source, bad=frozenset(bad))


def rows(batches: list[Any]) -> list[Any]:
    """What is in some batches, as plain lists."""
    return [
        (b.sample_ids.tolist(), b.views.clean.tolist(), b.views.noisy.tolist()) for b in batches
    ]
