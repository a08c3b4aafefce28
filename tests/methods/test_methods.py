import inspect
import sys
from pathlib import Path

import pytest
import torch
from tokens import needed
from torch import nn

from sslfast import methods, models
from sslfast.data.batch import Batch
from sslfast.losses import NTXentLoss
from sslfast.methods.base import Context, Method, Reference
from sslfast.methods.registry import _discover
from sslfast.training.config import ConfigError, TrainConfig
from sslfast.training.session import check_method


def pairs(count: int = 16, views: int = 2, frames: tuple[int, ...] = ()) -> Batch:
    shape = count, 3, *frames, 16, 16
    return Batch(tuple(torch.randn(shape) for _ in range(views)), torch.arange(count))


# Where a method has such a hyperparameter: what trains in a second.
CHEAP = {"decoder_depth": 1, "predictor_depth": 1, "hidden_dim": 64, "bank_size": 64}


def fitting(name: str) -> tuple[Method, Batch]:
    """The method around a small encoder of a kind that it takes, and a batch for it."""
    vit = {"img_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 2}
    views = len(methods.get(name).own_recipe().views)
    taken = inspect.signature(methods.get(name)).parameters
    cheap = {key: value for key, value in CHEAP.items() if key in taken}
    if methods.get(name).modalities == ("video",):
        encoder = models.create("vit_micro", **vit, num_frames=4)
        return methods.create(name, encoder, **cheap), pairs(4, views, frames=(4,))
    encoder = models.create("convnet_small", width=8, depth=2)
    if not isinstance(encoder, methods.get(name).encoders):
        encoder = models.create("vit_micro", **vit)
    return methods.create(name, encoder, **{**cheap, **needed(name)}), pairs(views=views)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_learns_on_a_fixed_batch(name: str) -> None:
    torch.manual_seed(0)
    method, batch = fitting(name)
    optimizer = torch.optim.AdamW(method.param_groups(), 3e-3)
    ctx, losses = Context(0, 0, 50), []
    # A memory of earlier batches would fill with the one batch that there is, and a centre move
    # the targets.
    banks = {
        name: b.clone() for name, b in method.named_buffers() if "bank" in name or "center" in name
    }
    for _ in range(50):
        for name, bank in banks.items():
            method.get_buffer(name).copy_(bank)
        values = method(batch, ctx)
        assert all(v.shape == () for v in values.values())
        losses.append(values["loss"].item())
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        method.after_step(ctx)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("name", methods.names())
def test_every_method_trains_in_bf16(name: str) -> None:
    torch.manual_seed(0)
    method, batch = fitting(name)
    with torch.autocast("cpu", torch.bfloat16):
        values = method(batch, Context(0, 0, 50))
    assert all(value.dtype == torch.float32 for value in values.values())
    values["loss"].backward()
    trained = [p for group in method.param_groups() for p in group["params"]]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


@pytest.mark.parametrize("name", methods.names())
def test_a_batch_of_one_is_learnt_from_or_refused(name: str) -> None:
    torch.manual_seed(0)
    method, batch = fitting(name)
    config, ctx = TrainConfig(method=name, batch_size=1), Context(0, 0, 1)
    if method.contrastive or method.smallest_batch == 2:
        with pytest.raises(ConfigError, match=f"^{name} .* set batch_size to 2 or more"):
            check_method(config, method)
        return
    check_method(config, method)
    loss = method(Batch(tuple(v[:1] for v in batch.views), batch.sample_ids[:1]), ctx)["loss"]
    loss.backward()
    trained = [p.grad for group in method.param_groups() for p in group["params"]]
    assert all(g.isfinite().all() and g.any() for g in trained)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_states_its_contract(name: str) -> None:
    method = methods.get(name)
    assert "arXiv" in method.reference.paper
    assert method.reference.hyperparameters
    assert method.modalities
    source = Path(sys.modules[method.__module__].__file__ or "").read_text()
    assert source.count("\n") < 150


def test_simclr_is_ntxent_of_projected_views() -> None:
    torch.manual_seed(0)
    method = methods.create("simclr", models.create("convnet_small"), temperature=0.3, out_dim=24)
    batch, ctx = pairs(), Context(0, 0, 1)
    z0, z1 = method.encode(batch, ctx)
    assert z0.shape == z1.shape == (16, 24)

    z = method.projector(method.encoder(torch.cat(batch.views)))
    torch.testing.assert_close(torch.cat([z0, z1]), z)
    values = method.loss((z0, z1), ctx)
    torch.testing.assert_close(values["loss"], NTXentLoss(0.3)(z0, z1))
    cosine = torch.nn.functional.cosine_similarity(z0, z1).mean()
    torch.testing.assert_close(values["positive_similarity"], cosine)
    assert not values["positive_similarity"].requires_grad


def test_no_weight_decay_on_norms_and_biases() -> None:
    method = methods.create("simclr", models.create("resnet18", cifar_stem=True))
    decayed, free = method.param_groups()
    assert "weight_decay" not in decayed
    assert free["weight_decay"] == 0.0
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in free["params"]} == {1}
    both = decayed["params"] + free["params"]
    assert {id(p) for p in both} == {id(p) for p in method.parameters()}


def test_frozen_parameters_are_left_out() -> None:
    method = methods.create("simclr", models.create("convnet_small"))
    method.encoder.requires_grad_(False)
    kept = {id(p) for group in method.param_groups() for p in group["params"]}
    assert kept == {id(p) for p in method.projector.parameters()}


def test_unknown_names_suggest_the_nearest() -> None:
    encoder = models.create("convnet_small")
    with pytest.raises(ValueError, match=r"unknown method 'simcrl'. Did you mean 'simclr'"):
        methods.create("simcrl", encoder)
    with pytest.raises(TypeError, match=r"no hyperparameter 'temprature'. Did you mean 'temperatu"):
        methods.create("simclr", encoder, temprature=0.2)
    with pytest.raises(ValueError, match="temperature"):
        methods.create("simclr", encoder, temperature=0.0)
    with pytest.raises(ValueError, match="hidden_dim must be at least 1, or None, got -1"):
        methods.create("simclr", encoder, hidden_dim=-1)


def test_a_new_file_is_a_new_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dropped_in.py").write_text(
        "from sslfast.methods.registry import register\n"
        "from sslfast.methods.simclr import SimCLR\n"
        "@register('dropped_in')\n"
        "class DroppedIn(SimCLR):\n"
        "    '''A file beside simclr.py.'''\n"
    )
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    monkeypatch.setattr(methods.registry, "_METHODS", dict(methods.registry._METHODS))
    _discover.cache_clear()
    assert "dropped_in" in methods.names()
    assert isinstance(methods.create("dropped_in", models.create("convnet_small")), Method)


def test_a_name_is_taken_once() -> None:
    methods.names()
    with pytest.raises(ValueError, match="'simclr' is already registered"):
        methods.register("simclr")(methods.get("simclr"))


def test_a_method_must_say_how_it_encodes_and_what_it_minimises() -> None:
    class Half(Method):
        recipe = "simclr"
        reference = Reference("nobody", {})

    with pytest.raises(TypeError, match=r"abstract.*encode.*loss"):
        Half(nn.Identity())  # type: ignore[abstract]
