"""Heads that are kept beside an encoder: written whole, rebuilt alike, refused in words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from toys import ToyEncoder, ToyMethod

import sslfast
from sslfast import methods
from sslfast.methods.base import Method
from sslfast.methods.simclr import SimCLR
from sslfast.models import ProjectionHead, VarianceHead
from sslfast.training import heads as files
from sslfast.training.config import ConfigError
from sslfast.training.evaluation import FinishedRun, embed
from sslfast.training.heads import check_heads, load_heads, save_heads

TOLD = {"method": "toy", "step": 3}


def two_heads() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    first = ProjectionHead(8, [6, 5], 4, last_batch_norm=True, last_affine=False, bias=True)
    heads = {"mean": first, "uncertainty": VarianceHead(8, (), 3, floor=0.25)}
    heads["mean"](torch.randn(9, 8))  # so that running statistics are not the initial ones
    return heads


def saved(folder: Path) -> dict[str, nn.Module]:
    heads = two_heads()
    save_heads(folder / files.FILE_NAME, heads, nn.ModuleDict(heads).state_dict(), TOLD)
    return heads


def test_round_trip(tmp_path: Path) -> None:
    heads, state = saved(tmp_path), torch.get_rng_state()
    features = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    for path in (tmp_path, tmp_path / "heads.safetensors"):
        loaded = sslfast.load_heads(path)
        assert list(loaded) == ["mean", "uncertainty"]
        for name, head in heads.items():
            assert type(loaded[name]) is type(head)
            assert loaded[name].settings == head.settings
            assert not loaded[name].training
            assert torch.equal(loaded[name](features), head.eval()(features))
    assert torch.equal(torch.get_rng_state(), state)
    assert set(load_file(tmp_path / "heads.safetensors")) >= {"mean.0.weight", "uncertainty.0.bias"}


def test_half_precision_is_kept_as_float32(tmp_path: Path) -> None:
    heads = two_heads()
    weights = {k: v.half() for k, v in nn.ModuleDict(heads).state_dict().items()}
    path = tmp_path / files.FILE_NAME
    assert save_heads(path, heads, weights, TOLD)
    assert not save_heads(path, heads, weights, TOLD)  # the same bytes are left alone
    assert load_heads(path)["mean"][0].weight.dtype == torch.float32


def test_variances_are_positive_and_never_below_the_floor() -> None:
    head = VarianceHead(8, (), 3, floor=0.25)
    far = head(torch.full((2, 8), 1e4) * head[0].weight[0].sign())
    assert head(torch.randn(50, 8)).min() > 0.25
    assert far.isfinite().all()
    x = torch.randn(5, 8)
    torch.testing.assert_close(head(x), (1 + (head[0](x)).exp()).log() + 0.25)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(x).dtype == torch.float32
    with pytest.raises(ValueError, match="floor must be more than 0"):
        VarianceHead(8, floor=0.0)


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no heads at .*one that keeps heads, such as vssl"
    ):
        load_heads(tmp_path)
    saved(tmp_path)
    path = tmp_path / files.FILE_NAME
    with pytest.raises(ValueError, match=r"holds heads, and no encoder: that is in encoder.safet"):
        sslfast.load_encoder(path)
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors holds no heads: give the folder of a"):
        load_heads(tmp_path / "other.safetensors")
    damaged = bytearray(path.read_bytes())
    damaged[-2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="is damaged: its checksum differs"):
        load_heads(path)


def test_files_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    heads = two_heads()
    weights = nn.ModuleDict({"mean": heads["mean"]}).state_dict()
    save_heads(tmp_path / files.FILE_NAME, heads, weights, TOLD)
    with pytest.raises(ValueError, match=r"cannot be rebuilt \(.*uncertainty.0.weight"):
        load_heads(tmp_path)


def with_heads(heads: dict[str, nn.Module]) -> Method:
    method = ToyMethod(ToyEncoder())
    method.heads = lambda: heads
    return method


def test_heads_that_no_file_can_rebuild_are_refused_before_the_first_step() -> None:
    check_heads(with_heads({}))
    check_heads(with_heads(two_heads()))
    for wrong in ({"mean": nn.Linear(8, 2)}, {"a.b": ProjectionHead(8)}):
        with pytest.raises(ConfigError, match="heads of ToyMethod must be ProjectionHead or Var"):
            check_heads(with_heads(wrong))


def test_a_run_with_such_heads_leaves_no_folder_behind(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimCLR, "heads", lambda self: {"scores": nn.Linear(8, 2)})
    with pytest.raises(ConfigError, match="heads of SimCLR must be"):
        sslfast.train({**settings, "out": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()


def test_methods_without_heads_write_none(settings: dict[str, Any], tmp_path: Path) -> None:
    run = sslfast.train({**settings, "steps": 2, "out": str(tmp_path / "run")})
    assert not (run / files.FILE_NAME).exists()
    assert "uncertainty" not in np.load(embed(FinishedRun.open(run, "cpu", 1)))
    assert methods.create("simclr", ToyEncoder()).heads() == {}


def test_heads_of_another_step_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    """A run was lengthened, and killed between the two files."""
    keywords = {"hidden_dim": 8, "out_dim": 4}
    settings |= {"method": "vssl", "method_args": keywords, "out": str(tmp_path / "run")}
    run = sslfast.train({**settings, "steps": 2})
    heads, told = files.read_heads(run)
    weights = nn.ModuleDict(heads).state_dict()
    save_heads(run / files.FILE_NAME, heads, weights, {**told, "checkpoint": "0" * 16})
    with pytest.raises(ValueError, match="of another step than the encoder beside it: let the run"):
        embed(FinishedRun.open(run, "cpu", 1))
    sslfast.train({**settings, "steps": 2})  # a finished run puts it right
    assert (run / files.FILE_NAME).is_file()
    assert len(json.dumps(files.read_heads(run)[1]["heads"])) > 0
    embed(FinishedRun.open(run, "cpu", 1))
