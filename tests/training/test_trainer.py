import math
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import (
    PowerCutError,
    ToyContrast,
    ToyEncoder,
    ToyLoader,
    entries,
    toy_config,
    toy_fit,
    toy_method,
    weights,
)

from sslfast.data.batch import Batch
from sslfast.methods.base import Context
from sslfast.optim.schedules import warmup_cosine
from sslfast.training import checkpoint
from sslfast.training.config import ConfigError
from sslfast.training.monitors import NonFiniteError
from sslfast.training.session import check_method
from sslfast.training.signals import TrainingStopped
from sslfast.training.trainer import build_method


class Interrupting(ToyLoader):
    """Does something just before handing out the batch number ``at``."""

    def __init__(self, at: int, action: Any) -> None:
        super().__init__()
        self.at, self.action = at, action

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            self.at -= 1
            if self.at == 0:
                batch = self.action(batch) or batch
            yield batch


def power_cut(batch: Batch) -> None:
    raise PowerCutError


@pytest.mark.parametrize("epochs", [3.0, 4.5])
def test_a_warm_up_longer_than_the_run_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, epochs: float
) -> None:
    # Four steps an epoch, 12 in all: three epochs are not longer.
    config = toy_config(tmp_path / "run", warmup_epochs=epochs)
    run = toy_fit(config, toy_method(), ToyLoader())
    said = (
        "warmup_epochs 4.5 is longer than the run of 3 epochs: the learning rate rises to 0.00667"
    )
    assert (said in caplog.text) == (epochs > 3)
    assert entries(run)[-1]["lr"] == pytest.approx(0.01 * 3 / epochs)


def test_a_run_from_beginning_to_end(tmp_path: Path) -> None:
    config = toy_config(tmp_path / "run", warmup_epochs=1.0)
    method = toy_method()
    run = toy_fit(config, method, ToyLoader())

    logged = entries(run)
    assert [entry["step"] for entry in logged] == [3, 6, 9, 12]
    assert [entry["epoch"] for entry in logged] == [0.75, 1.5, 2.25, 3.0]
    assert logged[-1]["loss"] < logged[0]["loss"]
    for entry in logged:
        rate = warmup_cosine(int(entry["step"]) - 1, peak=0.01, warmup=4, total=12)
        assert entry["lr"] == rate
    names = [path.name for path in checkpoint.listed(run.checkpoints)]
    assert names == ["step_00000004.pt", "step_00000008.pt", "step_00000012.pt"]
    assert run.config.is_file()
    assert list(run.path.glob("events.out.tfevents.*"))

    contexts = method.seen
    assert method.calls == 12
    assert [ctx.step for ctx in contexts] == list(range(12))
    steps = torch.stack([ctx.drawn_step for ctx in contexts])
    assert torch.equal(steps, torch.arange(12))
    assert [ctx.epoch for ctx in contexts] == [0] * 4 + [1] * 4 + [2] * 4
    assert all(ctx.total_steps == 12 and ctx.seed == 0 for ctx in contexts)
    momentum = contexts[6].schedules["momentum"]
    assert momentum.shape == ()
    assert momentum.item() == pytest.approx(0.95)


def test_logged_means_are_those_of_the_interval(tmp_path: Path) -> None:
    every = toy_fit(toy_config(tmp_path / "a", log_every=1), toy_method(), ToyLoader())
    third = toy_fit(toy_config(tmp_path / "b", log_every=3), toy_method(), ToyLoader())
    losses = [entry["loss"] for entry in entries(every)]
    means = [sum(losses[i : i + 3]) / 3 for i in range(0, 12, 3)]
    assert [entry["loss"] for entry in entries(third)] == pytest.approx(means)


@pytest.mark.parametrize(("epochs", "accumulate", "steps"), [(3, 1, 12), (3, 3, 4), (1, 8, 1)])
def test_epochs_count_optimiser_steps(
    tmp_path: Path, epochs: int, accumulate: int, steps: int
) -> None:
    config = toy_config(
        tmp_path, steps=None, epochs=epochs, batch_size=8 * accumulate, accumulate=accumulate
    )
    method = toy_method()
    toy_fit(config, method, ToyLoader())
    assert method.calls == steps


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_accumulated_micro_batches_are_one_batch(tmp_path: Path, optimizer: str) -> None:
    whole, parts = toy_method(batch_norm=False), toy_method(batch_norm=False)
    common = {"optimizer": optimizer, "batch_size": 16, "steps": 6}
    toy_fit(toy_config(tmp_path / "a", **common), whole, ToyLoader(batch_size=16))
    toy_fit(toy_config(tmp_path / "b", accumulate=4, **common), parts, ToyLoader(batch_size=4))
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-6)
    assert not torch.equal(whole.head.weight, toy_method(batch_norm=False).head.weight)


def toy_contrast(batch_norm: bool = False) -> ToyContrast:
    torch.manual_seed(0)
    return ToyContrast(ToyEncoder(batch_norm), dropout=0.0)


@pytest.mark.parametrize(("accumulate", "contrastive_batch", "parts"), [(4, 16, 1), (4, 8, 2)])
def test_a_contrastive_batch_is_of_several_micro_batches(
    tmp_path: Path, accumulate: int, contrastive_batch: int, parts: int
) -> None:
    """The same run as with micro-batches of that size, in the memory of small ones."""
    common = {"optimizer": "sgd", "batch_size": 16, "steps": 6}
    large, small, alone = (toy_contrast() for _ in range(3))
    toy_fit(
        toy_config(tmp_path / "a", accumulate=parts, **common),
        large,
        ToyLoader(batch_size=16 // parts),
    )
    config = toy_config(
        tmp_path / "b", accumulate=accumulate, contrastive_batch=contrastive_batch, **common
    )
    run = toy_fit(config, small, ToyLoader(batch_size=16 // accumulate))
    torch.testing.assert_close(weights(small), weights(large), rtol=1e-4, atol=1e-6)
    assert small.calls == 6
    assert len(entries(run)) == 2
    config = toy_config(tmp_path / "c", accumulate=accumulate, **common)
    toy_fit(config, alone, ToyLoader(batch_size=16 // accumulate))
    assert not torch.allclose(alone.head.weight, large.head.weight, rtol=1e-3)


def test_a_contrastive_batch_writes_running_statistics_once(tmp_path: Path) -> None:
    method = toy_contrast(batch_norm=True)
    config = toy_config(tmp_path, steps=3, batch_size=16, accumulate=4, contrastive_batch=16)
    toy_fit(config, method, ToyLoader(batch_size=4))
    # Two views of four micro-batches in each step, although each is encoded twice.
    assert method.encoder.norm.num_batches_tracked == 3 * 4 * 2


def test_a_contrastive_batch_is_for_contrastive_methods(tmp_path: Path) -> None:
    config = toy_config(tmp_path, method="mae", model="vit_tiny", accumulate=2, contrastive_batch=8)
    with pytest.raises(ConfigError, match="mae does not: accumulate alone does it"):
        check_method(config, build_method(config, torch.device("cpu")))


def test_bf16_trains_close_to_fp32(tmp_path: Path) -> None:
    logged = {}
    for precision in ("fp32", "bf16"):
        config = toy_config(tmp_path / precision, precision=precision)
        logged[precision] = entries(toy_fit(config, toy_method(), ToyLoader()))
    last, reference = logged["bf16"][-1]["loss"], logged["fp32"][-1]["loss"]
    assert last == pytest.approx(reference, rel=0.05)
    assert last != reference


def test_compiled_trains_as_eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Capture and differentiation as always, without the minute that code generation takes.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    eager, compiled = toy_method(), toy_method()
    toy_fit(toy_config(tmp_path / "a", steps=4), eager, ToyLoader())
    toy_fit(toy_config(tmp_path / "b", steps=4, compile=True), compiled, ToyLoader())
    torch.testing.assert_close(weights(compiled), weights(eager), rtol=1e-4, atol=1e-5)


def test_same_seed_same_bits(tmp_path: Path) -> None:
    first, second, other = (toy_method(dropout=0.3) for _ in range(3))
    toy_fit(toy_config(tmp_path / "a"), first, ToyLoader())
    toy_fit(toy_config(tmp_path / "b"), second, ToyLoader())
    toy_fit(toy_config(tmp_path / "c", seed=1), other, ToyLoader())
    torch.testing.assert_close(weights(first), weights(second), rtol=0, atol=0)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_a_checkpoint_holds_buffers_once_or_as_before_on_every_rank(tmp_path: Path) -> None:
    run = toy_fit(toy_config(tmp_path / "a"), method := toy_method(), ToyLoader())
    for before in (False, True):
        saved, resumed = checkpoint.load(checkpoint.path_of(run.checkpoints, 8)), toy_method()
        assert saved["ranks"][0]["buffers"] == {}
        if before:  # when they counted, whatever the model's are
            for name, _ in method.named_buffers():
                saved["ranks"][0]["buffers"][name] = saved["model"][name].clone()
                saved["model"][name].zero_()
        toy_fit(toy_config(tmp_path / f"{before}"), resumed, ToyLoader(), saved)
        for key, tensor in weights(method).items():
            assert torch.equal(resumed.state_dict()[key], tensor)


@pytest.mark.parametrize(("accumulate", "cut"), [(1, 6), (1, 9), (2, 15)])
def test_a_power_cut_changes_nothing(tmp_path: Path, accumulate: int, cut: int) -> None:
    """Cut between checkpoint and log entry: weights and log are those of an undisturbed run."""
    changes = {"batch_size": 8 * accumulate, "accumulate": accumulate}
    undisturbed = toy_method(dropout=0.3)
    reference = toy_fit(toy_config(tmp_path / "a", **changes), undisturbed, ToyLoader())

    config = toy_config(tmp_path / "b", **changes)
    with pytest.raises(PowerCutError):
        toy_fit(config, toy_method(dropout=0.3), Interrupting(cut, power_cut))
    resumed = toy_method(dropout=0.3)
    saved = checkpoint.load_newest(tmp_path / "b" / "checkpoints")
    assert saved is not None
    assert saved["step"] < 12
    run = toy_fit(config, resumed, ToyLoader(), saved)

    assert [int(ctx.drawn_step) for ctx in resumed.seen] == list(range(saved["step"], 12))
    torch.testing.assert_close(weights(resumed), weights(undisturbed), rtol=0, atol=0)
    assert entries(run) == entries(reference)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    config = toy_config(tmp_path / "b")
    interrupting = Interrupting(6, lambda batch: os.kill(os.getpid(), number))
    with pytest.raises(TrainingStopped, match=r"stopped at step 6, .*run the same command") as stop:
        toy_fit(config, toy_method(dropout=0.3), interrupting)
    assert stop.value.signal == number
    assert signal.getsignal(number) is before

    resumed, undisturbed = toy_method(dropout=0.3), toy_method(dropout=0.3)
    saved = checkpoint.load_newest(tmp_path / "b" / "checkpoints")
    assert saved is not None
    assert saved["step"] == 6
    run = toy_fit(config, resumed, ToyLoader(), saved)
    reference = toy_fit(toy_config(tmp_path / "a"), undisturbed, ToyLoader())
    torch.testing.assert_close(weights(resumed), weights(undisturbed), rtol=0, atol=0)
    assert entries(run) == entries(reference)


def poison(batch: Batch) -> Batch:
    first, second = batch.views
    spoilt = first.clone()
    spoilt[3] = math.nan
    return Batch((spoilt, second), batch.sample_ids)


def test_a_non_finite_loss_names_step_and_samples(tmp_path: Path) -> None:
    handed_out: list[list[int]] = []

    class Recording(Interrupting):
        def __iter__(self) -> Iterator[Batch]:
            for batch in super().__iter__():
                handed_out.append(batch.sample_ids.tolist())
                yield batch

    # Step 6 goes wrong, between the checkpoint at 4 and the reading at 8.
    config = toy_config(tmp_path, log_every=8)
    with pytest.raises(NonFiniteError) as caught:
        toy_fit(config, toy_method(), Recording(6, poison))
    error = caught.value
    assert error.step == 6
    assert error.sample_ids == handed_out[5]
    assert len(handed_out) == 8
    message = str(error)
    assert "not finite at step 6" in message
    assert ", ".join(map(str, handed_out[5])) in message
    assert "step_00000004.pt" in message

    [kept] = checkpoint.listed(tmp_path / "checkpoints")
    state = checkpoint.load(kept)
    assert state["step"] == 4
    assert all(t.isfinite().all() for t in state["model"].values())


def test_a_non_finite_gradient_of_a_finite_loss_is_found(tmp_path: Path) -> None:
    method = toy_method()
    plain = method.loss

    def root(outputs: Any, ctx: Context) -> dict[str, Tensor]:
        loss = plain(outputs, ctx)["loss"]
        if ctx.step == 4:  # at 0 the root's gradient is infinite, its value is not
            loss = loss + (0 * method.head.bias).sum().sqrt()
        return {"loss": loss}

    method.loss = root  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match="not finite at step 5"):
        toy_fit(toy_config(tmp_path), method, ToyLoader())


def test_overflowing_weights_are_never_saved(tmp_path: Path) -> None:
    method = toy_method()
    plain = method.loss
    method.loss = lambda outputs, ctx: {  # type: ignore[method-assign]
        "loss": 1e6 * plain(outputs, ctx)["loss"]
    }
    config = toy_config(tmp_path, optimizer="sgd", lr=1e38, momentum=0.0, checkpoint_every=1)
    with pytest.raises(NonFiniteError, match="a weight is not finite at step 1; no checkpoint yet"):
        toy_fit(config, method, ToyLoader())
    assert not checkpoint.listed(tmp_path / "checkpoints")


def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    config = toy_config(tmp_path, precision="fp16")
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        build_method(config, torch.device("cpu"))
