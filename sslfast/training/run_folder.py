"""A run's folder: where its files lie, what it holds already, and who may write in it."""

import fcntl
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sslfast.training import checkpoint
from sslfast.training.config import ConfigError, TrainConfig, user_path
from sslfast.training.encoder import FILE_NAME
from sslfast.training.storage import write_atomically

logger = logging.getLogger("sslfast")

# What may differ between the run that wrote a checkpoint and the one that goes on from it.
_MAY_CHANGE = (
    *("out", "epochs", "steps", "lr", "weight_decay", "momentum", "warmup_epochs", "init"),
    *("device", "compile", "threads", "resume", "log_every", "schema_version", "on_bad_image"),
    *("checkpoint_every", "keep_checkpoints"),
)


class RunFolderError(RuntimeError):
    """The folder given as --out cannot be used; the message says why and what to do."""


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(user_path(path))
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.encoder = self.path / FILE_NAME

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder and keep every other process from writing in it.

        Raises:
            RunFolderError: another process holds it, or the path is no folder.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise RunFolderError(f"{self.path} is not a folder: choose another --out") from None
        with open(self.path / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunFolderError(
                    f"another process is training in {self.path}: wait for it, stop it, or choose "
                    "another --out"
                ) from None
            # The file stays: were it removed, two processes could lock two files of this name.
            yield

    def last_good(self) -> Path | None:
        """The newest checkpoint, if there is one."""
        return next(reversed(checkpoint.listed(self.checkpoints)), None)

    @classmethod
    def of_checkpoint(cls, path: str | Path) -> "RunFolder":
        """The run that a checkpoint, or a folder of them, lies in."""
        given = Path(path)
        run = next((p for p in (given, *given.parents) if (p / "config.yaml").is_file()), given)
        return cls(run)

    def copies(self, names: Iterable[str]) -> dict[str, str]:
        """Those of the method's files that a run with a checkpoint has copies of, by name."""
        if self.last_good() is None:
            return {}
        found = {name: self.path / "files" / name for name in names}
        return {name: str(copy) for name, copy in found.items() if copy.is_file()}

    def keep_copies(self, files: Mapping[str, Any]) -> None:
        """Copy files into the folder: the run goes on, and can be looked at, without them.

        Args:
            files: their paths by the name of the hyperparameter; what is no path is passed over.
        """
        kept = self.copies(files)
        for name, source in files.items():
            if name not in kept and isinstance(source, (str, Path)):
                copy = self.path / "files" / name
                copy.parent.mkdir(exist_ok=True)
                with open(source, "rb") as file:
                    write_atomically(copy, partial(shutil.copyfileobj, file))

    def resume_state(self, config: TrainConfig) -> dict[str, Any] | None:
        """The checkpoint to go on from, as ``config.resume`` asks, or None to start anew.

        Raises:
            RunFolderError: the folder holds something that ``config.resume`` does not allow.
            CheckpointError: no checkpoint can be read.
            ConfigError: the checkpoint belongs to a run with other settings.
        """
        others = [p for p in self.path.iterdir() if p.name != ".lock"]
        if config.resume == "never" and others:
            raise RunFolderError(
                f"{self.path} is not empty, and resume is 'never': choose another --out, or "
                "--resume auto to go on with the run in it"
            )
        if config.resume not in ("auto", "never"):
            state: dict[str, Any] | None = self._explicit(Path(config.resume))
        elif others and not self.config.exists():
            raise RunFolderError(
                f"{self.path} holds files that are not of a run (no config.yaml): choose another "
                "--out, so that nothing of yours is overwritten"
            )
        else:
            state = checkpoint.load_newest(self.checkpoints)
        if state is not None:
            _check_same_run(TrainConfig(**state["config"]), config)
        return state

    def _explicit(self, path: Path) -> dict[str, Any]:
        state = checkpoint.load_newest(path / "checkpoints") if path.is_dir() else None
        if state is None:
            state = checkpoint.load(path)
        later = checkpoint.listed(self.checkpoints)
        if later and checkpoint.step_of(later[-1]) > state["step"]:
            raise RunFolderError(
                f"{self.path} holds later checkpoints than {path} (up to {later[-1].name}): choose "
                "another --out to branch off there"
            )
        return state


def _check_same_run(old: TrainConfig, new: TrainConfig) -> None:
    before, now = old.to_dict(), new.to_dict()
    changed = [name for name in now if before[name] != now[name]]
    fixed = [name for name in changed if name not in _MAY_CHANGE]
    if fixed:
        listed = "; ".join(f"{name} was {before[name]!r}, now {now[name]!r}" for name in fixed)
        raise ConfigError(
            f"the run to go on with had other settings ({listed}): use those, or another --out"
        )
    for name in set(changed) - {"out", "resume", "schema_version"}:
        logger.info("going on with %s %r instead of %r", name, now[name], before[name])
