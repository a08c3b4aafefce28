"""One direction alone, and LiT: a tower that needs no gradient costs no products for it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import processes
import pytest
import torch
import torch.nn.functional as F
from test_distributed import Towers
from torch import Tensor

import sslfast
from sslfast.functional import clip, info_nce, siglip
from sslfast.kernels import registry
from sslfast.kernels.sigmoid_contrast import ranks as sigmoid_ranks
from sslfast.kernels.similarity_softmax import Pairing, ranks
from sslfast.kernels.similarity_softmax.op import similarity_softmax
from sslfast.losses import ClipLoss, SigLipLoss

DIRECTIONS = "both", "image_to_text", "text_to_image"


def unit(n: int, *needs: bool, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    made = (F.normalize(torch.randn(n, 6, dtype=dtype), dim=1) for _ in needs)
    return [x.requires_grad_(need) for x, need in zip(made, needs, strict=True)]


def plain_clip(image: Tensor, text: Tensor, scale: Tensor | float, direction: str) -> Tensor:
    logits, targets = scale * image @ text.T, torch.arange(len(image))
    of_images, of_texts = (
        F.cross_entropy(t, targets, reduction="none") for t in (logits, logits.T)
    )
    return {"image_to_text": of_images, "text_to_image": of_texts}.get(
        direction, (of_images + of_texts) / 2
    )


def same(ours: Tensor, truth: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(ours, truth)
    weight, needed = torch.rand_like(truth), [x for x in inputs if x.requires_grad]
    found, expected = (torch.autograd.grad(loss, needed, weight) for loss in (ours, truth))
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_clip_equals_cross_entropies(
    direction: str, needs: tuple[bool, bool], reduction: str
) -> None:
    image, text = unit(9, *needs)
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    truth = plain_clip(image, text, scale, direction)
    ours = clip(image, text, scale, direction=direction, reduction=reduction)
    same(ours, truth if reduction == "none" else truth.mean(), image, text, scale)
    with_class = ClipLoss(direction=direction)(image, text, scale)
    torch.testing.assert_close(with_class, truth.mean())


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_siglip_with_one_tower(needs: tuple[bool, bool], reduction: str) -> None:
    image, text = unit(9, *needs)
    scale, bias = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (5.0, -2.0))
    signs = 2 * torch.eye(9, dtype=torch.float64) - 1
    truth = -F.logsigmoid(signs * (scale * image @ text.T + bias)).sum(1)
    truth = truth if reduction == "none" else truth.mean()
    same(siglip(image, text, scale, bias, reduction=reduction), truth, image, text, scale, bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("backend", ["tiled", "cpu"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_gradient_alone_is_what_it_is_beside_the_other(
    direction: str, backend: str, dtype: torch.dtype
) -> None:
    image, text = unit(300, True, True, dtype=dtype)
    loss = partial(clip, logit_scale=20.0, direction=direction)
    with sslfast.use_backend(backend):
        expected = torch.autograd.grad(loss(image, text), (image, text))
        for k, inputs in enumerate([(image, text.detach()), (image.detach(), text)]):
            (found,) = torch.autograd.grad(loss(*inputs), inputs[k])
            torch.testing.assert_close(found, expected[k], rtol=1e-2, atol=1e-6)


def test_columns_alone_of_a_slab_of_pairs() -> None:
    """The op itself, whose pairing may be shifted and whose rows are normalised."""
    rows, columns = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    scale, pairing = torch.tensor(1.5, dtype=torch.float64), Pairing(6, 2)

    def run(y: Tensor) -> tuple[Tensor, ...]:
        return similarity_softmax(rows, y, scale, pairing, normalize=True, column_lse=True)

    assert torch.autograd.gradcheck(run, columns.requires_grad_())
    for normalize in (True, False):
        assert torch.autograd.gradcheck(
            lambda y, n=normalize: similarity_softmax(rows, y, scale, None, normalize=n)[0],
            torch.randn(9, 4, dtype=torch.float64, requires_grad=True),
        )


class Counted:
    """A backend that notes which of its functions were called, on how many rows."""

    def __init__(self, backend: Any, calls: list[str]) -> None:
        self.backend, self.calls = backend, calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.backend, name)
        if not callable(found) or not name.startswith(("backward", "gradients")):
            return found

        def call(*args: Any) -> Any:
            both = name == "gradients" and args[-1]
            both = both or (len(args) > 8 and args[8] is True)  # columns_gradient of the groups
            self.calls.append("both" if both or name == "backward_both" else "rows")
            return found(*args)

        return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Backward calls of the two ops of logits: "rows" costs one product fewer than "both"."""
    noted: list[str] = []
    pick = registry.pick

    def counted(op: str, problem: Any) -> Any:
        found = pick(op, problem)
        logits = op in ("similarity_softmax", "sigmoid_contrast", "grouped_softmax")
        return Counted(found, noted) if logits else found

    monkeypatch.setattr(registry, "pick", counted)
    return noted


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{d: partial(clip, logit_scale=9.0, direction=d) for d in DIRECTIONS},
    "each pair": lambda x, y: clip(x, y, 9.0, reduction="none").sum(),
    "ClipLoss": lambda x, y: ClipLoss()(x, y, 9.0),
    "groups": partial(clip, logit_scale=9.0, group_ids=torch.arange(8) // 2),
    "siglip": partial(siglip, logit_scale=9.0, logit_bias=-3.0),
    "SigLipLoss": lambda x, y: SigLipLoss()(x, y, 9.0, -3.0),
    "info_nce": lambda x, y: info_nce(x, y, reduction="none").sum(),
}


@pytest.mark.parametrize("backend", ["reference", "tiled", "cpu"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_one_tower_is_one_product(
    name: str, backend: str, needs: tuple[bool, bool], calls: list[str]
) -> None:
    with sslfast.use_backend(backend):
        LOSSES[name](*unit(8, *needs, dtype=torch.float32)).backward()
    assert calls == ["rows"]


def over_ranks(rank: int, size: int, sizes: list[int]) -> None:
    """One tower, one direction: gradients are those of one process, and cost one sweep."""
    calls: list[str] = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append("")
            return function(*args, **kwargs)

        return call

    ranks._backward = noted(ranks._backward)
    sigmoid_ranks.weighted_sigmoid_contrast = noted(sigmoid_ranks.weighted_sigmoid_contrast)
    forms: list[tuple[Any, Any]] = [
        (
            ClipLoss(rank=rank, world_size=size, exchange=how, direction=direction),
            partial(clip, direction=direction),
        )
        for how in ("gather", "ring")
        for direction in DIRECTIONS
    ]
    forms += [
        (SigLipLoss(rank=rank, world_size=size, dist_impl=how), siglip)
        for how in ("gather", "bidir")
    ]
    for frozen in (None, 0, 1):
        for criterion, whole in forms:
            towers = Towers(rank, sizes)
            numbers = [torch.tensor(5.0, dtype=torch.float64, requires_grad=True)]
            if whole is siglip:
                numbers.append(torch.tensor(-2.0, dtype=torch.float64, requires_grad=True))
            if frozen is not None:
                towers.own[frozen] = towers.own[frozen].detach()
                towers.whole[frozen] = towers.whole[frozen].detach()
                towers.weights.pop(frozen)
            calls.clear()
            truth, loss = whole(*towers.whole, *numbers), criterion(*towers.own, *numbers)
            towers.compare(loss, truth, size, *numbers)
            blocks = size if getattr(criterion, "dist_impl", None) == "bidir" else 1
            assert len(calls) == (2 if frozen is None else 1) * blocks


@pytest.mark.parametrize("sizes", [[5, 2], [1, 6, 3]], ids=str)
def test_over_ranks(sizes: list[int]) -> None:
    processes.run(len(sizes), over_ranks, sizes)


def test_another_direction_is_refused() -> None:
    x = torch.randn(4, 3)
    for made in (lambda: ClipLoss(direction="text"), lambda: clip(x, x, 1.0, direction="text")):
        with pytest.raises(ValueError, match=r"direction must be one of .*, got 'text'"):
            made()
