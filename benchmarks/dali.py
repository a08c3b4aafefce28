"""DALI's GPU pipelines against the same on the CPU: pixels, images a second, steady memory.

    python -m benchmarks.dali --out results.json

Ten photographs as JPEG files, all recipes, the same seeds on both: crops, flips and colours have
the same parameters, so views differ only by what decoding, resizing and blurring round or filter
otherwise. TOLERANCE is on the mean difference of a recipe's views.
"""

import importlib.util
import itertools
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.data import photographs
from benchmarks.harness.arguments import arguments
from benchmarks.harness.record import OURS, Record
from benchmarks.harness.rows import Row
from benchmarks.harness.timing import synchronize
from sslfast.data import Batch, ImageDataset, Recipe, make_loader, recipe

RECIPES = ("simclr", "simclr_small", "mae", "simmim", "ijepa", "eval")
LEVEL = 1 / 255 / 0.225  # a step of an 8-bit image, after normalisation
TOLERANCE = 2 * LEVEL  # of the mean absolute difference: JPEG decoders differ by a level or two
STEADY = 64 << 20  # bytes that memory may grow by, after WARM_UP of the ITERATIONS
ITERATIONS, WARM_UP = 2000, 200


def missing() -> str | None:
    """What has to be installed first, or None."""
    try:
        found = importlib.util.find_spec("nvidia.dali")
    except ModuleNotFoundError:
        found = None
    if found:
        return None
    return "nvidia.dali is not installed: put its wheels and those it needs in a folder (--wheels)"


def batches(
    dataset: ImageDataset, steps: Recipe, size: int, device: torch.device, seed: int
) -> Generator[Batch, None, None]:
    """Epoch after epoch; the loader is closed with the iterator."""
    loader = make_loader(dataset, steps, batch_size=size, device=device, seed=seed)
    try:
        while True:
            yield from loader
    finally:
        loader.close()


def differences(
    dataset: ImageDataset, steps: Recipe, size: int, device: torch.device, seed: int, count: int
) -> dict[str, float]:
    """Between the views of the first batches on the device and on the CPU, in 8-bit levels."""
    total, large, pixels = 0.0, 0.0, 0
    here = batches(dataset, steps, size, torch.device("cpu"), seed)
    there = batches(dataset, steps, size, device, seed)
    for ours, truth in itertools.islice(zip(there, here, strict=True), count):
        if not torch.equal(ours.sample_ids.cpu(), truth.sample_ids):
            raise AssertionError("the loaders hand out different samples")
        for a, b in zip(ours.views, truth.views, strict=True):
            off = (a.cpu() - b).abs() / LEVEL
            total, large = total + off.sum().item(), large + (off > 16).sum().item()
            pixels += off.numel()
    here.close()
    there.close()
    return {"mean levels": total / pixels, "share above 16 levels": large / pixels}


def rate(found: Iterator[Batch], size: int, seconds: float, device: torch.device) -> float:
    """Images a second of a loader in full swing."""
    for _ in range(5):
        next(found)
    synchronize(device)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        next(found)
        count += size
    synchronize(device)
    return count / (time.perf_counter() - begin)


def memory_in_use(device: torch.device) -> int:
    """Bytes of the device, DALI's among them; of the process on a CPU."""
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        return whole - free
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def one_recipe(record: Record, dataset: ImageDataset, name: str, size: int) -> None:
    """Pixels and images a second."""
    steps, device = recipe(name), record.device
    problem = f"{name}, {len(steps.views)} views of {steps.views[0].size}, batch {size}"
    if record.over(problem):
        return
    with record.attempt(problem, OURS):
        extra: dict[str, Any] = differences(dataset, steps, size, device, record.seed, 2)
        rates = {}
        for where in dict.fromkeys([torch.device("cpu"), device]):
            found = batches(dataset, steps, size, where, record.seed)
            rates[str(where)] = rate(found, size, 0.5 if record.quick else 1.0, where)
            found.close()
        extra["images a second"] = rates
        record.add([Row("dali", problem, str(device), 1 / rates[str(device)], extra=extra)])
        print(f"{problem}: {extra}", flush=True)
        if extra["mean levels"] * LEVEL > TOLERANCE:
            raise AssertionError(f"views differ by {extra['mean levels']:.2f} levels on average")


def steady(record: Record, dataset: ImageDataset, size: int, iterations: int) -> None:
    """Memory in use while a loader runs on and on."""
    problem = f"memory over {iterations} iterations, batch {size}"
    if record.over(problem):
        return
    with record.attempt(problem, OURS, 120):
        found = batches(dataset, recipe("simclr"), size, record.device, record.seed)
        seen, warm = [], iterations * WARM_UP // ITERATIONS
        for i in range(iterations):
            next(found)
            if i >= warm and i % max(1, iterations // 20) == 0:
                seen.append(memory_in_use(record.device))
        found.close()
        grew = max(seen) - seen[0]
        extra = {"bytes in use": seen, "growth": grew}
        record.add([Row("dali", problem, str(record.device), 0.0, extra=extra)])
        print(f"{problem}: grew by {grew / 2**20:.1f} MiB", flush=True)
        if grew > STEADY:
            raise AssertionError(f"memory grew by {grew / 2**20:.0f} MiB")


def main() -> int:
    """Print and write."""
    options = arguments(__doc__).parse_args()
    reason = missing()
    record = Record("dali", options, missing=reason)
    if reason:
        print(reason)
        return record.finish()
    cuda = record.device.type == "cuda"
    size, count = (64, 640) if cuda else (4, 40)
    with tempfile.TemporaryDirectory() as folder:
        dataset = photographs(Path(folder), count)
        steady(record, dataset, 16 if cuda else 4, ITERATIONS if cuda else 20)
        for name in RECIPES if cuda else RECIPES[1:2]:
            one_recipe(record, dataset, name, size)
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
