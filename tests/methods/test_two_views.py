"""Methods that compare two views: formulas, targets without gradients, groups, exact resume."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokens import needed
from torch import Tensor, nn

from sslfast import methods, models
from sslfast.data.batch import Batch
from sslfast.methods.base import Context, Method, Progress
from sslfast.methods.mocov2 import MoCoV2
from sslfast.methods.mocov3 import MoCoV3
from sslfast.methods.views import spread
from sslfast.training.schedule import Curve, Rates

TEACHERS = ("byol", "mocov2", "mocov3")


def made(name: str, **keywords: Any) -> Method:
    torch.manual_seed(0)
    encoder = models.create("convnet_small", width=8, depth=2)
    return methods.create(name, encoder, **{**needed(name), **keywords}).double()


def batch(count: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(3)
    views = torch.randn(2, count, 3, 16, 16, generator=generator, dtype=torch.float64)
    return Batch(tuple(views), torch.arange(count))


def shift(module: nn.Module) -> None:
    """Move a teacher away from its student, of which it is a copy at first."""
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    return (x / x.norm(dim=1, keepdim=True) * (y / y.norm(dim=1, keepdim=True))).sum(1)


def test_byol_is_the_distance_of_unit_vectors() -> None:
    method = made("byol")
    shift(method.teacher)
    (p0, p1), (z0, z1) = outputs = method.encode(batch(), Context(0, 0, 1))
    first, second = batch().views
    unit = [F.normalize(x) for x in (p0, z1, p1, z0)]
    expected = ((unit[0] - unit[1]).square().sum(1) + (unit[2] - unit[3]).square().sum(1)).mean()
    torch.testing.assert_close(method.loss(outputs, Context(0, 0, 1))["loss"], expected)
    torch.testing.assert_close(p0, method.predictor(method.student(first)))
    # The teacher's batch norm takes the batch's statistics, and its own weights.
    torch.testing.assert_close(z1, method.teacher.module.train()(second))
    assert not torch.allclose(z1, method.student(second))


def test_simsiam_is_the_mean_of_two_negative_cosines() -> None:
    method = made("simsiam")
    (p0, p1), (z0, z1) = outputs = method.encode(batch(), Context(0, 0, 1))
    loss = method.loss(outputs, Context(0, 0, 1))["loss"]
    torch.testing.assert_close(loss, -(cosine(p0, z1) + cosine(p1, z0)).mean() / 2)
    # Nothing comes back through the targets.
    given = torch.autograd.grad(loss, (p0, z0), retain_graph=True, allow_unused=True)
    through = torch.autograd.grad(p0, z0, given[0])[0]
    torch.testing.assert_close(given[1], through)


def test_mocov2_is_cross_entropy_with_the_queue_before_this_batch() -> None:
    method = made("mocov2")
    assert isinstance(method, MoCoV2)
    shift(method.teacher)
    bank = method.criterion.memory_bank
    assert bank is not None
    before = bank.bank.clone()
    query, key = outputs = method.encode(batch(), Context(0, 0, 1))
    loss = method.loss(outputs, Context(0, 0, 1))["loss"]
    logits = torch.cat((cosine(query, key)[:, None], F.normalize(query) @ before.T), 1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(bank.bank[:12], F.normalize(key))
    assert torch.equal(bank.bank[12:], before[12:])


def test_mocov3_is_two_t_times_two_cross_entropies() -> None:
    method = made("mocov3", temperature=0.3)
    shift(method.teacher)
    (q0, q1), (k0, k1) = outputs = method.encode(batch(), Context(0, 0, 1))
    places = torch.arange(12)
    both = [
        F.cross_entropy(F.normalize(q) @ F.normalize(k).T / 0.3, places)
        for q, k in ((q0, k1), (q1, k0))
    ]
    loss = method.loss(outputs, Context(0, 0, 1))["loss"]
    torch.testing.assert_close(loss, 2 * 0.3 * (both[0] + both[1]))


def test_barlow_twins_is_its_formula() -> None:
    method = made("barlow_twins", off_diagonal=0.02)
    z0, z1 = outputs = method.encode(batch(), Context(0, 0, 1))
    units = [(z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (z0, z1)]
    c = units[0].T @ units[1] / len(z0)
    on, off = (1 - c.diagonal()).square().sum(), (c - c.diagonal().diag()).square().sum()
    values = method.loss(outputs, Context(0, 0, 1))
    torch.testing.assert_close(values["loss"], on + 0.02 * off)
    torch.testing.assert_close(values["redundancy"], off.detach())


def test_vicreg_is_its_formula() -> None:
    weights = {"sim_coeff": 3.0, "std_coeff": 2.0, "cov_coeff": 0.5}
    method = made("vicreg", **weights)
    views = outputs = method.encode(batch(), Context(0, 0, 1))
    expected = 3.0 * (views[0] - views[1]).square().mean()
    for z in views:
        expected = expected + (1 - (z.var(0) + 1e-4).sqrt()).relu().mean()
        covariance = z.T.cov()
        off = covariance - covariance.diagonal().diag()
        expected = expected + 0.5 * off.square().sum() / z.shape[1]
    torch.testing.assert_close(method.loss(outputs, Context(0, 0, 1))["loss"], expected)


def test_barlow_twins_slows_biases_and_norms_down() -> None:
    weights, others = made("barlow_twins", bias_lr_scale=0.024).param_groups()
    assert (weights.get("lr_scale", 1.0), others["lr_scale"]) == (1.0, 0.024)
    assert {p.ndim for p in others["params"]} == {1}


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers_make_targets_and_get_no_gradient(name: str) -> None:
    method = made(name)
    method(batch(), Context(0, 0, 1))["loss"].backward()
    (teacher,) = method.teachers()
    assert all(p.grad is None for p in teacher.parameters())
    trained = [p for group in method.param_groups() for p in group["params"]]
    assert all(p.grad is not None and p.grad.any() for p in trained)
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in trained}
    assert method.exported() is method.encoder


@pytest.mark.parametrize("name", ["byol", "mocov3"])
def test_momentum_rises_to_one_as_a_cosine(name: str) -> None:
    method = made(name, momentum=0.9)
    found = [method.schedules(Progress(step, 8, 2.0))["momentum"] for step in range(9)]
    expected = [1 - 0.1 * (math.cos(math.pi * step / 8) + 1) / 2 for step in range(9)]
    assert found == pytest.approx(expected)
    assert (found[0], found[8]) == (pytest.approx(0.9), 1.0)


def test_mocov3_leaves_a_vits_patch_projection_alone() -> None:
    vit = {"img_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
    method = methods.create("mocov3", models.create("vit_micro", **vit), **needed("mocov3"))
    trained = {id(p) for group in method.param_groups() for p in group["params"]}
    assert isinstance(method, MoCoV3)
    projection = {id(p) for p in method.encoder.patch_embed.parameters()}
    assert projection
    assert not projection & trained
    free = methods.create(
        "mocov3", models.create("vit_micro", **vit), **needed("mocov3"), freeze_patches=False
    )
    assert len([p for g in free.param_groups() for p in g["params"]]) == len(trained) + 2
    # A ViT's heads are one layer deeper, and end in batch norm.
    assert [len(m.student[1]) for m in (method, made("mocov3"))] == [8, 5]
    assert [len(m.predictor) for m in (method, made("mocov3"))] == [5, 4]


def test_simsiams_predictor_keeps_its_learning_rate() -> None:
    method = made("simsiam")
    groups = method.param_groups()
    own = {id(p) for p in method.predictor.parameters()}
    for group in groups:
        assert {id(p) in own for p in group["params"]} == {group["fix_lr"]}
    assert sum(len(g["params"]) for g in groups) == len([*method.parameters()])
    rates = Rates(groups, Curve(0.5, warmup=2), Curve(0.0))
    optimizer = torch.optim.SGD(groups, 1.0, momentum=0.9)
    rates.set(optimizer, Progress(9, 10, 1.0), {})
    fixed = [own["lr"] for own in optimizer.param_groups]
    assert [lr == 0.5 for lr in fixed] == [held["lr"] == 0.5 for held in optimizer.param_groups]
    assert sorted({round(lr, 3) for lr in fixed}) == [0.019, 0.5]


def test_spread_is_one_on_the_sphere_and_zero_in_a_point() -> None:
    torch.manual_seed(0)
    assert spread(torch.randn(5000, 64)) == pytest.approx(1.0, abs=0.01)
    assert spread(torch.ones(8, 64) * torch.rand(8, 1)) == pytest.approx(0.0, abs=1e-6)


def test_a_long_queue_is_allowed_and_said() -> None:
    method = made("mocov2", queue=100)
    assert method.remarks(100) == []
    (remark,) = method.remarks(99)
    assert "queue of 100 keys is longer than the 99 samples" in remark


@pytest.mark.parametrize("name", [*TEACHERS, "barlow_twins", "simsiam", "vicreg"])
def test_a_step_is_one_graph(name: str) -> None:
    method, plain = made(name), made(name)
    compiled = torch.compile(method, backend="eager", fullgraph=True)
    for step in range(2):
        ctx = Context(step, 0, 2)
        found, expected = compiled(batch(), ctx)["loss"], plain(batch(), ctx)["loss"]
        torch.testing.assert_close(found, expected)
    torch._dynamo.reset()
