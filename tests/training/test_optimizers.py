"""The trainer's optimisers: torch's trajectories, its checkpoints, clipping."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import Interrupting, power_cut
from toys import PowerCutError, ToyLoader, entries, toy_config, toy_fit, toy_method, weights

from sslfast.optim import LARS, AdamW
from sslfast.training import checkpoint, session
from sslfast.training.config import TrainConfig
from sslfast.training.optimizers import build_optimizer


def torch_optimizer(
    config: TrainConfig, groups: list[dict[str, Any]], teachers: Any
) -> torch.optim.Optimizer:
    """What runs used before: a class of torch's, and the norm beside it."""
    parameters = [p for group in groups for p in group["params"]]
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        optimizer: Any = torch.optim.AdamW(groups, **options)
    else:
        optimizer = torch.optim.SGD(groups, momentum=config.momentum, **options)

    def clip(*_: object) -> None:
        limit = float("inf") if config.clip_grad is None else config.clip_grad
        optimizer.grad_norm = torch.nn.utils.clip_grad_norm_(parameters, limit)

    optimizer.register_step_pre_hook(clip)
    return optimizer


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("clip_grad", [None, 0.05])
def test_runs_as_with_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, clip_grad: float | None
) -> None:
    changes = {"optimizer": optimizer, "clip_grad": clip_grad, "weight_decay": 0.1}
    ours, theirs = toy_method(batch_norm=False), toy_method(batch_norm=False)
    run = toy_fit(toy_config(tmp_path / "a", **changes), ours, ToyLoader())
    monkeypatch.setattr(session, "build_optimizer", torch_optimizer)
    peer = toy_fit(toy_config(tmp_path / "b", **changes), theirs, ToyLoader())
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-4, atol=1e-5)
    norms = [[entry["grad_norm"] for entry in entries(r)] for r in (run, peer)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert max(norms[0]) > 0.05


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_checkpoints_of_torch_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """Runs that were begun with torch's classes end as if they had kept them."""
    config = toy_config(tmp_path / "a", optimizer=optimizer)
    with monkeypatch.context() as patch:
        patch.setattr(session, "build_optimizer", torch_optimizer)
        with pytest.raises(PowerCutError):
            toy_fit(config, toy_method(batch_norm=False), Interrupting(7, power_cut))
        whole = toy_method(batch_norm=False)
        toy_fit(toy_config(tmp_path / "b", optimizer=optimizer), whole, ToyLoader())
    saved = checkpoint.load_newest(tmp_path / "a" / "checkpoints")
    assert saved is not None
    assert saved["step"] == 4
    resumed = toy_method(batch_norm=False)
    toy_fit(config, resumed, ToyLoader(), saved)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=1e-4, atol=1e-5)


def test_what_is_built() -> None:
    def build(**changes: Any) -> AdamW | LARS:
        return build_optimizer(toy_config("x", **changes), toy_method().param_groups())

    adamw, lars = build(clip_grad=0.5), build(optimizer="lars", lr=0.3, momentum=0.8)
    sgd = build(optimizer="sgd")
    assert isinstance(adamw, AdamW)
    assert adamw.max_norm == 0.5
    assert isinstance(lars, LARS)
    assert [g["trust"] for g in lars.param_groups] == [True, False]
    assert [g["weight_decay"] for g in lars.param_groups] == [1e-4, 0.0]
    assert (lars.defaults["lr"], lars.defaults["momentum"]) == (0.3, 0.8)
    assert isinstance(sgd, LARS)
    assert [g["trust"] for g in sgd.param_groups] == [False, False]


def test_lars_trains(tmp_path: Path) -> None:
    config = toy_config(tmp_path, optimizer="lars", lr=0.3, weight_decay=1e-6)
    logged = entries(toy_fit(config, toy_method(), ToyLoader()))
    assert logged[-1]["loss"] < logged[0]["loss"]
