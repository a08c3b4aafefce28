"""Compile every Triton kernel of the package without a GPU, and print what became of it as JSON.

    python compile_ahead_of_time.py ARCHITECTURE [PATTERN]

Any backend module with ``ahead_of_time(capability)`` takes part. Runs in a process of its own, so
that a test can put another version of Triton in its path.
"""

import collections
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from sslfast.kernels import registry

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)", re.MULTILINE)


def compilations(architecture: int, pattern: str) -> Iterator[Any]:
    for op in registry.ops():
        for backend in registry.candidates(op):
            if hasattr(backend.module, "ahead_of_time"):
                for c in backend.module.ahead_of_time(architecture):
                    if re.search(pattern, c.name):
                        yield c


def compile_one(c: Any, architecture: int) -> dict[str, Any]:
    # What a launch finds in practice: torch aligns its allocations to far more than 16 bytes.
    aligned = {
        (n,): [["tt.divisibility", 16]]
        for n, name in enumerate(c.kernel.arg_names)
        if c.signature[name].startswith("*")
    }
    source = ASTSource(c.kernel, dict(c.signature), dict(c.constants), aligned)
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=dict(c.options))
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        ptx.write_text(compiled.asm["ptx"])
        cubin.write_bytes(compiled.asm["cubin"])
        # Triton drops what ptxas has to say.
        name = re.search(r"\.target (\w+)", compiled.asm["ptx"])
        assembler = get_ptxas(architecture).path
        command = [assembler, "-v", f"--gpu-name={name[1]}", ptx, "-o", Path(folder) / "out"]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        dump = Path(triton.__path__[0]) / "backends/nvidia/bin/cuobjdump"
        sass = subprocess.run([dump, "-sass", cubin], check=True, capture_output=True, text=True)
    counts = collections.Counter(INSTRUCTION.findall(sass.stdout))

    def count(prefix: str) -> int:
        return sum(n for name, n in counts.items() if name.startswith(prefix))

    return {
        "name": c.name,
        "architecture": architecture,
        "triton": triton.__version__,
        "matrix": c.matrix,
        "registers": int(re.search(r"Used (\d+) registers", log)[1]),
        "spilled": sum(int(n) for n in re.findall(r"(\d+) bytes spill", log)),
        "shared": compiled.metadata.shared,
        "serialised": sorted(set(re.findall(r"C75\d\d", log))),
        "wgmma": count("HGMMA"),
        "arrive": count("WARPGROUP.ARRIVE"),
        "mma": count("HMMA"),
        "tcgen05": count("UTC"),
    }


if __name__ == "__main__":
    architecture, pattern = int(sys.argv[1]), "".join(sys.argv[2:3])
    for c in compilations(architecture, pattern):
        print(json.dumps(compile_one(c, architecture)), flush=True)
