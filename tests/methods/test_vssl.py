"""VSSL's formulas in plain float64, who gets a gradient, and its variance as a kept head."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sslfast import methods, models
from sslfast.data.batch import Batch
from sslfast.methods.base import Context, Method, Progress

CTX = Context(0, 0, 10)


def small(**keywords: Any) -> Method:
    torch.manual_seed(0)
    encoder = models.create("convnet_small", width=4, depth=2)
    shape = {"hidden_dim": 16, "out_dim": 6}
    method = methods.create("vssl", encoder, **{**shape, **keywords}).double()
    with torch.no_grad():  # so that teacher and student differ
        for parameter in method.teacher.module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method


def batch_of(count: int = 5) -> Batch:
    images = torch.randn(2, count, 3, 8, 8, generator=torch.Generator().manual_seed(5)).double()
    return Batch(tuple(images), torch.arange(count))


def gaussians(count: int = 7, width: int = 6) -> tuple[Tensor, ...]:
    """Means and variances of posteriors and priors [count, 2, width]."""
    generator = torch.Generator().manual_seed(3)
    mean, variance, target, spread = torch.randn(4, count, 2, width, generator=generator).double()
    return mean.requires_grad_(), variance.exp(), target, spread.exp()


@pytest.mark.parametrize("form", ["cosine", "gaussian"])
def test_the_loss_is_minus_the_bound(form: str) -> None:
    mean, variance, target, spread = outputs = gaussians()
    found = small(form=form, beta=0.3).loss(outputs, CTX)
    kls, logs = [], []
    for own, other in ((0, 1), (1, 0)):  # a posterior and the prior of the other view
        m, v, t, s = mean[:, own], variance[:, own], target[:, other], spread[:, other]
        if form == "cosine":
            m, t = (6**0.5 * x / x.norm(dim=1, keepdim=True) for x in (m, t))
        q, p = torch.distributions.Normal(m, v.sqrt()), torch.distributions.Normal(t, s.sqrt())
        kls.append(torch.distributions.kl_divergence(q, p).mean())
        logs.append((q.log_prob(t) + 0.5 * math.log(2 * math.pi)).mean())
    kl, log = sum(kls) / 2, sum(logs) / 2
    torch.testing.assert_close(found["kl"], kl.detach())
    torch.testing.assert_close(found["loss"], 0.3 * kl - log)
    torch.testing.assert_close(found["log_sigma"], variance.sqrt().log().mean())
    cosine = torch.cosine_similarity(mean, target.flip(1), -1).mean()
    torch.testing.assert_close(found["similarity"], cosine.detach())


def test_squared_differences_of_the_cosine_form_are_those_of_cosines() -> None:
    mean, _, target, _ = gaussians()
    alike = torch.full_like(mean, 0.7)
    found = small().loss((mean, alike, target, alike), CTX)
    cosine = torch.cosine_similarity(mean, target.flip(1), -1)
    torch.testing.assert_close(found["kl"], ((2 - 2 * cosine) / (2 * 0.7)).mean().detach())


def test_the_kl_is_never_negative_and_0_of_equals() -> None:
    mean, variance, _, _ = gaussians()
    same = mean.detach().flip(1), variance.flip(1)  # each meets the other view's
    assert abs(small().loss((mean, variance, *same), CTX)["kl"]) < 1e-12
    assert small().loss(gaussians(200, 3), CTX)["kl"] > 0


def test_the_student_learns_and_the_teacher_does_not() -> None:
    method = small()
    method(batch_of(), CTX)["loss"].backward()
    students = [p for name, p in method.named_parameters() if not name.startswith("teacher")]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in students)
    for part in (method.encoder, method.mean, method.variance, method.predictor):
        assert any(p.grad.abs().max() > 0 for p in part.parameters())
    assert all(p.grad is None for p in method.teacher.parameters())
    trained = {id(p) for group in method.param_groups() for p in group["params"]}
    assert trained == {id(p) for p in students}


def test_the_variance_is_the_error_that_the_student_expects() -> None:
    """For a fixed error the loss is least where the variances of both are its square."""
    target = gaussians()[2]
    error = 0.4
    mean = target.flip(1) + error
    raw = torch.zeros(mean.shape, dtype=torch.float64, requires_grad=True)
    method = small(form="gaussian")
    for _ in range(100):
        variance = raw.exp()
        loss = method.loss((mean, variance, target, variance.detach()), CTX)["loss"]
        (gradient,) = torch.autograd.grad(loss, raw)
        raw.data -= raw.numel() * gradient
    torch.testing.assert_close(raw.exp(), torch.full_like(raw, error**2), rtol=1e-2, atol=0)


def test_momentum_rises_to_1() -> None:
    method = small(momentum=0.9)
    values = [method.schedules(Progress(step, 100, 10))["momentum"] for step in (0, 50, 100)]
    assert values == pytest.approx([0.9, 0.95, 1.0])


def test_wrong_settings_are_explained() -> None:
    for keyword, value in (("floor", 0.0), ("beta", -1.0), ("out_dim", 0), ("momentum", 1.5)):
        with pytest.raises(ValueError, match=f"{keyword} must be "):
            small(**{keyword: value})
    with pytest.raises(ValueError, match="form must be one of cosine, gaussian, got 'l2'"):
        small(form="l2")
