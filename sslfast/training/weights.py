"""Starting an encoder from other weights: where in a file they are, and whether they fit."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sslfast.models import VisionTransformer
from sslfast.models.encoder_file import WeightsError, encoder_path
from sslfast.models.positions import fit_positions
from sslfast.training.config import ConfigError
from sslfast.training.weight_files import StandIn, in_words, read, state_dicts

logger = logging.getLogger("sslfast")

# What torch.compile and torch.distributed put into names, wherever they wrap a module.
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# The averaged copy of a model, which the field evaluates: DINO's and iBOT's teacher, timm's EMA,
# I-JEPA's target encoder.
_AVERAGED = re.compile(r"(?:^|[._])(?:teacher|ema|target_encoder)(?:[._]|$)")
# Counters of batch norm, which torch 0.4 brought.
_MAY_LACK = "num_batches_tracked"


@dataclass(frozen=True)
class Candidate:
    """Tensors of a file that have names of the encoder's, behind a common prefix.

    Attributes:
        place: where they are, as in "state_dict.module.*".
        tensors: without the prefix.
        problem: the first thing that does not fit, or None.
        fitting: how many of the encoder's tensors do.
    """

    place: str
    tensors: dict[str, Tensor]
    problem: str | None
    fitting: int


def load_weights(encoder: nn.Module, path: Path | str) -> list[str]:
    """Start ``encoder`` from the weights in a file: every one of its tensors must be in there.

    Looked at is every mapping in the file that has tensors by name, with any common prefix of the
    names ("module.", "backbone.", "teacher.backbone." ...). If several fit, the averaged copy is
    taken (teacher, ema, target_encoder), else the first in the file; of a checkpoint of sslfast,
    the encoder that its run would keep. What was taken is logged.

    A VisionTransformer may be for other image sizes than the weights: positions are interpolated.
    Nothing in the file is run.

    Args:
        encoder: is changed in place.
        path: a run's folder, a .safetensors file, or a file of torch.save.

    Returns:
        The names beside them that the encoder has no place for (a classifier, mostly).

    Raises:
        ConfigError: no such file, no weights in it, or none that fit; the message says what the
            file holds and which names fit.
        FileNotFoundError: the folder holds no encoder.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise ConfigError(f"init: there is no {path}")
    try:
        held = read(encoder_path(path))
    except WeightsError as error:
        raise ConfigError(f"init: {error}") from error
    own = encoder.state_dict()
    found = [
        candidate
        for where, tensors in state_dicts(held)
        for candidate in _candidates(encoder, own, where, tensors)
    ]
    good = [candidate for candidate in found if candidate.problem is None]
    if not good:
        raise ConfigError(f"init: {path} holds {in_words(held)}{_why(found, own, held)}")
    chosen = _preferred(good, held)
    if chosen.place != "*":
        others = [candidate.place for candidate in good if candidate is not chosen]
        beside = f" ({first_few(others)} would fit too)" if others else ""
        logger.info("init: %s has the encoder in %s%s", path, chosen.place, beside)
    encoder.load_state_dict({**own, **{n: t for n, t in chosen.tensors.items() if n in own}})
    return sorted(set(chosen.tensors) - set(own))


def first_few(names: Iterable[str], most: int = 5) -> str:
    """Names for one line."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _candidates(
    encoder: nn.Module, own: Mapping[str, Tensor], where: tuple[str, ...], named: dict[str, Tensor]
) -> list[Candidate]:
    """The prefixes of names in one mapping behind which names of the encoder's stand."""
    tensors = {_WRAPPERS.sub("", name): tensor for name, tensor in named.items()}
    counts: Counter[str] = Counter()
    for name in tensors:
        starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        counts.update(name[:start] for start in starts if name[start:] in own)
    found = []
    for prefix in counts:
        inner = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        problem = None
        if "pos_embed" in own.keys() & inner.keys() and isinstance(encoder, VisionTransformer):
            inner["pos_embed"], problem = _fit_positions(encoder, inner["pos_embed"])
        problems = {name: _problem(name, own[name], inner.get(name)) for name in own}
        problem = problem or next(filter(None, problems.values()), None)
        fitting = sum(name in inner and wrong is None for name, wrong in problems.items())
        place = ".".join((*where, prefix + "*"))
        found.append(Candidate(place, inner, problem, fitting))
    return found


def _fit_positions(encoder: VisionTransformer, positions: Tensor) -> tuple[Tensor, str | None]:
    """Positions for the encoder's image size, or what is wrong with them."""
    try:
        return fit_positions(positions, encoder.grid_size, encoder.embedded_prefix), None
    except ValueError as error:
        return positions, str(error)


def _problem(name: str, own: Tensor, found: Tensor | None) -> str | None:
    if found is None:
        return None if name.endswith(_MAY_LACK) else f"'{name}' is not among them"
    if found.shape != own.shape:
        return f"'{name}' has shape {tuple(found.shape)}, and the model needs {tuple(own.shape)}"
    return None


def _preferred(good: list[Candidate], held: Any) -> Candidate:
    of_a_run = isinstance(held, Mapping) and {"schema_version", "config", "model"} <= held.keys()
    if of_a_run:
        return next((c for c in good if c.place == "model.encoder.*"), good[0])
    return next((c for c in good if _AVERAGED.search(c.place)), good[0])


def _why(found: list[Candidate], own: Mapping[str, Tensor], held: Any) -> str:
    """Why nothing in a file will do."""
    if found:
        best = max(found, key=lambda candidate: candidate.fitting)
        place = "" if best.place == "*" else f" in {best.place}"
        return (
            f". {best.fitting} of the model's {len(own)} tensors fit{place}, but {best.problem}: "
            "is it of another model?"
        )
    if any(True for _ in state_dicts(held)):
        return (
            f", and none of the model's {len(own)} tensors by name ({first_few(own, 3)}): is it of "
            "another model?"
        )
    objects = held.values() if isinstance(held, Mapping) else [held]
    if any(isinstance(value, StandIn) for value in objects):
        return (
            ", and no weights by name: an object cannot be rebuilt without running its code. Where "
            "it can be loaded, save its state_dict()"
        )
    return ", and no weights by name: give a state dict, in a .safetensors or torch.save file"
