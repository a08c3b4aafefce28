"""What the trainer costs: its steps against a bare loop of the same model, loss and batches.

    python -m benchmarks.train_step --out results.json

Both train SimCLR on the same random images in memory, 256 of 32 x 32 a step, ten timed steps each
in turns. Time runs from one request for a batch to another ten later, so that start-up and the
final checkpoint do not count, and a log entry, the progress bar and the watch for non-finite values
do. The overhead is the median of the ratios of neighbouring turns.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from sslfast.data import Batch, Loader
from sslfast.training import TrainConfig
from sslfast.training.distributed import Ranks
from sslfast.training.run_folder import RunFolder
from sslfast.training.trainer import build_method, build_optimizer, fit

BARE, TRAINER = "bare loop", "sslfast trainer"
SKIPPED, TIMED = 3, 10  # the first steps of a loop allocate and warm up
TARGET = 0.03


class Memory:
    """A loader of random batches that notes when each is asked for."""

    def __init__(self, batch_size: int, device: torch.device, batches: int = 4) -> None:
        self.num_samples = batch_size * batches
        self.steps_per_epoch = batches
        shape = (batch_size, 3, 32, 32)
        self._batches = [
            Batch(
                tuple(torch.randn(shape, device=device) for _ in range(2)),
                torch.arange(batch_size, device=device) + batch_size * i,
            )
            for i in range(batches)
        ]
        self._device = device
        self.asked: list[float] = []

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            common.synchronize(self._device)
            self.asked.append(time.perf_counter())
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a benchmark is not resumed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept nothing."""
        raise RuntimeError(f"a benchmark is not resumed (got {state})")

    def close(self) -> None:
        """Free the batches."""
        self._batches.clear()

    def seconds_per_step(self) -> float:
        """The mean of the timed steps since the last call."""
        begin, end = self.asked[SKIPPED], self.asked[SKIPPED + TIMED]
        self.asked.clear()
        return (end - begin) / TIMED


def bare_loop(config: TrainConfig, loader: Loader, device: torch.device, steps: int) -> None:
    """What a careful script does, and nothing else."""
    method: Any = build_method(config, device).train()
    optimizer = build_optimizer(config, method)
    optimizer.max_norm = None  # does not measure the gradients
    done = 0
    while done < steps:
        for batch in loader:
            views = torch.cat(list(batch.views)).contiguous(memory_format=torch.channels_last)
            z0, z1 = method.projector(method.encoder(views)).chunk(2)
            loss = method.criterion(z0, z1)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done += 1
            if done == steps:
                break


def main() -> None:
    """Run, print and write."""
    parser = common.arguments(__doc__)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    device = torch.device(args.device)
    turns, steps = 5 if args.quick else 20, SKIPPED + TIMED + 1
    loader = Memory(256, device)
    seconds: dict[str, list[float]] = {BARE: [], TRAINER: []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns):
            out = Path(folder) / str(turn)
            config = TrainConfig(data="memory", out=str(out), steps=steps, log_every=TIMED)
            bare_loop(config, loader, device, steps)
            seconds[BARE].append(loader.seconds_per_step())
            run = RunFolder(out)
            with run.locked():
                fit(config, build_method(config, device), loader, run, Ranks(device))
            seconds[TRAINER].append(loader.seconds_per_step())

    ratios = [ours / bare for ours, bare in zip(seconds[TRAINER], seconds[BARE], strict=True)]
    overhead = statistics.median(ratios) - 1
    problem = f"SimCLR, {config.model}, 256 images of 32 x 32 a step, {device}"
    print(f"\n{problem}")
    rows = []
    for name, times in seconds.items():
        rows.append(
            common.Row("train_step", problem, name, statistics.median(times), samples=times)
        )
        print(f"{name:20}{rows[-1].seconds * 1e3:10.2f} ms a step")
    print(f"overhead {overhead:+.1%} (target: at most {TARGET:.0%})")
    if args.out:
        common.write(args.out, rows, device, overhead=overhead)


if __name__ == "__main__":
    main()
