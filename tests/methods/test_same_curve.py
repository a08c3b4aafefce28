"""With our losses and with lightly's in the same loop, training takes the same course."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokens import needed
from torch import Tensor, nn

import peers
from sslfast import methods, models
from sslfast.data.batch import Batch
from sslfast.losses.sigreg import random_directions
from sslfast.methods.base import Context, Method
from sslfast.optim import AdamW

STEPS = 50


def made(name: str) -> Method:
    torch.manual_seed(0)
    encoder = models.create("convnet_small", width=8, depth=2)
    if name == "msn":
        small = {"img_size": 12, "embed_dim": 32, "depth": 2, "num_heads": 2}
        encoder = models.create("vit_micro", **small)
    settings = {"temperature": 0.3, "out_dim": 16} if name == "simclr" else needed(name)
    if name == "lejepa":
        settings = {**settings, "global_views": 1}  # lightly's class wants a local one
    return methods.create(name, encoder, **settings)


def theirs(name: str, method: Method) -> nn.Module:
    """Lightly's class with the settings of ours."""
    lightly = peers.load("lightly.loss")
    if name == "simclr":
        return lightly.NTXentLoss(temperature=0.3)
    if name == "mocov2":
        loss = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(40, 16))
        loss.memory_bank.bank = F.normalize(method.criterion.memory_bank.bank, dim=1).clone()
        loss.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.int64)
        return loss
    if name == "dino":
        return lightly.DINOLoss(32, teacher_temp=0.07)
    if name == "swav":
        return lightly.SwaVLoss()
    if name == "msn":
        return lightly.MSNLoss()
    if name == "barlow_twins":
        return lightly.BarlowTwinsLoss(lambda_param=0.0051)
    if name == "vicreg":
        return lightly.VICRegLoss()
    if name == "lejepa":
        loss = lightly.LeJEPALoss()
        directions = random_directions(64, 16, seed=0, step=0)
        loss.sigreg._generate_unit_vectors = lambda *_: directions.T
        return loss
    return lightly.NegativeCosineSimilarity()


def learn(method: Method, loss: Callable[[Any], Tensor]) -> list[float]:
    """The losses of some steps on batches that have something to learn."""
    generator = torch.Generator().manual_seed(0)
    colors = torch.randn(64, 3, 1, 1, generator=generator)
    optimizer, losses = AdamW(method.param_groups(), 3e-4, ema=method.teachers()), []
    for step in range(STEPS):
        ids = torch.randint(64, (10,), generator=generator)
        views = colors[ids] + 0.3 * torch.randn(2, 10, 3, 12, 12, generator=generator)
        value = loss(method.encode(Batch(tuple(views), ids), Context(step, 0, STEPS)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        method.after_step(Context(step, 0, STEPS))
        losses.append(value.item())
    return losses


NAMES = [
    "barlow_twins",
    "byol",
    "dino",
    "lejepa",
    "mocov2",
    "msn",
    "simclr",
    "simsiam",
    "swav",
    "vicreg",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_curve_is_that_of_lightlys_loss(name: str) -> None:
    ours, other = made(name), made(name)
    criterion = theirs(name, ours)
    ctx = Context(0, 0, STEPS)
    found = learn(ours, lambda outputs: ours.loss(outputs, ctx)["loss"])

    def loss(outputs: Any) -> Tensor:
        if name in ("byol", "simsiam"):
            (p0, p1), (z0, z1) = outputs
            both = criterion(p0, z1.detach()) + criterion(p1, z0.detach())
            return both / 2 if name == "simsiam" else 4 + 2 * both
        if name == "lejepa":
            views = outputs.transpose(0, 1)
            return criterion(global_proj=views[:1], local_proj=views[1:])
        if name == "dino":
            heads = other.teacher.module.head, other.head
            outputs = [
                [x @ head.prototypes().T for x in side]
                for head, side in zip(heads, outputs, strict=True)
            ]
        if name == "swav":
            outputs = [[z @ other.prototypes.T for z in outputs], []]
        if name == "msn":
            outputs = outputs[0].squeeze(1), outputs[1], other.head.weight
        value: Tensor = criterion(*outputs)
        return value.squeeze()

    expected = learn(other, loss)
    # Training magnifies roundings from step to step: those of the first are far below.
    torch.testing.assert_close(found[:5], expected[:5], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    assert found[-1] != found[0]
