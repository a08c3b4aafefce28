"""The house in numbers, counted in its sources: the table of docs/developers/house.md."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Run by themselves: what is loaded, and which files a call runs through.
LOADED = """
import sys
from sslfast.losses import NTXentLoss
print(sum(name.partition(".")[0] == "sslfast" for name in sys.modules))
"""
CALLED = """
import sys, threading, torch
import sslfast.losses
a, b = torch.randn(2, 64, 32, requires_grad=True).unbind()
loss = sslfast.losses.NTXentLoss(0.1)
loss(a, b).backward()  # what is looked up and compiled once
files = set()
def saw(frame, event, argument):
    files.add(frame.f_code.co_filename)
threading.setprofile(saw)
sys.setprofile(saw)
loss(a, b).backward()
sys.setprofile(None)
ours = {m.__file__ for name, m in sys.modules.items() if name.partition(".")[0] == "sslfast"}
print(sum(f in files for f in ours if f))
"""


def number(program: str) -> int:
    """What a program prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True, cwd="/"
    )
    return int(done.stdout)


def takes_settings(path: Path) -> bool:
    """Whether a function of a file has the settings of a run as a parameter."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.args, *node.args.kwonlyargs]
            if any(a.annotation and "TrainConfig" in ast.unparse(a.annotation) for a in arguments):
                return True
    return False


def files_of_a_new_op() -> tuple[int, int]:
    """Files that CONTRIBUTING names for a new op, and those that a backend in C++ adds."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## A new op")[2].partition("\n## ")[0]
    files = [line for line in text.splitlines() if line.startswith("| `")]
    compiled = sum(line.startswith("| `csrc/") for line in files)
    return len(files) - compiled, compiled


def table() -> str:
    """The counts as a Markdown table."""
    training = sorted((ROOT / "sslfast" / "training").glob("*.py"))
    settings = [path.name for path in training if takes_settings(path)]
    plain, compiled = files_of_a_new_op()
    # What is counted: before, now, the goal. Before: at commit aa4a8e2, by the programs above; the
    # files of a new op as the design counted them then.
    counts = {
        "modules of sslfast that `from sslfast.losses import NTXentLoss` loads": (
            *(87, number(LOADED)), "< 25",
        ),
        "files that a call of NTXentLoss and its gradient run through on a CPU": (
            *(13, number(CALLED)), 5,
        ),
        "files that a new op touches": (12, plain, 6),
        "the same with a backend in C++": (17, plain + compiled, 10),
        "files of sslfast/training whose functions take the settings of a run": (
            *(4, len(settings)), "-",
        ),
        "of these, the loop": (1, settings.count("loop.py"), 0),
    }  # fmt: skip
    lines = [f"| {what} | {' | '.join(map(str, row))} |" for what, row in counts.items()]
    head = ["| what | before | now | goal |", "|---|---|---|---|"]
    return "\n".join([*head, *lines, ""])
