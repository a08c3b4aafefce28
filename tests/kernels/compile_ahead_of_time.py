"""Compile what the Triton backends launch, without a GPU, and print what became of it as JSON.

    python compile_ahead_of_time.py ARCHITECTURE [PATTERN]

In a process of its own, so that a test can put another version of Triton in its path.
"""

import collections
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import triton
import triton.language as tl
from triton.backends.nvidia.compiler import get_ptxas

from benchmarks.harness.launches import Launch, in_parallel
from benchmarks.kernel_cases import record

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)", re.MULTILINE)


def on_matrix_units(launch: Launch) -> bool:
    """Whether a kernel has products that are not in IEEE float32."""
    constants = launch.constants
    return "OPERAND" in constants and (
        constants["OPERAND"] != tl.float32 or constants.get("PRECISION") == "tf32"
    )


def examine(launch: Launch) -> dict[str, Any]:
    compiled = launch.compiled()
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        ptx.write_text(compiled.asm["ptx"])
        cubin.write_bytes(compiled.asm["cubin"])
        # Triton drops what ptxas has to say.
        name = re.search(r"\.target (\w+)", compiled.asm["ptx"])
        assembler = get_ptxas(launch.architecture).path
        command = [assembler, "-v", f"--gpu-name={name[1]}", ptx, "-o", Path(folder) / "out"]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        dump = Path(triton.__path__[0]) / "backends/nvidia/bin/cuobjdump"
        sass = subprocess.run([dump, "-sass", cubin], check=True, capture_output=True, text=True)
    counts = collections.Counter(INSTRUCTION.findall(sass.stdout))

    def count(prefix: str) -> int:
        return sum(n for name, n in counts.items() if name.startswith(prefix))

    return {
        "name": launch.name,
        "architecture": launch.architecture,
        "triton": triton.__version__,
        "matrix": on_matrix_units(launch),
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
    chosen = [n for n in record(architecture) if re.search(pattern, n.name)]
    for _, found in in_parallel(chosen, examine):
        if isinstance(found, Exception):
            raise found
        print(json.dumps(found), flush=True)
