"""Options, dtypes and memory in which torch's own classes work, and what ours say to the others."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslfast import EMATeacher
from sslfast.optim import LARS, AdamW

Make = Callable[..., Any]
KINDS: dict[str, Make] = {
    "adamw": AdamW,
    "lars": lambda p, **k: LARS(p, **{"lr": 0.1, "weight_decay": 0.1, "trust": True, **k}),
}


@pytest.fixture(params=[torch.float64, torch.bfloat16, torch.float16], ids=str)
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    before = torch.get_default_dtype()
    yield request.param
    torch.set_default_dtype(before)


def steps(make: Make, params: list[Tensor], teacher: bool = True, **options: Any) -> list[Tensor]:
    """Three steps with fixed gradients, and the teacher in the pass: what came of all tensors."""
    student = nn.ParameterList([p.clone() for p in params])
    ema = EMATeacher(student, 0.9) if teacher else None
    optimizer = make(student.parameters(), max_norm=1.0, ema=ema, **options)
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        for p in student:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        optimizer.step()
    return [p.detach() for p in student] + (list(ema.module) if ema else [])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:a 16-bit teacher")
def test_torchs_default_dtype_changes_nothing(kind: str, default_dtype: torch.dtype) -> None:
    params = [torch.randn(40, dtype=d) for d in (torch.float32, torch.bfloat16, torch.float64)]
    params += [torch.randn(3, dtype=torch.float32) for _ in range(20)]
    want = steps(KINDS[kind], params)
    torch.set_default_dtype(default_dtype)
    for got, expected in zip(steps(KINDS[kind], params), want, strict=True):
        assert torch.equal(got, expected)


def test_trust_ratios_of_float64_layers() -> None:
    """In float64, also beside others."""
    options = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.1, "trust_coefficient": 0.5}
    p, q = (nn.Parameter(torch.randn(30, dtype=d)) for d in (torch.float64, torch.bfloat16))
    p.grad, q.grad = torch.randn_like(p), torch.randn_like(q)
    norm, gradient = p.detach().norm(), p.grad.norm()
    ratio = 0.5 * norm / (gradient + 0.1 * norm + 1e-8)
    want = p.detach() - 0.1 * ratio * (p.grad + 0.1 * p.detach())
    LARS([p, q], **options).step()
    torch.testing.assert_close(p.detach(), want, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bfloat16])
def test_a_step_of_another_dtype_is_the_number_it_says(dtype: torch.dtype) -> None:
    """The kernels read four bytes."""
    p, q = (nn.Parameter(torch.ones(5)) for _ in "pq")
    one, two = AdamW([p], lr=0.1), torch.optim.AdamW([q], lr=0.1)
    for _ in range(3):
        p.grad = q.grad = torch.randn(5)
        one.step(), two.step()
        one.state[p]["step"] = one.state[p]["step"].to(dtype)
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize("kind", KINDS)
def test_options_of_torch_that_change_nothing(kind: str) -> None:
    params = [torch.randn(7), torch.randn(2, 3)]
    want = steps(KINDS[kind], params)
    harmless: list[dict[str, Any]] = [
        {"fused": True, "maximize": False, "differentiable": False},
        {"fused": False, "foreach": None},
        {"foreach": True},
    ]
    more = {"adamw": {"capturable": True, "amsgrad": False}, "lars": {"dampening": 0}}
    for options in (*harmless, more[kind]):
        for got, expected in zip(steps(KINDS[kind], params, **options), want, strict=True):
            assert torch.equal(got, expected)
    AdamW([torch.ones(2)], 1e-3, (0.9, 0.99), 1e-8, 0.1, False)  # by place, as torch's


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        *(("adamw", name) for name in ("amsgrad", "maximize", "differentiable")),
        *(("lars", name) for name in ("dampening", "maximize", "differentiable")),
    ],
)
def test_options_that_would_change_something_are_refused(kind: str, option: str) -> None:
    """As an argument, and in a group at any time."""
    p = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=f"has no {option}.*use PyTorch's own class"):
        KINDS[kind]([p], **{option: True})
    optimizer = KINDS[kind]([p])
    p.grad = torch.ones(3)
    optimizer.step()
    before, state = p.detach().clone(), copy.deepcopy(optimizer.state[p])
    optimizer.param_groups[0][option] = True
    with pytest.raises(ValueError, match=f"has no {option}"):
        optimizer.step()
    assert torch.equal(p, before)
    assert all(torch.equal(v, state[k]) for k, v in optimizer.state[p].items())
    optimizer.param_groups[0][option] = False
    optimizer.step()
    assert not torch.equal(p, before)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_with_holes_in_memory(kind: str) -> None:
    """What lies between their elements stays, and so do their states from step to step."""
    memory = torch.randn(6, 8), torch.randn(5, 4, 3)
    views = [memory[0][:, ::2], memory[1].permute(2, 0, 1)[..., 1:3]]
    between = memory[0][:, 1::2].clone()
    dense = [v.clone() for v in views]
    want = steps(KINDS[kind], dense)
    student = nn.ParameterList(views)
    assert student[0].data_ptr() == memory[0].data_ptr()
    ema = EMATeacher(student, 0.9)
    optimizer = KINDS[kind](student.parameters(), max_norm=1.0, ema=ema)
    generator = torch.Generator().manual_seed(5)
    states = []
    for _ in range(3):
        for p in student:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        optimizer.step()
        states.append([v for p in student for v in optimizer.state[p].values()])
    for got, expected in zip([*student, *ema.module], want, strict=True):
        torch.testing.assert_close(got.detach(), expected.detach(), rtol=1e-6, atol=1e-7)
    assert torch.equal(memory[0][:, ::2], student[0])
    assert torch.equal(memory[0][:, 1::2], between)
    assert all(a is b for a, b in zip(states[1], states[2], strict=True) if a.ndim)


@pytest.mark.parametrize("kind", KINDS)
def test_elements_that_share_memory_are_refused(kind: str) -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(1, 3).expand(4, 3))
    optimizer = KINDS[kind]([p, q])
    p.grad, q.grad = torch.ones(3), torch.ones(4, 3)
    with pytest.raises(ValueError, match=r"shape \[4, 3\] share memory"):
        optimizer.step()
    assert torch.equal(p, torch.ones(3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_on_a_device_of_its_own_follows_apart(kind: str) -> None:
    student = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"device of its own.*update\(student\) after step"):
        KINDS[kind](student.parameters(), ema=EMATeacher(student, device="cpu"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lr", "weight_decay", "eps"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_numbers_that_are_none_are_refused(kind: str, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"(?i){name.replace('_', '.')}|learning rate|epsilon"):
        KINDS[kind]([nn.Parameter(torch.ones(2))], **{name: value})
    group = {"params": [nn.Parameter(torch.ones(2))], name: value}
    with pytest.raises(ValueError, match=f"{name} must be a finite number, not below 0|Invalid"):
        KINDS[kind]([group])


@pytest.mark.parametrize("fused", [False, True])
def test_what_teacher_and_student_share_is_the_students(fused: bool) -> None:
    """It follows nothing: in the optimiser's pass it would else move hardly at all."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    alone = copy.deepcopy(student)
    teacher = EMATeacher(student, 0.9)
    teacher.module[1] = student[1]
    x = torch.randn(5, 3)
    ours = AdamW(student.parameters(), 0.1, ema=teacher if fused else None)
    for net, optimizer in ((student, ours), (alone, AdamW(alone.parameters(), 0.1))):
        net(x).square().sum().backward()
        optimizer.step()
    if not fused:
        teacher.update(student)
    torch.testing.assert_close(student.state_dict(), alone.state_dict())
    assert teacher.module[1].weight is student[1].weight
    assert not torch.equal(teacher.module[0].weight, student[0].weight)
