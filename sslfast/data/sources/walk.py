"""One walk through a tree of folders: the files in it, and what was passed over and why.

The walk opens folders only; what a file is, a look at it decides (see check.py). Files are opened
by ``open_file``, which waits for nothing.
"""

import errno
import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

MOST_VISITS = 1000  # of one folder, by different links; links to links would multiply without end
NOT_REGULAR = "not a regular file (a pipe, a device, a folder)"
# What a run of sslfast has from its start, and the pictures that its report draws.
_RUN = {".lock", "config.yaml"}
_RUN_PICTURES = {"loss.png", "map.png", "rejection.png", "views.png"}


@dataclass
class Found:
    """What a walk found.

    Attributes:
        files: those with the extensions asked for, relative to the root, sorted.
        unreadable: (path, reason) of every folder that could not be listed.
        passed_over: of everything else, how many of each kind: extensions of other files, "hidden"
            and so on.
    """

    files: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def find_files(root: Path, extensions: tuple[str, ...]) -> Found:
    """Find files by extension, in any case, at any depth.

    Links are followed, so a folder that two links lead to is found twice; but not a link to a
    folder that contains it, which would have no end. Passed over are hidden files and folders, the
    folders of runs, and what is no storage: /proc, /sys, /dev.

    Raises:
        ValueError: links lead to one folder more than 1,000 times.
    """
    found = Found()
    system = _system_devices()
    visits: Counter[tuple[int, int]] = Counter()
    # Folders to list: relative path, and the real path of it and of each link on the way to it.
    ahead: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(root),))]
    while ahead:
        folder, way = ahead.pop()
        path = os.path.join(root, folder)
        try:
            status = os.stat(path)
            if status.st_dev in system:
                found.passed_over["folders of the system"] += 1
                continue
            entries = _listed(path)
        except OSError as error:
            found.unreadable.append((path, error.strerror or str(error)))
            continue
        identity = (status.st_dev, status.st_ino)
        visits[identity] += 1
        if visits[identity] > MOST_VISITS:
            raise ValueError(f"links lead to {path} more than {MOST_VISITS:,} times: remove some")
        if folder and _is_run(entries):
            found.passed_over["folders of runs"] += 1
            continue
        for entry in entries:
            name = os.path.join(folder, entry.name)
            if entry.name.startswith("."):
                found.passed_over["hidden"] += 1
            elif _is_dir(entry):
                inner = _enter(entry, way)
                if inner is None:
                    found.passed_over["links to a folder around them"] += 1
                else:
                    ahead.append((name, inner))
            elif not entry.name.lower().endswith(extensions):
                extension = os.path.splitext(entry.name)[1].lower()
                found.passed_over[extension or "without extension"] += 1
            elif entry.name in _RUN_PICTURES and _is_run(entries):
                found.passed_over["pictures of a run"] += 1
            else:
                found.files.append(name)
    found.files.sort()
    found.unreadable.sort()
    return found


def sub_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder that a walk would enter, sorted."""
    return [
        entry.name
        for entry in _listed(folder)
        if not entry.name.startswith(".") and _is_dir(entry) and not _is_run_folder(entry.path)
    ]


def _listed(path: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # of a link that leads nowhere; opened as a file, it gives its reason
        return False


def _is_run(entries: list[os.DirEntry[str]]) -> bool:
    return {entry.name for entry in entries} >= _RUN


def _is_run_folder(path: str) -> bool:
    return all(os.path.exists(os.path.join(path, name)) for name in _RUN)


def _enter(entry: os.DirEntry[str], way: tuple[str, ...]) -> tuple[str, ...] | None:
    """The way into a folder; None if it is a link to a folder that the way leads through."""
    if not entry.is_symlink():
        return (*way[:-1], os.path.join(way[-1], entry.name))
    real = os.path.realpath(entry.path)
    if any(f"{passed}/".startswith(f"{real.rstrip('/')}/") for passed in way):
        return None
    return (*way, real)


def _system_devices() -> set[int]:
    """The devices of /proc, /sys and /dev, where they have their own."""
    folders = [path for path in ("/proc", "/sys", "/dev") if os.path.isdir(path)]
    return {os.stat(path).st_dev for path in folders} - {os.stat("/").st_dev}


def open_file(path: str) -> BinaryIO:
    """Open a file to read, without waiting for what a pipe or a device may hold.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(handle, "rb")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise OSError(errno.EINVAL, NOT_REGULAR, path)
    return file


def why_not_a_file(path: str) -> str | None:
    """Why a path is no regular file; None if it is one."""
    try:
        return None if stat.S_ISREG(os.stat(path).st_mode) else NOT_REGULAR
    except OSError as error:
        return error.strerror or str(error)
