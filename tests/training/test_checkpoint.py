import errno
import logging
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sslfast.training import checkpoint
from sslfast.training.checkpoint import CheckpointError
from sslfast.training.storage import write_atomically


def state(value: float = 1.0) -> dict[str, Any]:
    return {"weights": torch.full((1000,), value), "list": [1, (2, None)], "text": "x"}


def test_round_trip_and_only_the_newest_stay(tmp_path: Path) -> None:
    for step in (5, 10, 100, 99_999_999):
        path = checkpoint.save(tmp_path, step, state(step), keep=2)
        assert path == checkpoint.path_of(tmp_path, step)
    assert [checkpoint.step_of(path) for path in checkpoint.listed(tmp_path)] == [100, 99_999_999]
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    assert loaded["step"] == 99_999_999
    assert loaded["list"] == [1, (2, None)]
    assert torch.equal(loaded["weights"], state(99_999_999)["weights"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000100.pt", "step_99999999.pt"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path / "missing") is None


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    elif how == "garbage":
        content = bytearray(b"no zip file" * 100)
    elif how == "a zip's directory":  # of an older sslfast, which wrote no checksum of its own
        content = content[: content.rfind(b"\nsslfast crc32")]
        where = content.rfind(b"PK\1\2") + 50
        content[where] = 0xFF
    else:  # a bit of a weight, which torch.load itself reads without a word
        where = content.find(torch.full((1000,), 2.0).numpy().tobytes()) + 2001
        content[where] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "empty", "garbage", "a zip's directory", "bit flip"])
def test_a_damaged_newest_gives_way_to_the_one_before(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint.save(tmp_path, 1, state(1.0), keep=3)
    damage(checkpoint.save(tmp_path, 2, state(2.0), keep=3), how)
    with caplog.at_level(logging.WARNING, "sslfast"):
        loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    assert loaded["step"] == 1
    assert torch.equal(loaded["weights"], state(1.0)["weights"])
    assert "step_00000002.pt cannot be read: it is damaged" in caplog.text
    assert "going back to the checkpoint before it" in caplog.text


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, {"weights": torch.rand(3)}, keep=1)
    whole = path.read_bytes()
    values = checkpoint.load(path)["weights"].tolist()
    word = range(whole.rfind(b"\nsslfast crc32"), len(whole) - 9)
    for where in {*random.sample(range(len(whole)), 200), *range(word.start, len(whole))}:
        flipped = bytearray(whole)
        flipped[where] ^= 1 << random.randrange(8)
        path.write_bytes(flipped)
        if where in word:  # without the word there is no checksum to compare, and nothing amiss
            assert checkpoint.load(path)["weights"].tolist() == values
        else:
            with pytest.raises(
                CheckpointError, match=r"step_00000001.pt cannot be read: .*differs"
            ):
                checkpoint.load(path)


def test_what_only_looks_like_a_checkpoint_gives_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = checkpoint.save(tmp_path, 99_999_999, state(1.0), keep=3)
    (tmp_path / "step_100000000.pt").mkdir()
    shutil.copy(path, tmp_path / "step_100000001.pt")
    os.mkfifo(tmp_path / "step_100000002.pt")
    (tmp_path / "step_final.pt").touch()
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    assert loaded["path"] == str(path)
    assert "these are not the names of checkpoints: step_final.pt" in caplog.text
    assert "step_100000000.pt: it is a folder" in caplog.text
    assert "step_100000001.pt is of step 99999999, whatever its name says" in caplog.text
    assert "step_100000002.pt: it is a folder, or no plain file" in caplog.text
    checkpoint.save(tmp_path, 100_000_003, state(), keep=1)  # removes what it can


def test_a_checkpoint_that_may_not_be_read_gives_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, 1, state(1.0), keep=3)
    second = checkpoint.save(tmp_path, 2, state(2.0), keep=3)
    readable = checkpoint.has_good_checksum

    def refused(path: Path) -> bool:  # root may read everything, so rights cannot be tried
        if path == second:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return readable(path)

    monkeypatch.setattr(checkpoint, "has_good_checksum", refused)
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    assert loaded["step"] == 1
    assert "step_00000002.pt cannot be read" in caplog.text
    assert "Permission denied" in caplog.text


def test_a_fingerprint_is_of_names_shapes_and_values() -> None:
    weights = {
        "a": torch.rand(2, 3),
        "b": torch.tensor(3),
        "c": torch.rand(4, dtype=torch.bfloat16),
    }
    own = checkpoint.fingerprint(weights)
    assert checkpoint.fingerprint({**weights, "a": weights["a"].T.contiguous().T}) == own
    assert checkpoint.fingerprint({name: weights[name] for name in "bac"}) == own
    changed = [
        {**weights, "a": weights["a"].view(3, 2)},
        {**weights, "b": torch.tensor(4)},
        {**weights, "c": weights["c"].flip(0)},
        {**weights, "d": torch.zeros(0)},
        {"e": weights["a"], "b": weights["b"], "c": weights["c"]},
    ]
    assert len({own, *map(checkpoint.fingerprint, changed)}) == 6


def test_a_damaged_newer_one_does_not_push_out_good_ones(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state(), keep=1)
    damage(checkpoint.save(tmp_path, 9, state(), keep=2), "truncated")
    checkpoint.save(tmp_path, 3, state(), keep=1)
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    assert loaded["step"] == 3


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    damage(checkpoint.save(tmp_path, 1, state(), keep=3), "truncated")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read. Start anew"):
        checkpoint.load_newest(tmp_path)


def test_a_newer_schema_is_an_error_and_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, 1, state(), keep=3)
    with monkeypatch.context() as newer:
        newer.setattr(checkpoint, "SCHEMA_VERSION", 2)
        checkpoint.save(tmp_path, 2, state(), keep=3)
    with pytest.raises(CheckpointError, match=r"schema_version 2, .* newer one. Upgrade"):
        checkpoint.load_newest(tmp_path)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="no checkpoint of sslfast"):
        checkpoint.load(path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        checkpoint.load(tmp_path / "step_00000001.pt")


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code ran",)


def test_no_code_in_a_checkpoint_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "step_00000001.pt"
    torch.save({"schema_version": 1, "step": 1, "evil": Payload()}, path)
    with pytest.raises(CheckpointError, match=r"no checkpoint of sslfast \(it holds more than"):
        checkpoint.load(path)
    assert "code ran" not in capsys.readouterr().out


def test_an_error_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def half(file: Any) -> None:
        file.write(b"aft")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_atomically(path, half)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from sslfast.training import checkpoint

folder = Path(sys.argv[1])
checkpoint.save(folder, 1, {"weights": torch.zeros(1000)}, keep=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
checkpoint.save(folder, 2, {"weights": torch.zeros(1_000_000)}, keep=1)
"""


def test_a_full_disk_says_what_to_do_and_spares_the_last_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "StorageError" in last
    assert "cannot write" in last
    assert "Make room" in last
    assert "run the same command again" in last
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001.pt"]
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    assert loaded["step"] == 1
