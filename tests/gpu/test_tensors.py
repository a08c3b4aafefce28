"""Moving averages and optimisers on CUDA tensors: backends, graphs, no synchronisation, torch's."""

import itertools

import pytest
import torch
from torch import Tensor, nn

import sslfast
from sslfast import EMATeacher
from sslfast.ema import CosineMomentum
from sslfast.functional import ema_update_
from sslfast.kernels import registry
from sslfast.kernels.ema import reference
from sslfast.optim import LARS, AdamW, param_groups

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
ROUNDING = {
    torch.float32: 2.0**-22,
    torch.float64: 2.0**-50,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}


def backends(op: str) -> list[str]:
    found = registry.candidates(op)
    return [b.name for b in found if b.unavailable() is None and b.module.DEVICE != "cpu"]


@pytest.mark.parametrize("name", backends("ema"))
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("momentum", [0.3, 0.996])
def test_ema_of_all_types_and_sizes(name: str, shift: int, momentum: float) -> None:
    pairs = itertools.product(ROUNDING, ROUNDING)
    sizes = (0, 1, 1023, 16384, 300007)
    kinds = [(n, t, s) for t, s in pairs for n in sizes]
    teacher = [torch.randn(n + shift, device="cuda").to(t)[shift:] for n, t, _ in kinds]
    student = [torch.randn(n + shift, device="cuda").to(s)[shift:] for n, _, s in kinds]
    truth = [t.double().clone() for t in teacher]
    m = torch.tensor(momentum, dtype=torch.float64, device="cuda")
    reference.update(truth, [s.double() for s in student], m)
    with sslfast.use_backend(name):
        ema_update_(teacher, student, m)
    for t, want, (_, _, s) in zip(teacher, truth, kinds, strict=True):
        rounding = ROUNDING[t.dtype] if torch.float64 in (t.dtype, s) else 2.0**-22
        bound = max(rounding, ROUNDING[t.dtype]) * (want.abs() + 5)
        assert ((t.double() - want).abs() <= bound).all(), (t.dtype, s)


@pytest.mark.parametrize("name", backends("ema"))
def test_momentum_one_leaves_the_teacher(name: str) -> None:
    teacher = torch.randn(50000, device="cuda")
    before = teacher.clone()
    with sslfast.use_backend(name):
        ema_update_([teacher], [torch.full_like(teacher, torch.nan)], 1.0)
    assert torch.equal(teacher, before)


@pytest.mark.parametrize("name", backends("ema"))
def test_infinities_that_both_hold_stay_and_momentum_zero_copies_bits(name: str) -> None:
    mask = torch.full((300, 300), -torch.inf, device="cuda").triu(1)
    for dtype in ROUNDING:
        teacher, student = mask.to(dtype), mask.to(dtype)
        student[0, 0] = torch.nan
        with sslfast.use_backend(name):
            ema_update_([teacher], [mask.to(dtype)], 0.9)
            assert torch.equal(teacher, mask.to(dtype))
            ema_update_([teacher], [student], 0.0)
        assert torch.equal(teacher.view(torch.uint8), student.view(torch.uint8))


def test_a_teacher_on_a_device_of_its_own() -> None:
    student = network()
    teacher = EMATeacher(student, 0.5, device="cpu", skip_non_finite=True)
    assert {v.device.type for v in teacher.state_dict().values()} == {"cpu"}
    first = student[0].weight.detach().clone()
    with torch.no_grad():
        student[0].weight.add_(1)
    teacher.update(student)
    torch.testing.assert_close(teacher.module[0].weight, (first + 0.5).cpu())
    with teacher.swapped(student):
        torch.testing.assert_close(student[0].weight.detach(), first + 0.5)
    teacher.set(student)
    assert torch.equal(teacher.module[0].weight, student[0].weight.detach().cpu())
    with pytest.raises(ValueError, match="in the teacher, but on cuda"):
        EMATeacher(student).to("cpu").update(student)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(70, 300), nn.Tanh(), nn.LayerNorm(300), nn.Linear(300, 9)).cuda()


@pytest.mark.parametrize("name", backends("adamw"))
@pytest.mark.parametrize("make", [AdamW, LARS])
def test_step_with_teacher_and_clipping(name: str, make: type) -> None:
    """Beside torch's classes, or LARS's oracle; the same bits from run to run."""

    def train(optimizer_of: type, backend: str, fused: bool) -> tuple[list[Tensor], EMATeacher]:
        net = network()
        teacher = EMATeacher(net, 0.9)
        options = {"max_norm": 1.0, "ema": teacher} if fused else {}
        optimizer = optimizer_of(param_groups(net), lr=1e-2, weight_decay=0.1, **options)
        with sslfast.use_backend(backend):
            for step in range(5):
                x = torch.randn(64, 70, generator=torch.Generator().manual_seed(step)).cuda()
                optimizer.zero_grad()
                net(x).square().sum().backward()
                if not fused:
                    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                if not fused:
                    teacher.update(net)
        return list(net.parameters()), teacher

    ours, teacher = train(make, name, True)
    again, _ = train(make, name, True)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    peer = torch.optim.AdamW if make is AdamW else LARS
    theirs, other = train(peer, "reference", make is LARS)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for a, b in zip(teacher.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", backends("adamw"))
@pytest.mark.parametrize("make", [AdamW, LARS])
def test_cuda_graph_and_no_synchronisation(name: str, make: type) -> None:
    """A graph of step and teacher, with rate and momentum schedules, replays as steps run."""

    def build() -> tuple[nn.Module, EMATeacher, torch.optim.Optimizer, Tensor]:
        net, rate = network(), torch.tensor(1e-2, device="cuda")
        teacher = EMATeacher(net, CosineMomentum(0.5, 1.0, 20))
        optimizer = make(net.parameters(), lr=rate, max_norm=1.0, ema=teacher)
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        return net, teacher, optimizer, rate

    with sslfast.use_backend(name):
        net, teacher, optimizer, rate = build()
        peer, other, peer_optimizer, peer_rate = build()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()
        for step in range(4):
            rate.fill_(1e-2 / (1 + step))
            graph.replay()
        for _ in range(3):
            peer_optimizer.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in range(4):
                peer_rate.fill_(1e-2 / (1 + step))
                peer_optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(net.parameters(), peer.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(teacher.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert teacher.updates == 7


def test_devices_that_differ_are_refused() -> None:
    net = network()
    teacher = EMATeacher(net)
    teacher.module.cpu()
    with pytest.raises(ValueError, match=r"0.weight is on cpu in the teacher, but on cuda:0"):
        teacher.update(net)
    with pytest.raises(ValueError, match="momentum is on cpu, but the teacher on cuda"):
        ema_update_([torch.ones(1).cuda()], [torch.ones(1).cuda()], torch.tensor(0.5))
