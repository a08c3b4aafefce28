"""What a teacher copies of its student, and how it goes with timm's: states, warm-up, devices."""

import copy
import threading
import warnings

import pytest
import torch
from torch import Tensor, nn

import peers
from sslfast import EMATeacher
from sslfast.ema import PowerMomentum


class Rotary(nn.Module):
    """A table that is no part of the state: made at the first call, and longer when needed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if "table" not in self._buffers or len(self.table) < x.shape[1]:
            self.register_buffer("table", torch.randn(x.shape[1], 4), persistent=False)
        return self.linear(x) + self.table[: x.shape[1]]


def test_caches_are_left_to_each_network() -> None:
    student = nn.Sequential(Rotary(), nn.Linear(4, 2))
    teacher = EMATeacher(student, 0.5)
    student(torch.randn(2, 3, 4))  # one appears
    teacher.update(student)
    assert "table" not in teacher.module[0]._buffers
    teacher(torch.randn(2, 5, 4))
    own = teacher.module[0].table.clone()
    student(torch.randn(2, 9, 4))  # it grows
    with torch.no_grad():
        student[0].seen.fill_(1)
    known = teacher.pairs()
    teacher.update(student)
    assert torch.equal(teacher.module[0].table, own)
    assert teacher.module[0].seen == 0.5  # what is saved is followed
    with teacher.swapped(student):
        student(torch.randn(2, 9, 4))
    student(torch.randn(2, 12, 4))
    assert teacher.pairs() is known  # a new table is no change of the structure
    copy.deepcopy(teacher).update(student)  # which has to find its pairs anew
    twin = EMATeacher(student, 0.5)
    assert len(twin.module[0].table) == 12  # it starts as a whole copy


def old_style() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        weighed = nn.utils.weight_norm(nn.Linear(4, 3))
    return nn.Sequential(weighed, nn.utils.spectral_norm(nn.Linear(3, 2)))


def test_modules_that_deepcopy_refuses() -> None:
    """A weight made of others, and kept activations, whatever holds them."""
    student = old_style()
    student.kept = {"features": [student(torch.randn(5, 4))]}
    student.again = student.kept["features"][0]
    student.again.square().sum().backward()
    teacher = EMATeacher(student, 0.5)
    held = teacher.module.kept["features"][0]
    assert torch.equal(held, student.again)
    assert held is teacher.module.again  # one tensor stays one
    assert not held.requires_grad
    assert held.data_ptr() != student.again.data_ptr()
    x = torch.randn(2, 4)
    torch.testing.assert_close(teacher(x), student.eval()(x))
    with torch.no_grad():
        student[0].weight_g.mul_(3)
    teacher.update(student)
    torch.testing.assert_close(teacher.module[0].weight_g, student[0].weight_g * 2 / 3)
    x = torch.randn(2, 4)
    whole = teacher.module[0]
    direction = whole.weight_v / whole.weight_v.norm(dim=1, keepdim=True)
    torch.testing.assert_close(whole(x), x @ (whole.weight_g * direction).T + whole.bias)
    EMATeacher(student, dtype=torch.float64)(x.double())


def test_dino_head_of_lightly() -> None:
    if not peers.PEERS.is_dir():
        pytest.skip("lightly is missing: run `make peers`")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        head = peers.load("lightly.models.modules.heads").DINOProjectionHead(8, 6, 4, 10)
    loss = head(torch.randn(3, 8)).sum()  # the graph is kept
    teacher = EMATeacher(head, 0.5)
    loss.backward()
    teacher.update(head)
    x = torch.randn(3, 8)
    torch.testing.assert_close(teacher(x), head.eval()(x))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_what_cannot_be_copied_is_said() -> None:
    net = nn.Linear(2, 2)
    for scripted in (torch.jit.script(net), torch.jit.trace(net, torch.ones(1, 2))):
        with pytest.raises(TypeError, match="the student is in TorchScript: make the teacher of"):
            EMATeacher(nn.Sequential(scripted))
    net.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"cannot be copied \(cannot pickle.*__deepcopy__"):
        EMATeacher(net)


def test_eval_mode_unless_asked() -> None:
    student = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    teacher = EMATeacher(student)
    assert not any(part.training for part in teacher.modules())
    assert all(part.training for part in student.modules())
    x = torch.randn(4, 3)
    assert torch.equal(teacher(x), teacher(x))
    assert teacher.module[1].num_batches_tracked == 0
    teacher.train()
    teacher.update(student)
    teacher.adopt(student)
    assert all(part.training for part in teacher.modules())


def test_set_takes_everything_and_counts_nothing() -> None:
    student = nn.BatchNorm1d(3)
    teacher = EMATeacher(student, 0.9)
    with torch.no_grad():
        student.weight.normal_()
    student(torch.randn(4, 3))
    teacher.set(nn.DataParallel(student))
    for name, value in student.state_dict().items():
        assert torch.equal(teacher.module.state_dict()[name], value)
    assert teacher.updates == 0
    other = nn.BatchNorm1d(4)
    with pytest.raises(ValueError, match="weight has shape"):
        teacher.set(other)


def test_device_of_its_own() -> None:
    """Without a GPU there is but one: tests/gpu has values cross."""
    student = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    teacher = EMATeacher(student, 0.5, device="cpu", dtype=torch.float64)
    with torch.no_grad():
        student[0].weight.add_(1)
    teacher.update(student)
    torch.testing.assert_close(teacher.module[0].weight, student[0].weight.double() - 0.5)


def timm_ema():
    if not peers.PEERS.is_dir():
        pytest.skip("timm is missing: run `make peers`")
    return peers.load_file("timm/utils/model_ema.py").ModelEmaV3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"warmup_gamma": 3.0, "warmup_power": 0.75, "update_after_step": 2},
        {"min_decay": 0.45, "decay": 0.6, "warmup_power": 1.0},
    ],
)
def test_warm_up_of_timm(options: dict[str, float]) -> None:
    theirs = timm_ema()
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    options = {"decay": 0.9, **options}
    names = {
        "decay": "limit",
        "warmup_gamma": "gamma",
        "warmup_power": "power",
        "min_decay": "minimum",
        "update_after_step": "update_after_step",
    }
    schedule = PowerMomentum(**{names[k]: v for k, v in options.items()})
    teacher, peer = EMATeacher(student, schedule), theirs(student, use_warmup=True, **options)
    for step in range(1, 7):
        with torch.no_grad():
            student[0].weight.normal_()
        student(torch.randn(5, 3))
        teacher.update(student)
        peer.update(student, step=step)
        for a, b in zip(
            teacher.module.state_dict().values(), peer.module.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(a, b)
    for k in (10, 1000, 10**6, 2**40):
        want = peer.get_decay(k + 1)
        assert schedule(torch.tensor(k)).item() == pytest.approx(want, rel=1e-12)


def test_states_of_timm_go_both_ways() -> None:
    theirs = timm_ema()
    student, other = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2))
    peer, teacher = theirs(student), EMATeacher(other)
    teacher.update(other)
    teacher.load_state_dict(peer.state_dict())
    assert teacher.updates == 1
    for name, value in student.state_dict().items():
        assert torch.equal(teacher.module.state_dict()[name], value)
    nn.Sequential(teacher).load_state_dict({f"0.{k}": v for k, v in peer.state_dict().items()})
    again = theirs(other)
    again.module.load_state_dict(teacher.module.state_dict())
    assert torch.equal(again.module[0].weight, student[0].weight)
    for spoiled, words in (
        ({**peer.state_dict(), "module.2.weight": torch.ones(1)}, "Unexpected key"),
        ({"module.0.bias": torch.zeros(4)}, "Missing key"),
        ({k: v for k, v in teacher.state_dict().items() if k != "skipped"}, 'Missing.*"skipped"'),
    ):
        with pytest.raises(RuntimeError, match=words):
            teacher.load_state_dict(spoiled)


def test_schedules_that_are_none() -> None:
    for options in (
        {"limit": 1.1},
        {"limit": 0.5, "minimum": 0.6},
        {"limit": 0.9, "power": 0.0},
        {"limit": 0.9, "gamma": float("nan")},
        {"limit": 0.9, "update_after_step": -1},
    ):
        with pytest.raises(ValueError, match=r"must (hold|be)"):
            PowerMomentum(**options)
    at_once = PowerMomentum(0.99, power=float("inf"))
    assert [at_once(torch.tensor(k)).item() for k in (0, 1, 2)] == [0.0, 0.99, 0.99]
