"""Files of weights as they are found: .safetensors, and whatever torch.save has written.

Nothing in a file is run. Beside tensors, checkpoints hold settings and counters of many classes,
for which torch's safe reader (``weights_only``) would refuse the whole file. Through its list of
safe globals it is given stand-ins in their place, which know a class by its name and do nothing.
"""

import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from sslfast.models.encoder_file import (
    WeightsError,
    first_bytes,
    is_of_torch_save,
    is_safetensors,
    read_safetensors,
)
from sslfast.training import checkpoint

_PYTHON_3 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # pickles have Python 2's names
_DICTS = ("dict", "cfgnode", "munch", "bunch", "box")  # how classes of settings that are dicts end


class StandIn:
    """In the place of an object of a class that is not torch's.

    Attributes:
        name: of the class, with its module.
    """

    name: str

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Whatever an object was made of is passed over."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """So is what it held."""


class _Mapping(StandIn):
    """Of a kind of dict, which is known by its name: entries can only be put into a real one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


def read(path: Path) -> Any:
    """What a file holds, on the CPU: tensors by name, or any nest of dicts and lists around them.

    Raises:
        WeightsError: it holds no weights, or is damaged.
        OSError: it cannot be opened.
    """
    head = first_bytes(path)
    if is_of_torch_save(head):
        return _unpickle(path)
    if path.suffix == ".safetensors" or is_safetensors(head):
        tensors, description = read_safetensors(path)
        checkpoint.say_if_behind(path, description or {})
        return tensors
    begins = f"begins with {head[:40]!r}" if head else "is empty"
    raise WeightsError(
        f"{path} holds no weights: it is neither a .safetensors file nor one of torch.save, and "
        f"{begins}"
    )


def state_dicts(held: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every mapping in a nest with tensors by name: the keys that lead to it, and these tensors."""
    todo: list[tuple[tuple[str, ...], Any]] = [((), held)]
    seen: set[int] = set()
    while todo:
        where, value = todo.pop(0)
        if id(value) in seen:  # a pickle may hold itself
            continue
        seen.add(id(value))
        if isinstance(value, (list, tuple)):
            value = dict(enumerate(value))
        if not isinstance(value, Mapping):
            continue
        tensors = {name: t for name, t in value.items() if isinstance(name, str) and _has_values(t)}
        if tensors:
            yield where, tensors
        todo += [((*where, str(key)), inner) for key, inner in value.items()]


def _has_values(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cpu"


def in_words(held: Any, most: int = 6) -> str:
    """What a file holds, for one line."""
    if not isinstance(held, Mapping):
        return _kind(held)
    names = list(held)
    if names and all(isinstance(value, Tensor) for value in held.values()):
        shown = ", ".join(f"'{name}'" for name in names[:3])
        return f"{len(names)} tensors ({shown}{' ...' if len(names) > 3 else ''})"
    shown = ", ".join(f"'{name}' ({_kind(held[name])})" for name in names[:most])
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{shown}{more}" if names else "an empty dict"


def _kind(value: Any) -> str:
    if isinstance(value, StandIn):
        return f"an object of {value.name}"
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, Mapping):
        count = sum(isinstance(inner, Tensor) for inner in value.values())
        return f"{count} tensors" if count else f"a dict of {len(value)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__


def _unpickle(path: Path) -> Any:
    try:
        classes: list[Any] = [(_stand_in(name), name) for name in _classes(path)]
        # Opened here: by a path, torch goes by how it ends.
        with torch.serialization.safe_globals(classes), open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # each damage has its own
        raise _unreadable(path, error) from error


def _classes(path: Path) -> list[str]:
    """What a file of torch.save asks for by name: classes and functions, none of them looked up."""
    if first_bytes(path).startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(name.endswith("/constants.pkl") for name in names):
                raise ValueError("a TorchScript program: load that, and save its state_dict()")
            inside = [name for name in names if name.endswith("/data.pkl")]
            if len(inside) != 1:
                raise ValueError("some other zip archive")
            with archive.open(inside[0]) as pickled:
                return _asked_for(pickled)
    # Before torch 1.6: three pickles about the file, and the one of its content.
    with open(path, "rb") as file:
        return [name for _ in range(4) for name in _asked_for(file)]


def _asked_for(file: IO[bytes]) -> list[str]:
    names = set()
    for operation, given, _ in pickletools.genops(file):
        if operation.name == "PROTO" and given != 2:
            raise ValueError(f"pickle protocol {given} is not read safely: save it anew")
        if operation.name == "GLOBAL":
            module, _, name = str(given).partition(" ")
            names.add(f"{_PYTHON_3.get(module, module)}.{name}")
    return sorted(names)


def _stand_in(name: str) -> type[StandIn]:
    kind = _Mapping if name.lower().endswith(_DICTS) else StandIn
    return type(name.rpartition(".")[2], (kind,), {"name": name})


def _unreadable(path: Path, error: Exception) -> WeightsError:
    return WeightsError(f"{path} cannot be read as weights ({_short(error)})")


def _short(error: Exception) -> str:
    """What happened, without torch's pages of advice."""
    if isinstance(error, pickle.UnpicklingError) and isinstance(error.__context__, Exception):
        error = error.__context__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].partition(". ")[0][:200]
