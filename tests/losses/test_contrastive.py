"""InfoNCE, CLIP and SupCon against peers' own code and plain PyTorch in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import peers
from sslfast.functional import clip, info_nce, supcon
from sslfast.losses import ClipLoss, InfoNCE, SigLipLoss, SupConLoss

theirs = peers.load("info_nce")
open_clip = peers.load_file("open_clip/loss.py")


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def same(ours: Tensor, truth: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(ours, truth)
    weight = torch.randn_like(truth)
    for value, expected in zip(
        torch.autograd.grad(ours, inputs, weight),
        torch.autograd.grad(truth, inputs, weight),
        strict=True,
    ):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_info_nce_equals_info_nce_pytorch(reduction: str, temperature: float) -> None:
    query, key = leaf(9, 6), leaf(9, 6)
    arguments = (temperature, reduction)
    same(InfoNCE(*arguments)(query, key), theirs.InfoNCE(*arguments)(query, key), query, key)
    shared, own = leaf(14, 6), leaf(9, 5, 6)
    for mode, negatives in (("unpaired", shared), ("paired", own)):
        ours = InfoNCE(*arguments, mode)(query, key, negatives)
        truth = theirs.InfoNCE(*arguments, mode)(query, key, negatives)
        same(ours, truth, query, key, negatives)


def test_info_nce_float32_is_near_float64() -> None:
    query, key, negatives = torch.randn(70, 33), torch.randn(70, 33), torch.randn(700, 33)
    truth = info_nce(query.double(), key.double(), negatives.double(), 0.05)
    torch.testing.assert_close(
        info_nce(query, key, negatives, 0.05).double(), truth, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("n", [1, 2, 40])
def test_clip_equals_open_clip(n: int) -> None:
    image, text = (F.normalize(leaf(n, 7), dim=1).detach().requires_grad_() for _ in range(2))
    scale = torch.tensor(14.0, dtype=torch.float64, requires_grad=True)
    for ours in (clip, ClipLoss()):
        same(ours(image, text, scale), open_clip.ClipLoss()(image, text, scale), image, text, scale)
    both = ClipLoss()(image, text, scale, torch.ones(1), output_dict=True)
    assert torch.equal(both["contrastive_loss"], ClipLoss()(image, text, scale))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_clip_keeps_16_bit_features_as_they_are(smoothing: float) -> None:
    image, text = (F.normalize(torch.randn(40, 7), dim=1).bfloat16() for _ in range(2))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        loss = clip(image.requires_grad_(), text.requires_grad_(), 10.0, label_smoothing=smoothing)
    assert {x.dtype for x in kept if x.dim() == 2} == {torch.bfloat16}
    exact = clip(image.double(), text.double(), 10.0, label_smoothing=smoothing)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=0)


class Made(TorchDispatchMode):
    """Collects what is made outside of the custom ops."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        result = function(*args, **(kwargs or {}))
        self.tensors += [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        return result


def test_clip_makes_no_float32_copies_without_smoothing() -> None:
    image, text = (F.normalize(torch.randn(40, 7), dim=1).bfloat16() for _ in range(2))
    with Made() as made:
        clip(image, text, 10.0)
    assert made.tensors
    assert not [x for x in made.tensors if x.shape == image.shape]


@pytest.mark.parametrize("local_loss", [False, True])
def test_clip_logits_and_labels_are_open_clips(local_loss: bool) -> None:
    image, text = leaf(5, 7), leaf(5, 7)
    ours, truth = ClipLoss(), open_clip.ClipLoss()
    for bias in (None, torch.tensor(-2.0, dtype=torch.float64)):
        pairs = (loss.get_logits(image, text, 14.0, bias) for loss in (ours, truth))
        for value, expected in zip(*pairs, strict=True):
            torch.testing.assert_close(value, expected)
    ranks = [kind(local_loss, rank=1, world_size=2) for kind in (ClipLoss, open_clip.ClipLoss)]
    for mine, other in ((ours, truth), ranks):
        assert torch.equal(mine.get_ground_truth("cpu", 5), other.get_ground_truth("cpu", 5))
    with pytest.raises(ValueError, match=r"made for rank 1 of 2, but .* says rank 0 of 1"):
        ranks[0].get_logits(image, text, 14.0)


def test_siglip_logits_and_labels_are_open_clips() -> None:
    image, text = leaf(5, 7), leaf(5, 7)
    ours, truth = SigLipLoss(), open_clip.SigLipLoss()
    for bias in (None, torch.tensor(-2.0, dtype=torch.float64)):
        pair = (loss.get_logits(image, text, 14.0, bias) for loss in (ours, truth))
        torch.testing.assert_close(*pair)
    for negative_only in (False, True):
        arguments = "cpu", torch.float16, 5, negative_only
        assert torch.equal(ours.get_ground_truth(*arguments), truth.get_ground_truth(*arguments))


def test_siglip_without_a_bias_equals_open_clips() -> None:
    image, text = leaf(6, 7), leaf(6, 7)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    ours = SigLipLoss()(image, text, scale, None)
    same(ours, open_clip.SigLipLoss()(image, text, scale, None), image, text, scale)


def test_clip_swaps_and_reduces() -> None:
    image, text = torch.randn(300, 16), torch.randn(300, 16)
    rows = clip(image, text, 2.0, reduction="none")
    torch.testing.assert_close(clip(text, image, 2.0, reduction="none"), rows)
    torch.testing.assert_close(clip(image, text, 2.0), rows.mean())


def plain_supcon(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    z = F.normalize(features, dim=1)
    logits = z @ z.T / temperature
    itself = torch.eye(len(z), dtype=torch.bool)
    log_p = logits - logits.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    positive = (labels[:, None] == labels) & ~itself
    count = positive.sum(1)
    loss = -(log_p * positive).sum(1) / count.clamp_min(1)
    return loss[count > 0].mean()


@pytest.mark.parametrize(
    ("n", "classes"), [(2, 1), (3, 1), (30, 1), (31, 2), (30, 5), (31, 5), (30, 99), (31, 99)]
)
def test_supcon_equals_its_definition(n: int, classes: int) -> None:
    features = leaf(n, 6)
    labels = torch.randint(-classes, classes, (n,))
    labels[1] = labels[0]
    same(SupConLoss(0.2)(features, labels), plain_supcon(features, labels, 0.2), features)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_supcon_without_positives_is_zero(n: int) -> None:
    features = leaf(n, 3)
    loss = supcon(features, torch.arange(n), 0.2)
    loss.backward()
    assert loss == 0
    assert features.grad is not None
    assert features.grad.abs().max() == 0


def test_bad_arguments() -> None:
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="negative_mode must be"):
        info_nce(x, x, negative_mode="both")
    with pytest.raises(ValueError, match=r"same dimension, got \[4, 3\] and \[5, 2\]"):
        info_nce(x, x, torch.randn(5, 2))
    with pytest.raises(ValueError, match=r"shape \[4, K, 3\], got \[5, 2, 3\]"):
        info_nce(x, x, torch.randn(5, 2, 3), negative_mode="paired")
    with pytest.raises(TypeError, match="labels must be integers"):
        supcon(x, torch.rand(4))
    with pytest.raises(ValueError, match=r"labels must have shape \[4\]"):
        supcon(x, torch.arange(5))
    with pytest.raises(ValueError, match="Horovod is not supported"):
        ClipLoss(use_horovod=True)
    with pytest.raises(ValueError, match="scale must be one number"):
        clip(x, x, torch.ones(2))
