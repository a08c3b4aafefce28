"""Our optimisers beside torch's and lightly's: trajectories, teachers, state, refusals."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import peers
import sslfast
from sslfast import EMATeacher, models
from sslfast.optim import LARS, AdamW, param_groups

Make = Callable[..., torch.optim.Optimizer]
TORCH: dict[str, tuple[Make, Make]] = {  # ours, torch's
    "adamw": (AdamW, torch.optim.AdamW),
    "sgd": (
        lambda p, **k: LARS(p, momentum=0.9, trust=False, **k),
        lambda p, **k: torch.optim.SGD(p, momentum=0.9, **k),
    ),
    "nesterov": (
        lambda p, **k: LARS(p, momentum=0.9, nesterov=True, trust=False, **k),
        lambda p, **k: torch.optim.SGD(p, momentum=0.9, nesterov=True, **k),
    ),
    "plain": (lambda p, **k: LARS(p, momentum=0, trust=False, **k), torch.optim.SGD),
}
BACKENDS = ["reference", "cpu"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(72, 33), nn.LayerNorm(33))
    return nn.Sequential(*layers, nn.Linear(33, 5)).to(dtype)


def groups(net: nn.Module) -> list[dict[str, Any]]:
    """Three groups: with decay, without, and one at another rate."""
    decay, rest = param_groups(net)
    last = decay["params"].pop()
    return [decay, rest, {"params": [last], "lr": 3e-3, "weight_decay": 0.3}]


def test_positions_and_tokens_take_no_weight_decay() -> None:
    net = models.vit(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, reg_tokens=1)
    decay, rest = (set(group["params"]) for group in param_groups(nn.Sequential(net)))
    assert {net.pos_embed, net.cls_token, net.reg_token} <= rest
    assert decay == {p for p in net.parameters() if p.ndim > 1} - rest
    assert decay | rest == set(net.parameters())


def train(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    after: Callable[[], object] = lambda: None,
    first: int = 0,
) -> None:
    dtype = next(net.parameters()).dtype
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 3, 5, 5, generator=generator).to(dtype)
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        optimizer.step()
        after()


def same(a: nn.Module, b: nn.Module, **tolerance: float) -> None:
    for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        explain = f"{name}: {{}}".format
        torch.testing.assert_close(p, q, check_dtype=False, msg=explain, **tolerance)


@pytest.mark.parametrize("kind", TORCH)
@pytest.mark.parametrize("backend", BACKENDS)
def test_trajectory_of_torch_and_of_float64(kind: str, backend: str) -> None:
    """No further from float64 than torch's own classes are, fused and foreach."""
    ours, theirs = TORCH[kind]
    nets = {n: network(torch.float64 if n == "truth" else torch.float32) for n in
            ("truth", "ours", "fused", "foreach")}  # fmt: skip
    nets["truth"].load_state_dict(nets["ours"].state_dict())
    for name in ("truth", "fused", "foreach"):
        how = {} if name == "truth" else {name: True}
        train(nets[name], theirs(groups(nets[name]), lr=1e-2, weight_decay=0.1, **how), 20)
    with sslfast.use_backend(backend):
        train(nets["ours"], ours(groups(nets["ours"]), lr=1e-2, weight_decay=0.1), 20)

    def error(name: str) -> float:
        pairs = zip(nets[name].parameters(), nets["truth"].parameters(), strict=True)
        return max((p - q).abs().max().item() for p, q in pairs)

    assert error("ours") <= 2 * max(error("fused"), error("foreach")) + 1e-6


@pytest.mark.parametrize("kind", TORCH)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_teacher_in_the_pass_is_the_teacher_after_it(kind: str, backend: str) -> None:
    """With clipping, a frozen parameter, one without gradient, buffers, and a predictor outside."""

    def build() -> tuple[nn.Module, nn.Module, EMATeacher]:
        student = nn.Sequential(nn.BatchNorm2d(3), *network())
        student.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        student.unused = nn.Parameter(torch.ones(7))
        teacher = EMATeacher(student, 0.9, dtype=torch.float64)
        teacher.module.unused.zero_()
        return nn.Sequential(student, nn.Linear(5, 5)), student, teacher

    ours, theirs = TORCH[kind]
    whole, _, teacher = build()
    peer, peer_student, peer_teacher = build()
    peer.load_state_dict(whole.state_dict())
    peer_teacher.load_state_dict(teacher.state_dict())
    with sslfast.use_backend(backend):
        optimizer = ours(groups(whole), lr=1e-2, weight_decay=0.1, max_norm=0.5, ema=teacher)
        train(whole, optimizer, 5)
    theirs_optimizer = theirs(groups(peer), lr=1e-2, weight_decay=0.1)
    theirs_optimizer.register_step_pre_hook(
        lambda *_: norms.append(nn.utils.clip_grad_norm_(peer.parameters(), 0.5)) and None
    )
    norms: list[Tensor] = []
    train(peer, theirs_optimizer, 5, lambda: peer_teacher.update(peer_student))
    same(whole, peer, rtol=1e-4, atol=1e-5)
    same(teacher, peer_teacher, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(optimizer.grad_norm, norms[-1])
    assert norms[-1] > 0.5
    assert teacher.updates == 5
    torch.testing.assert_close(teacher.module.unused, torch.full((7,), 1 - 0.9**5).double())


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_runs_switch_between_torch_and_ours(kind: str) -> None:
    ours, theirs = TORCH[kind]
    makes = (ours, theirs)
    for first, second in (makes, makes[::-1]):
        net, peer = network(), network()
        options = {"lr": 1e-2, "weight_decay": 0.1}
        one, always = first(groups(net), **options), theirs(groups(peer), **options)
        train(net, one, 4)
        other = second(groups(net), **options)
        other.load_state_dict(copy.deepcopy(one.state_dict()))
        train(net, other, 4, first=4)
        train(peer, always, 8)
        same(net, peer, rtol=1e-4, atol=1e-6)
        states = other.state_dict()["state"], always.state_dict()["state"]
        assert [s.keys() for s in states[0].values()] == [s.keys() for s in states[1].values()]


def test_what_torch_has_and_ours_has_not_is_refused() -> None:
    net = network()
    saved = torch.optim.AdamW(net.parameters(), amsgrad=True).state_dict()
    with pytest.raises(ValueError, match="AdamW has no amsgrad"):
        AdamW(net.parameters()).load_state_dict(saved)
    saved = torch.optim.SGD(net.parameters(), momentum=0.9, dampening=0.5).state_dict()
    with pytest.raises(ValueError, match="LARS has no dampening"):
        LARS(net.parameters()).load_state_dict(saved)


def test_lars_of_lightly() -> None:
    """lightly leaves out decay and trust where weight_decay is 0, as our default does."""
    if not peers.PEERS.is_dir():
        pytest.skip("lightly is missing: run `make peers`")
    theirs = peers.load("lightly.utils.lars").LARS
    net, peer = network(), network()
    options = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-2, "trust_coefficient": 0.5}
    train(net, LARS(param_groups(net), **options), 10)
    train(peer, theirs(param_groups(peer), **options), 10)
    same(net, peer, rtol=1e-4, atol=1e-5)
    off = network()
    train(off, LARS(param_groups(off), trust=False, **options), 10)
    assert (off[0].weight - net[0].weight).abs().max() > 1e-3


def test_lars_of_a_zero_layer_and_clipping() -> None:
    p, q = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.full((4,), 3.0))
    optimizer = LARS([p, q], lr=1.0, momentum=0.0, weight_decay=0.5, max_norm=1.0)
    p.grad, q.grad = torch.full((4,), 3.0), torch.full((4,), 4.0)
    optimizer.step()
    # ||gradient|| = 10 is clipped to 1: p, without a norm, moves by its gradient.
    torch.testing.assert_close(p.detach(), torch.full((4,), -0.3))
    ratio = 1e-3 * 6 / (0.8 + 0.5 * 6)
    torch.testing.assert_close(q.detach(), 3 - ratio * torch.full((4,), 0.4 + 1.5))
    assert optimizer.grad_norm == 10


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_16_bit_parameters_and_a_float32_teacher(kind: str) -> None:
    """Each dtype as torch's class does it, in one pass."""
    ours, theirs = TORCH[kind]
    made = []
    for make in (ours, theirs):
        torch.manual_seed(3)
        params = [
            nn.Parameter(torch.randn(3000, dtype=d))
            for d in (torch.bfloat16, torch.float32, torch.float16, torch.float64)
        ]
        student = nn.ParameterList(params)
        teacher = EMATeacher(student, 0.9, dtype=torch.float32)
        extra = {"ema": teacher} if make is ours else {}
        if kind == "adamw":
            extra["eps"] = 1e-3  # squares of float16 gradients underflow
            extra |= {} if make is ours else {"fused": True}  # rounds once, as ours
        optimizer = make(student.parameters(), lr=1e-2, weight_decay=0.1, **extra)
        for step in range(5):
            for p in params:
                generator = torch.Generator().manual_seed(step)
                p.grad = torch.randn(3000, generator=generator).to(p.dtype)
            optimizer.step()
            if make is theirs:
                teacher.update(student)
        made.append((student, teacher))
    same(made[0][0], made[1][0], rtol=2e-2, atol=2e-2)
    for a, b in zip(made[0][0], made[1][0], strict=True):
        assert a.dtype == b.dtype
        assert (a.float() - b.float()).abs().mean() < 2e-3
    same(made[0][1], made[1][1], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("make", [AdamW, LARS])
def test_tensor_rates_closures_and_layouts(make: Make) -> None:
    net, peer = network().to(memory_format=torch.channels_last), network()
    rate = torch.tensor(1e-2)
    options = {"weight_decay": 0.1}
    one = make(net.parameters(), lr=rate, **options)
    two = make(peer.parameters(), lr=1e-2, **options)
    x = torch.randn(16, 3, 5, 5)

    def closure_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = net(x).square().sum()
            loss.backward()
            return loss

        return closure

    for step in range(4):
        rate.fill_(1e-2 / (1 + step))
        two.param_groups[0]["lr"] = 1e-2 / (1 + step)
        losses = [o.step(closure_of(n, o)) for n, o in ((net, one), (peer, two))]
        torch.testing.assert_close(*losses)
        net[0].weight.grad = net[0].weight.grad.contiguous()
    same(net, peer, rtol=1e-4, atol=1e-5)
    one.load_state_dict(copy.deepcopy(two.state_dict()))  # whose states have the other layout
    for n, o in ((net, one), (peer, two)):
        o.param_groups[0]["lr"] = 1e-3
        o.step(closure_of(n, o))
    same(net, peer, rtol=1e-4, atol=1e-5)


def test_copies_keep_their_options() -> None:
    net = network()
    teacher = EMATeacher(net, 0.5)
    optimizer = LARS(net.parameters(), 0.1, max_norm=1.0, ema=teacher, trust_coefficient=0.1)
    net2, copied = copy.deepcopy((net, optimizer))
    with pytest.raises(ValueError, match="call its update"):
        train(net2, copied, 1)
    assert copied.ema is not teacher
    assert copied.max_norm == 1.0
    assert copied.param_groups[0]["trust_coefficient"] == 0.1
    copied.ema.update(net2)
    train(net2, copied, 1)
    assert copied.ema.updates == 2
    assert teacher.updates == 0


def test_what_cannot_be_done_is_said_before_anything_is_written() -> None:
    net = network()
    teacher = EMATeacher(net, 0.5)
    for make in (AdamW, LARS):
        for options, error, words in (
            ({"ema": net}, TypeError, "ema must be an EMATeacher, got Sequential"),
            ({"max_norm": 0.0}, ValueError, "max_norm must be positive"),
            ({"ema": EMATeacher(network())}, ValueError, "build both of the same network"),
            ({"ema": EMATeacher(net, skip_non_finite=True)}, ValueError, "skip_non_finite"),
            ({"weight_decay": -1.0}, ValueError, "weight_decay"),
        ):
            with pytest.raises(error, match=words):
                make(net.parameters(), lr=1e-2, **options)
        optimizer = make(net.parameters(), lr=1e-2, ema=teacher)
        train(net, optimizer, 1)
        before = copy.deepcopy((net.state_dict(), teacher.state_dict()))

        def unchanged(before: Any = before) -> None:
            for old, module in zip(before, (net, teacher), strict=True):
                for name, value in module.state_dict().items():
                    assert torch.equal(value, old[name])

        old = net[5].bias
        net[5].bias = nn.Parameter(old.detach().clone())
        with pytest.raises(ValueError, match=r"5.bias.*no longer a parameter of this optimiser"):
            optimizer.step()
        net[5].bias = old
        teacher.module.double()
        teacher.module[0].weight.data = torch.zeros(2)
        with pytest.raises(ValueError, match=r"0.weight has shape \[2\] in the teacher"):
            optimizer.step()
        teacher.module.float()
        teacher.module[0].weight.data = before[1]["module.0.weight"].clone()
        gradient = net[0].weight.grad
        net[0].weight.grad = None
        net[0].weight.grad = gradient.to_sparse()
        with pytest.raises(TypeError, match="sparse"):
            optimizer.step()
        net[0].weight.grad = gradient
        unchanged()
        assert teacher.updates == before[1]["updates"]
        optimizer.step()
    p = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    with pytest.raises(TypeError, match="only real numbers"):
        AdamW([p]).step()
    with pytest.raises(ValueError, match="trust_coefficient must be positive"):
        LARS([p], 0.1, trust_coefficient=0)


def test_grad_scaler_leaves_out_steps() -> None:
    net = network()
    optimizer = AdamW(net.parameters(), ema=EMATeacher(net))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = copy.deepcopy(net.state_dict())
    for value in (float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(net(torch.randn(4, 3, 5, 5)).sum() * value).backward()
        scaler.step(optimizer)
        scaler.update()
        moved = not torch.equal(net[0].weight, before["0.weight"])
        assert moved == (value == 1.0)
    assert optimizer.ema.updates == 1


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_parameters_that_changed_their_dtype_need_their_state_cast(kind: str) -> None:
    """Before, a state of 4 bytes a number would be read as one of 8."""
    ours, theirs = TORCH[kind]
    net, peer = network(), network()
    optimizer, other = ours(net.parameters(), lr=1e-2), theirs(peer.parameters(), lr=1e-2)
    train(net, optimizer, 2)
    train(peer, other, 2)
    net.double(), peer.double()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"is torch.float32 on cpu, but the parameter torch.floa"):
        train(net, optimizer, 1)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    for o in (optimizer, other):
        o.load_state_dict(o.state_dict())
    train(net, optimizer, 2, first=2)
    train(peer, other, 2, first=2)
    same(net, peer, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [AdamW, LARS])
def test_parameters_that_come_later(make: Make) -> None:
    """A group added, a parameter frozen and thawed, a module that the teacher adopts."""
    net = network()
    teacher = EMATeacher(net, 0.5)
    optimizer = make([*net[0].parameters()], lr=1e-2, weight_decay=0.1, ema=teacher)
    train(net, optimizer, 1)
    optimizer.add_param_group({"params": [*net[3].parameters()], "lr": 1e-3})
    net[0].weight.requires_grad_(False)
    still = net[0].weight.clone()
    train(net, optimizer, 1)
    assert torch.equal(net[0].weight, still)
    net[0].weight.requires_grad_(True)
    net.extra = nn.Linear(5, 5)
    with pytest.raises(ValueError, match=r"student has 'extra.weight'.*teacher.adopt"):
        train(net, optimizer, 1)
    teacher.adopt(net)
    optimizer.add_param_group({"params": [*net.extra.parameters()]})
    want, want_before = copy.deepcopy(teacher), teacher.module.extra.weight.clone()
    train(net, optimizer, 1)
    want.update(net)
    same(teacher.module, want.module, rtol=1e-5, atol=1e-6)
    assert not torch.equal(teacher.module.extra.weight, want_before)


def test_inside_a_compiled_step() -> None:
    """The optimiser runs between the graphs, with its teacher, and gives what it gives alone."""

    def build() -> tuple[nn.Module, EMATeacher, Callable[[Tensor], None]]:
        net = network()
        teacher = EMATeacher(net, 0.9)
        optimizer = AdamW(net.parameters(), lr=1e-2, max_norm=1.0, ema=teacher)

        def step(x: Tensor) -> None:
            net(x).square().sum().backward()
            optimizer.step()

        return net, teacher, step

    net, teacher, step = build()
    peer, other, eager = build()
    compiled = torch.compile(step, backend="aot_eager")
    for _ in range(3):
        x = torch.randn(4, 3, 5, 5)
        for module, run in ((net, compiled), (peer, eager)):
            module.zero_grad()
            run(x)
    same(net, peer, rtol=1e-4, atol=1e-5)
    same(teacher, other, rtol=1e-4, atol=1e-5)
    assert teacher.updates == 3


def _ranks(rank: int, size: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for make in (AdamW, LARS):
        net, plain = network(), network()
        teacher, want = EMATeacher(net, 0.5), EMATeacher(plain, 0.5)
        mesh = init_device_mesh("cpu", (size,))
        fully_shard(net, mesh=mesh)
        fully_shard(teacher.module, mesh=mesh)
        options = {"lr": 1e-2, "weight_decay": 0.1, "max_norm": 0.5}
        train(net, make(param_groups(net), ema=teacher, **options), 3)
        train(plain, make(param_groups(plain), ema=want, **options), 3)
        pairs = [*zip(net.parameters(), plain.parameters(), strict=True)]
        pairs += zip(teacher.module.parameters(), want.module.parameters(), strict=True)
        for p, q in pairs:
            torch.testing.assert_close(p.full_tensor(), q, rtol=1e-4, atol=1e-5)
    dist.barrier()


@pytest.mark.slow
def test_sharded_parameters() -> None:
    processes.run(2, _ranks)
