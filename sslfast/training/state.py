"""Everything that a run is made of at one moment: what a checkpoint holds."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sslfast.data import Loader
from sslfast.training.checkpoint import CheckpointError, fingerprint
from sslfast.training.distributed import Ranks
from sslfast.training.monitors import Meter
from sslfast.training.strategy import Strategy


@dataclass
class TrainState:
    """The parts of a run that change while it trains, on one rank."""

    strategy: Strategy
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loader: Loader
    meter: Meter
    ranks: Ranks

    def capture(self) -> dict[str, Any]:
        """A state for ``checkpoint.save``, complete on rank 0; every rank must call this.

        Weights and optimiser are the same on all ranks and kept once; random states, positions in
        the data and buffers are kept for each, but for buffers that are those of the model.
        """
        whole = self.strategy.state(self.optimizer)
        buffers = {name: buffer.cpu() for name, buffer in self.strategy.method.named_buffers()}
        own = {
            "rng": _rng_state(self.ranks.device),
            "loader": self.loader.state_dict(),
            "meter": self.meter.state_dict(),
            "buffers": buffers,
        }
        ranks = self.ranks.collect(own)
        common = {name: buffers[name] for name in buffers.keys() & whole["model"].keys()}
        for rank in ranks:
            rank["buffers"] = {
                name: buffer
                for name, buffer in rank["buffers"].items()
                if name not in common or not torch.equal(buffer, common[name])
            }
        return {
            "num_samples": self.loader.num_samples,
            **whole,
            "fingerprint": fingerprint(whole["model"]),
            "scaler": self.scaler.state_dict(),
            "ranks": ranks,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a captured state.

        Raises:
            CheckpointError: it was captured with other data or another number of ranks.
        """
        if len(state["ranks"]) != self.ranks.world_size:
            raise CheckpointError(
                f"the checkpoint is of {len(state['ranks'])} rank(s), this run has "
                f"{self.ranks.world_size}: start as many, or start anew with another --out and "
                "--init from this run"
            )
        if state["num_samples"] != self.loader.num_samples:
            raise CheckpointError(
                f"the data set had {state['num_samples']} samples when the checkpoint was written "
                f"and has {self.loader.num_samples} now: restore it, or start anew with another "
                "--out"
            )
        own = state["ranks"][self.ranks.rank]
        self.strategy.load(self.optimizer, state)
        buffers = dict(self.strategy.method.named_buffers())
        for name, value in own["buffers"].items():
            buffers[name].copy_(value)
        self.scaler.load_state_dict(state["scaler"])
        self.loader.load_state_dict(own["loader"])
        self.meter.load_state_dict(own["meter"])
        _set_rng_state(own["rng"], self.ranks.device)

    def is_finite(self) -> bool:
        """Whether every number that would be saved is finite (reads the device)."""
        tensors = [*self.strategy.method.state_dict().values()]
        for entry in self.optimizer.state.values():
            tensors += [value for value in entry.values() if isinstance(value, torch.Tensor)]
        floats = [t for t in tensors if t.is_floating_point()]
        return bool(torch.stack([torch.isfinite(t).all() for t in floats]).all())


def _rng_state(device: torch.device) -> dict[str, Any]:
    # Arrays become lists: a checkpoint is read without running code, which rules numpy out.
    numpy = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    numpy = state["numpy"]
    key = np.array(numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
