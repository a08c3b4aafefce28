"""What a run is made of: rates by group, teachers in the optimiser's pass, what is exported."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import Interrupting, power_cut
from torch import Tensor, nn
from toys import (
    PowerCutError,
    ToyEncoder,
    ToyLoader,
    ToyMethod,
    entries,
    toy_config,
    toy_fit,
    weights,
)

import sslfast
from sslfast.ema import EMATeacher
from sslfast.methods import registry
from sslfast.methods.base import Context, Progress
from sslfast.models import vit_micro
from sslfast.optim import AdamW
from sslfast.optim.layers import layered
from sslfast.training import checkpoint
from sslfast.training.config import ConfigError
from sslfast.training.optimizers import build_optimizer, parameter_groups, scaled_lr
from sslfast.training.schedule import Curve, Rates, scheduled
from sslfast.training.session import check_method


class Taught(ToyMethod):
    """Two teachers, of which one is exported; a head that is frozen for an epoch."""

    def __init__(self) -> None:
        super().__init__(ToyEncoder(batch_norm=True))
        self.teacher, self.slow = EMATeacher(self.encoder, 0.5), EMATeacher(self.head, 0.9)
        self.frozen: list[Tensor] = []
        self.before: list[int] = []

    def param_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": list(self.encoder.parameters()), "lr_scale": 0.5},
            {"params": list(self.head.parameters()), "freeze_until": 1.0, "weight_decay": 0.0},
        ]

    def schedules(self, progress: Progress) -> dict[str, float]:
        return {"weight_decay": 0.1 * progress.epoch, "momentum": 0.5 + 0.5 * progress.part}

    def teachers(self) -> list[EMATeacher]:
        return [self.teacher, self.slow]

    def exported(self) -> nn.Module:
        return self.teacher.module

    def before_step(self, ctx: Context) -> None:
        assert self.head.weight.grad is not None  # after the backward pass
        self.before.append(ctx.step)

    def after_step(self, ctx: Context) -> None:
        super().after_step(ctx)
        self.frozen.append(self.head.weight.detach().clone())


def taught() -> Taught:
    torch.manual_seed(0)
    return Taught()


def by_hand(steps: int) -> Taught:
    """The same training in a loop of one's own: torch's optimiser, teachers after it."""
    method, loader = taught().train(), ToyLoader()
    optimizer = torch.optim.AdamW(
        [{"params": method.encoder.parameters()}, {"params": method.head.parameters()}]
    )
    batches = iter(())
    for step in range(steps):
        progress = Progress(step, steps, 4.0)
        scheduled = method.schedules(progress)
        rate = 0.01 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group, scale, decay in zip(
            optimizer.param_groups, (0.5, 1.0), (scheduled["weight_decay"], 0.0), strict=True
        ):
            group["lr"], group["weight_decay"] = rate * scale, decay
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        ctx = Context(step, int(progress.epoch), steps)
        optimizer.zero_grad()
        method(batch, ctx)["loss"].backward()
        if step < 4:
            for parameter in method.head.parameters():
                parameter.grad = None
        optimizer.step()
        for teacher in method.teachers():
            teacher.update(teacher.student, scheduled["momentum"])
    return method


def test_groups_teachers_and_hooks(tmp_path: Path) -> None:
    method = taught()
    first = method.head.weight.detach().clone()
    toy_fit(toy_config(tmp_path, weight_decay=0.3), method, ToyLoader())
    assert [torch.equal(w, first) for w in method.frozen] == [step < 4 for step in range(12)]
    assert method.before == list(range(12))
    assert [int(t.updates) for t in method.teachers()] == [12, 12]
    expected = by_hand(12)
    for part in ("encoder", "head", "teacher", "slow"):
        found, wanted = (getattr(m, part).state_dict() for m in (method, expected))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_teachers_are_in_the_optimizers_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the encoder's tensors, only those without a gradient of their own are left to follow."""
    left: list[set[str]] = []
    follow = EMATeacher.follow

    def watched(self: EMATeacher, pairs: Any, *rest: Any) -> None:
        left.append(set(pairs.names))
        follow(self, pairs, *rest)

    monkeypatch.setattr(EMATeacher, "follow", watched)
    toy_fit(toy_config(tmp_path, steps=1), taught(), ToyLoader())
    first, second = left
    assert first == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert second == {"weight", "bias"}  # the slow one, right after


def test_a_resume_is_exact_with_teachers_and_frozen_groups(tmp_path: Path) -> None:
    whole = taught()
    toy_fit(toy_config(tmp_path / "whole"), whole, ToyLoader())
    config = toy_config(tmp_path / "cut")
    with pytest.raises(PowerCutError):
        toy_fit(config, taught(), Interrupting(7, power_cut))
    saved = checkpoint.load_newest(tmp_path / "cut" / "checkpoints")
    resumed = taught()
    toy_fit(config, resumed, ToyLoader(), saved)
    found, wanted = weights(resumed), weights(whole)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_rates() -> None:
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    groups: list[dict[str, Any]] = [
        {"params": [parameters[0]], "lr_scale": 0.1},
        {"params": [parameters[1]], "weight_decay": 0.0},
        {"params": [parameters[2]], "weight_decay": 0.7, "freeze_until": 1.5},
    ]
    rates = Rates(groups, Curve(peak=1.0, end=0.5, warmup=2), Curve(peak=0.2, end=0.4))
    assert not {"lr_scale", "freeze_until"} & {key for group in groups for key in group}
    optimizer = AdamW(groups, 1.0)
    for step, lr, decay in (
        (0, 0.5, 0.2),
        (2, 1.0, 0.2 + 0.2 * 0.5 * (1 - math.cos(0.2 * math.pi))),
    ):
        assert rates.set(optimizer, Progress(step, 10, 2.0), {}) == lr
        found = [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
        assert found == [(0.1 * lr, pytest.approx(decay)), (lr, 0.0), (lr, 0.7)]
    progress = Progress(6, 10, 2.0)
    assert rates.set(optimizer, progress, {"lr": 3.0, "weight_decay": 0.9}) == 3.0
    assert optimizer.param_groups[0]["weight_decay"] == 0.9
    for step, frozen in ((2, True), (3, False)):
        for parameter in parameters:
            parameter.grad = torch.ones(2)
        rates.freeze(optimizer, Progress(step, 10, 2.0))
        assert [p.grad is None for p in parameters] == [False, False, frozen]


def test_layers_have_rates_of_their_own() -> None:
    encoder = vit_micro(depth=2)
    other = nn.Linear(2, 2)
    parameters = [*encoder.parameters(), *other.parameters()]
    groups = layered([{"params": parameters, "weight_decay": 0.3}], encoder, 0.5)
    scale = {p: g["lr_scale"] for g in groups for p in g["params"]}
    assert len(scale) == len(parameters)
    assert all(g["weight_decay"] == 0.3 for g in groups)
    assert scale[encoder.patch_embed.proj.weight] == 0.125
    assert [scale[b.attn.qkv.weight] for b in encoder.blocks] == [0.25, 0.5]
    assert scale[encoder.norm.weight] == scale[other.weight] == 1.0
    with pytest.raises(ConfigError, match=r"layer_decay: ToyEncoder does not say.*layers\(\)"):
        parameter_groups(toy_config("x", layer_decay=0.5), ToyMethod(ToyEncoder()))


def test_settings_of_the_optimizer() -> None:
    def build(**changes: Any) -> Any:
        return build_optimizer(toy_config("x", **changes), taught().param_groups())

    adamw = build(optimizer_args={"betas": [0.9, 0.95], "eps": 1e-6})
    assert (adamw.defaults["betas"], adamw.defaults["eps"]) == ((0.9, 0.95), 1e-6)
    lars = build(optimizer="lars", optimizer_args={"trust_coefficient": 0.01})
    assert lars.defaults["trust_coefficient"] == 0.01
    assert build(optimizer="sgd", optimizer_args={"nesterov": True}).defaults["nesterov"] is True
    for options, words in (
        ({"beta": 0.9}, r"optimizer_args.beta: adamw has no such option. .*'betas'"),
        ({"lr": 0.1}, "optimizer_args.lr: that is the setting lr"),
        ({"max_norm": 1.0}, "that is the setting clip_grad"),
        ({"betas": [0.9, 1.5]}, r"optimizer_args.betas must be .*1.5"),
        ({"betas": [0.9, 0.999, 0.1]}, r"optimizer_args.betas must be .*2 values"),
        ({"betas": [0.9]}, r"optimizer_args.betas must be .*2 values"),
        ({"betas": {"a": 1}}, "optimizer_args.betas must be"),
        ({"eps": "1e-8"}, "optimizer_args.eps must be"),
        ({"eps": True}, "optimizer_args.eps must be"),
    ):
        with pytest.raises(ConfigError, match=words):
            build(optimizer_args=options)
    for options in ({"eps": 1e-3}, {"nesterov": "maybe"}):  # sgd has no ratio to add it to
        with pytest.raises(ConfigError, match=rf"optimizer_args.{next(iter(options))}"):
            build(optimizer="sgd", optimizer_args=options)
    with pytest.raises(ValueError, match="betas must be two numbers"):
        AdamW([nn.Parameter(torch.ones(1))], betas=(0.9, 0.99, 0.1))  # type: ignore[arg-type]
    for scaling, factor in (("none", 1.0), ("linear", 1 / 32), ("sqrt", math.sqrt(1 / 32))):
        assert scaled_lr(toy_config("x", lr_scaling=scaling)) == pytest.approx(0.01 * factor)
    with pytest.raises(ConfigError, match="are the same: give one"):
        toy_config("x", drop_path=0.1, model_args={"drop_path_rate": 0.2})
    assert toy_config("x", drop_path=0.1).encoder_args == {"drop_path_rate": 0.1}


def test_what_a_method_says_is_looked_at_first(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the run's folder is made, in a line that names the method."""
    parts: dict[str, Any] = {}

    class Odd(Taught):
        recipe = "simclr_small"

        def __init__(self, encoder: nn.Module) -> None:
            super().__init__()

        def param_groups(self) -> Any:
            return parts.get("groups", super().param_groups())

        def teachers(self) -> Any:
            return parts["teachers"](self) if "teachers" in parts else super().teachers()

        def exported(self) -> Any:
            return parts["exported"](self) if "exported" in parts else self.encoder

    monkeypatch.setitem(registry._METHODS, "odd", Odd)
    config = {**settings, "method": "odd", "method_args": {}, "out": str(tmp_path / "run")}
    p = [nn.Parameter(torch.ones(2))]
    for odd, words in (
        ({"groups": [{"params": p, "lr": 0.1}]}, "the trainer sets lr; give .* lr_scale"),
        ({"groups": [{"params": p, "lr_scal": 0.1}]}, "unknown 'lr_scal'.*'lr_scale'"),
        ({"groups": [{"params": p, "lr_scale": math.nan}]}, "lr_scale must be"),
        ({"groups": [{"params": p, "freeze_until": "1"}]}, "freeze_until must be"),
        ({"groups": p}, "must be dicts with 'params'"),
        ({"teachers": lambda m: m.teacher}, "teachers of Odd must be a list of EMATeacher"),
        ({"teachers": lambda m: None}, "teachers of Odd must be a list of EMATeacher"),
        ({"teachers": lambda m: [m.teacher, m.teacher]}, "a teacher is named twice"),
        ({"exported": lambda m: m.teacher}, "exported of Odd .* such as teacher.module"),
        ({"exported": lambda m: m.head}, "exported of Odd .* the Linear that it returns"),
    ):
        parts.clear()
        parts.update(odd)
        with pytest.raises(ConfigError, match=words):
            sslfast.train(config)
    parts.clear()
    with pytest.raises(ConfigError, match=r"^optimizer_args.betas"):
        sslfast.train({**config, "optimizer_args": {"betas": [0.9]}})
    with pytest.raises(ConfigError, match="layer_decay"):
        sslfast.train({**config, "layer_decay": 0.5})
    with pytest.raises(ConfigError, match="drop_path: convnet_small skips no blocks"):
        sslfast.train({**config, "drop_path": 0.1})
    assert not (tmp_path / "run").exists()


def test_schedules_are_numbers_in_range() -> None:
    method = taught()
    for name, value in (
        ("momentum", 1.5),
        ("lr", -0.1),
        ("lr", math.nan),
        ("weight_decay", -3.0),
        ("other", torch.tensor(1.0)),
    ):
        method.schedules = lambda progress, n=name, v=value: {n: v}  # type: ignore[method-assign]
        with pytest.raises(ConfigError, match=f"schedules of Taught: {name} must be a finite"):
            scheduled(method, Progress(0, 10, 2.0))
    method.schedules = lambda progress: {"other": -2}  # type: ignore[method-assign]
    assert scheduled(method, Progress(0, 10, 2.0)) == {"other": -2}


def test_the_trust_ratio_stays_where_weight_decay_begins_at_zero() -> None:
    """A layer takes 1e-3 of its norm times lr, and not its whole gradient."""
    groups = [{"params": [nn.Parameter(torch.ones(4, 4))]}]
    config = toy_config("x", optimizer="lars", lr=1.0, momentum=0.0)
    rates = Rates(groups, Curve(1.0), Curve(1.0))
    optimizer = build_optimizer(config, groups)
    rates.set(optimizer, Progress(0, 10, 2.0), {"lr": 1.0, "weight_decay": 0.0})
    (parameter,) = groups[0]["params"]
    parameter.grad = torch.full((4, 4), 100.0)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((4, 4), 1 - 1e-3))


def test_all_frozen_is_a_step_without_a_gradient(tmp_path: Path) -> None:
    class Frozen(Taught):
        def param_groups(self) -> list[dict[str, Any]]:
            return [{"params": list(self.parameters()), "freeze_until": 1.0}]

    torch.manual_seed(0)
    logged = entries(toy_fit(toy_config(tmp_path, log_every=4), Frozen(), ToyLoader()))
    assert [entry["grad_norm"] > 0 for entry in logged] == [False, True, True]


def test_a_changed_momentum_counts_after_a_resume(tmp_path: Path) -> None:
    config = toy_config(tmp_path, optimizer="sgd", steps=4)
    toy_fit(config, taught(), ToyLoader())
    ends = []
    for momentum in (0.9, 0.9, 0.0):
        saved = checkpoint.load(checkpoint.path_of(tmp_path / "checkpoints", 4))
        method = taught()
        changed = toy_config(tmp_path, optimizer="sgd", steps=6, momentum=momentum)
        toy_fit(changed, method, ToyLoader(), saved)
        ends.append(weights(method)["encoder.conv.weight"])
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_groups_that_a_method_keeps_stay_as_they_are(tmp_path: Path) -> None:
    class Keeps(Taught):
        def param_groups(self) -> list[dict[str, Any]]:
            if not hasattr(self, "kept"):
                self.kept = super().param_groups()
            return self.kept

    torch.manual_seed(0)
    method = Keeps()
    check_method(toy_config(tmp_path), method)
    toy_fit(toy_config(tmp_path), method, ToyLoader())
    assert method.kept[0]["lr_scale"] == 0.5
    assert [torch.equal(w, method.frozen[0]) for w in method.frozen[:5]] == [True] * 4 + [False]
