"""The report of a run that has kept an uncertainty: one figure more, and what it comes to."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import sslfast
from sslfast.eval import corruptions
from sslfast.training.evaluation import FinishedRun
from sslfast.training.report import report


@pytest.fixture
def run(settings: dict[str, Any], tmp_path: Path) -> FinishedRun:
    keywords = {"hidden_dim": 8, "out_dim": 4}
    settings |= {"method": "vssl", "method_args": keywords, "out": str(tmp_path / "run")}
    return FinishedRun.open(sslfast.train({**settings, "steps": 2}), "cpu", 1)


def test_rejection_is_in_the_report(run: FinishedRun) -> None:
    found = report(run, labels_per_class=8, k=5)
    folder = run.folder.path
    assert found.figures[-1] == "rejection.png"
    with Image.open(folder / "rejection.png") as figure:
        assert figure.size == (1050, 600)
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    rejection = json.loads((folder / "report.json").read_text())["rejection"]
    assert rejection["accuracy"] == pytest.approx(found.scores[1].linear)
    areas = rejection["areas"]
    assert list(areas) == ["variance", "confidence", "ideal", "random"]
    assert areas["random"] == pytest.approx(
        (rejection["accuracy"] + rejection["accuracy_corrupted"]) / 2
    )
    assert max(areas.values()) == areas["ideal"]
    assert f"ideal {areas['ideal']:.1%}" in page
    assert f"{rejection['accuracy_corrupted']:.1%} of the corrupted." in page


def test_accuracies_are_of_the_images_and_of_the_corrupted(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wholly hidden, images of two classes are all alike: half of them are named."""
    monkeypatch.setattr(corruptions, "MIXTURE", ((corruptions.occlusion, 1.0),))
    spoilt = run.features(run.encoder(), run.dataset(run.spec(None), "test"), corrupted=True)
    torch.testing.assert_close(spoilt.features, spoilt.features[:1].expand(len(spoilt), -1))
    hidden = spoilt.features[0]
    monkeypatch.setattr(
        FinishedRun, "uncertainty", lambda _, f: ((f.features - hidden).abs().amax(1) < 1e-5).int()
    )
    found = report(run, labels_per_class=8, k=5).rejection
    assert found is not None
    assert found.accuracy_corrupted == pytest.approx(0.5)
    assert found.accuracy > 0.7
    assert found.corrupted_rejected == 1


def test_other_runs_have_none(run: FinishedRun) -> None:
    (run.folder.path / "heads.safetensors").unlink()
    assert report(run, labels_per_class=8, k=5).rejection is None
    assert "rejection" not in (run.folder.path / "report.json").read_text()
    assert not (run.folder.path / "rejection.png").exists()
    assert (run.folder.path / "report.html").read_text().count("data:image/png") == 3
