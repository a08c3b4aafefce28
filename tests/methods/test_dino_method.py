"""DINO: its formula, whose encoder is kept, frozen prototypes, temperatures, what is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tokens import needed
from torch import Tensor, nn

from sslfast import data, methods, models
from sslfast.data.batch import Batch
from sslfast.methods.base import Context, Progress
from sslfast.methods.dino import DINO
from sslfast.models import PrototypeHead


def made(model: str = "convnet_small", **keywords: Any) -> DINO:
    torch.manual_seed(0)
    small = {"width": 8, "depth": 2}
    if model != "convnet_small":
        small = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    encoder = models.create(model, **small, **keywords)
    method = methods.create("dino", encoder, **needed("dino"))
    assert isinstance(method, DINO)
    for parameter in method.teacher.parameters():  # a copy of the student at first
        parameter.data += 0.1 * torch.randn_like(parameter)
    return method


def batch(count: int = 6) -> Batch:
    sizes = [16, 16, 8, 8, 8]
    return Batch(tuple(torch.randn(count, 3, s, s) for s in sizes), torch.arange(count))


def scores(features: Tensor, head: Any) -> Tensor:
    unit = head(features) @ nn.functional.normalize(head.weight, dim=1).T
    assert isinstance(unit, Tensor)
    return unit


@pytest.mark.parametrize("model", ["convnet_small", "vit_micro"])
def test_it_is_the_loss_of_all_other_views(model: str) -> None:
    options = {} if model == "convnet_small" else {"dynamic_img_size": True, "drop_path_rate": 0.0}
    method, views = made(model, **options), batch().views
    found = method.loss(method.encode(batch_of := Batch(views, torch.arange(6)), CTX), CTX)
    assert len(batch_of) == 6
    teacher, teacher_head = method.teacher.module.encoder, method.teacher.module.head
    globals_ = torch.cat(views[:2])
    t = scores(teacher(globals_), teacher_head).chunk(2)
    s = [*scores(method.encoder(globals_), method.head).chunk(2)]
    s += scores(method.encoder(torch.cat(views[2:])), method.head).chunk(3)
    terms = [
        -((x / 0.07).softmax(1) * (y / 0.1).log_softmax(1)).sum(1).mean()
        for k, x in enumerate(t)
        for v, y in enumerate(s)
        if k != v
    ]
    torch.testing.assert_close(found["loss"], torch.stack(terms).mean(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["kl"] + found["entropy"], found["loss"].detach())
    assert 1 <= found["prototypes"] <= 32


CTX = Context(0, 0, 1)


def test_the_teacher_sees_batch_statistics_without_dropout() -> None:
    method = made("vit_micro", dynamic_img_size=True, drop_path_rate=0.5)
    outputs = [method.encode(batch_of_one(), CTX)[0] for _ in range(2)]
    torch.testing.assert_close(*outputs)  # no path is dropped
    norms = [m for m in made().teacher.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    method = made()
    method.encode(batch(), CTX)
    assert all(m.training for m in method.teacher.modules() if isinstance(m, nn.BatchNorm2d))


def batch_of_one() -> Batch:
    torch.manual_seed(1)
    return batch(1)


def test_the_teachers_encoder_is_kept_and_prototypes_are_frozen() -> None:
    method = made()
    assert method.exported() is method.teacher.module.encoder
    *_, last = method.param_groups()
    assert last == {"params": [method.head.weight], "freeze_until": 1}
    given = [p for group in method.param_groups() for p in group["params"]]
    trained = [*method.encoder.parameters(), *method.head.parameters()]
    assert {id(p) for p in given} == {id(p) for p in trained}
    assert len(given) == len(trained)


def test_temperature_and_momentum_rise() -> None:
    method = methods.create(
        "dino", models.create("convnet_small"), **needed("dino"), warmup_temperature_epochs=3
    )
    at = [method.schedules(Progress(step, 40, 10)) for step in (0, 9, 10, 20, 39)]
    expected = [0.04, 0.04, 0.055, 0.07, 0.07]
    assert [values["teacher_temperature"] for values in at] == pytest.approx(expected)
    momenta = [values["momentum"] for values in at]
    assert momenta == sorted(momenta)
    assert momenta[0] == pytest.approx(0.996)


def test_few_images_are_said_and_other_views_refused() -> None:
    method = made()
    assert method.remarks(32) == []
    assert "32 prototypes for 31 images" in method.remarks(31)[0]
    method.check_views(data.recipe("byol"))
    for other in (data.recipe("mae"), different(data.recipe("simclr"))):
        with pytest.raises(ValueError, match="the first 2 views must be of one size"):
            method.check_views(other)


def different(recipe: Any) -> Any:
    first, second = recipe.views
    return replace(recipe, views=(first, replace(second, size=64)))


def test_head_has_unit_vectors_and_prototypes() -> None:
    head = PrototypeHead(12, 20, 6, 9, num_layers=2, batch_norm=True)
    x = torch.randn(5, 12)
    torch.testing.assert_close(head(x).norm(dim=1), torch.ones(5))
    expected = nn.functional.normalize(head.weight, dim=1)
    torch.testing.assert_close(head.prototypes(), expected)
    kinds = [type(layer) for layer in head.mlp]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.GELU, nn.Linear]
