"""torch.amp.GradScaler and our optimisers: gradients unscaled and steps left out in the pass."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import sslfast
from sslfast import EMATeacher
from sslfast.optim import LARS, AdamW

Make = Callable[..., torch.optim.Optimizer]
PEERS: dict[str, tuple[Make, Make]] = {  # ours, torch's
    "adamw": (AdamW, lambda p, **k: torch.optim.AdamW(p, fused=True, **k)),
    "sgd": (
        lambda p, **k: LARS(p, momentum=0.9, trust=False, **k),
        lambda p, **k: torch.optim.SGD(p, momentum=0.9, fused=True, **k),
    ),
}
BACKENDS = ["reference", "cpu"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3), nn.Softplus())


def train(net: nn.Module, optimizer: torch.optim.Optimizer, clip: float | None = None) -> list:
    """Seven steps, of which the third and the fourth overflow; the scale of each."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    scales = []
    for step in range(7):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        loss = net(x).square().sum() * (float("inf") if step in (2, 3) else 1.0)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        scales.append(scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
    return scales


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", PEERS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_trajectory_of_torch(kind: str, backend: str, clip: float | None) -> None:
    """Clipping of ours is in the pass, that of torch's after ``unscale_``."""
    ours, theirs = PEERS[kind]
    net, peer = network(), network()
    options = {"lr": 1e-2, "weight_decay": 0.1}
    optimizer, other = (
        ours(net.parameters(), max_norm=clip, **options),
        theirs(peer.parameters(), **options),
    )
    with sslfast.use_backend(backend):
        scales = train(net, optimizer)
    assert scales == train(peer, other, clip)
    assert len(set(scales)) > 2
    for p, q in zip(net.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    for mine, state in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert mine.keys() == state.keys()
        if "step" in mine:
            assert mine["step"] == state["step"] == 5
    if clip is not None:
        assert optimizer.grad_norm.isfinite()


@pytest.mark.parametrize("kind", PEERS)
@pytest.mark.parametrize("scaled", [False, True])
def test_each_gradient_is_clipped_by_itself(kind: str, scaled: bool) -> None:
    ours, theirs = PEERS[kind]
    net, peer = network(), network()
    optimizer = ours(net.parameters(), lr=1e-2, max_norm=math.inf, max_norm_each=0.3)
    other = theirs(peer.parameters(), lr=1e-2, weight_decay=optimizer.defaults["weight_decay"])
    scaler = torch.amp.GradScaler("cpu", 64.0, enabled=scaled)
    norms = []
    for p, q in zip(net.parameters(), peer.parameters(), strict=True):
        q.grad = torch.randn_like(q)
        p.grad = q.grad * (64.0 if scaled else 1.0)
        norms.append(q.grad.norm())
        nn.utils.clip_grad_norm_([q], 0.3)
    scaler.scale(torch.zeros(()))  # so that it has its scale
    scaler.step(optimizer)
    other.step()
    assert max(norms) > 0.3
    torch.testing.assert_close(optimizer.grad_norm, torch.stack(norms).norm())
    for p, q in zip(net.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    for options in ({"max_norm_each": 0.0}, {"max_norm_each": 1.0, "max_norm": 1.0}):
        with pytest.raises(ValueError, match=r"max_norm_each must be positive|leave one out"):
            ours(net.parameters(), lr=1e-2, **options)


@pytest.mark.parametrize("make", [AdamW, LARS])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_that_is_left_out_changes_nothing(make: Make, backend: str) -> None:
    net = nn.Sequential(*network(), nn.BatchNorm1d(3))
    teacher = EMATeacher(net, 0.5)
    optimizer = make(net.parameters(), lr=1e-2, weight_decay=0.1, max_norm=1.0, ema=teacher)
    for found_inf, scale in ((0.0, None), (1.0, torch.tensor(8.0)), (2.0, None), (0.0, None)):
        optimizer.zero_grad()
        net(torch.randn(9, 6)).square().sum().backward()
        before = copy.deepcopy(
            [list(net.parameters()), optimizer.state_dict()["state"], teacher.state_dict()]
        )
        if found_inf:
            net[0].weight.grad[1, 1] = float("nan")
        optimizer.grad_scale, optimizer.found_inf = scale, torch.tensor(found_inf)
        with sslfast.use_backend(backend):
            optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf
        after = [list(net.parameters()), optimizer.state_dict()["state"], teacher.state_dict()]
        if not found_inf:
            assert not torch.equal(after[0][0], before[0][0])
            continue
        for p, q in zip(before[0], after[0], strict=True):
            assert torch.equal(p, q)
        for mine, state in zip(before[1].values(), after[1].values(), strict=True):
            assert all(torch.equal(mine[k], state[k]) for k in mine)
        for name, value in before[2].items():
            if "num_batches" not in name:  # integers are copied whatever happens
                assert torch.equal(value, after[2][name])
    assert teacher.updates == 2


def test_nothing_is_read_off_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scaler asks ``found_inf`` for its number only where an optimiser cannot take it."""
    net = network()
    optimizer = AdamW(net.parameters(), max_norm=1.0)
    scaler = torch.amp.GradScaler("cpu")

    def refuse(*_: object) -> None:
        raise AssertionError("read on the host")

    monkeypatch.setattr(scaler, "_maybe_opt_step", refuse)
    scaler.scale(net(torch.randn(9, 6)).sum()).backward()
    scaler.step(optimizer)
    assert not hasattr(optimizer, "found_inf")
