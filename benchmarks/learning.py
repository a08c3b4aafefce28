"""What masked methods learn: linear probes beside the same encoder with random weights.

    python -m benchmarks.learning --out benchmarks/results/learning.json

Each method trains a ViT of 1.2 million parameters on 5,706 patches of ten photographs
(builtin:photos), then a logistic regression names the photograph of test patches from the frozen
features: 100 labels a class, the mean of five draws. Everything but the time is fixed by the seed.
"""

import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from sslfast.training import TrainConfig, train
from sslfast.training.evaluation import FinishedRun
from sslfast.training.report import report

SETTINGS: dict[str, Any] = {
    **{"data": "builtin:photos", "model": "vit_micro", "image_size": 32, "batch_size": 128},
    **{"lr": 1e-3, "weight_decay": 0.05, "warmup_epochs": 2.0, "checkpoint_every": 10_000},
}
METHODS: dict[str, dict[str, Any]] = {
    "mae": {"epochs": 12, "method_args": {"decoder_depth": 2}},
    "simmim": {"epochs": 8},
    "ijepa": {"epochs": 10, "method_args": {"predictor_depth": 2, "momentum": 0.99}},
}


def measure(method: str, seed: int, device: str, threads: int, quick: bool) -> dict[str, Any]:
    """Pre-train with ``method`` and probe: settings, seconds and scores."""
    changes = {**METHODS[method], **({"epochs": 1} if quick else {})}
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            **{**SETTINGS, **changes},
            **{"method": method, "seed": seed, "device": device, "threads": threads},
            out=str(Path(folder) / method),
        )
        begin = time.perf_counter()
        run = train(config)
        seconds = time.perf_counter() - begin
        found = report(FinishedRun.open(run, device, threads))
    return {
        "method": method,
        "seed": seed,
        "epochs": config.epochs,
        "seconds": seconds,
        "labels_per_class": found.labels_per_class,
        "k": found.k,
        "scores": [asdict(score) for score in found.scores],
    }


def main() -> None:
    """Run, print and write."""
    parser = common.arguments(__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    runs = []
    for method in args.methods:
        threads = torch.get_num_threads()
        runs.append(measure(method, args.seed, args.device, threads, args.quick))
        print(f"\n{method}: {runs[-1]['epochs']} epochs in {runs[-1]['seconds']:.0f} s")
        for score in runs[-1]["scores"]:
            print(f"{score['features']:24} kNN {score['knn']:.1%}  linear {score['linear']:.1%}")
    if args.out:
        common.write(args.out, [], torch.device(args.device), runs=runs)


if __name__ == "__main__":
    main()
