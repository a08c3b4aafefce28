"""A run's folder: where its files lie, what it holds already, and who may write in it."""

import fcntl
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sslfast._files import remove_leftovers
from sslfast.data.sources.manifest import Manifest
from sslfast.models.encoder_file import FILE_NAME
from sslfast.training import checkpoint
from sslfast.training.config import ConfigError, TrainConfig, user_path
from sslfast.training.storage import write_atomically

logger = logging.getLogger("sslfast")

# What may differ between the run that wrote a checkpoint and the one that goes on from it.
_MAY_CHANGE = (
    *("data", "out", "epochs", "steps", "lr", "weight_decay", "momentum", "warmup_epochs", "init"),
    *("device", "compile", "threads", "resume", "log_every", "schema_version", "on_bad_image"),
    *("checkpoint_every", "keep_checkpoints", "lr_scaling", "min_lr", "weight_decay_end"),
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
        self.checkpoints = self.path / checkpoint.FOLDER_NAME
        self.files = self.path / "files"
        self.encoder = self.path / FILE_NAME
        self._manifest = self.path / "data.json.gz"

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
            for folder in (self.path, self.checkpoints, self.files):
                remove_leftovers(folder)
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
        found = {name: self.files / name for name in names}
        return {name: str(copy) for name, copy in found.items() if copy.is_file()}

    def begin(self, config: TrainConfig, manifest: Manifest, files: Mapping[str, Any]) -> None:
        """Write down what a run is made of, before its first step.

        Args:
            config: its settings.
            manifest: of what it learns from.
            files: of its method; see ``keep_copies``.
        """
        config.write(self.config)
        self.keep_manifest(manifest)
        self.keep_copies(files)

    def keep_copies(self, files: Mapping[str, Any]) -> None:
        """Copy files into the folder: the run goes on, and can be looked at, without them.

        Args:
            files: their paths by the name of the hyperparameter; what is no path is passed over.
        """
        kept = self.copies(files)
        for name, source in files.items():
            if name not in kept and isinstance(source, (str, Path)):
                copy = self.files / name
                copy.parent.mkdir(exist_ok=True)
                with open(source, "rb") as file:
                    write_atomically(copy, partial(shutil.copyfileobj, file))

    def keep_manifest(self, manifest: Manifest) -> None:
        """Write down which files the run learns from, and where they are."""
        write_atomically(self._manifest, lambda file: file.write(manifest.to_bytes()))

    def manifest(self) -> Manifest | None:
        """What ``keep_manifest`` wrote; None where that is missing or damaged, which is said."""
        try:
            return Manifest.from_bytes(self._manifest.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read: %s", self._manifest, error)
            return None

    def resume_state(self, config: TrainConfig, manifest: Manifest) -> dict[str, Any] | None:
        """The checkpoint to go on from, as ``config.resume`` asks, or None to start anew.

        Args:
            config: the settings.
            manifest: the files that there are to learn from.

        Raises:
            RunFolderError: the folder holds something that ``config.resume`` does not allow.
            CheckpointError: no checkpoint can be read.
            ConfigError: the checkpoint belongs to a run with other settings or on other files.
        """
        source = self
        others = [p for p in self.path.iterdir() if p.name != ".lock"]
        if config.resume == "never" and others:
            raise RunFolderError(
                f"{self.path} is not empty, and resume is 'never': choose another --out, or "
                "--resume auto to go on with the run in it"
            )
        if config.resume not in ("auto", "never"):
            state: dict[str, Any] | None = self._explicit(Path(config.resume))
            source = self.of_checkpoint(config.resume)
        elif others and not self.config.exists():
            raise RunFolderError(
                f"{self.path} holds files that are not of a run (no config.yaml): choose another "
                "--out, so that nothing of yours is overwritten"
            )
        else:
            state = checkpoint.load_newest(self.checkpoints)
        if state is not None:
            _check_same_run(TrainConfig(**state["config"]), config)
            source._check_same_files(state, manifest)
        return state

    def _check_same_files(self, state: dict[str, Any], now: Manifest) -> None:
        """With one file more or less, or in another place, every later batch would be another."""
        before = state["ranks"][0]["loader"].get("files", now.fingerprint)
        if before == now.fingerprint:
            return
        known = self.manifest()
        if known is not None and known.fingerprint == before:
            what = known.changes(now)
        else:
            what = (
                f"there were {state['num_samples']} samples, and now {len(now.names)}, of other "
                "names or sizes (which ones, the run's data.json.gz would say)"
            )
        raise ConfigError(
            f"the data is not what the run to go on with learnt from: {what}. Restore it, or start "
            "anew with another --out and --init from this run"
        )

    def _explicit(self, path: Path) -> dict[str, Any]:
        state = checkpoint.load_newest(path / checkpoint.FOLDER_NAME) if path.is_dir() else None
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
