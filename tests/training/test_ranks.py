"""Ranks that differ, end, hang or never come."""

import json
import os
import socket
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from toys import entries

import sslfast
from sslfast.training import TrainConfig, roll_call
from sslfast.training.checkpoint import CheckpointError, load, path_of, step_of
from sslfast.training.config import ConfigError
from sslfast.training.roll_call import (
    RankError,
    RollCall,
    connect,
    difference,
    environment,
    patience,
)
from sslfast.training.run_folder import RunFolder


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_ranks_that_do_not_come_are_named() -> None:
    store = dist.HashStore()
    for rank in (0, 2):
        with pytest.raises(RankError, match=r"1.* of 4 did not come within 0.01 seconds") as error:
            RollCall(store, rank, 4).begin(timedelta(seconds=0.01))
    assert str(error.value).startswith("ranks 1, 3 of 4")
    waits = threading.Thread(target=RollCall(store, 1, 4).begin, args=(timedelta(seconds=60),))
    waits.start()
    RollCall(store, 3, 4).begin(timedelta(seconds=60))
    waits.join(timeout=60)
    assert not waits.is_alive()


def test_a_store_that_never_comes_is_named() -> None:
    port = free_port()
    with pytest.raises(RankError, match=rf"rank 0 did not come to 127.0.0.1:{port} within 0.01 s"):
        connect(("127.0.0.1", port), 1, 2, timedelta(seconds=0.01))


def test_a_half_set_environment_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert environment() == (1, 2, ("here", 29500))
    for wrong in ({"WORLD_SIZE": ""}, {"MASTER_PORT": "x"}):
        with monkeypatch.context() as changed:
            changed.setenv(*wrong.popitem())
            with pytest.raises(ConfigError, match="start the ranks with torchrun, or unset RANK"):
                environment()
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(ConfigError, match="start the ranks with torchrun, or unset RANK"):
        environment()


def test_a_rank_that_is_silent_is_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll_call, "_GRACE", 0.01)
    store, broken = dist.HashStore(), RuntimeError("third_party/gloo/gloo/transport/tcp: closed")
    assert roll_call.is_broken(broken)
    assert not roll_call.is_broken(RuntimeError("shapes do not fit"))
    text = str(RollCall(store, 1, 3).explain(broken))
    assert "ranks 0, 2 ended without a word, or hangs" in text
    text = str(RollCall(store, 0, 3).explain(broken))
    assert text.startswith("rank 2 ended without a word")
    assert "goes on from the last checkpoint" in text
    assert "this rank itself did not answer" in str(RollCall(store, 2, 3).explain(broken))


def test_facts_that_differ_are_named() -> None:
    nan = float("nan")
    facts = {"settings": {"seed": 0, "lr": nan}, "data": {"samples": 600}}
    assert (
        difference([facts, {"settings": {"seed": 0, "lr": nan}, "data": {"samples": 600}}]) is None
    )
    found = difference([facts, facts, {**facts, "data": {"samples": 300}}])
    assert found == "rank 2 has other data: samples is 300, and 600 on rank 0"
    found = difference([facts, {**facts, "settings": {"seed": 1, "steps": 3, "lr": nan}}])
    assert found is not None
    assert "seed is 1, and 0 on rank 0; steps is 3, and None on rank 0" in found


def test_how_long_to_wait_can_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert patience() == timedelta(minutes=10)
    monkeypatch.setenv("SSLFAST_RANK_TIMEOUT", "2.5")
    assert patience() == timedelta(seconds=2.5)
    for wrong in ("0", "-1", "nan", "inf", "soon"):
        monkeypatch.setenv("SSLFAST_RANK_TIMEOUT", wrong)
        with pytest.raises(ConfigError, match="number of seconds, more than 0"):
            patience()


RANKS = """
import json, sys
import torch, torch.distributed as dist
from sslfast.methods.simclr import SimCLR
from sslfast.training import TrainConfig, train

settings = json.loads(sys.argv[1])
out = settings.pop("out")
last, seen, stop_at = {}, [], None
encode = SimCLR.encode

def recording(self, batch, ctx):
    seen.append(batch.sample_ids)
    return encode(self, batch, ctx)

def after_step(self, ctx):
    last.update({k: v.detach().clone() for k, v in self.state_dict().items()})
    if ctx.step + 1 == stop_at:
        raise KeyboardInterrupt

SimCLR.encode, SimCLR.after_step = recording, after_step

def run(name):
    train(TrainConfig.from_dict({**settings, "out": f"{out}/{name}"}))
    return dict(last)

plain = run("plain")  # joins torchrun's group, and leaves it
assert not dist.is_initialized()

again = run("again")  # and once more
assert all(torch.equal(plain[name], again[name]) for name in plain)
dist.init_process_group("gloo")  # one of the caller's own
rank = dist.get_rank()
everyone = [None, None]
dist.all_gather_object(everyone, (plain, torch.cat(seen).tolist()))
(weights, ids), (other_weights, other_ids) = everyone
for name in weights:
    if "running" not in name:
        assert torch.equal(weights[name], other_weights[name]), name
assert not torch.equal(
    weights["encoder.stages.0.1.running_mean"], other_weights["encoder.stages.0.1.running_mean"]
)
epoch = settings["batch_size"] // 2 * 4
assert sorted(ids[:epoch] + other_ids[:epoch]) == list(range(64))

stop_at = 7
try:
    run("resumed")
except KeyboardInterrupt:
    stop_at = None
resumed = run("resumed")
assert dist.is_initialized()
for name in plain:
    assert torch.equal(plain[name], resumed[name]), (rank, name)

settings.update(accumulate=2, contrastive_batch=settings["batch_size"], steps=3)
settings.update(sync_batch_norm=True)
both = [None, None]
dist.all_gather_object(both, run("coupled"))
for name in both[0]:
    assert torch.equal(both[0][name], both[1][name]), name
dist.destroy_process_group()
print(f"rank {rank} done")
"""

FAILURES = """
import os, signal
from toys import ToyEncoder, ToyLoader, ToyMethod, toy_config
from sslfast.training import distributed, roll_call
from sslfast.training.run_folder import RunFolder
from sslfast.training.loop import fit
from sslfast.training.session import build_session

roll_call._GRACE = 1.0

class Toy(ToyMethod):
    def after_step(self, ctx):
        if ctx.step == 5 and rank == 1:
            act()

def fail(name, samples=0):
    try:
        with distributed.ranks("cpu") as ranks:
            ranks.must_agree({"data": {"samples": samples}})
            folder = RunFolder(f"{out}/{name}")
            folder.path.mkdir(exist_ok=True)
            config = toy_config(folder.path, steps=10**6, log_every=10**6, checkpoint_every=10**6)
            loader = ToyLoader(rank=rank, world_size=2)
            torch.manual_seed(0)
            toy = Toy(ToyEncoder(batch_norm=False))
            fit(build_session(config, toy, loader, folder, ranks))
    except Exception as error:
        with open(f"{out}/rank{rank}", "a") as file:
            print(name, type(error).__name__, error, file=file)

def broken():
    raise ValueError("its disk is full")

fail("differs", samples=rank)
act = lambda: os.kill(os.getpid(), signal.SIGUSR1)
fail("signal")
act = broken
fail("error")
act = lambda: os._exit(0)  # for the other rank it is a kill, but torchrun ends neither
fail("killed")
"""


def test_two_ranks(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["sync_batch_norm"] = False  # statistics of its own on each rank, which are saved too
    script = tmp_path / "ranks.py"
    script.write_text(RANKS + FAILURES)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line = json.dumps({**settings, "out": str(tmp_path)})
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, *launch, str(script), line],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr
    assert "Traceback" not in done.stderr

    # They train, resume and agree.
    assert all(f"rank {rank} done" in done.stdout for rank in (0, 1))
    plain, resumed = RunFolder(tmp_path / "plain"), RunFolder(tmp_path / "resumed")
    assert entries(plain) == entries(resumed)
    assert plain.encoder.read_bytes() == resumed.encoder.read_bytes()
    first, second = load(path_of(plain.checkpoints, settings["steps"]))["ranks"]
    assert not first["buffers"]  # they are the model's
    assert second["buffers"]
    assert all("running" in name for name in second["buffers"])  # no other differs
    with pytest.raises(CheckpointError, match=r"is of 2 rank\(s\), this run has 1"):
        sslfast.train(TrainConfig.from_dict({**settings, "out": str(plain.path), "steps": 20}))

    # They differ, stop, fail and die.
    first, second = ((tmp_path / f"rank{rank}").read_text().splitlines() for rank in (0, 1))
    assert [line.split()[:2] for line in first] == [
        *(["differs", "RankError"], ["signal", "TrainingStopped"]),
        *(["error", "RankError"], ["killed", "RankError"]),
    ]
    assert second == [*first[:2], "error ValueError its disk is full"]
    assert "rank 1 has other data: samples is 1, and 0 on rank 0. Start every" in first[0]
    [path] = (tmp_path / "signal" / "checkpoints").iterdir()
    step = step_of(path)
    assert 6 <= step <= 16  # at the next question, though no log entry is due
    assert f"stopped at step {step}," in first[1]
    assert first[2].endswith("rank 1 ended: its disk is full")
    assert "rank 1 ended without a word" in first[3]
