"""EMA teachers: what follows what, how fast, and what is refused before anything is written."""

import copy
import pickle
import warnings

import processes
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import sslfast
from sslfast import EMATeacher
from sslfast.ema import CosineMomentum, WarmupMomentum
from sslfast.functional import ema_update_
from sslfast.kernels.library import NAMESPACE


class Net(nn.Module):
    """Convolution, batch norm, tied weights, a frozen parameter, a scalar, an unregistered None."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.embed, self.head = nn.Linear(6, classes, bias=False), nn.Linear(6, classes)
        self.head.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.head(self.body(x).mean((2, 3)))


def values(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def disturb(module: nn.Module) -> None:
    """As a training step would: everything moves, and a batch is counted."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p))
        module.train()(torch.randn(2, 3, 5, 5))


@pytest.mark.parametrize("buffers", ["average", "copy"])
def test_follows_as_written(buffers) -> None:
    student = Net()
    teacher = EMATeacher(student, 0.9, buffers=buffers)
    before = values(teacher.module)
    disturb(student)
    teacher.update(student)
    copied = {"body.1.num_batches_tracked"}
    if buffers == "copy":
        copied |= {"body.1.running_mean", "body.1.running_var"}
    for name, s in student.state_dict().items():
        want = s if name in copied else before[name].lerp(s, 0.1)
        torch.testing.assert_close(teacher.module.state_dict()[name], want)
    assert teacher.updates == 1
    assert teacher.module.head.weight is teacher.module.embed.weight


def test_tied_parameters_move_once() -> None:
    student = Net()
    teacher = EMATeacher(student, 0.5)
    with torch.no_grad():
        student.head.weight += 1
    teacher.update(student)
    torch.testing.assert_close(teacher.module.head.weight, student.head.weight - 0.5)


def test_runs_without_gradients_and_takes_no_part_in_training() -> None:
    student = Net()
    teacher = EMATeacher(student)
    assert not teacher(torch.randn(2, 3, 5, 5)).requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad == (n != "frozen") for n, p in student.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_teacher_of_a_16_bit_student(dtype: torch.dtype) -> None:
    """Where the teacher in 16 bits stays exactly still, as its warning says."""
    student = nn.Linear(30, 20).to(dtype)
    with pytest.warns(UserWarning, match=r"16-bit teacher.*dtype=torch.float32"):
        still = EMATeacher(student, 0.9999)
    teacher = EMATeacher(student, 0.9999, dtype=torch.float32)
    first = student.weight.detach().clone()
    with torch.no_grad():
        student.weight.mul_(1.05)
    for _ in range(5):
        teacher.update(student)
        still.update(student)
    assert torch.equal(still.module.weight, first)
    want = first.double().lerp(student.weight.double(), 1 - 0.9999**5)
    torch.testing.assert_close(teacher.module.weight.double(), want, rtol=1e-6, atol=1e-7)


def test_no_warning_where_none_is_due() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EMATeacher(nn.Linear(2, 2).bfloat16(), 0.9)
        EMATeacher(nn.Linear(2, 2), 0.9999)
    with pytest.warns(UserWarning, match="16-bit"):
        EMATeacher(nn.Linear(2, 2).bfloat16(), WarmupMomentum(0.999))


def test_momentum_as_number_tensor_or_schedule() -> None:
    student = nn.Linear(3, 2)
    with torch.no_grad():
        student.weight.zero_()
    moving = torch.tensor(0.5, dtype=torch.float64)
    for momentum, factors in (
        (0.75, [0.75] * 3),
        (moving, [0.5] * 3),
        (CosineMomentum(0.5, 1.0, 2), [0.5, 0.75, 1.0]),
        (WarmupMomentum(0.15), [0.1, 0.15, 0.15]),
    ):
        teacher = EMATeacher(student, momentum)
        teacher.module.weight.fill_(1.0)
        size = 1.0
        for factor in factors:
            teacher.update(student)
            size *= factor
            torch.testing.assert_close(teacher.module.weight, torch.full((2, 3), size))
    teacher = EMATeacher(student, moving)
    teacher.module.weight.fill_(1.0)
    moving.fill_(0.25)
    teacher.update(student)
    teacher.update(student, 0.5)
    teacher.update(student, torch.tensor(1.0))
    assert (teacher.module.weight == 0.125).all()


def test_schedules_end_where_they_say() -> None:
    cosine = CosineMomentum(0.996, 1.0, 100)
    at = [cosine(torch.tensor(k)).item() for k in (0, 50, 100, 1000)]
    assert at == pytest.approx([0.996, 0.998, 1.0, 1.0])
    warm = WarmupMomentum(0.9999)
    assert warm(torch.tensor(8)).item() == pytest.approx(0.5)
    assert warm(torch.tensor(10**9)).item() == 0.9999


def test_state_goes_round() -> None:
    student = Net()
    teacher = EMATeacher(student, CosineMomentum(0.9, 1.0, 10))
    for _ in range(3):
        disturb(student)
        teacher.update(student)
    other = EMATeacher(Net(), CosineMomentum(0.9, 1.0, 10))
    other.load_state_dict(teacher.state_dict())
    disturb(student)
    teacher.update(student)
    other.update(student)
    for a, b in zip(values(teacher).values(), values(other).values(), strict=True):
        assert torch.equal(a, b)
    assert other.updates == 4


def test_copies_leave_the_student_alone() -> None:
    student = Net()
    teacher = EMATeacher(student)
    teacher.update(student)
    twin = copy.deepcopy(teacher)
    assert len(pickle.dumps(teacher)) < 2 * len(pickle.dumps(student))
    with pytest.raises(ValueError, match="call its update"):
        twin.pairs()
    twin.update(student)


def test_swapped_and_back_whatever_happens() -> None:
    student = Net()
    teacher = EMATeacher(student, 0.5, dtype=torch.float64)
    disturb(student)
    own, theirs = values(student), values(teacher.module)
    x = torch.randn(2, 3, 5, 5)
    student.eval(), teacher.eval()

    def evaluate() -> None:
        with teacher.swapped(student) as net:
            torch.testing.assert_close(net(x).double(), teacher(x.double()), rtol=1e-5, atol=1e-5)
            disturb(net)
            raise KeyError

    with pytest.raises(KeyError):
        evaluate()
    assert all(torch.equal(v, own[k]) for k, v in student.state_dict().items())
    assert all(torch.equal(v, theirs[k]) for k, v in teacher.module.state_dict().items())


def test_a_student_that_grows_or_shrinks() -> None:
    student = Net()
    teacher = EMATeacher(student, 0.5)
    teacher.update(student)
    disturb(student)
    before = values(teacher.module)
    student.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"student has 'extra.weight'.*teacher.adopt"):
        teacher.update(student)
    assert all(torch.equal(v, before[k]) for k, v in teacher.module.state_dict().items())
    teacher.adopt(student)
    assert torch.equal(teacher.module.extra.weight, student.extra.weight)
    assert torch.equal(teacher.module.head.bias, before["head.bias"])
    assert not teacher.module.extra.weight.requires_grad
    teacher.update(student)
    del student.extra
    with pytest.raises(ValueError, match=r"teacher has 'extra.weight'"):
        teacher.update(student)
    teacher.adopt(student)
    student.head = nn.Linear(6, 5)
    with pytest.raises(ValueError, match=r"'head.weight'|head.bias"):
        teacher.update(student)


def test_replaced_storage_and_parameters_are_seen() -> None:
    """Nothing remembered of an earlier update outlives what it was about."""
    student = nn.Linear(50, 40)
    teacher = EMATeacher(student, 0.5)
    for replace in (
        lambda: setattr(student.weight, "data", torch.randn(40, 50)),
        lambda: setattr(student.weight, "data", student.weight.data.T.contiguous().T),
        lambda: setattr(student, "weight", nn.Parameter(torch.randn(40, 50))),
        lambda: student.double(),
    ):
        replace()
        before = teacher.module.weight.clone()
        teacher.update(student)
        want = before.double().lerp(student.weight.detach().double(), 0.5).float()
        torch.testing.assert_close(teacher.module.weight, want)


def test_nothing_is_half_updated() -> None:
    student = Net()
    teacher = EMATeacher(student, 0.5)
    disturb(student)
    before = values(teacher)
    broken = copy.deepcopy(student)
    broken.scale = nn.Parameter(torch.zeros(2))
    meta = copy.deepcopy(student)
    meta.scale = nn.Parameter(torch.zeros((), device="meta"))
    whole = copy.deepcopy(student)
    whole.body[1].num_batches_tracked = torch.tensor(1.0)
    for wrong, error, words in (
        (broken, ValueError, r"scale has shape \[\] in the teacher, but \[2\] in the student"),
        (meta, ValueError, "scale of the student is on the meta device"),
        (whole, TypeError, "num_batches_tracked is torch.int64 in the teacher, but torch.float32"),
    ):
        with pytest.raises(error, match=words):
            teacher.update(wrong)
    for momentum in (1.5, -0.1, float("nan"), torch.ones(2)):
        with pytest.raises(ValueError, match="momentum"):
            teacher.update(student, momentum)
    with pytest.raises(ValueError, match="momentum must be in"):
        EMATeacher(student, 1.01)
    with pytest.raises(ValueError, match="buffers must be"):
        EMATeacher(student, buffers="lerp")
    with pytest.raises(ValueError, match="meta device"):
        EMATeacher(meta)
    for name, value in values(teacher).items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_non_finite_students_are_skipped_and_counted(poison: float) -> None:
    student = Net()
    teacher = EMATeacher(student, 0.5, skip_non_finite=True, buffers="copy")
    disturb(student)
    before = values(teacher.module)
    good = values(student)
    with torch.no_grad():
        student.frozen[1] = poison
        student.body[1].running_mean.fill_(7.0)
    teacher.update(student)
    assert (teacher.updates, teacher.skipped) == (0, 1)
    for name, value in teacher.module.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, before[name])
    student.load_state_dict(good)
    teacher.update(student)
    assert (teacher.updates, teacher.skipped) == (1, 1)
    torch.testing.assert_close(teacher.module.scale, before["scale"].lerp(good["scale"], 0.5))
    plain = EMATeacher(student, 0.5)
    with torch.no_grad():
        student.frozen[1] = poison
    plain.update(student)
    assert not plain.module.frozen.isfinite().all()


@pytest.mark.parametrize("buffers", ["average", "copy"])
@pytest.mark.parametrize("name", ["reference", "tiled", "cpu"])
def test_a_mask_of_infinities_stays_and_is_no_reason_to_skip(name: str, buffers: str) -> None:
    student = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    mask = torch.full((5, 5), -torch.inf).triu(1)
    student.register_buffer("mask", mask.clone())
    student.register_buffer("mask16", mask.bfloat16())
    student.frozen = nn.Parameter(mask.clone(), requires_grad=False)
    teacher = EMATeacher(student, 0.75, skip_non_finite=True, buffers=buffers)
    want = student[0].weight.detach() + 1
    with torch.no_grad():
        student[0].weight.add_(4)
    with sslfast.use_backend(name):
        teacher.update(student)
    for held in (teacher.module.mask, teacher.module.mask16, teacher.module.frozen):
        assert torch.equal(held.float(), mask)
    torch.testing.assert_close(teacher.module[0].weight, want)
    assert (teacher.updates, teacher.skipped) == (1, 0)
    student.mask[2, 2] = torch.nan  # turned bad since, beside its infinities
    teacher.update(student)
    student.mask.copy_(mask)
    student[1].running_mean[1] = torch.inf
    teacher.update(student)
    assert (teacher.updates, teacher.skipped) == (1, 2)
    assert torch.equal(teacher.module.mask, mask)


def test_wrappers_are_taken_off() -> None:
    student = Net()
    teacher = EMATeacher(torch.compile(nn.DataParallel(student)), 0.5)
    assert set(teacher.module.state_dict()) == set(student.state_dict())
    disturb(student)
    teacher.update(torch.compile(student))
    assert teacher.updates == 1


def test_functional_forms() -> None:
    t, s = torch.randn(4), torch.randn(4)
    want = t.lerp(s, 0.25)
    count, mask = torch.tensor(3), torch.tensor([True, False])
    z = torch.zeros(2, dtype=torch.complex64)
    ema_update_(
        [t, count, mask[:1], z],
        [s, torch.tensor(9), mask[1:], torch.full((2,), 4 + 8j)],
        torch.tensor(0.75),
    )
    torch.testing.assert_close(t, want)
    assert (count, mask.tolist()) == (9, [False, False])
    assert torch.equal(z, torch.full((2,), 1 + 2j))
    ema_update_([], [], 0.5)
    for args, error, words in (
        (([t], [], 0.5), ValueError, "1 teacher tensors, but 0 student"),
        (([t], [3], 0.5), TypeError, "tensor 0 of the student must be a tensor, got int"),
        (([t], [s[:2]], 0.5), ValueError, "tensor 0 has shape"),
        (([], [], 2), ValueError, "momentum must be in"),
        (([t], [s], torch.ones((), device="meta")), ValueError, "momentum is on meta"),
    ):
        with pytest.raises(error, match=words):
            ema_update_(*args)


def test_op_and_compile() -> None:
    teacher, student = [torch.randn(3), torch.randn(4, 2)], [torch.randn(3), torch.randn(4, 2)]
    m = torch.tensor(0.9, dtype=torch.float64)
    torch.library.opcheck(getattr(torch.ops, NAMESPACE).ema_update_.default, (teacher, student, m))

    def step(teacher: list[Tensor], student: list[Tensor], momentum: Tensor) -> Tensor:
        ema_update_(teacher, [s * 2 for s in student], momentum)
        return teacher[0] + 1

    want = [t.lerp(2 * s, 0.1) for t, s in zip(teacher, student, strict=True)]
    out = torch.compile(step, fullgraph=True)(teacher, student, m)
    for t, w in zip(teacher, want, strict=True):
        torch.testing.assert_close(t, w)
    torch.testing.assert_close(out, want[0] + 1)


@pytest.mark.parametrize("options", [{}, {"device": "cpu", "skip_non_finite": True}])
def test_update_inside_a_compiled_step(options) -> None:
    student = nn.Linear(3, 2)
    teacher = EMATeacher(student, 0.5, **options)
    with torch.no_grad():
        student.weight.add_(1)
    want = student.weight.detach() - 0.5
    torch.compile(lambda: teacher.update(student), fullgraph=True, backend="aot_eager")()
    torch.testing.assert_close(teacher.module.weight, want)
    assert teacher.updates == 1


def test_a_written_teacher_is_seen_by_autograd() -> None:
    teacher = torch.ones(2)
    x = torch.ones(2, requires_grad=True)
    y = (x * teacher).sum()
    ema_update_([teacher], [torch.zeros(2)], 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def _ranks(rank: int, size: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    plain = copy.deepcopy(student)
    want, teacher = EMATeacher(plain, 0.5), EMATeacher(student, 0.5)
    wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(plain))
    EMATeacher(wrapped, 0.5).update(wrapped)
    mesh = init_device_mesh("cpu", (size,))
    fully_shard(student, mesh=mesh)
    with pytest.raises(ValueError, match=r"0.weight is sharded differently.*fully_shard"):
        teacher.update(student)
    with pytest.raises(ValueError, match="make the teacher first"):
        EMATeacher(student)
    fully_shard(teacher.module, mesh=mesh)
    with torch.no_grad():
        for p, q in zip(plain.parameters(), student.parameters(), strict=True):
            p.mul_(3)
            q.mul_(3)
    want.update(plain)
    teacher.update(student)
    for p, q in zip(want.module.parameters(), teacher.module.parameters(), strict=True):
        torch.testing.assert_close(q.full_tensor(), p)
    with teacher.swapped(student):
        torch.testing.assert_close(
            student.get_parameter("0.weight").full_tensor(), want.module[0].weight
        )
    # One rank's shard is not finite: no rank's teacher follows.
    teacher.skip_non_finite = True
    with torch.no_grad():
        if rank == 1:
            student.get_parameter("0.bias").to_local().fill_(torch.nan)
    teacher.update(student)
    assert (teacher.updates, teacher.skipped) == (1, 1)
    torch.testing.assert_close(
        teacher.module.get_parameter("0.weight").full_tensor(), want.module[0].weight
    )
    dist.barrier()


@pytest.mark.slow
def test_ddp_and_fsdp_students() -> None:
    processes.run(2, _ranks)


@pytest.mark.parametrize("name", ["reference", "tiled", "cpu"])
def test_backends_agree(name: str) -> None:
    student = Net()
    truth, teacher = EMATeacher(student, 0.9), EMATeacher(student, 0.9)
    disturb(student)
    with sslfast.use_backend("reference"):
        truth.update(student)
    with sslfast.use_backend(name):
        teacher.update(student)
    for a, b in zip(values(teacher).values(), values(truth).values(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_an_update_that_is_left_out_leaves_integers_too(bad: float, dtype: torch.dtype) -> None:
    student = nn.BatchNorm1d(3)
    student.extra = nn.Parameter(torch.ones(2, dtype=dtype))
    teacher = EMATeacher(student, 0.9, skip_non_finite=True)
    student(torch.randn(4, 3))
    with torch.no_grad():
        student.extra[1] = bad
    teacher.update(student)
    assert teacher.module.num_batches_tracked == 0
    assert teacher.skipped == 1
    with torch.no_grad():
        student.extra.fill_(2)
    teacher.update(student)
    assert teacher.module.num_batches_tracked == 1
    assert teacher.updates == 1


def test_schedules_and_momenta_that_are_none() -> None:
    for make in (
        lambda: CosineMomentum(0.9, 1.0, 0),
        lambda: CosineMomentum(1.1, 1.0, 5),
        lambda: CosineMomentum(0.9, float("nan"), 5),
        lambda: WarmupMomentum(2.0),
    ):
        with pytest.raises(ValueError, match="must be"):
            make()
    with pytest.raises(TypeError, match="a schedule such as CosineMomentum, got str"):
        EMATeacher(nn.Linear(2, 2), "0.9")


def test_floats_without_arithmetic() -> None:
    x, y = torch.ones(4).to(torch.float8_e4m3fn), torch.ones(4)
    for teacher, student in ((x, x.clone()), (y, x)):
        with pytest.raises(TypeError, match="float8_e4m3fn, which has no arithmetic"):
            sslfast.functional.ema_update_([teacher], [student], 0.9)
