"""LeJEPA: its formula on crops of two sizes, directions of the step, views that do not fit."""

import re

import pytest
import torch
from tokens import needed
from torch import Tensor

from sslfast import data, methods, models
from sslfast.data.batch import Batch
from sslfast.functional import sigreg
from sslfast.losses.sigreg import random_directions
from sslfast.methods.base import Context, Method


def made(**keywords: object) -> Method:
    torch.manual_seed(0)
    encoder = models.create("convnet_small", width=8, depth=2)
    return methods.create("lejepa", encoder, **{**needed("lejepa"), **keywords}).double()


def batch(count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(3)
    sizes = 16, 16, 8, 8, 8
    views = [
        torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)
        for size in sizes
    ]
    return Batch(tuple(views), torch.arange(count))


def test_it_is_its_formula() -> None:
    method, ctx = made(lambda_param=0.2), Context(3, 0, 10, seed=5)
    outputs = method.encode(batch(), ctx)
    assert outputs.shape == (6, 5, 16)
    z = outputs.transpose(0, 1)
    directions = random_directions(64, 16, seed=5, step=3, dtype=torch.float64)
    values = method.loss(outputs, ctx)
    invariance = (z - (z[0] + z[1]) / 2).square().mean()
    torch.testing.assert_close(values["invariance"], invariance.detach())
    torch.testing.assert_close(values["sigreg"], sigreg(z, directions).detach())
    torch.testing.assert_close(values["loss"], 0.2 * sigreg(z, directions) + 0.8 * invariance)


def test_all_views_are_drawn_to_the_global_ones() -> None:
    method, ctx = made(lambda_param=0.0, global_views=1), Context(0, 0, 1)
    outputs = method.encode(batch(), ctx)
    z = outputs.transpose(0, 1)
    torch.testing.assert_close(method.loss(outputs, ctx)["loss"], (z - z[0]).square().mean())
    every = made(lambda_param=0.0, global_views=5)
    torch.testing.assert_close(every.loss(outputs, ctx)["loss"], (z - z.mean(0)).square().mean())


def test_directions_are_those_of_the_seed_and_the_step() -> None:
    method = made(lambda_param=1.0)
    outputs = method.encode(batch(), Context(0, 0, 9))

    def loss(step: int, seed: int, device_step: Tensor | None = None) -> float:
        ctx = Context(step, 0, 9, seed=seed, device_step=device_step)
        return method.loss(outputs, ctx)["loss"].item()

    assert loss(0, 1) == loss(0, 1) == loss(7, 1, torch.tensor(0))
    assert len({loss(0, 1), loss(1, 1), loss(0, 2)}) == 3


def test_the_encoder_runs_once_for_every_size_and_batch_norm_sees_all_views() -> None:
    method = made()
    seen: list[int] = []
    method.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    projected: list[int] = []
    method.projector.register_forward_pre_hook(lambda _, inputs: projected.append(len(inputs[0])))
    method.encode(batch(), Context(0, 0, 1))
    assert (seen, projected) == ([12, 18], [30])


def test_fewer_views_than_global_ones_are_refused() -> None:
    method = made(global_views=4)
    method.check_views(data.recipe("lejepa"))
    with pytest.raises(ValueError, match=r"compares 4 views or more.* makes 2"):
        method.check_views(data.recipe("byol"))
    with pytest.raises(ValueError, match=r"compares 2 views or more.* makes 1"):
        made(global_views=1).check_views(data.recipe("mae"))


def test_settings_are_checked() -> None:
    for name, value in (("lambda_param", 1.5), ("global_views", 0), ("num_vectors", 0)):
        with pytest.raises(ValueError, match=re.escape(f"{name} must be")):
            made(**{name: value})
