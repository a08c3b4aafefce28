"""The command line that the benchmark programs share."""

import argparse
from pathlib import Path

import torch


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The flags that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch")
    parser.add_argument("--quick", action="store_true", help="small sizes, short runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="of timing for each problem")
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument("--only-memory", action="store_true", help="time nothing")
    memory.add_argument("--no-memory", action="store_true", help="no peaks; on a CPU half the time")
    parser.add_argument(
        "--go-on", action="store_true", help="keep what --out has; try nothing again that failed"
    )
    return parser
