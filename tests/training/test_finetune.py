"""Fine-tuning with few labels: what it learns, from which labels, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_finished_run import write
from torch import Tensor, nn
from toys import ToyEncoder

from sslfast import data, models
from sslfast.data import Batch
from sslfast.eval import FineTuning, evaluate, fine_tune, finetune
from sslfast.eval.finetune import Classifier, fit
from sslfast.training import evaluation
from sslfast.training.config import ConfigError
from sslfast.training.evaluation import FinishedRun

VIEW = data.recipe("eval", size=16)
DIGITS = FineTuning(steps=60, batch_size=32, lr=1e-2, flip=0.0, crop_scale=(0.8, 1.0))


def encoder(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models.create("convnet_small", width=16, depth=3).eval()


def digits() -> tuple[data.Source, data.Source]:
    train, test = (data.open_dataset("builtin:mnist", split) for split in ("train", "test"))
    return train, finetune.subset(test, range(0, 1000, 4))


def test_few_digits_are_learned_and_the_encoder_is_left_as_it_is() -> None:
    made = encoder()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    train, test = digits()
    labels: dict[str, Any] = {"labels_per_class": 8, "threads": 1}
    found = fine_tune(made, train, test, VIEW, DIGITS, **labels)
    assert (found.n_labels, found.n_classes, found.n_test) == (80, 10, 250)
    assert (found.steps, found.batch_size) == (60, 32)
    assert found.start_accuracy > 0.4  # the probe of random features; chance is 0.1
    assert found.accuracy > found.start_accuracy + 0.07
    assert not made.training
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    again = fine_tune(made, train, test, VIEW, DIGITS, **labels)
    assert again == found
    other = fine_tune(made, train, test, VIEW, DIGITS, **labels, seed=1)
    assert other.accuracy != found.accuracy
    short = replace(DIGITS, steps=1)
    by_name = evaluate(made, train, test, "finetune", VIEW, settings=short, **labels)
    assert by_name == vars(fine_tune(made, train, test, VIEW, short, **labels))
    seeded = evaluate(made, train, test, "finetune", VIEW, settings=DIGITS, **labels, seed=1)
    assert seeded == vars(other)


def test_a_run_and_the_same_network_from_scratch(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    seen: list[tuple[Any, ...]] = []

    def recorded(labelled: Any, recipe: Any, **options: Any) -> data.Loader:
        seen.append((labelled.paths, recipe, options))
        return data.make_loader(labelled, recipe, **options)

    monkeypatch.setattr(finetune, "make_loader", recorded)
    run = FinishedRun.open(tmp_path, "cpu", threads=1)
    settings = FineTuning(steps=2, batch_size=4)
    found = evaluation.evaluate(
        run,
        "finetune",
        image_folder,
        labels_per_class=3,
        settings=settings,
        draws=2,
        from_scratch=True,
        seed=4,
    )
    assert json.loads((tmp_path / "eval_finetune.json").read_text()) == json.loads(
        json.dumps(found)
    )
    assert found["seeds"] == [4, 5]
    assert found["n_labels"] == 6
    first, second, *scratch = seen
    assert [first, second] == scratch  # the same files, crops, batches
    assert set(first[0]) != set(second[0])
    assert first[1].views[0].crop_scale == settings.crop_scale
    for name in ("", "scratch_"):
        assert found[f"{name}accuracy"] == sum(found[f"{name}accuracies"]) / 2
        assert found[f"{name}accuracy_std"] >= 0
    assert found["scratch_start_accuracy"] == 0.5  # of zeros: all are of the first class
    # The labels are those of the linear probe.
    train = run.dataset(image_folder, "train")
    features = run.features(None, train)
    rows = finetune.draw_labels(features.labels, features.sample_ids, 3, None, 4)
    assert first[0] == [train.sample_name(int(i)) for i in features.sample_ids[rows]]
    alone = evaluation.evaluate(
        run, "finetune", image_folder, labels_per_class=3, settings=settings
    )
    assert not any(name.startswith("scratch_") or "std" in name for name in alone)


class OneBatch:
    """A loader of the same eight images for ever, in two classes named 3 and 7."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(8, 3, 16, 16, generator=generator)
        self.labels = torch.tensor([3, 7] * 4)

    def __iter__(self) -> Any:
        yield Batch((self.images,), torch.arange(8), self.labels)


def classifier(made: nn.Module, width: int) -> Classifier:
    torch.manual_seed(1)
    return Classifier(made, nn.Linear(width, 2), torch.tensor([3, 7]))


def moved(model: nn.Module, before: dict[str, Tensor]) -> dict[str, float]:
    return {k: float((v - before[k]).abs().max()) for k, v in model.state_dict().items()}


@pytest.mark.parametrize("batch_norm", ["frozen", "batch"])
def test_statistics_of_batch_norm_stay_where_they_are_frozen(batch_norm: Any) -> None:
    model = classifier(ToyEncoder(), 8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fit(model, OneBatch(), FineTuning(batch_norm=batch_norm), steps=3)
    change = moved(model, before)
    assert (change["encoder.norm.running_mean"] == 0) == (batch_norm == "frozen")
    assert change["encoder.norm.weight"] > 0
    assert change["encoder.conv.weight"] > 0
    assert not any(module.training for module in model.modules())


def test_layers_near_the_input_move_less_and_frozen_ones_not_at_all() -> None:
    made = models.create("vit_micro", img_size=16, embed_dim=32, depth=2, num_heads=2)
    made.blocks[1].mlp.requires_grad_(False)
    model = classifier(made, 32)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fit(model, OneBatch(), FineTuning(layer_decay=0.1, weight_decay=0.0), steps=5)
    change = moved(model, before)
    sizes = [
        change[f"encoder.{name}"]
        for name in ("patch_embed.proj.weight", "blocks.0.attn.proj.weight")
    ]
    sizes.append(change["encoder.blocks.1.attn.proj.weight"])
    assert 0 < sizes[0] < sizes[1] / 5 < sizes[2] / 25
    assert change["encoder.blocks.1.mlp.fc1.weight"] == 0
    assert change["head.weight"] > 0


def test_the_head_starts_as_a_probe_or_as_zeros() -> None:
    train, test = digits()
    short = FineTuning(steps=1, lr=1e-12)
    scores = {
        kind: fine_tune(
            *(encoder(), train, test, VIEW, replace(short, start=kind)),
            **{"labels_per_class": 8, "threads": 1},
        )
        for kind in ("probe", "zeros")
    }
    assert scores["probe"].start_accuracy > 0.2
    assert scores["zeros"].start_accuracy == 25 / 250  # all are taken for the first class
    assert scores["probe"].accuracy == scores["probe"].start_accuracy


def test_steps_are_enough_however_few_labels_there_are() -> None:
    assert FineTuning().total_steps(1) == 200
    assert FineTuning().total_steps(100) == 3000
    assert FineTuning(epochs=2).total_steps(7) == 14
    assert FineTuning(steps=5).total_steps(100) == 5


def test_however_few_steps_the_first_does_not_take_the_peak() -> None:
    assert [FineTuning().warmup_steps(n) for n in (1, 3, 200)] == [2, 2, 20]
    assert FineTuning(warmup=0.0).warmup_steps(100) == 0


def test_what_was_made_worse_is_told(caplog: pytest.LogCaptureFixture) -> None:
    train, test = digits()
    labels: dict[str, Any] = {"labels_per_class": 8, "threads": 1}
    for lr, told in ((10.0, 1), (1e-12, 0)):
        caplog.clear()
        found = fine_tune(encoder(), train, test, VIEW, FineTuning(steps=1, lr=lr), **labels)
        assert (found.accuracy < found.start_accuracy) == bool(told)
        assert len(caplog.records) == told
        assert all("made it worse" in record.message for record in caplog.records)


def test_from_scratch_keeps_no_statistics_of_random_weights() -> None:
    settings = FineTuning(steps=7, lr=0.1, flip=0.0)
    kept: dict[str, Any] = {"steps": 7, "lr": 0.1, "flip": 0.0}
    changed = FineTuning(**kept, start="zeros", batch_norm="batch")
    assert settings.from_scratch(ToyEncoder()) == changed
    assert settings.from_scratch(ToyEncoder(batch_norm=False)) == settings


def test_bad_settings() -> None:
    for bad, message in (
        ({"steps": 3, "epochs": 2}, "steps and epochs are both given"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"lr": 0.0}, "lr must be more than 0"),
        ({"label_smoothing": 1.0}, "label_smoothing must be"),
        ({"start": "ones"}, "start must be"),
    ):
        with pytest.raises(ValueError, match=message):
            FineTuning(**bad)


def test_bad_data(image_folder: Path, tmp_path: Path) -> None:
    train, test = (data.open_dataset(image_folder, split) for split in ("train", "test"))
    settings = FineTuning(steps=1)

    def tune(train: Any, test: Any = test, **labels: Any) -> None:
        fine_tune(encoder(), train, test, VIEW, settings, threads=1, **labels)

    with pytest.raises(ValueError, match=r"class 0 has 32 train labels, fewer than .*=33"):
        tune(train, labels_per_class=33)
    with pytest.raises(ValueError, match="labels_per_class or label_fraction, not both"):
        tune(train, labels_per_class=1, label_fraction=0.5)
    bare = replace(train, labels=None, classes=None)
    with pytest.raises(ValueError, match="fine-tuning needs labels, but the train set has none"):
        tune(bare)
    with pytest.raises(ValueError, match="fine-tuning needs labels, but the test set has none"):
        tune(train, bare)
    with pytest.raises(ValueError, match="labels of at least two classes, got one"):
        tune(finetune.subset(train, range(10)))
    with pytest.raises(ValueError, match="the test set is empty"):
        tune(train, finetune.subset(test, []))
    with pytest.raises(ValueError, match="does not say what views it takes"):
        fine_tune(encoder(), train, test)
    wild = FineTuning(steps=3, lr=1e20)
    with pytest.raises(ValueError, match=r"diverged: lower lr, which was 1e\+20"):
        fine_tune(encoder(), train, test, VIEW, wild, labels_per_class=2, threads=1)


def test_settings_of_a_training_are_of_no_other_protocol(
    image_folder: Path, tmp_path: Path
) -> None:
    write(tmp_path)
    run = FinishedRun.open(tmp_path, "cpu", threads=1)
    for given in ({"settings": FineTuning()}, {"draws": 2}, {"from_scratch": True}):
        with pytest.raises(ConfigError, match="are of finetune, not of linear"):
            evaluation.evaluate(run, "linear", image_folder, **given)
