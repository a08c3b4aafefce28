"""Builds sslfast._C with CMake and ninja; everything else is in pyproject.toml.

SSLFAST_BUILD=0 skips the extension, 1 makes its failure fatal; by default a machine without a
compiler still gets the package, and is told what it lost.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# What a build depends on, beside the sources and the Python.
SETTINGS = (
    *("CC", "CXX", "CUDACXX", "CFLAGS", "CXXFLAGS", "CUDAFLAGS", "LDFLAGS", "CUDA_PATH"),
    *("SSLFAST_CUDA", "SSLFAST_WERROR", "SSLFAST_CUDA_DEBUG", "SSLFAST_CUDA_ARCHITECTURES"),
)
TOOLS = ("c++", "g++", "nvcc")
HERE = Path(__file__).resolve().parent
LOST = """
*** sslfast: the compiled kernels (sslfast._C) were not built: {reason}
*** The package works all the same with its 'tiled' (PyTorch) and 'triton' (GPU) backends;
*** on a CPU the losses are then slower. To build them: install a C++ compiler with OpenMP
*** (Debian, Ubuntu: apt install g++), then run pip install again. `sslfast doctor` shows the state.
"""


class CMakeBuild(build_ext):
    """Runs CMake and puts the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        """Build sslfast._C, or say what is lost without it."""
        # An earlier build's module must not pass for this one's.
        Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        if self.editable_mode:
            for old in (HERE / "sslfast").glob("_C*.so"):
                old.unlink()
        mode = os.environ.get("SSLFAST_BUILD", "auto")
        if mode == "0":
            print(LOST.format(reason="SSLFAST_BUILD=0"), file=sys.stderr)
            return
        try:
            self._cmake(ext)
        except (OSError, subprocess.CalledProcessError) as error:
            if mode == "1" or os.environ.get("SSLFAST_CUDA") == "1":
                raise
            print(LOST.format(reason=error), file=sys.stderr)

    def _cmake(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # ninja and cmake may be Python packages beside this interpreter, outside the PATH.
        path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", "")))
        environment = {**os.environ, "PATH": path}
        options = [
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        # Not build_temp, which goes with every editable install: what is unchanged stays compiled.
        # Other tools or settings have a folder of their own: CMake keeps those that it has found.
        asked = [os.environ.get(name) for name in SETTINGS]
        found = [shutil.which(tool, path=path) for tool in TOOLS]
        key = hashlib.sha256(repr((options, asked, found)).encode()).hexdigest()[:12]
        build = HERE / "build" / "cmake" / key
        build.mkdir(parents=True, exist_ok=True)
        prefix = f"-DCMAKE_INSTALL_PREFIX={target}"
        configure = [
            "cmake", "-S", str(HERE), "-B", str(build), "-G", "Ninja", *options, prefix
        ]  # fmt: skip
        try:
            subprocess.run(configure, check=True, env=environment)
        except subprocess.CalledProcessError:
            (build / "CMakeCache.txt").unlink(missing_ok=True)  # nothing of a failure is kept
            raise
        subprocess.run(
            ["cmake", "--build", str(build), "--target", "install"], check=True, env=environment
        )


def packages() -> list[str]:
    """Return sslfast with its sub-packages, and kernels/ as sslfast.kernels."""
    found = [p.parent.relative_to(HERE) for p in sorted(HERE.glob("sslfast/**/__init__.py"))]
    kernels = [p.parent.relative_to(HERE) for p in sorted(HERE.glob("kernels/**/__init__.py"))]
    return [".".join(p.parts) for p in found] + [".".join(("sslfast", *p.parts)) for p in kernels]


setup(
    packages=packages(),
    package_dir={"sslfast": "sslfast", "sslfast.kernels": "kernels"},
    package_data={"sslfast": ["py.typed"]},
    ext_modules=[Extension("sslfast._C", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
