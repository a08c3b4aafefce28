"""Results of the learning benchmark: what is run, what is there already, and the tables of it."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks import learning, report
from benchmarks.harness import collapse, learned
from sslfast import methods

FACTS = {"date": "2026-01-02T03:04:05", "cpu": "x", "threads": 1, "isa": "y", "torch": "z"}


def row(method: str, seed: int, linear: float, **more: Any) -> dict[str, Any]:
    trained = {"linear": linear, "finetune": linear + 0.1, "knn": 0.25, "effective_rank": 3.0}
    trained |= {"feature_std": 0.125, "dimensions": 16}
    random = {"linear": 0.5, "finetune": 0.45, "knn": 0.2}
    made = {"commit": "a" * 40, "cpu_seconds": 100.0 + seed, "encoder": {"model": "vit_micro"}}
    scores = {"random": random, "trained": trained}
    return {"method": method, "seed": seed, "scores": scores, **made, **more}


def test_new_rows_take_the_place_of_old_ones_and_the_others_stay() -> None:
    collapsed, pixels = "byol without predictor", learning.PIXELS
    old = [row(collapsed, 0, 0.1), row("mae", 1, 0.7), row("mae", 0, 0.6), row(pixels, 0, 0.2)]
    together = learning.merged(old, [row("mae", 0, 0.8), row("ijepa", 2, 0.6)])
    order = [(pixels, 0), ("ijepa", 2), ("mae", 0), ("mae", 1), (collapsed, 0)]
    assert [(r["method"], r["seed"]) for r in together] == order
    assert [r["scores"]["trained"]["linear"] for r in together] == [0.2, 0.6, 0.8, 0.7, 0.1]


def test_what_is_there_with_the_same_settings_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "CONFIGS", tmp_path)
    monkeypatch.setattr(learning, "ROOT", tmp_path)
    path = tmp_path / "simclr" / "small.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump({"method": "simclr", "data": "x", "epochs": 3, "lr": 0.1}))
    made = json.loads(json.dumps({"protocol": learning.PROTOCOL}))
    settings = learning.settings_of("simclr")
    there = [row("simclr", 1, 0.6, settings=settings, **made)]
    assert learning.finished(there, "simclr", 1, quick=False)
    assert not learning.finished(there, "simclr", 0, quick=False)
    assert not learning.finished(there, "simclr", 1, quick=True)
    path.write_text(path.read_text().replace("0.1", "0.2"))
    assert not learning.finished(there, "simclr", 1, quick=False)
    assert learning.finished([row(learning.PIXELS, 0, 0.2, **made)], learning.PIXELS, 0, False)
    assert learning.settings_of("simclr", quick=True)["epochs"] == 1
    with pytest.raises(FileNotFoundError, match=r"byol/small\.yaml is missing: write it"):
        learning.settings_of("byol without predictor")


def test_the_table_of_accuracies() -> None:
    rows = [row("mae", 0, 0.8), row("mae", 1, 0.7), row("ijepa", 0, 0.6), row("byol", 0, 0.3)]
    rows[3]["ablation"] = True  # shown elsewhere
    del rows[2]["scores"]["trained"]["finetune"]
    table = report.learning({"environment": FACTS | {"commit": "c"}, "runs": rows})
    lines = table.splitlines()
    assert lines[2:5] == [
        "| random `vit_micro` | 2 | - | 20.0% (20.0% to 20.0%) | 50.0% (50.0% to 50.0%) | - "
        "| 45.0% (45.0% to 45.0%) | - |",
        "| `mae` | 2 | 101 s | 25.0% (25.0% to 25.0%) | 75.0% (70.0% to 80.0%) "
        "| +25.0 (+20.0 to +30.0) | 85.0% (80.0% to 90.0%) | +40.0 (+35.0 to +45.0) |",
        "| `ijepa` | 1 | 100 s | 25.0% | 60.0% | +10.0 | - | - |",
    ]
    assert f"at commit {'a' * 10}: x" in lines[-1]


def test_the_table_of_collapse() -> None:
    rows = [row("byol", 0, 0.8), row("byol without predictor", 0, 0.1, ablation=True)]
    rows[1]["scores"]["embeddings"] = {"loss": 0.01, "spread": 0.02, "embedding_rank": 1.31}
    assert learned.health(rows)[2:] == ["| `byol` | 1 | 16 | 3.0 | 0.50 | 25.0% |"]
    expected = "| byol without predictor | 1 | 0.010 | 0.02 | 1.3 | 25.0% | 10.0% |"
    assert learned.collapse(rows)[2:] == [expected]


@pytest.mark.parametrize("name", list(collapse.ABLATIONS))
def test_an_ablation_changes_one_thing(name: str) -> None:
    ablation = collapse.ABLATIONS[name]
    whole = collapse.ABLATIONS[f"{ablation.method} as it is"]
    assert ablation.settings == whole.settings
    if ablation.change is None:
        assert bool(ablation.method_args) == (ablation is not whole)
        return
    torch.manual_seed(0)

    class Whole(torch.nn.Module):
        def __init__(self, encoder: torch.nn.Module, width: int = 3) -> None:
            super().__init__()
            self.encoder, self.predictor = encoder, torch.nn.Linear(width, width)
            self.criterion = torch.nn.MSELoss()

        def loss(self, outputs: Any, ctx: Any) -> dict[str, torch.Tensor]:
            (p0, p1), (z0, z1) = outputs
            loss = (self.criterion(p0, z1.detach()) + self.criterion(p1, z0.detach())) / 2
            return {"loss": loss, "spread": loss.detach()}

    changed = ablation.change(Whole)(torch.nn.Identity(), width=4)
    assert inspect.signature(ablation.change(Whole)) == inspect.signature(Whole)
    whole = Whole(torch.nn.Identity(), width=4)
    z = torch.randn(2, 5, 4, requires_grad=True)
    gradients = []
    for model in (whole, changed):
        outputs = ((z[0].detach(), z[1].detach()), (z[0], z[1]))
        found = model.loss(outputs, None)
        assert set(found) == {"loss", "spread"}
        gradients.append(found["loss"].requires_grad)
        assert found["loss"] == whole.loss(outputs, None)["loss"]
    assert gradients == [False, "stop" in name]
    assert isinstance(changed.predictor, torch.nn.Identity) == ("predictor" in name)


def test_the_rank_of_embeddings_is_logged() -> None:
    class Whole(torch.nn.Module):
        def __init__(self, encoder: torch.nn.Module, width: int = 3) -> None:
            super().__init__()

        def loss(self, outputs: Any, ctx: Any) -> dict[str, torch.Tensor]:
            return {"loss": outputs.sum()}

    watched = collapse.watched(Whole, lambda outputs: outputs)
    assert inspect.signature(watched) == inspect.signature(Whole)
    model, line = watched(torch.nn.Identity()), torch.rand(8, 1) * torch.randn(1, 5)
    assert model.loss(line, None)["embedding_rank"] == pytest.approx(1, abs=1e-3)
    found = model.loss(torch.eye(5), None)
    assert found["loss"] == 5
    assert found["embedding_rank"] == pytest.approx(5, abs=1e-3)


def test_every_image_method_can_be_asked_for() -> None:
    names = learning.image_methods()
    assert "simclr" in names
    assert "videomae" not in names
    for name in names:
        for file in methods.get(name).files:
            assert file in learning.FILES, f"learning.FILES does not say how {file} is made"


def test_the_seeds_of_a_method_have_the_same_settings() -> None:
    results = json.loads((learning.ROOT / "benchmarks" / "results" / "learning.json").read_text())
    for name, rows in learned.groups(results["runs"]).items():
        settings = [row.get("settings") for row in rows]
        assert settings == settings[:1] * len(rows), name
