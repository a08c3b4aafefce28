"""Several positives a row, false negatives left out, hard negatives: against plain formulas."""

from collections.abc import Callable
from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from test_distributed import Towers
from torch import Tensor

import peers
import rounding
import sslfast
from sslfast.functional import clip, info_nce, ntxent, supcon
from sslfast.losses import ClipLoss, InfoNCE, NTXentLoss, SupConLoss

INFINITY = float("inf")
GROUPS = torch.tensor([4, 0, 4, 9, -3, 0, 4, 7])
IGNORED = torch.tensor([1, 2, -1, 1, -1, 2, 1, 3])


def unit(n: int, *rest: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(n, *(rest or (6,)), dtype=dtype), dim=1).requires_grad_()


def plain(
    logits: Tensor,
    cosines: Tensor,
    positive: Tensor,
    out: Tensor,
    positives: str,
    threshold: float | None,
) -> Tensor:
    """Losses of rows, written down: every positive's own softmax, or that of their sum."""
    if threshold is not None:
        out = out | (cosines > threshold)
    negative = ~(positive | out)
    candidates = logits.masked_fill(~(positive | negative), -INFINITY)
    log_p = logits - candidates.logsumexp(1, keepdim=True)
    if positives == "inside":
        return -log_p.masked_fill(~positive, -INFINITY).logsumexp(1)
    return -(log_p * positive).sum(1) / positive.sum(1)


def same_ids(rows: Tensor | None, columns: Tensor | None, shape: tuple[int, int]) -> Tensor:
    if rows is None:
        return torch.zeros(shape, dtype=torch.bool)
    return (rows[:, None] == columns) & (rows[:, None] >= 0)


def plain_clip(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    *,
    group_ids: Tensor | None = None,
    ignore_ids: Tensor | None = None,
    positives: str = "outside",
    false_negative_threshold: float | None = None,
    negatives: Tensor | None = None,
    direction: str = "both",
) -> Tensor:
    n = len(image)
    ids = torch.arange(n) if group_ids is None else group_ids
    found = []
    for x, y, extra in ((image, text, negatives), (text, image, None)):
        cosines = x @ (y if extra is None else torch.cat((y, extra))).T
        wide = 0 if extra is None else len(extra)
        positive = F.pad(ids[:, None] == ids, (0, wide))
        out = F.pad(same_ids(ignore_ids, ignore_ids, (n, n)), (0, wide)) & ~positive
        options = positives, false_negative_threshold
        found.append(plain(scale * cosines, cosines, positive, out, *options))
    of_images, of_texts = found
    one = {"image_to_text": of_images, "text_to_image": of_texts}
    return one.get(direction, (of_images + of_texts) / 2)


def plain_ntxent(
    out0: Tensor,
    out1: Tensor,
    temperature: float,
    *,
    group_ids: Tensor | None = None,
    ignore_ids: Tensor | None = None,
    positives: str = "outside",
    false_negative_threshold: float | None = None,
) -> Tensor:
    z = F.normalize(torch.cat((out0, out1)), dim=1)
    ids = (torch.arange(len(out0)) if group_ids is None else group_ids).repeat(2)
    itself = torch.eye(len(z), dtype=torch.bool)
    ignored = None if ignore_ids is None else ignore_ids.repeat(2)
    positive = (ids[:, None] == ids) & ~itself
    out = (same_ids(ignored, ignored, itself.shape) & ~positive) | itself
    cosines = z @ z.T
    return plain(cosines / temperature, cosines, positive, out, positives, false_negative_threshold)


OPTIONS: dict[str, dict[str, Any]] = {
    "outside": {"group_ids": GROUPS},
    "inside": {"group_ids": GROUPS, "positives": "inside"},
    "ids": {"ignore_ids": IGNORED},
    "threshold": {"false_negative_threshold": 0.3},
    "all": {
        "group_ids": GROUPS,
        "ignore_ids": IGNORED,
        "positives": "inside",
        "false_negative_threshold": 0.5,
    },
    "all outside": {
        "group_ids": GROUPS,
        "ignore_ids": IGNORED,
        "false_negative_threshold": 0.5,
    },
    "everything is left out": {"false_negative_threshold": -1.5},
}


def same(ours: Tensor, truth: Tensor, *inputs: Tensor, rtol: float = 1e-7) -> None:
    torch.testing.assert_close(ours, truth.to(ours.dtype), rtol=rtol, atol=rtol)
    weight = torch.linspace(1, 2, truth.numel(), dtype=truth.dtype).reshape(truth.shape)
    found = torch.autograd.grad(ours, inputs, weight.to(ours.dtype))
    for value, other in zip(found, torch.autograd.grad(truth, inputs, weight), strict=True):
        torch.testing.assert_close(value, other, rtol=rtol, atol=10 * rtol)


@pytest.mark.parametrize("backend", ["reference", "tiled", "auto"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("direction", ["both", "image_to_text", "text_to_image"])
def test_clip(name: str, direction: str, backend: str) -> None:
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    image, text, negatives = unit(8), unit(8), unit(5)
    options = OPTIONS[name] | {"direction": direction}
    if direction != "text_to_image":
        options["negatives"] = negatives
    inputs = [image, text, scale] + [negatives] * ("negatives" in options)
    with sslfast.use_backend(backend):
        ours = clip(image, text, scale, reduction="none", **options)
        same(ours, plain_clip(image, text, scale, **options), *inputs)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("normalize", [True, False])
def test_ntxent(name: str, normalize: bool, backend: str) -> None:
    out0, out1 = unit(8), unit(8)
    with sslfast.use_backend(backend):
        ours = ntxent(out0, out1, 0.3, reduction="none", normalize=normalize, **OPTIONS[name])
        truth = plain_ntxent(out0, out1, 0.3, **OPTIONS[name])
        torch.testing.assert_close(ours, truth)
        if normalize:
            same(ours, truth, out0, out1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["tiled", "cpu"])
@pytest.mark.parametrize("name", ["outside", "inside", "ids", "all"])
def test_many_rows_in_few_digits(name: str, backend: str, dtype: torch.dtype) -> None:
    """Ragged tiles, groups across them; errors beside those of plain PyTorch in float64."""
    n = 410
    options: dict[str, Any] = dict(OPTIONS[name])
    for key, count in (("group_ids", 150), ("ignore_ids", 90)):
        if key in options:
            options[key] = torch.randint(count, (n,)) - int(key == "ignore_ids")
    image, text, negatives = (unit(k, 24, dtype=dtype).detach() for k in (n, n, 70))
    if "false_negative_threshold" in options:
        every = torch.cat((image, text, negatives))
        options["false_negative_threshold"] = rounding.between(every, every, 0.5)
    with sslfast.use_backend(backend):
        for plain_loss, ours in (
            (
                lambda x, y: plain_clip(x, y, 20.0, negatives=negatives.double(), **options),
                lambda x, y: clip(x, y, 20.0, negatives=negatives, reduction="none", **options),
            ),
            (
                lambda x, y: plain_ntxent(x, y, 0.1, **options),
                lambda x, y: ntxent(x, y, 0.1, reduction="none", **options),
            ),
        ):
            wide = [x.double().requires_grad_() for x in (image, text)]
            few = [x.clone().requires_grad_() for x in (image, text)]
            truth, found = plain_loss(*wide), ours(*few)
            small = dtype == torch.float32
            near = {"rtol": 1e-5, "atol": 1e-5} if small else {"rtol": 0.05, "atol": 0.1}
            if "false_negative_threshold" in options and not small:
                continue  # rounding moves cosines over the threshold
            torch.testing.assert_close(found.double(), truth, **near)
            expected = torch.autograd.grad(truth.sum(), wide)
            for value, other in zip(torch.autograd.grad(found.sum(), few), expected, strict=True):
                error = (value.double() - other).norm() / other.norm()
                assert error < (1e-5 if small else 0.03)


def test_equals_pytorch_metric_learnings_supcon() -> None:
    theirs = peers.load("pytorch_metric_learning.losses").SupConLoss(temperature=0.2)
    out0, out1 = unit(8), unit(8)
    ours = ntxent(out0, out1, 0.2, group_ids=GROUPS)
    same(ours, theirs(torch.cat((out0, out1)), GROUPS.repeat(2)), out0, out1)
    rows = [F.normalize(x, dim=1) for x in (out0, out1)]
    ours = clip(*rows, 5.0, group_ids=GROUPS, direction="image_to_text")
    same(ours, theirs(out0, GROUPS, ref_emb=out1, ref_labels=GROUPS.clone()), out0, out1)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_info_nce_with_hard_negatives_beside_the_batch(reduction: str) -> None:
    query, key, negatives = (torch.randn(n, 6, dtype=torch.float64) for n in (8, 8, 5))
    inputs = [x.requires_grad_() for x in (query, key, negatives)]
    columns = F.normalize(torch.cat((key, negatives)), dim=1)
    logits = F.normalize(query, dim=1) @ columns.T / 0.2
    truth = F.cross_entropy(logits, torch.arange(8), reduction=reduction)
    same(info_nce(*inputs, 0.2, reduction, in_batch=True), truth, *inputs)
    made = InfoNCE(0.2, reduction, in_batch=True)
    torch.testing.assert_close(made(*inputs), truth)
    torch.testing.assert_close(made(query, key), InfoNCE(0.2, reduction)(query, key))


def test_supcon_is_ntxent_with_groups() -> None:
    out0, out1 = unit(8), unit(8)
    ours = ntxent(out0, out1, 0.2, group_ids=GROUPS)
    same(ours, supcon(torch.cat((out0, out1)), GROUPS.repeat(2), 0.2), out0, out1)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_supcon_inside(reduction: str) -> None:
    """Khosla et al. 2020, equation 3; two rows are alone in their class."""
    features = (3 * torch.randn(9, 6, dtype=torch.float64)).requires_grad_()
    labels = torch.tensor([4, 0, 4, 9, -3, 0, 4, -3, 7])
    z = F.normalize(features, dim=1)
    itself = torch.eye(9, dtype=torch.bool)
    log_p = (z @ z.T / 0.2).masked_fill(itself, -INFINITY).log_softmax(1)
    positive = (labels[:, None] == labels) & ~itself
    some = positive.any(1)
    of_means = (log_p.exp() * positive)[some].sum(1) / positive[some].sum(1)
    truth = torch.zeros(9, dtype=torch.float64).masked_scatter(some, -of_means.log())
    truth = truth if reduction == "none" else truth[some].mean()
    ours = supcon(features, labels, 0.2, reduction=reduction, positives="inside")
    same(ours, truth, features)
    if reduction == "mean":
        made = SupConLoss(0.2, positives="inside")(features, labels)
        torch.testing.assert_close(made, ours)
        alone = supcon(features, torch.arange(9), positives="inside")
        assert alone == 0
        assert not torch.autograd.grad(alone, features)[0].any()


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("hard", [False, True])
def test_info_nce(name: str, hard: bool, backend: str) -> None:
    query, key = ((2 * torch.randn(8, 6, dtype=torch.float64)).requires_grad_() for _ in "qk")
    negatives = (2 * torch.randn(5, 6, dtype=torch.float64)).requires_grad_() if hard else None
    rows = [F.normalize(x, dim=1) for x in (query, key)]
    options = {**OPTIONS[name], "direction": "image_to_text"}
    options["negatives"] = F.normalize(negatives, dim=1) if hard else None
    truth = plain_clip(*rows, 5.0, **options)
    inputs = [query, key, negatives] if hard else [query, key]
    with sslfast.use_backend(backend):
        ours = info_nce(query, key, negatives, 0.2, "none", in_batch=hard, **OPTIONS[name])
        same(ours, truth, *inputs)
        ids = {k: v for k, v in OPTIONS[name].items() if k.endswith("_ids")}
        rest = {k: v for k, v in OPTIONS[name].items() if k not in ids}
        made = InfoNCE(0.2, in_batch=hard, **rest)(query, key, negatives, **ids)
        torch.testing.assert_close(made, truth.mean())
        made = NTXentLoss(0.2, **rest)(query, key, **ids)
        torch.testing.assert_close(made, plain_ntxent(query, key, 0.2, **OPTIONS[name]).mean())


def test_nothing_asked_for_is_the_plain_loss() -> None:
    image, text = unit(9), unit(9)
    alone = torch.arange(9) * 5 - 7
    for options in (
        {"group_ids": alone},
        {"ignore_ids": torch.full((9,), -1)},
        {"false_negative_threshold": 1.5},
        {"positives": "inside", "group_ids": alone},
    ):
        torch.testing.assert_close(clip(image, text, 5.0, **options), clip(image, text, 5.0))
        torch.testing.assert_close(ntxent(image, text, **options), ntxent(image, text))


def test_a_converged_pair_keeps_its_digits() -> None:
    """Loss and gradient far below the resolution of the logits."""
    x = torch.eye(6, 8, requires_grad=True)
    ours = clip(x, x.detach(), 40.0, ignore_ids=torch.full((6,), -1))
    exact = torch.tensor(-40.0, dtype=torch.float64).exp() * 5
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(ours, x)
    torch.testing.assert_close(gradient[0, 0].double(), -40 * exact / 6, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", OPTIONS)
def test_gradcheck(name: str) -> None:
    def two(x: Tensor, y: Tensor, s: Tensor, extra: Tensor) -> Tensor:
        return clip(x, y, s, negatives=extra, reduction="none", **OPTIONS[name])

    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(two, (unit(8), unit(8), scale, unit(3)))
    assert torch.autograd.gradcheck(
        lambda x, y, t: ntxent(x, y, t, reduction="none", **OPTIONS[name]),
        (unit(8), unit(8), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)),
    )


def over_ranks(rank: int, size: int, sizes: list[int]) -> None:
    first = sum(sizes[:rank])
    mine = slice(first, first + sizes[rank])
    generator = torch.Generator().manual_seed(4)
    groups, ignored = (torch.randint(4, (sum(sizes),), generator=generator) for _ in "gi")
    extra = F.normalize(torch.randn(2 * size, 8, generator=generator, dtype=torch.float64), dim=1)
    for direction in ("both", "image_to_text", "text_to_image"):
        for positives in ("outside", "inside"):
            for ids in (None, groups) if positives == "outside" else (groups,):
                towers = Towers(rank, sizes)
                scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
                whole: dict[str, Any] = {"group_ids": ids, "ignore_ids": ignored - 1}
                own = {k: None if v is None else v[mine] for k, v in whole.items()}
                if direction != "text_to_image":
                    whole["negatives"] = extra
                    own["negatives"] = extra[2 * rank : 2 * rank + 2]
                options = {
                    "direction": direction,
                    "positives": positives,
                    "false_negative_threshold": 0.4,
                }
                loss = ClipLoss(rank=rank, world_size=size, **options)(*towers.own, scale, **own)
                truth = plain_clip(*towers.whole, scale, **whole, **options).mean()
                torch.testing.assert_close(loss.detach(), truth.detach())
                towers.compare(loss, truth, size, scale)
    for name, options in (
        ("ids", {}),
        ("groups", {}),
        ("groups", {"positives": "inside"}),
        ("both", {"false_negative_threshold": 0.4}),
    ):
        whole = {} if name == "ids" else {"group_ids": groups}
        whole |= {} if name == "groups" else {"ignore_ids": ignored - 1}
        own_ids = {k: v[mine] for k, v in whole.items()}
        towers = Towers(rank, sizes)
        loss = NTXentLoss(0.2, gather_distributed=True, **options)(*towers.own, **own_ids)
        towers.compare(loss, ntxent(*towers.whole, 0.2, **whole, **options), size)
        towers = Towers(rank, sizes)
        loss = InfoNCE(0.2, process_group=dist.group.WORLD, **options)(*towers.own, **own_ids)
        towers.compare(loss, info_nce(*towers.whole, None, 0.2, **whole, **options), size)
    towers = Towers(rank, sizes)
    ours = SupConLoss(0.2, dist.group.WORLD, positives="inside")(towers.own[0], groups[mine])
    truth = supcon(towers.whole[0], groups, 0.2, positives="inside")
    unused = (ours + 0 * towers.own[1].sum(), truth + 0 * towers.whole[1].sum())
    towers.compare(*unused, size)
    narrow = groups[mine].int() if rank else groups[mine]  # ranks' ids may differ in width
    for positives in ("outside", "inside"):
        loss = SupConLoss(0.2, dist.group.WORLD, positives=positives)
        value = loss(towers.own[0].detach(), narrow)
        torch.testing.assert_close(value, loss(towers.own[0].detach(), groups[mine]))
    paired = InfoNCE(negative_mode="paired", process_group=dist.group.WORLD, in_batch=True)
    with pytest.raises(ValueError, match="in_batch=True takes unpaired negative_keys"):
        paired(*towers.own, towers.own[0][:, None])
    towers = Towers(rank, sizes)
    own = extra[2 * rank : 2 * rank + 2]
    ours = InfoNCE(0.3, process_group=dist.group.WORLD, in_batch=True)(*towers.own, own)
    towers.compare(ours, info_nce(*towers.whole, extra, 0.3, in_batch=True), size)
    loss = InfoNCE(0.3, process_group=dist.group.WORLD, in_batch=True)
    query, key = (x.float() for x in towers.own)
    with torch.autocast("cpu", torch.bfloat16):  # all are cast to its dtype
        mixed = loss(query, key, own.bfloat16())
    torch.testing.assert_close(mixed, loss(query.bfloat16(), key.bfloat16(), own.bfloat16()))


@pytest.mark.parametrize("sizes", [[5, 2], [1, 6, 3]], ids=str)
def test_over_ranks(sizes: list[int]) -> None:
    processes.run(len(sizes), over_ranks, sizes)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, **o: clip(x, x, 1.0, **o),
        lambda x, **o: ntxent(x, x, **o),
        lambda x, **o: info_nce(x, x, **o),
    ],
)
def test_bad_options(loss: Callable[..., Tensor]) -> None:
    x, ids = torch.randn(4, 3), torch.arange(4)
    for options, error, message in (
        ({"positives": "between"}, ValueError, "positives must be 'outside' or 'inside'"),
        ({"group_ids": ids[:3]}, ValueError, r"group_ids must have shape \[4\]"),
        ({"ignore_ids": ids.float()}, TypeError, "ignore_ids must be integers"),
        ({"group_ids": ids.short()}, TypeError, "int64 or int32, got torch.int16"),
        ({"positives": "inside"}, ValueError, "positives='inside' needs group_ids"),
        ({"group_ids": ids, "decoupled": True}, ValueError, "cannot be combined"),
        ({"false_negative_threshold": INFINITY}, ValueError, "must be a finite number or None"),
    ):
        with pytest.raises(error, match=message):
            loss(x, **options)


def test_in_batch_normalises_half_precision_in_float32() -> None:
    query, key, negatives = (torch.randn(n, 64).bfloat16() for n in (16, 16, 8))
    wide = (x.double() for x in (query, key, negatives))
    truth = info_nce(*wide, 0.05, "none", in_batch=True)
    found = info_nce(query, key, negatives, 0.05, "none", in_batch=True)
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5)


def test_settings_are_shown() -> None:
    assert "positives='inside', false_negative_threshold=0.5" in repr(
        ClipLoss(positives="inside", false_negative_threshold=0.5)
    )
    assert "negative_mode='unpaired', in_batch=True" in repr(InfoNCE(in_batch=True))


def test_bad_negatives() -> None:
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="same dimension"):
        clip(x, x, 1.0, negatives=torch.randn(2, 5))
    with pytest.raises(ValueError, match="nothing looks at them"):
        clip(x, x, 1.0, negatives=x, direction="text_to_image")
    with pytest.raises(ValueError, match="takes unpaired negative_keys"):
        info_nce(x, x, x[:, None], 0.1, negative_mode="paired", in_batch=True)
    with pytest.raises(ValueError, match=r"image_features is torch.float32, but negatives is"):
        clip(x, x, 1.0, negatives=x.double())
    with pytest.raises(ValueError, match=r"query is torch.float32, but negative_keys is"):
        info_nce(x, x, x.double(), 0.1, in_batch=True)
    with pytest.raises(ValueError, match="hard negatives cannot be combined with"):
        info_nce(x, x, x, 0.1, debiased=0.1, in_batch=True)
    ids = torch.arange(4)
    for loss in (InfoNCE(), InfoNCE(false_negative_threshold=0.5)):
        given = {} if loss.false_negative_threshold else {"group_ids": ids}
        with pytest.raises(ValueError, match="leave negative_keys out or say in_batch=True"):
            loss(x, x, x, **given)
    bank = NTXentLoss(memory_bank_size=(8, 3))
    for call in (
        lambda: bank(x, x, group_ids=ids),
        lambda: bank(x, x, ignore_ids=ids),
        lambda: NTXentLoss(memory_bank_size=(8, 3), false_negative_threshold=0.5),
        lambda: NTXentLoss(memory_bank_size=(8, 3), positives="inside"),
    ):
        with pytest.raises(ValueError, match="with a memory bank every entry is a negative"):
            call()
    with pytest.raises(ValueError, match=r"logit_bias must be one .*\[4\] of torch.int64: ids"):
        ClipLoss()(x, x, 1.0, ids)
    for options, message in (
        ({"negative_mode": "pair"}, "negative_mode must be 'unpaired' or 'paired', got 'pair'"),
        ({"reduction": "avg"}, "reduction must be"),
    ):
        with pytest.raises(ValueError, match=message):
            InfoNCE(**options)
    for make in (NTXentLoss, InfoNCE, SupConLoss):
        with pytest.raises(ValueError, match="positives must be"):
            make(positives="all")
    with pytest.raises(ValueError, match="positives must be"):
        ClipLoss(positives="all")
