"""What follows what in two networks of one structure."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Literal

from torch import Tensor, nn

from sslfast.ema.update import check_pairs
from sslfast.kernels.tensors import Rows, plain_rows

Way = Literal["average", "copy", "integers"]  # integers are copied whatever the momentum


@dataclass
class Pairs:
    """What follows what, and the contents of both networks when that was found out."""

    networks: tuple[nn.Module, nn.Module]  # teacher's and student's
    names: list[str]
    teacher: list[Tensor]
    student: list[Tensor]
    ways: list[Way]
    modules: list[nn.Module]
    contents: list[object]
    # Teacher's and student's tensors of every way that there is.
    by_way: dict[Way, tuple[list[Tensor], list[Tensor]]] = field(init=False)

    def __post_init__(self) -> None:
        self.by_way = {}
        for way, t, s in zip(self.ways, self.teacher, self.student, strict=True):
            ours, theirs = self.by_way.setdefault(way, ([], []))
            ours.append(t)
            theirs.append(s)

    def still_hold(self, *networks: nn.Module) -> bool:
        """Whether these networks are meant, and nothing in them has come, gone or been replaced."""
        if not all(map(operator.is_, networks, self.networks)):
            return False
        now = _contents(self.modules)
        return len(now) == len(self.contents) and all(map(operator.is_, now, self.contents))

    @property
    def numbers(self) -> tuple[list[Tensor], list[Tensor]]:
        """Teacher's and student's tensors that are no integers."""
        kept = [way != "integers" for way in self.ways]
        return list(compress(self.teacher, kept)), list(compress(self.student, kept))

    def checked(self) -> dict[Way, Rows | None]:
        """The tables of the ways whose tensors are all ordinary, once every pair is found to fit.

        Raises:
            TypeError, ValueError: see ``check_pairs``.
        """
        tables: dict[Way, Rows | None] = {
            way: None if way == "integers" else plain_rows(both, second=1)
            for way, both in self.by_way.items()
        }
        one_device = len({ours[0].device for ours, _ in self.by_way.values()}) < 2
        if not one_device or None in tables.values():
            rest = [tables[way] is None or not one_device for way in self.ways]
            teacher, student = (list(compress(c, rest)) for c in (self.teacher, self.student))
            check_pairs(list(compress(self.names, rest)), teacher, student)
        return tables

    def without(self, done: set[int]) -> "Pairs":
        """The pairs but those of these numbers."""
        left = [n for n in range(len(self.names)) if n not in done]
        return replace(
            self,
            names=[self.names[n] for n in left],
            teacher=[self.teacher[n] for n in left],
            student=[self.student[n] for n in left],
            ways=[self.ways[n] for n in left],
        )


def pair_by_name(
    teacher: nn.Module, student: nn.Module, buffers: Literal["average", "copy"]
) -> Pairs:
    """What follows what, by name; what both networks share follows nothing.

    Raises:
        ValueError: a name that only one of them has.
    """
    ours, theirs = named_tensors(teacher), named_tensors(student)
    for one, its, other, others in (
        ("student", theirs, "teacher", ours),
        ("teacher", ours, "student", theirs),
    ):
        alone = next((name for name in its if name not in others), None)
        if alone is not None:
            raise ValueError(
                f"the {one} has {alone!r} and the {other} has not: call teacher.adopt(student) "
                "after a change of the student's structure"
            )
    are_buffers = {name for name, _ in teacher.named_buffers()}

    def way(name: str) -> Way:
        if not (ours[name].is_floating_point() or ours[name].is_complex()):
            return "integers"
        return buffers if name in are_buffers else "average"

    modules = [*teacher.modules(), *student.modules()]
    names = [name for name in ours if ours[name] is not theirs[name]]
    return Pairs(
        networks=(teacher, student),
        names=names,
        teacher=[ours[name] for name in names],
        student=[theirs[name] for name in names],
        ways=[way(name) for name in names],
        modules=modules,
        contents=_contents(modules),
    )


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, tied ones once, as far as ``state_dict`` has them.

    Buffers that are not saved are caches: each network fills its own, when and as long as it likes.
    """
    caches = {
        f"{path}.{name}" if path else name
        for path, part in module.named_modules()
        for name in part._non_persistent_buffers_set
    }
    buffers = {name: b for name, b in module.named_buffers() if name not in caches}
    return {**dict(module.named_parameters()), **buffers}


def _contents(modules: Sequence[nn.Module]) -> list[object]:
    found: list[object] = []
    for module in modules:
        found += module._parameters.values()
        found += module._modules.values()
        caches = module._non_persistent_buffers_set
        found += [b for name, b in module._buffers.items() if name not in caches]
    return found
