"""Tables of what benchmarks/learning.py found: means over seeds, and their range."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
Value = Callable[[Row], float | None]


def score(encoder: str, key: str) -> Value:
    """One score of the "trained" or the "random" encoder; None where it was not measured."""
    return lambda row: row["scores"].get(encoder, {}).get(key)


def gain(key: str, over: str | None = None) -> Value:
    """How much higher a score is than that of the random encoder, on the same labels."""

    def difference(row: Row) -> float | None:
        pair = score("trained", key)(row), score("random", over or key)(row)
        return None if None in pair else pair[0] - pair[1]  # type: ignore[operator]

    return difference


def spread(encoder: str) -> Value:
    """Feature spread in units of what features that point everywhere alike have, 1 / sqrt(D)."""

    def relative(row: Row) -> float | None:
        found = row["scores"].get(encoder, {})
        if "feature_std" not in found:
            return None
        return found["feature_std"] * math.sqrt(found["dimensions"])

    return relative


def over_seeds(rows: Sequence[Row], value: Value, form: str, scale: float = 1.0) -> str:
    """The mean and, of several seeds, the lowest and highest; "-" where none was measured."""
    found = [scale * x for x in map(value, rows) if x is not None]
    if not found:
        return "-"
    mean = format(statistics.fmean(found), form)
    if len(found) == 1:
        return mean
    return f"{mean} ({min(found):{form}} to {max(found):{form}})"


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by method, in their order."""
    return {
        name: [row for row in rows if row["method"] == name]
        for name in dict.fromkeys(row["method"] for row in rows)
    }


def of_methods(rows: Sequence[Row]) -> list[Row]:
    """All rows but those of ablations."""
    return [row for row in rows if not row.get("ablation")]


def seeds(rows: Sequence[Row]) -> str:
    """How many seeds a line is of."""
    return str(len({row["seed"] for row in rows}))


def random_encoders(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """One row a seed of each random encoder, in the place of a trained one."""
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        if "random" in row["scores"]:
            name = row.get("encoder", {}).get("model", "vit_micro")
            args = row.get("encoder", {}).get("model_args")
            name += f" {args}" if args else ""
            kept = found.setdefault(f"random `{name}`", {})
            kept.setdefault(row["seed"], {**row, "scores": {"trained": row["scores"]["random"]}})
    return {name: [kept[seed] for seed in sorted(kept)] for name, kept in found.items()}


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown."""
    rows = [heads, ["---"] * len(heads), *lines]
    return [f"| {' | '.join(row)} |" for row in rows]


def accuracies(rows: Sequence[Row]) -> list[str]:
    """One line a method, after pixels and random encoders: what labels can be read."""
    heads = ["features", "seeds", "CPU time", "kNN", "linear probe", "above random"]
    heads += ["fine-tuned, 10 labels a class", "above from scratch"]
    rows, lines = of_methods(rows), []
    for name, own in {**random_encoders(rows), **groups(rows)}.items():
        times = [row["cpu_seconds"] for row in own if "cpu_seconds" in row]
        learned = "random" in own[0]["scores"]
        lines.append(
            [
                *(f"`{name}`" if learned else name, seeds(own)),
                f"{max(times):.0f} s" if learned and times else "-",
                over_seeds(own, score("trained", "knn"), ".1%"),
                over_seeds(own, score("trained", "linear"), ".1%"),
                over_seeds(own, gain("linear"), "+.1f", 100),
                over_seeds(own, score("trained", "finetune"), ".1%"),
                over_seeds(own, gain("finetune"), "+.1f", 100),
            ]
        )
    return table(heads, lines)


def health(rows: Sequence[Row]) -> list[str]:
    """One line a method: rank and spread of the features."""
    heads = ["features", "seeds", "dimensions", "effective rank", "spread", "kNN"]
    rows, lines = of_methods(rows), []
    for name, every in {**random_encoders(rows), **groups(rows)}.items():
        own = [row for row in every if spread("trained")(row) is not None]
        if not own:
            continue
        dimensions = own[0]["scores"]["trained"]["dimensions"]
        lines.append(
            [
                f"`{name}`" if "random" in own[0]["scores"] else name,
                *(seeds(own), f"{dimensions:.0f}"),
                over_seeds(own, score("trained", "effective_rank"), ".1f"),
                over_seeds(own, spread("trained"), ".2f"),
                over_seeds(own, score("trained", "knn"), ".1%"),
            ]
        )
    return table(heads, lines)


def collapse(rows: Sequence[Row]) -> list[str]:
    """One line an ablation, after the method as it is: what becomes of the embeddings."""
    heads = ["method", "seeds", "loss", "spread of embeddings", "their effective rank"]
    heads += ["kNN of features", "linear probe"]
    lines = [
        [
            *(name, seeds(own)),
            over_seeds(own, score("embeddings", "loss"), ".3f"),
            over_seeds(own, score("embeddings", "spread"), ".2f"),
            over_seeds(own, score("embeddings", "embedding_rank"), ".1f"),
            over_seeds(own, score("trained", "knn"), ".1%"),
            over_seeds(own, score("trained", "linear"), ".1%"),
        ]
        for name, own in groups([row for row in rows if row.get("ablation")]).items()
    ]
    return table(heads, lines)
