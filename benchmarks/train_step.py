"""What the trainer costs, where a step's time goes, and how much of the device it makes use of.

    python -m benchmarks.train_step --preset vit --out results.json

The same method, loss and batches, already on the device, run in a bare loop and in the trainer, in
turns. Time runs from one request for a batch to another some steps later, so that start-up and the
final checkpoint do not count, and a log entry, the progress bar and the watch for non-finite values
do. The overhead is the median of the ratios of neighbouring turns. Phases are those of the bare
loop with an EMA teacher beside it. MFU is the encoder's FLOP over the time of a step and over the
rate of a large matrix product, measured here too.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.arguments import arguments
from benchmarks.harness.floors import product_of
from benchmarks.harness.phases import Clock, flop_of_a_step, parameters, phases, shares
from benchmarks.harness.record import OURS, Record
from benchmarks.harness.rows import Row
from benchmarks.harness.timing import interleave
from sslfast.data import Batch
from sslfast.data.sources.manifest import Manifest
from sslfast.methods.base import Context, Method
from sslfast.training import TrainConfig
from sslfast.training.distributed import Ranks
from sslfast.training.loop import fit, to_device
from sslfast.training.optimizers import build_optimizer
from sslfast.training.run_folder import RunFolder
from sslfast.training.session import AMP_DTYPES, build_session
from sslfast.training.trainer import build_method

BARE, TRAINER = "bare loop", f"{OURS} trainer"
TARGET = 0.03  # of a step: the trainer's overhead, and loss and EMA together


@dataclass(frozen=True)
class Preset:
    """One training: a method, its encoder, and the images of a step."""

    method: str
    model: str
    batch: int
    side: int
    views: int
    precision: str = "fp32"
    compile: bool = False
    turns: int = 20  # of both loops
    skipped: int = 3  # the first steps of a loop allocate and warm up
    timed: int = 10

    def __str__(self) -> str:
        compiled = ", compiled" if self.compile else ""
        images = f"{self.batch} images of {self.side} x {self.side}"
        return f"{self.method}, {self.model}, {images} a step, {self.precision}{compiled}"

    def config(self, out: str, steps: int) -> TrainConfig:
        """As the trainer takes it."""
        return TrainConfig(
            method=self.method, model=self.model, data="memory", out=out, steps=steps,
            batch_size=self.batch, precision=self.precision, compile=self.compile,  # type: ignore[arg-type]
            log_every=self.timed,
        )  # fmt: skip

    @property
    def steps(self) -> int:
        """Of one loop, with the request that ends the last one."""
        return self.skipped + self.timed + 1


# One turn: to compile anew takes longer than the steps do.
ON_A_GPU = partial(Preset, precision="bf16", compile=True, turns=1, skipped=5, timed=20)
FIRST = partial(ON_A_GPU, compile=False, skipped=4, timed=16)  # does it train at all
PRESETS = {
    "convnet": Preset("simclr", "convnet_small", 256, 32, 2),
    "vit": ON_A_GPU("simclr", "vit_small", 256, 224, 2),
    "resnet": ON_A_GPU("simclr", "resnet50", 512, 224, 2),
    "mae": ON_A_GPU("mae", "vit_base", 1024, 224, 1),
    "simclr-first": FIRST("simclr", "vit_small", 256, 224, 2),
    "mae-first": FIRST("mae", "vit_base", 256, 224, 1),
    "tiny": Preset("simclr", "convnet_small", 8, 32, 2, turns=1, skipped=1, timed=2),
    "tiny-mae": Preset("mae", "vit_micro", 4, 32, 1, turns=1, skipped=1, timed=2),
    "tiny-compiled": Preset(
        "simclr", "convnet_small", 8, 32, 2, compile=True, turns=1, skipped=1, timed=2
    ),
}


class Memory:
    """A loader of random batches on the device that notes when each is asked for."""

    def __init__(self, preset: Preset, device: torch.device, batches: int = 4) -> None:
        size, shape = preset.batch, (preset.batch, 3, preset.side, preset.side)
        self.num_samples, self.steps_per_epoch = size * batches, batches
        names = [str(i) for i in range(self.num_samples)]
        self.manifest = Manifest("random numbers", None, names, [0] * len(names))
        self.batches = [
            Batch(
                tuple(torch.randn(shape, device=device) for _ in range(preset.views)),
                torch.arange(size, device=device) + size * i,
            )
            for i in range(batches)
        ]
        self._clock = Clock(device)

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            self._clock.mark()
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a benchmark is not resumed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raise: a benchmark is never resumed."""
        raise RuntimeError(f"a benchmark is not resumed (got {state})")

    def close(self) -> None:
        """Free the batches."""
        self.batches.clear()

    def seconds_per_step(self, preset: Preset) -> float:
        """The mean of the timed steps since the last call."""
        times = self._clock.seconds()[preset.skipped : preset.skipped + preset.timed]
        return sum(times) / preset.timed


class Bench:
    """One preset on one device: its method, compiled once, and its batches."""

    def __init__(self, preset: Preset, device: torch.device) -> None:
        self.preset, self.device = preset, device
        self.loader = Memory(preset, device)
        config = preset.config("", preset.steps)
        self.method: Method = build_method(config, device).train()
        self.encode: Callable[[Batch, Context], Any] = self.method.encode
        if preset.compile:
            self.encode = torch.compile(self.encode)
        groups, teachers = self.method.param_groups(), self.method.teachers()
        self.optimizer = build_optimizer(config, groups, teachers)
        self.optimizer.max_norm = None  # a bare loop does not measure the gradients

    def amp(self) -> AbstractContextManager[Any]:
        """Automatic mixed precision, as in the trainer."""
        dtype = AMP_DTYPES[self.preset.precision]
        return torch.autocast(self.device.type, dtype, dtype is not None)

    def bare(self) -> float:
        """Seconds of a step of what a careful script does, and nothing else."""
        done = 0
        while done < self.preset.steps:
            for batch in self.loader:
                there = torch.full((), done, device=self.device)
                ctx = Context(done, 0, self.preset.steps, device_step=there)
                with self.amp():
                    outputs = self.encode(to_device(batch, self.device), ctx)
                    loss = self.method.loss(outputs, ctx)["loss"]
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                done += 1
                if done == self.preset.steps:
                    break
        return self.loader.seconds_per_step(self.preset)

    def trainer(self, out: str) -> float:
        """Seconds of a step of ``sslfast train``."""
        config, run = self.preset.config(out, self.preset.steps), RunFolder(out)
        with run.locked():
            ranks, method = Ranks(self.device), build_method(config, self.device)
            fit(build_session(config, method, self.loader, run, ranks))
        return self.loader.seconds_per_step(self.preset)

    def phases(self) -> dict[str, list[float]]:
        """Seconds of the phases of a step."""
        batches = [to_device(batch, self.device) for batch in self.loader.batches]
        steps = self.preset.skipped, self.preset.timed
        given = self.method, self.encode, self.optimizer, batches, self.amp, self.device
        return phases(*given, *steps)


def loops(record: Record, bench: Bench, problem: str) -> dict[str, Row]:
    """Both loops in turns, kept as they are measured; fewer rows if one of them fails.

    Each is an attempt of its own, since each may have to compile.
    """
    rows: dict[str, Row] = {}
    turns = 1 if record.quick else bench.preset.turns
    with tempfile.TemporaryDirectory() as out:
        for turn in range(turns):
            folder = str(Path(out) / str(turn))
            for name, loop in ((BARE, bench.bare), (TRAINER, partial(bench.trainer, folder))):
                seconds: list[float] = []
                with record.attempt(problem, f"{OURS}: {name}"):
                    seconds.append(loop())
                if not seconds:
                    return rows
                if name not in rows:
                    rows[name] = Row("train_step", problem, name, 0.0)
                    record.add([rows[name]])
                rows[name].samples += seconds
                rows[name].seconds = statistics.median(rows[name].samples)
                record.save()
                print(f"turn {turn}: {name} {seconds[0]:.4f} s a step", flush=True)
    return rows


def run(record: Record, preset: Preset) -> None:
    """Both loops in turns, then phases, memory and MFU."""
    device, problem = record.device, f"{preset}, {record.device}"
    if record.over(problem):
        return
    bench = None
    with record.attempt(problem, f"{OURS}: set-up"):
        bench = Bench(preset, device)
    rows = loops(record, bench, problem) if bench else {}
    if bench is None or TRAINER not in rows:
        return
    bare, ours = rows[BARE], rows[TRAINER]
    ratios = [own / other for own, other in zip(ours.samples, bare.samples, strict=True)]
    extra, step = ours.extra, ours.seconds  # extra is what the rest is added to
    extra |= {"overhead": statistics.median(ratios) - 1, "parameters": parameters(bench.method)}
    extra["images_per_second"] = preset.batch / step
    if device.type == "cuda":
        ours.peak_bytes = torch.cuda.max_memory_allocated()
    with record.attempt(problem, f"{OURS}: phases"):
        found = bench.phases()
        extra["phases"], extra["shares"] = found, shares(found)
    with record.attempt(problem, f"{OURS}: FLOP"):
        extra["flop"] = flop_of_a_step(bench.method, bench.loader.batches[0])
        dtype = AMP_DTYPES[preset.precision] or torch.float32
        product, flop = product_of(8192 if device.type == "cuda" else 512, dtype, device)
        times = interleave({"product": product}, device, 0.5)["product"]
        extra["peak_flop_per_second"] = flop / statistics.median(times)
        extra["mfu"] = extra["flop"] / step / extra["peak_flop_per_second"]
    record.save()
    show([bare, ours])


def show(rows: list[Row]) -> None:
    """Print one preset's results."""
    print(f"\n{rows[0].problem}")
    for row in rows:
        print(f"{row.provider:20}{row.seconds * 1e3:10.2f} ms a step")
    extra = rows[1].extra
    print(f"{extra['images_per_second']:.0f} images/s")
    print(f"overhead {extra['overhead']:+.1%} (target: at most {TARGET:.0%})")
    if "shares" in extra:
        print(", ".join(f"{name} {share:.1%}" for name, share in extra["shares"].items()))
        both = extra["shares"]["loss"] + extra["shares"]["EMA"]
        print(f"loss and EMA {both:.1%} of a step with a teacher (target: at most {TARGET:.0%})")
    if "mfu" in extra:
        print(f"MFU {extra['mfu']:.1%}")


def main() -> int:
    """Run, print and write."""
    parser = arguments(__doc__)
    parser.add_argument("--preset", nargs="+", choices=list(PRESETS), help="what to train")
    options = parser.parse_args()
    record = Record("train_step", options)
    default = ["vit", "resnet", "mae"] if record.device.type == "cuda" else ["convnet"]
    for name in options.preset or default:
        run(record, PRESETS[name])
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
