"""Builds the package in place with CMake alone: no network, no isolation, no setuptools.

    python -m benchmarks.build TREE

TREE becomes a folder of links in the shape of an installation (sslfast with its kernels, tests,
benchmarks), with the extension in it: what runs there imports it first. Without CMake, ninja,
pybind11 or a compiler the links are made all the same, so that all but the extension can be used.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.environment import ROOT

BESIDE = ("benchmarks", "tests", "pyproject.toml", "examples")


def link(tree: Path) -> None:
    """Make the links."""
    shutil.rmtree(tree / "sslfast", ignore_errors=True)
    package = tree / "sslfast"
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
        f"-DCMAKE_INSTALL_PREFIX={tree / 'sslfast'}",
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", str(build), "--target", "install"]):
        subprocess.run(command, check=True, env=environment)


def architectures() -> str:
    """Those of the GPUs at hand, as CMake takes them: others only cost time."""
    import torch

    devices = range(torch.cuda.device_count())
    found = sorted({torch.cuda.get_device_capability(d) for d in devices})
    # The matrix instructions of 9.0 belong to 90a.
    return ";".join(f"{major}{minor}{'a' if major == 9 else ''}-real" for major, minor in found)


def main() -> None:
    """Make the links, then build."""
    tree = Path(sys.argv[1]).resolve()
    link(tree)
    if "SSLFAST_CUDA_ARCHITECTURES" not in os.environ and architectures():
        os.environ["SSLFAST_CUDA_ARCHITECTURES"] = architectures()
    compile_extension(tree)


if __name__ == "__main__":
    main()
