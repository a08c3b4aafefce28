"""Samplers: the same bits anywhere, and every promise of their docstrings."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import sslfast
from sslfast import masking
from sslfast.data.views.draws import STREAM_VIEWS
from sslfast.kernels import registry
from sslfast.masking import (
    _common,
    block_mask,
    blocks,
    image_ratio_mask,
    multiblock_mask,
    random_mask,
    span_mask,
    token_mask,
    tube_mask,
)

Sampler = Callable[..., Any]


def tokens_of(sample_ids: Tensor) -> Tensor:
    """A text that depends on the sample alone, with some padding (0)."""
    text = (sample_ids[:, None] * 7919 + torch.arange(40) * 104729) % 997
    return torch.where(text % 9 == 0, 0, text)


SAMPLERS: dict[str, Sampler] = {
    "random": lambda ids, **keys: random_mask(len(ids), 50, 0.6, sample_ids=ids, **keys),
    "tube": lambda ids, **keys: tube_mask(len(ids), 3, 20, sample_ids=ids, **keys),
    "block": lambda ids, **keys: block_mask(len(ids), (9, 11), 40, sample_ids=ids, **keys),
    "ratio": lambda ids, **keys: [image_ratio_mask(len(ids), (9, 11), sample_ids=ids, **keys)],
    "ratio_scattered": lambda ids, **keys: [
        image_ratio_mask(len(ids), (9, 11), blocks=False, sample_ids=ids, **keys)
    ],
    "multiblock": lambda ids, **keys: multiblock_mask(len(ids), (14, 14), sample_ids=ids, **keys),
    "span": lambda ids, **keys: [
        span_mask(len(ids), 120, lengths=30 + ids % 91, sample_ids=ids, **keys)
    ],
    "token": lambda ids, **keys: token_mask(
        tokens_of(ids), 1000, 3, special_ids=(0, 1, 2), sample_ids=ids, **keys
    ),
}
IDS = torch.tensor([5, 17, 2**40 + 3, 8, 900, 61, 3])


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", SAMPLERS)
def test_bits_do_not_depend_on_batch_rank_or_backend(name: str) -> None:
    sampler = SAMPLERS[name]
    whole = sampler(IDS, seed=3, step=9, stream=2)
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    mixed = sampler(IDS[order], seed=3, step=9, stream=2)
    assert same(mixed, [part[order] for part in whole])
    for rank in range(2):  # two ranks see every other sample
        part = sampler(IDS[rank::2], seed=3, step=9, stream=2)
        assert same(part, [t[rank::2] for t in whole])
    for backend in ("reference", "tiled", "cpu"):
        if backend == "cpu" and registry.backends()["patch_mask"]["cpu"]:
            continue
        with sslfast.use_backend(backend):
            assert same(sampler(IDS, seed=3, step=9, stream=2), whole)
    assert same(sampler(IDS, seed=3, step=torch.tensor(9), stream=2), whole)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert same(sampler(IDS, seed=3, step=9, stream=2), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", SAMPLERS)
def test_ids_and_steps_count_modulo_32_bits_and_seeds_modulo_64(name: str) -> None:
    draw, ids = SAMPLERS[name], torch.tensor([3, 3 + 2**32])
    if name == "token":  # the others' lengths and texts follow from the ids
        found = token_mask(torch.full((2, 40), 8), 1000, 3, seed=0, sample_ids=ids)
    else:
        found = [span_mask(2, 99, seed=0, sample_ids=ids)] if name == "span" else draw(ids, seed=0)
    assert all(torch.equal(part[0], part[1]) for part in found)
    once = draw(ids, seed=7, step=5)
    for step in (5 + 2**32, 5 - 2**32, 5 + 2**64, 5 - 2**70, np.int64(5)):
        assert same(draw(ids, seed=7, step=step), once)
    for seed in (7 + 2**64, 7 - 2**64, np.int32(7)):
        assert same(draw(ids, seed=seed, step=5), once)


@pytest.mark.parametrize("name", SAMPLERS)
def test_seed_step_sample_and_stream_all_matter(name: str) -> None:
    sampler = SAMPLERS[name]
    whole = sampler(IDS, seed=3, step=9, stream=2)
    for other in ({"seed": 4}, {"step": 10}, {"stream": 3}):
        changed = sampler(IDS, **{"seed": 3, "step": 9, "stream": 2, **other})
        shapes = [a.shape for a in changed] == [b.shape for b in whole]
        assert not shapes or not same(changed, whole)


def test_one_patch_or_token() -> None:
    assert not image_ratio_mask(3, (1, 1), seed=0).any()
    assert span_mask(2, 1, 1.0, 1, seed=0).all()
    text = token_mask(torch.tensor([[7], [1]]), 30, 3, special_ids=(1,), seed=0)
    assert text.mask.tolist() == [[True], [False]]
    assert token_mask(torch.zeros(2, 0).long(), 30, 3, seed=0).mask.shape == (2, 0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_empty_batch_gives_empty_masks(name: str) -> None:
    for part in SAMPLERS[name](IDS[:0], seed=3):
        assert part.shape[0] == 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_number_is_read_off_the_device(name: str) -> None:
    """Tensors without values are enough: nothing waits for a GPU."""
    real = SAMPLERS[name](IDS, seed=3, step=9)  # tables that are uploaded once are there, too
    env = ShapeEnv(allow_scalar_outputs=False)
    with FakeTensorMode(shape_env=env, allow_non_fake_inputs=True) as mode:
        fake = SAMPLERS[name](mode.from_tensor(IDS), seed=3, step=9)
    for a, b in zip(real, fake, strict=True):
        assert (a.dtype, a.dim(), len(a)) == (b.dtype, b.dim(), len(b))


def test_samplers_and_streams_share_no_bits() -> None:
    keys: dict[str, Any] = {"seed": 0, "step": 0, "sample_ids": None, "device": None}
    samplers = range(_common.IMAGE_RATIO + 1)
    streams = [
        _common.source(sampler, 1, stream=stream, **keys).stream
        for sampler in samplers
        for stream in (0, 1, _common.STREAMS - 1)
    ]
    views = range(STREAM_VIEWS, STREAM_VIEWS + 1000)  # of the augmentations
    assert len({*streams, *views}) == len(streams) + len(views)
    assert max(streams) < 2**32


def check_indices(kept: masking.PatchMask, keep: int) -> None:
    """What every PatchMask promises."""
    batch, length = kept.mask.shape
    assert kept.ids_keep.shape == (batch, keep)
    assert (kept.mask.sum(1) == length - keep).all()
    every = torch.arange(length).expand(batch, length)
    assert torch.equal(every[~kept.mask].view(batch, keep), kept.ids_keep)
    order = torch.cat((kept.ids_keep, every[kept.mask].view(batch, length - keep)), 1)
    assert torch.equal(order.gather(1, kept.ids_restore), every)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_random_mask(data: st.DataObject) -> None:
    length = data.draw(st.integers(2, 300))
    ratio = data.draw(st.floats(0.01, 0.99))
    keep = int(length * (1 - ratio))
    if 0 < keep < length:
        seed = data.draw(st.integers())
        kept = random_mask(3, length, ratio, seed=seed)
        check_indices(kept, keep)
        assert same(random_mask(3, length, num_masked=length - keep, seed=seed), kept)
    else:
        with pytest.raises(ValueError, match=r"mask_ratio=.*choose"):
            random_mask(3, length, ratio, seed=0)


def test_tube_mask() -> None:
    kept = tube_mask(5, 8, 196, seed=1)
    check_indices(kept, 160)
    frames = kept.mask.view(5, 8, 196)
    assert (frames == frames[:, :1]).all()
    assert (frames[0, 0] != frames[1, 0]).any()


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_block_mask_hides_the_number_asked_for(data: st.DataObject) -> None:
    grid = data.draw(st.integers(1, 16)), data.draw(st.integers(2, 16))
    length = grid[0] * grid[1]
    hidden = data.draw(st.integers(1, length - 1))
    least = data.draw(st.integers(1, 20))
    kept = block_mask(4, grid, hidden, min_patches=least, seed=data.draw(st.integers(0, 99)))
    check_indices(kept, length - hidden)


def edges(mask: Tensor) -> Tensor:
    """Neighbours of which one is hidden, a sample: [B, H, W] -> [B]."""
    across, down = mask[:, :, 1:] != mask[:, :, :-1], mask[:, 1:] != mask[:, :-1]
    return across.sum((1, 2)) + down.sum((1, 2))


def test_block_mask_makes_blocks() -> None:
    blocked = block_mask(200, (14, 14), 75, seed=1).mask.view(-1, 14, 14)
    scattered = random_mask(200, 196, 75 / 196, seed=1).mask.view(-1, 14, 14)
    assert edges(blocked).float().mean() < 0.35 * edges(scattered).float().mean()
    # Aspects of 0.3 to 1 / 0.3: neither direction is preferred.
    flipped = edges(blocked.transpose(1, 2))
    assert torch.equal(flipped, edges(blocked))
    across = (blocked[:, :, 1:] != blocked[:, :, :-1]).sum().item()
    down = (blocked[:, 1:] != blocked[:, :-1]).sum().item()
    assert abs(across - down) < 0.06 * (across + down)


def test_what_blocks_leave_missing_grows_out_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "ROUNDS", 1)
    hidden = block_mask(500, (14, 14), 30, seed=1).mask.view(-1, 14, 14)
    wide = torch.nn.functional.pad(hidden, (1, 1, 1, 1))
    beside = wide[:, 2:, 1:-1] | wide[:, :-2, 1:-1] | wide[:, 1:-1, 2:] | wide[:, 1:-1, :-2]
    assert (hidden & ~beside).sum() < 0.05 * hidden.sum()


def test_image_ratio_mask() -> None:
    for in_blocks in (False, True):
        hidden = image_ratio_mask(2000, (14, 14), blocks=in_blocks, seed=5).sum(1)
        some = hidden[hidden > 0]
        assert abs(len(some) / 2000 - 0.5) < 0.04
        assert some.min() >= int(0.1 * 196)
        assert some.max() <= 98
        assert abs(some.float().mean() - 0.3 * 196) < 2
    assert image_ratio_mask(9, (4, 4), (1.0, 1.0), probability=1, seed=1).all()
    assert not image_ratio_mask(9, (4, 4), probability=0, seed=1).any()


def test_span_mask() -> None:
    lengths = torch.tensor([100, 60, 10, 9, 0])
    mask = span_mask(5, 100, 0.1, 10, lengths=lengths, seed=2)
    assert not (mask & (torch.arange(100) >= lengths[:, None])).any()
    assert not mask[3:].any()  # shorter than a span
    for row in mask:
        runs = "".join("x" if m else " " for m in row.tolist()).split()
        assert all(len(run) >= 10 for run in runs)
    starts = [span_mask(4000, 50, 0.05, 50, seed=3).any(1).float().mean().item()]
    assert starts == [1.0]  # floor(2.5 + u) is 2 or 3, and one place fits
    share = span_mask(4000, 20, 0.02, 1, min_spans=0, seed=3).sum(1).float().mean().item()
    assert abs(share - 0.4) < 0.03  # floor(0.4 + u): probabilistic rounding
    # At least two spans, where there are places for them.
    fewest = span_mask(3, 20, 0.02, 1, lengths=torch.tensor([20, 1, 0]), seed=3).sum(1)
    assert fewest.tolist() == [2, 1, 0]
    assert 0.48 < span_mask(50, 1500, seed=4).float().mean() < 0.51  # about 49 %, the paper says


def test_spans_of_the_same_number_in_every_sample() -> None:
    """fairseq's require_same_masks: some of the longer ones' steps are shown."""
    lengths = torch.tensor([300, 200, 9, 120])
    draw = lambda **keys: span_mask(4, 300, lengths=lengths, seed=2, **keys)  # noqa: E731
    apart, alike = draw(), draw(same_number=True)
    assert not (alike & ~apart).any()
    fewest = apart.sum(1)[[0, 1, 3]].min()
    assert alike.sum(1).tolist() == [fewest, fewest, 0, fewest]
    shown = (apart & ~alike)[0].nonzero().flatten()  # not the last or the first of them
    hidden = apart[0].nonzero().flatten()
    assert abs(shown.double().mean() - hidden.double().mean()) < 60
    for backend in ("reference", "tiled"):
        with sslfast.use_backend(backend):
            assert torch.equal(draw(same_number=True), alike)
    assert span_mask(0, 30, same_number=True, seed=0).shape == (0, 30)


@pytest.mark.parametrize("ratio", [0.15, 0.5, 0.7])
def test_tokens_are_counted_as_bert_does(ratio: float) -> None:
    """round(n * ratio), halves to even: 2 of 10 at 15 %."""
    length = 100
    special = torch.arange(length) >= torch.arange(1, length + 1)[:, None]
    tokens = torch.full((length, length), 9)
    found = token_mask(tokens, 50, 3, ratio, special=special, seed=1).mask.sum(1)
    assert found.tolist() == [max(round(n * ratio), 1) for n in range(1, length + 1)]


def test_blocks_of_ibot_are_a_third_of_the_grid_and_more() -> None:
    """The published ``low = (min(H, W) // 3) ** 2``: 16 of 14 x 14, 4 of 7 x 9, 1 of 2 x 2."""
    for grid, least in (((14, 14), 16), ((7, 9), 4), ((2, 2), 1)):
        given = image_ratio_mask(64, grid, min_patches=least, seed=3)
        assert torch.equal(image_ratio_mask(64, grid, seed=3), given)


def test_a_share_that_is_a_whole_number_of_patches_is_that_number() -> None:
    for ratio, length, number in ((0.2, 5, 1), (0.1, 10, 1), (0.3, 10, 3), (0.6, 100, 60)):
        for in_blocks in (False, True):
            hidden = image_ratio_mask(
                2, (1, length), (ratio, ratio), probability=1, blocks=in_blocks, seed=0
            )
            assert hidden.sum(1).tolist() == [number, number]


def test_sizes_of_blocks_are_rounded_square_roots() -> None:
    table = blocks._table(20, 0.3, torch.device("cpu"))
    area = torch.arange(500)
    aspects = [0.3 ** (1 - 2 * (j + 0.5) / blocks.ASPECTS) for j in (0, 37, 128, 255)]
    for j, aspect in zip((0, 37, 128, 255), aspects, strict=True):
        for axis, factor in enumerate((aspect, 1 / aspect)):
            expected = (area.double() * factor).sqrt().round().clamp(max=21).long()
            assert torch.equal((area[:, None] >= table[j, axis]).sum(1), expected)


def test_a_large_grid_has_a_small_table() -> None:
    kept = block_mask(2, (96, 128), 5000, seed=1)
    check_indices(kept, 96 * 128 - 5000)
    assert blocks._table(128, 0.3, torch.device("cpu")).numel() == 2 * blocks.ASPECTS * 129


def test_token_mask() -> None:
    tokens = torch.randint(5, 50, (600, 101))
    tokens[:, 0], tokens[:, 90:] = 1, 0
    tokens[7] = 0
    special = torch.zeros_like(tokens, dtype=torch.bool)
    special[:, 50:60] = True
    got = token_mask(tokens, 50, 3, special_ids=(0, 1, 2), special=special, seed=1)
    never = (tokens < 3) | special
    assert not (got.mask & never).any()
    candidates = (~never).sum(1)
    assert torch.equal(got.mask.sum(1), (candidates * 0.15).round().long())
    assert not got.mask[7].any()
    assert torch.equal(got.labels, torch.where(got.mask, tokens, -100))
    assert torch.equal(got.tokens[~got.mask], tokens[~got.mask])
    chosen, original = got.tokens[got.mask], tokens[got.mask]
    masked, stays = (chosen == 3).float().mean(), (chosen == original).float().mean()
    assert abs(masked - 0.8) < 0.02
    assert abs(stays - (0.1 + 0.1 / 46)) < 0.015
    others = chosen[(chosen != 3) & (chosen != original)]
    assert set(others.tolist()) == set(range(4, 50))  # no special token is drawn
    one = token_mask(torch.full((3, 2), 9), 50, 3, seed=1)
    assert (one.mask.sum(1) == 1).all()  # at least one


GRID = (14, 14)
BAD = [
    (lambda: random_mask(2, 196, 1.0, seed=0), "leaves no patch of 196 visible"),
    (lambda: random_mask(2, 196, 0.0, seed=0), "leaves every patch of 196 visible"),
    (lambda: random_mask(2, 1, 0.75, seed=0), "leaves no patch of 1 visible"),
    (lambda: random_mask(2, 0, 0.75, seed=0), "num_patches must be at least 1"),
    (lambda: random_mask(-1, 9, seed=0), "batch must be at least 0"),
    (lambda: random_mask(2, 9, seed=0, stream=-1), "stream must be at least 0"),
    (lambda: random_mask(2, 9, seed=0, sample_ids=torch.arange(3)), r"shape \[2\]"),
    (lambda: random_mask(2, 9, seed=0, step=torch.zeros(2).long()), "step must be one integer"),
    (lambda: random_mask(2, 10, 0.9, seed=0), r"int\(0.9999.*rounded down.*such as 0.85"),
    (
        lambda: random_mask(2, 9, float("nan"), seed=0),
        "mask_ratio must be a finite number, got nan",
    ),
    (
        lambda: tube_mask(2, 2, 9, float("nan"), seed=0),
        "mask_ratio must be a finite number, got nan",
    ),
    (lambda: random_mask(2, 9, num_masked=9, seed=0), "num_masked=9 leaves no patch of 9"),
    (lambda: random_mask(2, 9, num_masked=0, seed=0), "num_masked must be at least 1"),
    (lambda: span_mask(2, 90, min_spans=-1, seed=0), "min_spans must not be negative"),
    (lambda: tube_mask(2, 3, 1, seed=0), "leaves every patch of 1 visible"),
    (lambda: block_mask(2, (1, 1), 1, seed=0), "num_masked=1 of 1"),
    (lambda: tube_mask(2, 0, 9, seed=0), "frames must be at least 1"),
    (lambda: tube_mask(2, 3, 9, 0.05, seed=0), "leaves every patch of 9 visible"),
    (lambda: block_mask(2, (0, 4), seed=0), "grid must be"),
    (lambda: block_mask(2, (5, 5), 25, seed=0), "num_masked=25 of 25"),
    (lambda: block_mask(2, GRID, 0, seed=0), "num_masked=0 of 196"),
    (lambda: block_mask(2, GRID, min_aspect=2, seed=0), "min_aspect"),
    (lambda: block_mask(2, GRID, min_patches=0, seed=0), "min_patches"),
    (lambda: image_ratio_mask(2, GRID, (0.5, 0.2), seed=0), "ratios must be"),
    (lambda: image_ratio_mask(2, GRID, probability=2, seed=0), "probability"),
    (lambda: multiblock_mask(2, GRID, targets=0, seed=0), "targets must be at least 1"),
    (lambda: multiblock_mask(2, GRID, target_scale=(0.3, 0.2), seed=0), "target_scale"),
    (lambda: multiblock_mask(2, (1, 1), seed=0), "can cover the whole context"),
    (lambda: multiblock_mask(2, (3, 3), compat=True, seed=0), "min_keep=10"),
    (lambda: span_mask(2, 9, seed=0), "holds no span of 10"),
    (lambda: span_mask(2, 90, 0.65, seed=0, span=0), "holds no span of 0"),
    (lambda: span_mask(2, 90, 0.0, seed=0), "start_prob"),
    (lambda: span_mask(2, 90, lengths=torch.arange(3), seed=0), r"lengths must have shape \[2\]"),
    (lambda: token_mask(torch.zeros(2, 3).long(), 9, 9, seed=0), "vocabulary of 9"),
    (lambda: token_mask(torch.zeros(2, 3).long(), 1, 0, seed=0), "vocabulary are special"),
    (lambda: token_mask(torch.zeros(2, 3).long(), 9, 1, 0.0, seed=0), "mask_ratio"),
    (lambda: token_mask(torch.zeros(2, 3).long(), 9, 1, replace=(0.8, 0.3), seed=0), "replace"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("wrong", [1.7, 1.0, "1", None])
@pytest.mark.parametrize("name", SAMPLERS)
def test_seed_and_step_are_integers(name: str, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"step must be an integer or a torch\.Tensor, got"):
        SAMPLERS[name](IDS, seed=0, step=wrong)
    with pytest.raises(TypeError, match="seed must be an integer, got"):
        SAMPLERS[name](IDS, seed=wrong)


def test_tokens_outside_the_vocabulary_are_ordinary() -> None:
    kept = token_mask(torch.full((1, 8), -100), 9, 1, 1.0, seed=0)
    assert bool(kept.mask.all())


def test_a_sequence_shorter_than_a_span_stays_whole() -> None:
    assert not span_mask(3, 20, 1.0, lengths=torch.tensor([0, 5, 9]), seed=0).any()


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match=r"step must be an integer, got a tensor of torch\.float32"):
        random_mask(2, 9, seed=0, step=torch.tensor(0.5))
    with pytest.raises(TypeError, match="sample_ids must be int64"):
        random_mask(2, 9, seed=0, sample_ids=torch.arange(2).int())
    with pytest.raises(TypeError, match="tokens must be int64"):
        token_mask(torch.zeros(2, 3), 9, 1, seed=0)
    with pytest.raises(TypeError, match="special must be bool"):
        token_mask(torch.zeros(2, 3).long(), 9, 1, special=torch.zeros(2, 3), seed=0)
    with pytest.raises(TypeError, match="lengths must be int64"):
        span_mask(2, 90, lengths=torch.zeros(2), seed=0)


def test_a_mask_of_your_own() -> None:
    """It comes back as that of the sampler; what is no mask is refused by name."""
    drawn = masking.random_mask(5, 12, 0.5, seed=3)
    for ours, theirs in zip(masking.as_patch_mask(drawn.mask, 6), drawn, strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(TypeError, match=r"mask must be bool \(true = hidden\), got torch.int64"):
        masking.as_patch_mask(drawn.mask.long(), 6)
    with pytest.raises(ValueError, match=r"shape \[B, L\], got \[12\]"):
        masking.as_patch_mask(drawn.mask[0], 6)
    with pytest.raises(ValueError, match="cannot keep 13 of 12 patches"):
        masking.as_patch_mask(drawn.mask, 13)
