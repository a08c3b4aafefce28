"""SwAV: its loss of unit embeddings, prototypes of length 1, the queue, what is said."""

from typing import Any

import torch
import torch.nn.functional as F
from tokens import needed
from torch import Tensor

from sslfast import methods, models
from sslfast.data.batch import Batch
from sslfast.losses import SwaVLoss
from sslfast.methods.base import Context
from sslfast.methods.swav import SwAV

CTX = Context(0, 0, 10)


def made(**keywords: Any) -> SwAV:
    torch.manual_seed(0)
    encoder = models.create("convnet_small", width=8, depth=2)
    method = methods.create("swav", encoder, **{**needed("swav"), **keywords})
    assert isinstance(method, SwAV)
    return method


def batch(count: int = 6, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    sizes = [16, 16, 8, 8]
    views = tuple(torch.randn(count, 3, s, s, generator=generator) for s in sizes)
    return Batch(views, torch.arange(count))


def scores(method: SwAV, outputs: list[Tensor]) -> list[Tensor]:
    return [z @ method.prototypes.T for z in outputs]


def test_it_is_the_loss_of_unit_embeddings_and_prototypes() -> None:
    method = made(temperature=0.2, epsilon=0.1)
    outputs = method.encode(batch(), CTX)
    found = method.loss(outputs, CTX)
    torch.testing.assert_close(torch.stack(outputs).norm(dim=2), torch.ones(4, 6))
    large, small = scores(method, outputs[:2]), scores(method, outputs[2:])
    expected = SwaVLoss(0.2, sinkhorn_epsilon=0.1)(large, small)
    torch.testing.assert_close(found["loss"], expected)
    together = method.student(torch.cat(batch().views[2:]))
    torch.testing.assert_close(torch.cat(outputs[2:]), F.normalize(together, dim=1))
    assert 1 <= found["prototypes"] <= 32.01


def test_prototypes_keep_length_1_and_are_frozen_at_first() -> None:
    method = made()
    torch.testing.assert_close(method.prototypes.norm(dim=1), torch.ones(32))
    with torch.no_grad():
        method.prototypes.mul_(3).add_(0.1)
    before = F.normalize(method.prototypes.detach(), dim=1)
    method.after_step(CTX)
    torch.testing.assert_close(method.prototypes.detach(), before)
    *_, last = method.param_groups()
    assert last["params"] == [method.prototypes]
    assert last["freeze_until"] == 1
    given = [p for group in method.param_groups() for p in group["params"]]
    assert {id(p) for p in given} == {id(p) for p in method.parameters()}
    assert len(given) == len(list(method.parameters()))


def test_the_queue_takes_part_in_codes_from_its_epoch_on() -> None:
    method = made(queue=10, queue_from=2)
    first = method.encode(batch(seed=1), CTX)
    plain = method.loss(first, CTX)["loss"]
    torch.testing.assert_close(
        plain, SwaVLoss()(scores(method, first[:2]), scores(method, first[2:]))
    )
    held = [bank.bank.clone() for bank in method.queues]  # type: ignore[union-attr, operator]
    for bank, z in zip(held, first, strict=False):
        torch.testing.assert_close(bank[:6], z.detach())
    outputs = method.encode(batch(seed=2), CTX)
    found = method.loss(outputs, Context(5, 2, 10))["loss"]
    groups = scores(method, outputs[:2]), scores(method, outputs[2:]), scores(method, held)
    torch.testing.assert_close(found, SwaVLoss()(*groups))
    assert any("queues" in name for name in method.state_dict())


def test_what_is_unusual_is_said() -> None:
    method = made(queue=40)
    assert method.remarks(40) == []
    said = method.remarks(31)
    assert "32 prototypes for 31 images" in said[0]
    assert "method_args.prototypes" in said[0]
    assert "queue of 40 embeddings is longer than the 31 samples" in said[1]
