"""A method, a loader and settings that train in milliseconds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sslfast
from sslfast.data.batch import Batch
from sslfast.data.sources.manifest import Manifest
from sslfast.functional import ntxent
from sslfast.methods.base import Context, Method, Progress, Reference
from sslfast.training import checkpoint
from sslfast.training.config import TrainConfig
from sslfast.training.distributed import Ranks
from sslfast.training.loop import fit
from sslfast.training.run_folder import RunFolder
from sslfast.training.session import build_session


class ToyEncoder(nn.Module):
    num_features = 8

    def __init__(self, batch_norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=not batch_norm)
        self.norm = nn.BatchNorm2d(8) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu().mean((2, 3))


class ToyMethod(Method):
    """Both views agree on a score; no sample's loss depends on another's."""

    recipe = "simclr_small"
    reference = Reference("nobody 2024", {})

    def __init__(self, encoder: nn.Module, *, dropout: float = 0.0) -> None:
        super().__init__(encoder)
        self.head = nn.Linear(encoder.num_features, 4)
        self.drop = nn.Dropout(dropout)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.seen: list[Context] = []

    def encode(self, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor]:
        first, second = (self.head(self.drop(self.encoder(view))) for view in batch.views)
        return first, second

    def loss(self, outputs: tuple[Tensor, Tensor], ctx: Context) -> dict[str, Tensor]:
        first, second = outputs
        loss = (first - second).square().mean() + (first.square() - 1).square().mean()
        return {"loss": loss, "mean": first.detach().mean()}

    def schedules(self, progress: Progress) -> dict[str, float]:
        return {"momentum": 0.9 + 0.1 * progress.part}

    def after_step(self, ctx: Context) -> None:
        self.calls += 1
        self.seen.append(ctx)


class ToyContrast(ToyMethod):
    """Views of a sample attract, other samples of the batch repel."""

    contrastive = True

    def loss(self, outputs: tuple[Tensor, Tensor], ctx: Context) -> dict[str, Tensor]:
        return {"loss": ntxent(*outputs, 0.5)}


class ToyLoader:
    """Random images, in a random order that depends on the epoch."""

    def __init__(
        self, num_samples: int = 32, batch_size: int = 8, rank: int = 0, world_size: int = 1
    ) -> None:
        self.num_samples, self.batch_size = num_samples, batch_size
        self.rank, self.world_size = rank, world_size
        self.steps_per_epoch = num_samples // (batch_size * world_size)
        self.manifest = Manifest(
            "toy", None, [str(i) for i in range(num_samples)], [1] * num_samples
        )
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(num_samples, 3, 8, 8, generator=generator)
        self.epoch = self.position = 0
        self.closed = False

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(
            self.num_samples, generator=torch.Generator().manual_seed(self.epoch)
        )
        parts = order.view(-1, self.world_size, self.batch_size)[:, self.rank]
        while self.position < self.steps_per_epoch:
            ids = parts[self.position]
            self.position += 1
            x = self.images[ids]
            yield Batch((x, x.flip(-1)), ids)
        self.epoch, self.position = self.epoch + 1, 0

    def __len__(self) -> int:
        return self.steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]

    def close(self) -> None:
        self.closed = True


def toy_config(out: Path | str, **changes: Any) -> TrainConfig:
    settings = {
        **{"method": "toy", "data": "toy", "out": str(out), "steps": 12, "batch_size": 8},
        **{"lr": 0.01, "log_every": 3, "checkpoint_every": 4, "device": "cpu"},
    }
    return TrainConfig.from_dict({**settings, **changes})


def toy_method(*, batch_norm: bool = True, dropout: float = 0.0) -> ToyMethod:
    torch.manual_seed(0)
    return ToyMethod(ToyEncoder(batch_norm), dropout=dropout)


def weights(method: Method) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


def entries(run: RunFolder) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = run.metrics.read_text().splitlines()
    timed = ("images_per_second", "data_wait")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def toy_fit(config: TrainConfig, method: Method, loader: Any, saved: Any = None) -> RunFolder:
    run = RunFolder(config.out)
    with run.locked():
        session = build_session(config, method, loader, run, Ranks(torch.device("cpu")))
        if saved is None or saved["step"] < session.plan.total_steps:  # as train does
            run.begin(config, loader.manifest, {})
            fit(session, saved)
    return run


class PowerCutError(Exception):
    pass


def whole_and_resumed(
    config: dict[str, Any], method: type[Method], patch: pytest.MonkeyPatch, cut_at: int = 33
) -> tuple[RunFolder, RunFolder, dict[str, Any]]:
    """A run, and the same one cut off after a step and resumed, which end alike.

    Returns:
        The folders of both, and the last checkpoint of the first.
    """
    out = Path(config["out"])
    whole, cut = ({**config, "out": str(out / name)} for name in ("whole", "cut"))

    after_step = method.after_step

    def cut_off(self: Method, ctx: Context) -> None:
        if ctx.step == cut_at:
            raise PowerCutError
        after_step(self, ctx)

    runs = [RunFolder(sslfast.train(whole))]
    with patch.context() as cutting:
        cutting.setattr(method, "after_step", cut_off)
        with pytest.raises(PowerCutError):
            sslfast.train(cut)
    runs.append(RunFolder(sslfast.train(cut)))
    paths = (checkpoint.path_of(run.checkpoints, config["steps"]) for run in runs)
    ends = [checkpoint.load(path) for path in paths]
    assert ends[0]["fingerprint"] == ends[1]["fingerprint"]
    assert runs[0].encoder.read_bytes() == runs[1].encoder.read_bytes()
    return runs[0], runs[1], ends[0]
