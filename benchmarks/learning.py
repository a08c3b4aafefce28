"""What methods learn in a few minutes on built-in photographs, beside pixels and random weights.

    python -m benchmarks.learning --seeds 0 1 2 --threads 1 --out benchmarks/results/learning.json
    python -m benchmarks.learning --ablations --seeds 0 1 2 --threads 1 --out ...    what collapses

Every method that takes images is trained by its configs/METHOD/small.yaml: 5,706 patches of ten
photographs (builtin:photos). Then the photograph of test patches is named by kNN, by a linear probe
(100 labels a class, the mean of five draws) and by fine-tuning with 10 labels a class; effective
rank and spread of the features need no label. The same is done to the encoder as it was before its
training, which is fine-tuned on the same labels: from scratch. Everything but the times is fixed by
the seed.

Methods and seeds may run apart, into one file; what is there with the same settings is not run
again. Each row says at which commit it was made.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.harness.arguments import arguments
from benchmarks.harness.collapse import ABLATIONS
from benchmarks.harness.environment import ROOT, environment
from benchmarks.harness.rows import write_rows
from sslfast import data, methods
from sslfast.eval import (
    Features,
    FineTuning,
    feature_health,
    features_of,
    knn_accuracy,
    linear_probe,
)
from sslfast.training import TrainConfig, train
from sslfast.training.config import read_yaml
from sslfast.training.evaluation import FinishedRun
from sslfast.training.run_folder import RunFolder
from sslfast.training.run_log import read_metrics
from sslfast.training.tokenizer import TokenizerConfig, fit_tokenizer

CONFIGS = ROOT / "configs"
PIXELS = "raw pixels"
BUDGET = 600.0  # seconds of CPU time of a training, with the files that it needs
PROTOCOL = {"k": 20, "labels": 100, "draws": 5, "few_labels": 10, "steps": None}
QUICK = {"k": 20, "labels": 20, "draws": 1, "few_labels": 2, "steps": 2}

Row = dict[str, Any]


def image_methods() -> list[str]:
    """All registered methods that learn from images."""
    return [name for name in methods.names() if "image" in methods.get(name).modalities]


def settings_of(name: str, quick: bool = False) -> dict[str, Any]:
    """The small configuration of a method, or of an ablation, which changes it.

    Raises:
        FileNotFoundError: it has none.
    """
    ablation = ABLATIONS.get(name)
    path = CONFIGS / (ablation.method if ablation else name) / "small.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path.relative_to(ROOT)} is missing: write it, or name --methods")
    settings = read_yaml(path)
    if ablation:
        settings["method_args"] = {**settings.get("method_args", {}), **ablation.method_args}
        settings |= ablation.settings
    return {**settings, **({"epochs": 1, "steps": None} if quick else {})}


def tokenizer(settings: dict[str, Any], folder: Path, common: dict[str, Any]) -> str:
    """Visual tokens of the pixels, for patches like the encoder's."""
    from sslfast import models

    encoder = models.create(settings["model"], **settings.get("model_args", {}))
    out = str(folder / "tokens.safetensors")
    seen = {"image_size": settings["image_size"], "recipe": settings.get("recipe", "beit")}
    patch = encoder.patch_size[0]  # type: ignore[index]
    fit_tokenizer(TokenizerConfig(settings["data"], out, patch_size=patch, **seen, **common))
    return out


def teacher(settings: dict[str, Any], folder: Path, common: dict[str, Any]) -> str:
    """An encoder trained by SimCLR, for as long as its own configuration says."""
    own = settings_of("simclr", quick=settings["epochs"] == 1)
    run = train(TrainConfig(**own, **common, out=str(folder / "teacher")))
    return str(run / "encoder.safetensors")


FILES = {"tokenizer": tokenizer, "teacher": teacher}  # by the hyperparameter that names them


def trained(settings: dict[str, Any], name: str, folder: Path, common: dict[str, Any]) -> Path:
    """Train, with the files that the method needs made before: the run's folder."""
    ablation = ABLATIONS.get(name)
    method = ablation.register(name) if ablation else name
    arguments = dict(settings.get("method_args", {}))
    for file in methods.get(method).files:
        arguments[file] = FILES[file](settings, folder, common)
    changes = {"method": method, "method_args": arguments, "checkpoint_every": 10_000}
    return train(TrainConfig(**{**settings, **common, **changes}, out=str(folder / "run")))


def of_features(known: Features, asked: Features, protocol: Row, seed: int) -> dict[str, float]:
    """Scores that need no training but that of a linear classifier."""
    draws = range(seed * protocol["draws"], (seed + 1) * protocol["draws"])
    probes = [
        linear_probe(known, asked, labels_per_class=protocol["labels"], seed=draw).accuracy
        for draw in draws
    ]
    return {
        "knn": knn_accuracy(known, asked, protocol["k"]),
        "linear": statistics.fmean(probes),
        **feature_health(known.features),
        "dimensions": known.features.shape[1],
    }


def scores(
    run: FinishedRun, kind: str, protocol: Row, seed: int, tune: bool = True
) -> dict[str, float]:
    """Scores of the "trained" encoder of a run, or of the "random" one that it began with."""
    settings = FineTuning(steps=protocol["steps"])
    if kind == "trained":
        encoder = run.encoder()
    else:
        encoder = run.random_encoder()
        settings = settings.from_scratch(encoder)
    train_set, test_set = (run.dataset(run.spec(None), split) for split in ("train", "test"))
    known, asked = (run.features(encoder, images) for images in (train_set, test_set))
    if not tune:
        return of_features(known, asked, protocol, seed)
    labels = {"labels_per_class": protocol["few_labels"], "seed": seed}
    tuned = run.fine_tune(encoder, train_set, test_set, settings, **labels)
    return {**of_features(known, asked, protocol, seed), "finetune": tuned.accuracy}


def pixels(seed: int, protocol: Row, device: str, threads: int) -> Row:
    """The row of the pixels themselves."""
    sets = [data.open_dataset("builtin:photos", split) for split in ("train", "test")]
    view = data.recipe("eval", size=32)
    flat = (features_of(nn.Flatten(), s, view, device=device, threads=threads) for s in sets)
    found = of_features(*flat, protocol, seed)
    return {"method": PIXELS, "seed": seed, "protocol": protocol, "scores": {"trained": found}}


def measure(
    name: str, seed: int, rows: list[Row], options: argparse.Namespace, threads: int
) -> Row:
    """Train one method with one seed, and see what it has learned.

    Args:
        name: of a method or an ablation.
        seed: of everything.
        rows: of earlier runs, whose random encoders need not be looked at again.
        options: device and quick.
        threads: of the loader.
    """
    protocol = QUICK if options.quick else PROTOCOL
    settings = settings_of(name, options.quick)
    common = {"seed": seed, "device": options.device, "threads": threads}
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter(), time.process_time()
        path = trained(settings, name, Path(folder), common)
        seconds, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
        run = FinishedRun.open(path, options.device, threads)
        inputs = ("model", "model_args", "image_size", "mean", "std")
        encoder = json.loads(json.dumps({key: run.description[key] for key in inputs}))
        same = {"encoder": encoder, "seed": seed, "protocol": protocol}
        ablation = name in ABLATIONS
        found = {"trained": scores(run, "trained", protocol, seed, tune=not ablation)}
        if ablation:
            last = read_metrics(RunFolder(path).metrics)[-1]
            found["embeddings"] = {k: last[k] for k in ("loss", "spread", "embedding_rank")}
        else:
            whole = [r for r in rows if not r.get("ablation")]
            known = next((r for r in whole if {k: r.get(k) for k in same} == same), None)
            found["random"] = (
                known["scores"]["random"] if known else scores(run, "random", protocol, seed)
            )
    return {
        **{"method": name, "ablation": ablation, "settings": settings, **same},
        # A machine that is shared stretches the first, hardly the second.
        **{"seconds": seconds, "cpu_seconds": cpu, "over_budget": cpu > BUDGET, "scores": found},
    }


def finished(rows: list[Row], name: str, seed: int, quick: bool) -> bool:
    """Whether there is a row of this method and seed, made with the settings of now."""
    wanted: Row = {"method": name, "seed": seed, "protocol": QUICK if quick else PROTOCOL}
    if name != PIXELS:
        wanted["settings"] = settings_of(name, quick)
    wanted = json.loads(json.dumps(wanted))
    return any({key: row.get(key) for key in wanted} == wanted for row in rows)


def merged(old: list[Row], new: list[Row]) -> list[Row]:
    """Rows by method and seed, ablations last; new ones take the place of old ones."""
    rows = {(row["method"], row["seed"]): row for row in (*old, *new)}
    place = {name: (1, i) for i, name in enumerate(ABLATIONS)} | {PIXELS: (-1, 0)}
    return [rows[key] for key in sorted(rows, key=lambda k: (place.get(k[0], (0, 0)), k))]


def load(path: Path | None) -> list[Row]:
    """The rows of a results file; none where there is none."""
    return json.loads(path.read_text())["runs"] if path and path.exists() else []


def shown(row: Row) -> str:
    """What is printed of a row."""
    lines = [f"\n{row['method']}, seed {row['seed']}"]
    if "cpu_seconds" in row:
        over = f", MORE than the {BUDGET:.0f} that it may take" if row["over_budget"] else ""
        lines[0] += f": {row['seconds']:.0f} s, {row['cpu_seconds']:.0f} s of CPU time{over}"
    for name, found in row["scores"].items():
        values = (f"{key} {value:.4g}" for key, value in found.items())
        lines.append(f"{name:12} {', '.join(values)}")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """Read the command line; --seeds takes the place of --seed."""
    parser = arguments(__doc__)
    parser.add_argument("--methods", nargs="+", help="default: all that take images, and pixels")
    parser.add_argument("--ablations", action="store_true", help="what collapses, instead")
    parser.add_argument("--seeds", nargs="+", type=int, help="several, instead of --seed")
    parser.add_argument("--again", action="store_true", help="also what --out has already")
    options = parser.parse_args()
    options.seeds = options.seeds or [options.seed]
    known = list(ABLATIONS) if options.ablations else [PIXELS, *image_methods()]
    options.methods = options.methods or known
    for name in options.methods:
        if name not in known:
            parser.error(f"unknown method '{name}'; known: {', '.join(known)}")
    return options


def main() -> None:
    """Run, print and write each row as it ends."""
    options = parse()
    threads = options.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    # Of the code that was loaded, whatever happens to the files meanwhile.
    made = environment(torch.device(options.device))
    facts = {name: made[name] for name in ("commit", "changed", "date", "threads")}
    new: list[Row] = []
    for name in options.methods:
        for seed in options.seeds:
            rows = merged(load(options.out), new)
            if not options.again and finished(rows, name, seed, options.quick):
                print(f"\n{name}, seed {seed}: there already (--again makes it anew)")
                continue
            if name == PIXELS:
                protocol = QUICK if options.quick else PROTOCOL
                row = pixels(seed, protocol, options.device, threads)
            else:
                row = measure(name, seed, rows, options, threads)
            new.append(facts | row)
            print(shown(new[-1]), flush=True)
            if options.out:
                # Read again: another process may have written meanwhile.
                device = torch.device(options.device)
                write_rows(options.out, [], device, runs=merged(load(options.out), new[-1:]))


if __name__ == "__main__":
    main()
