"""RotNet, VSSL, GCMAE, hybrid and distillation through the real trainer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import whole_and_resumed

import sslfast
from sslfast.methods.vssl import VSSL
from sslfast.training.evaluation import FinishedRun, embed


def test_the_variance_is_kept_and_written_for_every_image(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a run that was cut off and resumed."""
    settings |= {"method": "vssl", "method_args": {"hidden_dim": 16, "out_dim": 8}}
    settings |= {"out": str(tmp_path)}
    whole, cut, _ = whole_and_resumed(settings, VSSL, monkeypatch, cut_at=6)
    run = cut.path
    heads = [sslfast.load_heads(path)["uncertainty"] for path in (run, run / "heads.safetensors")]
    assert (run / "heads.safetensors").read_bytes() == (
        whole.path / "heads.safetensors"
    ).read_bytes()
    written = np.load(embed(FinishedRun.open(run, "cpu", 1), split="test"))
    features = torch.from_numpy(written["features"])
    with torch.no_grad():
        expected = heads[0](features)
    assert not heads[0].training
    assert expected.shape == (16, 8)
    assert torch.equal(expected, heads[1](features))
    assert written["uncertainty"].dtype == np.float32
    np.testing.assert_allclose(written["uncertainty"], expected.mean(1), rtol=1e-6)
    assert expected.min() > 0.01  # the floor
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["kl"] >= 0
    assert {"log_sigma", "similarity"} <= set(last)
