"""Everything that the README shows runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
LINES = [line for kind, text in BLOCKS if kind == "console" for line in text.splitlines()]


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "SSLFAST_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.slow
def test_commands_and_snippets_in_order(tmp_path: Path) -> None:
    """From top to bottom in one folder; only the training is cut short."""
    commands = [line for line in LINES if line.startswith("sslfast ")]
    assert len(commands) >= 5
    for line in commands:
        words = shlex.split(re.sub(r"--epochs \d+", "--steps 3", line))
        shown = run([sys.executable, "-m", "sslfast.cli", *words[1:]], tmp_path)
        assert shown.strip()
    assert (tmp_path / "runs" / "photos" / "report.html").exists()
    snippets = [text for kind, text in BLOCKS if kind == "python"]
    assert len(snippets) == 2
    for text in snippets:
        run([sys.executable, "-W", "error", "-c", text], tmp_path)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_extras_are_those_of_the_package() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    extras = re.findall(r"^\| `([\w-]+)` \|", README.partition("\n## Install\n")[2], re.MULTILINE)
    assert len(extras) >= 4
    for extra in extras:
        assert re.search(rf"^{extra} = \[", pyproject, re.MULTILINE), extra
