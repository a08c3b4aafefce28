"""A new kind of data needs a source, a recipe and an executor, and no edit of the loader."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_tokens import LENGTH, LICENSE, SPEC, TextExecutor, TextSource, register, rows, smudged
from torch import Tensor

from sslfast.data import Batch, Loader, Source, make_loader, open_dataset, recipe
from sslfast.data.executors.executor import EXECUTORS, AnyRecipe
from sslfast.eval import extract
from sslfast.methods import registry
from sslfast.methods.base import Method
from sslfast.training import TrainConfig
from sslfast.training.config import ConfigError
from sslfast.training.report import preview


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> TextSource:
    register(monkeypatch)
    opened = open_dataset(SPEC, modality="tokens")
    assert isinstance(opened, TextSource)
    return opened


@pytest.fixture
def loader(source: TextSource) -> Iterator[Any]:
    """Makes loaders of batches of 8 and closes them."""
    made: list[Loader] = []

    def make(given: TextSource = source, **options: Any) -> Loader:
        chosen = options.pop("recipe", None) or recipe("noisy_text")
        made.append(make_loader(given, chosen, **({"batch_size": 8, "threads": 2} | options)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_it_keeps_the_contracts(source: TextSource) -> None:
    assert isinstance(source, Source)
    assert isinstance(recipe("noisy_text"), AnyRecipe)
    text = LICENSE.read_bytes()
    assert len(source) == len(text) * 9 // 10 // LENGTH
    assert source.read(3) == text[3 * LENGTH : 4 * LENGTH]


def test_batches_hold_the_text(loader: Any, source: TextSource) -> None:
    batches = list(loader())
    assert len(batches) == len(source) // 8
    noisy = total = 0
    for batch in batches:
        assert batch.labels is None
        assert batch.views.clean.shape == batch.views.noisy.shape == (8, LENGTH)
        for tokens, i in zip(batch.views.clean.tolist(), batch.sample_ids.tolist(), strict=True):
            assert bytes(tokens) == source.read(i)
        noisy += int((batch.views.clean != batch.views.noisy).sum())
        total += batch.views.clean.numel()
    assert 0.08 < noisy / total < 0.12
    ids = torch.cat([batch.sample_ids for batch in batches]).tolist()
    assert len(set(ids)) == len(ids)


def test_a_resumed_loader_goes_on_exactly(loader: Any) -> None:
    whole = loader(prefetch=3)
    expected = rows([*whole, *whole])
    first = loader(threads=1)
    steps = iter(first)
    for _ in range(5):
        next(steps)
    resumed = loader(prefetch=1)
    resumed.load_state_dict(first.state_dict())
    assert rows([*resumed, *resumed]) == expected[5:]
    assert rows(list(loader(seed=1))) != expected[: len(whole)]


def test_two_ranks_share_every_batch(loader: Any) -> None:
    alone = list(loader())
    ranks = [list(loader(batch_size=4, rank=rank, world_size=2)) for rank in range(2)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert not set(parts[0].sample_ids.tolist()) & set(parts[1].sample_ids.tolist())
        assert rows([whole]) == rows([Batch.join(parts)])


def test_a_file_that_has_gone_is_a_bad_sample(
    loader: Any, source: TextSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = TextSource.read

    def gone(self: TextSource, i: int) -> bytes:
        if i == 7:
            raise FileNotFoundError("it has gone")
        return read(self, i)

    monkeypatch.setattr(TextSource, "read", gone)
    one = loader()
    assert 7 not in [i for batch in one for i in batch.sample_ids.tolist()]
    assert one.skipped == [(f"{SPEC}, piece 7", "it has gone")]


def test_bad_samples_are_left_out(
    loader: Any, source: TextSource, caplog: pytest.LogCaptureFixture
) -> None:
    # Two bad samples, at once found and replaced; every other sample has its place and its draws.
    good = list(loader())
    bad = good[2].sample_ids[1].item(), good[9].sample_ids[5].item()
    one = loader(smudged(source, *bad))
    with caplog.at_level(logging.WARNING):
        batches = list(one)
    assert one.skipped == [(f"{SPEC}, piece {i}", "smudged") for i in bad]
    assert f"skipping unreadable tokens {SPEC}, piece {bad[0]}: smudged" in caplog.text
    for before, after in zip(good, batches, strict=True):
        kept = torch.tensor([i not in bad for i in before.sample_ids.tolist()])
        assert torch.equal(before.sample_ids[kept], after.sample_ids[kept])
        assert torch.equal(before.views.noisy[kept], after.views.noisy[kept])
        assert not set(bad) & set(after.sample_ids.tolist())
    with pytest.raises(ValueError, match=rf"unreadable tokens: .*piece {bad[0]} \(smudged\)"):
        list(loader(smudged(source, *bad), on_bad_image="raise"))
    # In evaluation they are left out, and nothing is put in their place.
    ids = [i for b in loader(smudged(source, 3, 40), train=False) for i in b.sample_ids.tolist()]
    assert ids == [i for i in range(len(source)) if i not in (3, 40)]


def test_the_recipe_is_changed_by_its_own_fields(loader: Any) -> None:
    (batch,) = list(loader(recipe=recipe("noisy_text", noise=0.0)))[:1]
    assert torch.equal(batch.views.clean, batch.views.noisy)
    with pytest.raises(ValueError, match=r"TextRecipe has no field 'noize'.*Did you mean 'noise'"):
        recipe("noisy_text", noize=0.0)
    with pytest.raises(ValueError, match="no field 'size'"):
        recipe("noisy_text", size=32)


def test_what_does_not_fit_is_explained(source: TextSource, loader: Any) -> None:
    with pytest.raises(ValueError, match=r"makes views of images, and text:.* opened as tokens"):
        loader(recipe=recipe("simclr"))
    with pytest.raises(ValueError, match=r"no source of modality 'tokens' goes by the name 'x\.tx"):
        open_dataset("x.txt", modality="tokens")
    with pytest.raises(ValueError, match=r"the data set has 159 samples, fewer than one global"):
        loader(batch_size=160)
    state = loader().state_dict()
    other = TextSource("text:other", bytes(reversed(source.text)))
    with pytest.raises(ValueError, match="cannot resume the data order: files was"):
        loader(other).load_state_dict(state)
    del EXECUTORS.found["tokens"]
    with pytest.raises(ValueError, match="unknown modality 'tokens'; known:"):
        loader()
    EXECUTORS.add("tokens", TextExecutor)  # for monkeypatch to take away


def test_features_of_any_source(loader: Any) -> None:
    class Counts(torch.nn.Module):
        """How often each byte occurs."""

        def forward(self, view: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(view, 256).float().sum(1)

    batches = (replace(batch, views=batch.views.clean) for batch in loader(train=False))
    features = extract(Counts(), batches)
    assert features.features.shape == (159, 256)
    assert features.labels is None


def test_pictures_are_of_images_and_videos(
    source: TextSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class TextMethod(Method):
        recipe = "noisy_text"
        modalities = ("tokens",)

    monkeypatch.setitem(registry._METHODS, "text_method", TextMethod)
    config = TrainConfig(method="text_method", data=SPEC, out=str(tmp_path), steps=1)
    with pytest.raises(ConfigError, match=r"pictures are .* 'noisy_text' makes views of tokens"):
        preview(config, tmp_path / "views.png")
