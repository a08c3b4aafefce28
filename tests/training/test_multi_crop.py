"""A method of two teachers and many crops is one file: trained by real crops, resumed exactly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokens import needed
from torch import Tensor, nn
from toys import whole_and_resumed

import sslfast
from sslfast.data import Batch
from sslfast.ema import EMATeacher
from sslfast.methods import registry
from sslfast.methods.base import Context, Method, Progress, Reference
from sslfast.training.config import ConfigError

STEPS = 50


class MultiCrop(Method):
    """What a teacher makes of each global crop is told from every other crop, as in DINO.

    A second, slower teacher of the encoder alone is what is kept.
    """

    recipe = "dino"
    contrastive = True
    reference = Reference("Caron et al. 2021, arXiv:2104.14294", {"model": "vit_small"})

    def __init__(self, encoder: nn.Module, *, out_dim: int = 16) -> None:
        super().__init__(encoder)
        self.student = nn.Sequential(encoder, nn.Linear(int(encoder.num_features), out_dim))
        self.teacher, self.slow = EMATeacher(self.student, 0.9), EMATeacher(encoder, 0.99)
        self.register_buffer("center", torch.zeros(out_dim))

    def param_groups(self) -> list[dict[str, Any]]:
        groups = super().param_groups()
        last = set(self.student[1].parameters())
        rest = [{**g, "params": [p for p in g["params"] if p not in last]} for g in groups]
        return [*rest, {"params": list(self.student[1].parameters()), "freeze_until": 1.0}]

    def schedules(self, progress: Progress) -> dict[str, float]:
        return {"weight_decay": 0.04 + 0.36 * progress.part}

    def teachers(self) -> list[EMATeacher]:
        return [self.teacher, self.slow]

    def exported(self) -> nn.Module:
        return self.slow.module

    def encode(self, batch: Batch, ctx: Context) -> tuple[Tensor, list[Tensor]]:
        targets = torch.stack([self.teacher(view) for view in batch.views[:2]])
        return targets, [self.student(view) for view in batch.views]

    def loss(self, outputs: tuple[Tensor, list[Tensor]], ctx: Context) -> dict[str, Tensor]:
        targets, found = outputs
        sharp = ((targets - self.center) / 0.04).softmax(-1)
        pairs = [
            -(target * (student / 0.1).log_softmax(-1)).sum(-1).mean()
            for t, target in enumerate(sharp)
            for s, student in enumerate(found)
            if s != t
        ]
        self.center.lerp_(targets.mean((0, 1)), 0.1)
        return {"loss": torch.stack(pairs).mean()}


@pytest.fixture
def config(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setitem(registry._METHODS, "multi_crop", MultiCrop)
    return {
        **settings,
        **{"method": "multi_crop", "method_args": {}, "recipe": None, "local_size": 8},
        **{"recipe_args": {"local": {"count": 3}}, "steps": STEPS, "checkpoint_every": 20},
    }


def test_it_trains_and_resumes_exactly(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[tuple[int, ...]]] = []
    encode = MultiCrop.encode

    def watched(self: MultiCrop, batch: Batch, ctx: Context) -> Any:
        seen.append([tuple(view.shape) for view in batch.views])
        return encode(self, batch, ctx)

    monkeypatch.setattr(MultiCrop, "encode", watched)
    out = {**config, "out": str(tmp_path)}
    whole, _, end = whole_and_resumed(out, MultiCrop, monkeypatch)
    assert len(seen) == STEPS + 34 + (STEPS - 20)  # whole; cut off; from the checkpoint on
    assert seen[0] == 2 * [(16, 3, 16, 16)] + 3 * [(16, 3, 8, 8)]
    # What is kept is the slow teacher: neither the encoder nor the other teacher.
    kept, model = sslfast.load_encoder(whole.path).state_dict(), end["model"]
    same = []
    for name, tensor in kept.items():
        assert torch.equal(tensor, model[f"slow.module.{name}"])
        same.append(torch.equal(tensor, model[f"encoder.{name}"]))
    assert not all(same)
    assert int(model["teacher.updates"]) == int(model["slow.updates"]) == STEPS


def test_a_vit_for_one_size_is_refused_before_the_first_step(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    small = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 1, "num_heads": 2}
    config = {
        **{**settings, "method": "lejepa", "method_args": needed("lejepa"), "recipe": None},
        **{"model": "vit_micro", "model_args": small, "local_size": 8, "steps": 1},
        "out": str(tmp_path / "run"),
    }
    with pytest.raises(ConfigError, match=r"local_size: .*\[8, 8\].* dynamic_img_size=True"):
        sslfast.train(config)
    assert not (tmp_path / "run").exists()
    assert sslfast.train({**config, "model_args": {**small, "dynamic_img_size": True}})
