"""Distillation: a student's features beside those of a teacher that nothing moves."""

import copy
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast import data, methods, models
from sslfast.data.batch import Batch
from sslfast.data.views.view import IMAGENET_MEAN, IMAGENET_STD
from sslfast.methods.base import Context, Method
from sslfast.methods.distill import distances
from sslfast.training.config import ConfigError, TrainConfig
from sslfast.training.encoder import save_encoder
from sslfast.training.session import check_method

CTX = Context(0, 0, 1)
TOLD = {"model": "convnet_small", "model_args": {"width": 3, "depth": 2}}
INPUTS = {"image_size": 8, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}


def teacher_of(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    module = models.create("convnet_small", width=3, depth=2)
    module(torch.randn(8, 3, 8, 8))  # so that running statistics are not the initial ones
    return module


def small(**keywords: Any) -> Method:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 5))
    encoder.num_features = 5
    return methods.create("distill", encoder, **{"teacher": teacher_of(), **keywords}).double()


def file_of(folder: Path, told: dict[str, Any] = INPUTS) -> Path:
    path = folder / "encoder.safetensors"
    save_encoder(path, teacher_of().state_dict(), TOLD | told)
    return path


def batch_of(ids: list[int], size: int = 8) -> Batch:
    images = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(5)).double()
    return Batch((images[ids],), torch.tensor(ids))


def relational_by_hand(student: Tensor, teacher: Tensor) -> Tensor:
    pairs = [(i, j) for i in range(len(student)) for j in range(i)]
    both = []
    for x in (student, teacher):
        found = torch.stack([(x[i] - x[j]).norm() for i, j in pairs])
        both.append(found / found.mean())
    gap = (both[0] - both[1]).abs()
    return torch.where(gap < 1, gap**2 / 2, gap - 0.5).mean()


def test_one_image_is_enough_where_none_are_compared() -> None:
    config = TrainConfig(method="distill", batch_size=1)
    for form in ("relational", "both"):
        with pytest.raises(ConfigError, match=r"compares images, .* set batch_size to 2 or more"):
            check_method(config, small(form=form))
    method = small(form="cosine")
    check_method(config, method)
    method(batch_of([3]), CTX)["loss"].backward()
    assert all(p.grad.abs().max() > 0 for p in method.parameters())
    normed = methods.create("distill", teacher_of(), teacher=teacher_of(), form="cosine")
    with pytest.raises(ConfigError, match=r"batch norm .* set batch_size to 2 or more"):
        check_method(config, normed)


@pytest.mark.parametrize("form", ["cosine", "relational", "both"])
def test_the_loss_is_that_of_the_forms(form: str) -> None:
    method, batch = small(form=form, relational_weight=0.3), batch_of([1, 4, 6, 2])
    found = method(batch, CTX)
    student = method.encoder(batch.views[0])
    teacher = teacher_of().double().eval()(batch.views[0])
    expected = 0.0
    if form != "relational":
        map_ = method.projector[0]
        cosine = F.cosine_similarity(student @ map_.weight.T + map_.bias, teacher).mean()
        expected = expected + 1 - cosine
        torch.testing.assert_close(found["similarity"], cosine.detach())
    if form != "cosine":
        relational = relational_by_hand(student, teacher)
        expected = expected + 0.3 * relational
        torch.testing.assert_close(found["relational"], relational.detach())
    torch.testing.assert_close(found["loss"], expected)
    found["loss"].backward()
    assert all(p.grad.abs().max() > 0 for p in method.parameters())


def test_distances_of_equal_rows_have_a_gradient() -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    x[1] = x[0]
    x.requires_grad_()
    F.smooth_l1_loss(distances(x), torch.ones(6, dtype=torch.float64)).backward()
    assert x.grad.isfinite().all()
    far = (x.detach() + 1e3).float()  # float32, far from the origin
    torch.testing.assert_close(
        distances(far)[1:], distances(x.detach())[1:].float(), rtol=1e-3, atol=0
    )


def test_nothing_moves_the_teacher_and_no_state_holds_it() -> None:
    method, batch = small(), batch_of([1, 4, 6])
    (frozen,) = method._frozen
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    method.train()
    method(batch, CTX)["loss"].backward()
    for name, tensor in frozen.state_dict().items():  # batch norm's statistics too
        assert torch.equal(tensor, before[name]), name
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    own = {name.partition(".")[0] for name in method.state_dict()}
    assert own == {"encoder", "projector"}
    known = {id(p) for p in frozen.parameters()}
    assert not known & {id(p) for group in method.param_groups() for p in group["params"]}
    assert next(frozen.parameters()).dtype == torch.float64  # it goes where the method goes
    assert method.exported() is method.encoder


def test_a_file_is_a_teacher(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    method = small(teacher=file_of(tmp_path))
    batch = batch_of([1, 4])
    expected = teacher_of().double().eval()(batch.views[0])
    assert torch.equal(method.encode(batch, CTX)[1], expected)
    torch.set_rng_state(state)
    same = small().state_dict()  # reading it draws nothing
    assert all(torch.equal(same[name], tensor) for name, tensor in method.state_dict().items())


def test_a_teacher_gets_views_in_its_size_and_normalisation(tmp_path: Path) -> None:
    own = {"image_size": 8, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.4, 0.25]}
    views = {"mean": (0.5, 0.4, 0.6), "std": (0.2, 0.3, 0.1)}
    method = small(teacher=file_of(tmp_path, own), form="cosine", **views)
    batch = batch_of([1, 4])
    mean, std, own_mean, own_std = (
        torch.tensor(x, dtype=torch.float64)[:, None, None]
        for x in (*views.values(), own["mean"], own["std"])
    )
    pixels = batch.views[0] * std + mean
    expected = teacher_of().double().eval()((pixels - own_mean) / own_std)
    torch.testing.assert_close(method.encode(batch, CTX)[1], expected, rtol=1e-5, atol=1e-6)

    method = small(teacher=file_of(tmp_path), form="cosine")
    large = batch_of([1, 4], size=20).views[0]
    resized = F.interpolate(large, (8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(
        method._frozen[0](large), teacher_of().double().eval()(resized), rtol=1e-6, atol=1e-9
    )


def over_ranks(rank: int, size: int) -> None:
    parts = [[3, 1, 4], [5, 7, 2]]
    method = small()
    weight = method.encoder[0].weight
    here = Context(0, 0, 1, rank=rank, world_size=size)
    found = []
    for batch, ctx in ((parts[0] + parts[1], CTX), (parts[rank], here)):
        loss = method(batch_of(batch), ctx)["loss"]
        found.append([loss.detach(), torch.autograd.grad(loss, weight)[0]])
    for local in found[1]:
        dist.all_reduce(local)
        local /= size
    torch.testing.assert_close(found[1], found[0])


def test_two_ranks_are_one_process() -> None:
    processes.run(2, over_ranks)


def test_a_copy_has_its_teacher() -> None:
    method, batch = small(), batch_of([1, 4])
    assert torch.equal(copy.deepcopy(method)(batch, CTX)["loss"], method(batch, CTX)["loss"])


def test_it_compiles_and_trains_in_bf16() -> None:
    method, batch = small().float(), batch_of([1, 4, 6])
    batch = Batch((batch.views[0].float(),), batch.sample_ids)
    expected = method(batch, CTX)["loss"]
    torch.compiler.reset()
    found = torch.compile(method, backend="aot_eager")(batch, CTX)["loss"]
    torch.testing.assert_close(found, expected)
    torch.compiler.reset()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = method(batch, CTX)["loss"]
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, expected, rtol=0.03, atol=0)


def test_wrong_teachers_are_explained(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"distill needs a teacher: set method_args.teacher to the"
    ):
        small(teacher=None)
    with pytest.raises(ValueError, match=r"teacher must be the .* got .*nothing.safetensors: no"):
        small(teacher=tmp_path / "nothing.safetensors")
    path = file_of(tmp_path)
    with pytest.raises(ValueError, match=r"got the folder .*: give its encoder.safetensors"):
        small(teacher=tmp_path)
    other = tmp_path / "other.safetensors"
    other.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"other.safetensors is damaged"):
        small(teacher=other)
    video = models.create("vit_micro", num_frames=4, depth=1)
    with pytest.raises(ValueError, match="is an encoder for video, and the views are images"):
        small(teacher=video)
    with pytest.raises(ValueError, match="a Flatten, has no num_features, the width of its"):
        small(teacher=nn.Flatten())
    with pytest.raises(ValueError, match="form must be one of cosine, relational, both, got 'l2'"):
        small(form="l2")
    for weight in (0.0, -1.0):
        with pytest.raises(ValueError, match="relational_weight must be more than 0"):
            small(relational_weight=weight)


def test_views_of_another_normalisation_are_refused() -> None:
    student, teacher = (models.create("convnet_small", width=8, depth=1) for _ in range(2))
    views = data.recipe("mae", mean=(0.5, 0.5, 0.5))
    method = methods.create("distill", student, teacher=teacher)
    method.check_views(data.recipe("mae"))
    with pytest.raises(ValueError, match=r"mean must be the recipe's, \[0.5, 0.5, 0.5\], got"):
        method.check_views(views)
    methods.create("distill", student, teacher=teacher, mean=(0.5,) * 3).check_views(views)
