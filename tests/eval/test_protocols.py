"""Any encoder on any source: features in the source's order, scores of them."""

import pytest
import torch
from byte_tokens import SPEC, register
from torch import Tensor, nn

from sslfast import data
from sslfast.eval import FineTuning, Preprocess, evaluate, feature_health, features_of, knn_accuracy

VIEW = data.View(size=16, crop_scale=None)


def test_an_encoder_says_what_it_takes_or_is_told() -> None:
    source = data.open_dataset("builtin:mnist", "test")
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8))
    with pytest.raises(ValueError, match=r"Sequential does not say what views it takes.*recipe"):
        features_of(encoder, source)
    told = features_of(encoder, source, data.Recipe("eval", (VIEW,)), batch_size=200)
    assert told.features.shape == (len(source), 8)
    assert told.sample_ids.tolist() == list(range(len(source)))
    encoder.preprocess = Preprocess(VIEW)
    known = features_of(encoder, source, threads=1)
    torch.testing.assert_close(known.features, told.features)
    found = evaluate(encoder, source, source, k=1)
    counts = {"k": 1, "n_train": len(source), "n_test": len(source)}
    assert found == {"accuracy": 1.0, **counts, **feature_health(known.features)}
    assert knn_accuracy(known, known, k=5) < 1
    with pytest.raises(ValueError, match="are of linear and finetune: knn uses all"):
        evaluate(encoder, source, source, labels_per_class=5)
    pixels = nn.Flatten()
    assert evaluate(pixels, source, source, "knn", "eval", batch_size=64, k=1)["accuracy"] == 1.0


def test_the_seed_draws_the_labels() -> None:
    train, test = (data.open_dataset("builtin:mnist", split) for split in ("train", "test"))
    few = {"recipe": data.Recipe("eval", (VIEW,)), "labels_per_class": 1, "batch_size": 500}
    found = [evaluate(nn.Flatten(), train, test, "linear", **few, seed=s) for s in (0, 1, 1)]
    assert found[1] == found[2]
    assert found[0]["accuracy"] != found[1]["accuracy"]


def test_what_a_protocol_does_not_use_is_refused() -> None:
    source = data.open_dataset("builtin:mnist", "test")
    for protocol, given, message in (
        ("linear", {"k": 20}, "k is of knn, not of linear"),
        ("finetune", {"k": 1}, "k is of knn, not of finetune"),
        ("knn", {"label_fraction": 0.5}, "are of linear and finetune: knn uses all"),
        ("knn", {"settings": FineTuning()}, "settings are of finetune, not of knn"),
        ("linear", {"settings": FineTuning()}, "settings are of finetune, not of linear"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(nn.Flatten(), source, source, protocol, "eval", **given)


def test_a_source_of_any_kind_but_one_view_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Count(nn.Module):
        def forward(self, view: Tensor) -> Tensor:
            return nn.functional.one_hot(view, 256).float().mean(1)

    register(monkeypatch)
    source = data.open_dataset(SPEC, modality="tokens")
    recipe = data.recipe("noisy_text", noise=0.0)
    with pytest.raises(ValueError, match="one view"):
        features_of(Count(), source, recipe)
