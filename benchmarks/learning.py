"""What masked methods learn: linear probes beside the same encoder with random weights.

    python -m benchmarks.learning --out benchmarks/results/learning.json

Each method trains a ViT of 1.2 million parameters on 5,706 patches of ten photographs
(builtin:photos), then a logistic regression names the photograph of test patches from the frozen
features: 100 labels a class, the mean of five draws. Everything but the time is fixed by the seed.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from sslfast import data
from sslfast.eval import linear_probe
from sslfast.training import TrainConfig, train
from sslfast.training.evaluation import FinishedRun
from sslfast.training.tokenizer import TokenizerConfig, fit_tokenizer

LABELS_PER_CLASS, LABEL_DRAWS = 100, 5

SETTINGS: dict[str, Any] = {
    **{"data": "builtin:photos", "model": "vit_micro", "image_size": 32, "batch_size": 128},
    **{"lr": 1e-3, "weight_decay": 0.05, "warmup_epochs": 2.0, "checkpoint_every": 10_000},
}
METHODS: dict[str, dict[str, Any]] = {
    "mae": {"epochs": 6, "method_args": {"decoder_depth": 2}},
    "simmim": {"epochs": 4},
    "beit": {
        **{"epochs": 4, "batch_size": 64, "lr": 1.5e-3, "recipe": "mae"},
        "tokenizer": {"patch_size": 4, "image_size": 32, "recipe": "mae"},
    },
    "ijepa": {"epochs": 4, "method_args": {"predictor_depth": 2, "momentum": 0.99}},
}


def measure(method: str, seed: int, device: str, threads: int, quick: bool) -> dict[str, Any]:
    """Pre-train with ``method`` and probe: settings, seconds and scores."""
    changes = {**METHODS[method], **({"epochs": 1} if quick else {})}
    with tempfile.TemporaryDirectory() as folder:
        common = {"seed": seed, "device": device, "threads": threads}
        begin = time.perf_counter()
        if "tokenizer" in changes:  # made in the run: its time counts
            tokens = {"data": SETTINGS["data"], "out": str(Path(folder) / "tokens.safetensors")}
            fit_tokenizer(TokenizerConfig(**tokens, **changes.pop("tokenizer"), **common))
            changes["method_args"] = {"tokenizer": tokens["out"]}
        config = TrainConfig(
            **{**SETTINGS, **changes}, **common, method=method, out=str(Path(folder) / method)
        )
        run = train(config)
        seconds = time.perf_counter() - begin
        scores = probes(FinishedRun.open(run, device, threads))
    return {
        "method": method,
        "seed": seed,
        "epochs": config.epochs,
        "seconds": seconds,
        "labels_per_class": LABELS_PER_CLASS,
        "scores": scores,
    }


def probes(run: FinishedRun) -> dict[str, float]:
    """Accuracy of linear probes on both encoders: the mean of five draws of the labels."""
    sets = [data.open_dataset(SETTINGS["data"], split) for split in ("train", "test")]
    scores = {}
    for name, encoder in (("random", run.random_encoder()), ("trained", run.encoder())):
        train_features, test_features = (run.features(encoder, images) for images in sets)
        found = [
            linear_probe(
                train_features, test_features, labels_per_class=LABELS_PER_CLASS, seed=seed
            ).accuracy
            for seed in range(LABEL_DRAWS)
        ]
        scores[name] = statistics.fmean(found)
    return scores


def main() -> None:
    """Run, print and write."""
    parser = common.arguments(__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    args = parser.parse_args()
    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    runs = []
    for method in args.methods:
        runs.append(measure(method, args.seed, args.device, threads, args.quick))
        print(f"\n{method}: {runs[-1]['epochs']} epochs in {runs[-1]['seconds']:.0f} s")
        for name, accuracy in runs[-1]["scores"].items():
            print(f"{name:24} linear probe {accuracy:.1%}")
    if args.out:
        common.write(args.out, [], torch.device(args.device), runs=runs)


if __name__ == "__main__":
    main()
