"""States, gradients and options that do not fit are refused before anything is read or written."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslfast import EMATeacher
from sslfast.optim import LARS, AdamW

Make = Callable[..., Any]
KINDS = {"adamw": (AdamW, {}), "lars": (LARS, {"lr": 0.1, "momentum": 0.9})}


def stepped(kind: str) -> tuple[nn.Parameter, Any]:
    make, options = KINDS[kind]
    p = nn.Parameter(torch.ones(64, 64))
    optimizer = make([p], **options)
    p.grad = torch.ones(64, 64)
    optimizer.step()
    return p, optimizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5,), (), (64, 63), (64, 1, 64), (4096,)])
def test_a_state_of_another_network(kind: str, shape: tuple[int, ...]) -> None:
    p, optimizer = stepped(kind)
    state = copy.deepcopy(optimizer.state_dict())
    for name, value in state["state"][0].items():
        if isinstance(value, Tensor) and value.ndim:
            state["state"][0][name] = torch.full(shape, 0.5)
    optimizer.load_state_dict(state)
    before = p.detach().clone()
    with pytest.raises(ValueError, match="the state is of another network"):
        optimizer.step()
    assert torch.equal(p, before)


def test_a_step_that_is_no_number() -> None:
    p, optimizer = stepped("adamw")
    optimizer.state[p]["step"] = torch.ones(2)
    with pytest.raises(ValueError, match="the step of a parameter"):
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_of_another_shape(kind: str) -> None:
    p, optimizer = stepped(kind)
    p.grad = None
    p.data = torch.ones(1, 64)
    p.grad = torch.ones(1, 64)
    p.data = torch.ones(64, 64)
    with pytest.raises(ValueError, match=r"shape \[64, 64\] has shape \[1, 64\]"):
        optimizer.step()
    assert torch.equal(p, torch.ones(64, 64))


def test_options_of_a_group_that_are_not_there() -> None:
    p, q = (nn.Parameter(torch.ones(3)) for _ in "pq")
    with pytest.raises(ValueError, match="AdamW has no maximize"):
        AdamW([{"params": [p], "maximize": True}])
    with pytest.raises(ValueError, match="LARS has no dampening"):
        LARS([{"params": [p], "dampening": 0.5}], lr=0.1)
    optimizer = AdamW([p])
    with pytest.raises(ValueError, match="AdamW has no amsgrad"):
        optimizer.add_param_group({"params": [q], "amsgrad": True})
    assert len(optimizer.param_groups) == 1


def test_a_refused_state_is_not_half_loaded() -> None:
    p, optimizer = stepped("adamw")
    other = nn.Parameter(torch.ones(64, 64))
    theirs = torch.optim.AdamW([other], lr=0.7, amsgrad=True)
    other.grad = torch.ones(64, 64)
    theirs.step()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="AdamW has no amsgrad"):
        optimizer.load_state_dict(theirs.state_dict())
    assert optimizer.param_groups[0]["lr"] == before["param_groups"][0]["lr"]
    assert not optimizer.param_groups[0]["amsgrad"]
    assert torch.equal(optimizer.state[p]["exp_avg"], before["state"][0]["exp_avg"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_rate_that_becomes_zero(kind: str) -> None:
    make, options = KINDS[kind]
    p = nn.Parameter(torch.ones(3))
    optimizer = make([p], **{**options, "lr": torch.tensor(0.1)})
    p.grad = torch.ones(3)
    optimizer.step()
    before = p.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert torch.equal(p, before)


def test_a_copy_still_sees_that_parameters_were_replaced() -> None:
    student = nn.Linear(3, 3)
    teacher = EMATeacher(student)
    optimizer = AdamW(student.parameters(), ema=teacher)
    student2, teacher2, optimizer2 = copy.deepcopy((student, teacher, optimizer))
    teacher2.update(student2)
    student2.weight = nn.Parameter(torch.ones(3, 3))
    student2(torch.ones(1, 3)).sum().backward()
    with pytest.raises(ValueError, match=r"weight.*no longer a parameter of this optimiser"):
        optimizer2.step()
