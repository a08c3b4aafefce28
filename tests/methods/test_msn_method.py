"""MSN: its formula, what is hidden from whom, whose encoder is kept, what is refused."""

from typing import Any

import pytest
import torch
from tokens import needed
from torch import Tensor, nn

from sslfast import data, methods, models
from sslfast.data.batch import Batch
from sslfast.functional import sinkhorn
from sslfast.methods.base import Context, Progress
from sslfast.methods.msn import MSN

CTX = Context(3, 0, 10, seed=5)
VIT = {
    **{"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2},
    **{"class_token": True, "global_pool": "token", "dynamic_img_size": True},
}


def made(**keywords: Any) -> MSN:
    torch.manual_seed(0)
    encoder = models.create("vit_micro", **VIT)
    method = methods.create("msn", encoder, **{**needed("msn"), **keywords})
    assert isinstance(method, MSN)
    for parameter in method.teacher.parameters():  # a copy of the student at first
        parameter.data += 0.1 * torch.randn_like(parameter)
    return method


def batch(count: int = 6, first: int = 40) -> Batch:
    generator = torch.Generator().manual_seed(1)
    views = [torch.randn(count, 3, s, s, generator=generator) for s in (16, 16, 8, 8)]
    return Batch(tuple(views), torch.arange(count) + first)


def scores(features: Tensor, method: MSN) -> Tensor:
    unit = nn.functional.normalize(features, dim=1)
    return unit @ nn.functional.normalize(method.head.weight, dim=1).T


def test_it_is_the_papers_loss_of_masked_views_and_crops() -> None:
    method = made(sinkhorn_iterations=0, regularization_weight=0.7, mask_ratio=0.3)
    views = batch().views
    found = method.loss(method.encode(batch(), CTX), CTX)
    teacher = method.teacher.module
    targets = (scores(teacher.head.mlp(teacher.encoder(views[0])), method) / 0.025).softmax(1)
    ids = method.visible(batch(), CTX)
    assert ids is not None
    assert ids.shape == (6, 11)  # of 16 patches int(0.7 * 16)
    second = method.encoder.forward_features(views[1], ids)[:, 0]
    crops = method.encoder(torch.cat(views[2:]))
    heads = [method.head.mlp(second), *method.head.mlp(crops).chunk(2)]
    probabilities = [(scores(x, method) / 0.1).softmax(1) for x in heads]
    each = [-(targets * p.log()).sum(1).mean() for p in probabilities]
    mean = torch.cat(probabilities).mean(0)
    lacks = torch.tensor(32.0).log() + (mean * mean.log()).sum()
    expected = torch.stack(each).mean() + 0.7 * lacks
    torch.testing.assert_close(found["loss"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["entropy"], -(targets * targets.log()).sum(1).mean())
    assert 1 <= found["prototypes"] <= 32


def test_targets_are_evened_out() -> None:
    method, without = made(sinkhorn_iterations=60, sharpening=1.0), made(sinkhorn_iterations=0)
    outputs = method.encode(batch(64), CTX)
    assert method.loss(outputs, CTX)["prototypes"] > 31.5
    assert without.loss(outputs, CTX)["prototypes"] < 31
    bias = sinkhorn(outputs[1], method.head.prototypes(), temperature=0.1, iterations=60)
    codes = (scores(outputs[1], method) / 0.1 + bias).softmax(1)
    entropy = method.loss(outputs, CTX)["entropy"]
    torch.testing.assert_close(entropy, torch.special.entr(codes).sum(1).mean(), rtol=0.01, atol=0)


def test_hidden_patches_are_of_the_sample_and_the_step() -> None:
    method = made(mask_ratio=0.5)
    ids = method.visible(batch(8), CTX)
    alone = method.visible(batch(1, first=43), CTX)
    later = method.visible(batch(8), Context(4, 0, 10, seed=5))
    assert ids is not None
    assert alone is not None
    assert later is not None
    assert torch.equal(ids[3:4], alone)
    assert not torch.equal(ids, later)
    assert made(mask_ratio=0.0).visible(batch(), CTX) is None
    pictures = method.pictures(batch(), CTX)
    assert torch.equal(pictures["original"], batch().views[1])
    changed = pictures["seen"].eq(pictures["original"]).all(1).float().mean((1, 2))
    torch.testing.assert_close(changed, torch.full((6,), 0.5))


def test_the_teacher_is_kept_and_prototypes_do_not_decay() -> None:
    method = made()
    assert method.exported() is method.teacher.module.encoder
    *_, last = method.param_groups()
    assert last == {"params": [method.head.weight], "weight_decay": 0.0}
    given = [id(p) for group in method.param_groups() for p in group["params"]]
    trained = [*method.encoder.parameters(), *method.head.parameters()]
    assert sorted(given) == sorted(id(p) for p in trained if p.requires_grad)
    values = [method.schedules(Progress(step, 40, 10))["momentum"] for step in (0, 20, 40)]
    assert values == pytest.approx([0.996, 0.998, 1.0])
    method.loss(method.encode(batch(), CTX), CTX)["loss"].backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is not None for p in trained if p.requires_grad)


def test_few_images_are_said_and_what_cannot_be_masked_refused() -> None:
    method = made()
    assert method.remarks(32) == []
    assert "32 prototypes for 31 images" in method.remarks(31)[0]
    method.check_views(data.recipe("msn"))
    with pytest.raises(ValueError, match="the first 2 views must be of one size"):
        method.check_views(data.recipe("mae"))
    with pytest.raises(ValueError, match=r"mask_ratio=0\.99 hides 16 of 16 patches"):
        made(mask_ratio=0.99)
    with pytest.raises(ValueError, match=r"needs a VisionTransformer"):
        methods.create("msn", models.create("convnet_small"))
