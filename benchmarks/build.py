"""Builds the package in place with CMake alone: no network, no isolation, no setuptools.

    python -m benchmarks.build TREE
    python -m benchmarks.build TREE --keep FOLDER --architectures 90a-real

TREE becomes a folder of links in the shape of an installation (sslfast with its kernels, tests,
benchmarks), with the extension in it: what runs there imports it first. Without CMake, ninja,
pybind11 or a compiler the links are made all the same, so that all but the extension can be used.
With --keep the extension is also put into a folder, to be brought to another machine.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.harness.environment import ROOT

BESIDE = ("benchmarks", "tests", "pyproject.toml", "examples")
BUILT = "sslfast"  # the folder of a tree that takes the extension
SOURCES = ".sources"  # ends the name of the file that says what an extension was built from


def link(tree: Path) -> None:
    """Make the links."""
    shutil.rmtree(tree / BUILT, ignore_errors=True)
    package = tree / BUILT
    package.mkdir(parents=True)
    for entry in (ROOT / "sslfast").iterdir():
        # An extension that was built for another Python, or without CUDA, must not pass for ours.
        if entry.suffix != ".so" and entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    (package / "kernels").symlink_to(ROOT / "kernels")
    for name in BESIDE:
        (tree / name).unlink(missing_ok=True)
        (tree / name).symlink_to(ROOT / name)


def compile_extension(tree: Path) -> None:
    """Configure, build and install sslfast._C; objects of an earlier build are used again."""
    import pybind11

    build = tree / "cmake"
    # ninja and cmake may be Python packages beside this interpreter, outside the PATH.
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", "")))
    environment = {**os.environ, "PATH": f"{path}{os.pathsep}/usr/local/cuda/bin"}
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DCMAKE_INSTALL_PREFIX={tree / BUILT}",
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", str(build), "--target", "install"]):
        subprocess.run(command, check=True, env=environment)


def sources() -> str:
    """A digest of everything that an extension is built from."""
    digest = hashlib.sha256()
    files = [ROOT / "CMakeLists.txt", *sorted((ROOT / "csrc").rglob("*"))]
    for file in files:
        if file.is_file():
            digest.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def keep(tree: Path, folder: Path) -> Path:
    """Copy the extension out of a tree, with a note of its sources."""
    (built,) = (tree / BUILT).glob("_C*.so")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{built.name}{SOURCES}").write_text(sources() + "\n")
    return Path(shutil.copy(built, folder))


def bring(extension: Path, tree: Path, needs_cuda: bool) -> str | None:
    """Put an extension that was built elsewhere into a tree; return why it cannot be used, or None.

    It must be of the sources at hand, for this Python, and with the parts for this GPU.
    """
    note = extension.with_name(extension.name + SOURCES)
    if not extension.exists() or not note.exists():
        return f"{extension} or {note.name} beside it is missing"
    if note.read_text().strip() != sources():
        return f"{extension} was built from other sources: `make gpu-bundle` makes it anew"
    there = Path(shutil.copy(extension, tree / BUILT))
    program = "import sslfast._C as c; print(c.CUDA_ARCHITECTURES)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    missing = needs_cuda and not {*architectures().split(";")} <= {*done.stdout.split()}
    if done.returncode == 0 and not missing:
        return None
    there.unlink()
    if done.returncode:
        return f"{extension} does not load: {(done.stderr.splitlines() or ['it died'])[-1]}"
    return f"{extension} was built for {done.stdout.strip() or 'no GPU'}, not {architectures()}"


def architectures() -> str:
    """Those of the GPUs at hand, as CMake takes them: others only cost time."""
    import torch

    devices = range(torch.cuda.device_count())
    found = sorted({torch.cuda.get_device_capability(d) for d in devices})
    # The matrix instructions of 9.0 belong to 90a.
    return ";".join(f"{major}{minor}{'a' if major == 9 else ''}-real" for major, minor in found)


def main() -> None:
    """Make the links, then build."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tree", type=Path)
    parser.add_argument("--keep", type=Path, help="a folder to copy the extension to")
    parser.add_argument("--architectures", help="as CMake takes them (default: of GPUs at hand)")
    options = parser.parse_args()
    tree = options.tree.resolve()
    link(tree)
    if options.architectures:
        os.environ["SSLFAST_CUDA_ARCHITECTURES"] = options.architectures
    elif "SSLFAST_CUDA_ARCHITECTURES" not in os.environ and architectures():
        os.environ["SSLFAST_CUDA_ARCHITECTURES"] = architectures()
    compile_extension(tree)
    if options.keep:
        print(f"kept: {keep(tree, options.keep)}")


if __name__ == "__main__":
    main()
