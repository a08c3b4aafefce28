"""Compile every Triton kernel that the GPU tests and benchmarks launch, before they do.

    python -m benchmarks.compiled --architecture 90 --keep kernels.tar.xz     without a GPU
    python -m benchmarks.compiled --take kernels.tar.xz --load                on one

Kernels go to Triton's own cache on disk ($TRITON_CACHE_DIR, else ~/.triton/cache), where a launch
finds them. An archive is of use to the same version of Triton for the same Python only; whatever
does not fit is compiled where it is needed.
"""

import argparse
import json
import os
import re
import sys
import tarfile
import time
from collections.abc import Collection
from pathlib import Path, PurePosixPath

import triton
from triton import knobs

from benchmarks.harness.compiling import compile_all
from benchmarks.harness.launches import H100_MULTIPROCESSORS
from benchmarks.kernel_cases import record

GROUP = "__grp__"  # of a file that lists the files of a kernel, by their full paths
SUFFIXES = (".cubin", ".json")  # of a kernel's files: what a launch needs


def keep(archive: Path, cache: Path, hashes: Collection[str]) -> int:
    """Put kernels of a cache into an archive; return how many bytes it takes.

    Args:
        archive: to be written.
        cache: Triton's.
        hashes: of the kernels, as Triton writes them beside each.
    """
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for group in sorted(cache.glob(f"*/{GROUP}*.json")):
            facts = group.with_name(group.name.removeprefix(GROUP))
            if json.loads(facts.read_text())["hash"] in hashes:
                for file in (group, facts, facts.with_suffix(".cubin")):
                    tar.add(file, file.relative_to(cache))
    return archive.stat().st_size


def take(archive: Path, cache: Path) -> int:
    """Unpack an archive into a cache, whatever folder it came from; return how many kernels."""
    count = 0
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if (
                not member.isfile()
                or path.is_absolute()
                or len(path.parts) != 2
                or ".." in path.parts
            ):
                raise ValueError(f"{archive} is no archive of kernels: it holds {member.name!r}")
            content = tar.extractfile(member).read()  # type: ignore[union-attr]
            folder = cache / path.parts[0]
            folder.mkdir(parents=True, exist_ok=True)
            if path.name.startswith(GROUP):
                names = json.loads(content)["child_paths"]
                there = {n: str(folder / n) for n in names if n.endswith(SUFFIXES)}
                content = json.dumps({"child_paths": there}).encode()
                count += 1
            partial = folder / f".{path.name}.{os.getpid()}"
            partial.write_bytes(content)
            partial.replace(folder / path.name)
    return count


def main() -> int:
    """Compile, and say what became of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architecture", type=int, default=90, help="90 for an H100")
    parser.add_argument("--multiprocessors", type=int, default=H100_MULTIPROCESSORS)
    parser.add_argument("--only", default="", help="kernels whose names match this pattern")
    parser.add_argument("--processes", type=int, help="at a time (default: one a core)")
    parser.add_argument("--take", type=Path, help="an archive to unpack before")
    parser.add_argument("--keep", type=Path, help="an archive to make in the end")
    parser.add_argument("--load", action="store_true", help="put every kernel on the GPU too")
    parser.add_argument("--list", action="store_true", help="only print the names")
    options = parser.parse_args()
    begin, cache = time.monotonic(), Path(knobs.cache.dir)
    if options.take:
        print(f"{take(options.take, cache)} kernels unpacked into {cache}", flush=True)
    launches = [
        launch
        for launch in record(options.architecture, multiprocessors=options.multiprocessors)
        if re.search(options.only, launch.name)
    ]
    if options.list:
        print("\n".join(launch.name for launch in launches))
        return 0
    done = compile_all(launches, options.processes, options.load)
    there = len(launches) - done.compiled - len(done.failed)
    print(
        f"{len(launches)} kernels for sm_{options.architecture}, Triton {triton.__version__}: "
        f"{done.compiled} compiled, {there} were there, {len(done.failed)} failed, in "
        f"{time.monotonic() - begin:.0f} s"
    )
    if options.keep:
        size = keep(options.keep, cache, done.hashes)
        print(f"{options.keep}: {len(done.hashes)} kernels, {size / 2**20:.1f} MiB")
    return int(bool(done.failed))


if __name__ == "__main__":
    sys.exit(main())
