"""Arguments checked against their annotations: kinds, finite numbers, ranges, choices."""

import functools
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

P = ParamSpec("P")
R = TypeVar("R")


class BadArgument(TypeError, ValueError):
    """An argument of the wrong kind, or out of its range; the message begins with its name.

    Attributes:
        name: of the argument.
    """

    def __init__(self, name: str, rest: str) -> None:
        super().__init__(f"{name} {rest}")
        self.name = name


LARGEST = 2**63 - 1  # what torch, numpy and the kernels take for an integer


@dataclass(frozen=True)
class Range:
    """Which numbers an annotation allows: from ``low`` to ``high``.

    Attributes:
        low: the smallest.
        high: the largest.
        ends: whether these belong to it, in brackets as mathematics writes them.
    """

    low: float
    high: float = math.inf
    ends: Literal["[]", "()", "[)", "(]"] = "[]"

    def wanted(self, value: float) -> str | None:
        """What ``value``, a finite number, would have to be; None if it lies in the range."""
        if value < self.low or (value == self.low and self.ends[0] == "("):
            return f"at least {self.low}" if self.ends[0] == "[" else f"more than {self.low}"
        if value > self.high or (value == self.high and self.ends[1] == ")"):
            return f"at most {self.high}" if self.ends[1] == "]" else f"less than {self.high}"
        return None

    def __repr__(self) -> str:  # in the help of the command line
        if self.high < LARGEST:
            return f"in {self.ends[0]}{self.low}, {self.high}{self.ends[1]}"
        return f"at least {self.low}" if self.ends[0] == "[" else f"more than {self.low}"


PositiveInt = Annotated[int, Range(1, LARGEST)]
NonNegativeInt = Annotated[int, Range(0, LARGEST)]
# Numbers in a layer, pixels along a side: whatever is multiplied by others of its kind.
Width = Annotated[int, Range(1, 2**20)]
Side = Annotated[int, Range(1, 2**14)]  # of an image in pixels
Threads = Annotated[int, Range(1, 1024)]
Depth = Annotated[int, Range(1, 1000)]
PositiveFloat = Annotated[float, Range(0, ends="()")]
NonNegativeFloat = Annotated[float, Range(0)]
Probability = Annotated[float, Range(0, 1)]
# A part that is not nothing.
Part = Annotated[float, Range(0, 1, "(]")]
# A rate at which things are left out, or kept as they are: never all of them.
Rate = Annotated[float, Range(0, 1, "[)")]
# Room is left for what is added to it, such as the number of a rank.
Seed = Annotated[int, Range(0, 2**62)]


def checked(function: Callable[P, R], but: Sequence[str] = ()) -> Callable[P, R]:
    """Check the arguments of every call against the annotations (a decorator).

    Numbers are finite, and ranges are those of the aliases above. Values of tensors are not looked
    at. Under torch.compile nothing is checked.

    Args:
        function: or a constructor, that is a class's __init__.
        but: names that are not checked.

    Raises:
        BadArgument: from the call; it is a TypeError and a ValueError.
    """
    names = tuple(inspect.signature(function).parameters)
    but = tuple(but)
    torch = sys.modules.get("torch")
    compiling = torch.compiler.is_compiling if torch else bool  # bool() is False

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not compiling():
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            _check(_rules_but(function, but), given)
        return function(*args, **kwargs)

    return call


def check_arguments(function: Any, values: Mapping[str, Any], none: str = "None") -> None:
    """Check values by the annotations of a function's arguments or a dataclass's fields.

    Args:
        function: or the dataclass.
        values: by name; names without an annotation are passed over.
        none: what messages call None.

    Raises:
        BadArgument: the first value that does not fit.
    """
    _check(_rules(function, none), values)


def _check(rules: "dict[str, Rule]", values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name in rules:
            wrong = rules[name](value)
            if wrong is not None:
                raise BadArgument(name, f"must be {wrong.wanted}, got {_shown(value, wrong)}")


@dataclass(frozen=True)
class _Fault:
    """What a value should have been, and whether it is of the right kind at least."""

    wanted: str
    right_kind: bool = False


Rule = Callable[[Any], _Fault | None]  # why a value does not fit, or None


@functools.cache
def _rules(function: Any, none: str) -> dict[str, Rule]:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError:  # names that were imported for type checkers only
        return {}
    found = {name: _rule(hint, none) for name, hint in hints.items() if name != "return"}
    return {name: rule for name, rule in found.items() if rule is not None}


@functools.cache
def _rules_but(function: Any, but: tuple[str, ...]) -> dict[str, Rule]:
    return {name: rule for name, rule in _rules(function, "None").items() if name not in but}


def _rule(hint: Any, none: str) -> Rule | None:
    """How values of an annotation are checked; None where nothing is known of such annotations."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _any_of([_rule(part, none) for part in parts], none if NoneType in parts else None)
    if origin is Annotated:
        return _within(_rule(parts[0], none), [x for x in parts[1:] if isinstance(x, Range)])
    if origin is Literal:
        names = ", ".join(part or '""' for part in parts)
        return _if(lambda x: isinstance(x, str) and x in parts, f"one of {names}")
    if origin is tuple or (inspect.isclass(origin) and issubclass(origin, Sequence)):
        fixed = origin is tuple and Ellipsis not in parts
        rules = [_rule(part, none) for part in parts if part is not Ellipsis]
        return _each(rules, fixed)
    if origin is Callable:
        return _if(callable, "a function")
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return _if(lambda x: isinstance(x, Mapping), "a dict")
    if hint in (None, NoneType):
        return _if(lambda x: x is None, none)
    if hint in _NAMES:
        return _if(_TESTS[hint], _NAMES[hint])
    if inspect.isclass(hint) and origin is None and _takes_isinstance(hint):
        package = hint.__module__.partition(".")[0]
        return _if(lambda x: isinstance(x, hint), f"a {package}.{hint.__name__}")
    return None


def _takes_isinstance(hint: type) -> bool:
    try:
        isinstance(None, hint)
    except TypeError:  # Any, some protocols
        return False
    return True


def _if(fits: Callable[[Any], bool], wanted: str) -> Rule:
    fault = _Fault(wanted)
    return lambda value: None if fits(value) else fault


def _within(rule: Rule | None, ranges: list[Range]) -> Rule | None:
    if rule is None or not ranges:
        return rule
    (limits,) = ranges

    def check(value: Any) -> _Fault | None:
        wrong = rule(value)
        if wrong is not None:
            return wrong
        wanted = limits.wanted(value)
        return None if wanted is None else _Fault(wanted, right_kind=True)

    return check


def _any_of(options: list[Rule | None], none: str | None) -> Rule | None:
    rules = [rule for rule in options if rule is not None]
    if len(rules) < len(options):
        return None

    def check(value: Any) -> _Fault | None:
        wrong = []
        for rule in rules:
            fault = rule(value)
            if fault is None:
                return None
            wrong.append(fault)
        near = next((fault for fault in wrong if fault.right_kind), None)
        if near is not None:
            return _Fault(near.wanted + (f", or {none}" if none else ""), right_kind=True)
        return _Fault(" or ".join(dict.fromkeys(fault.wanted for fault in wrong)))

    return check


def _each(rules: list[Rule | None], fixed: bool) -> Rule:
    wanted = f"a list of {len(rules)} values" if fixed else "a list of values"

    def check(value: Any) -> _Fault | None:
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            return _Fault(wanted)
        if fixed and len(value) != len(rules):
            return _Fault(wanted)
        for item, rule in zip(value, rules if fixed else rules * len(value), strict=True):
            wrong = rule(item) if rule else None
            if wrong is not None:
                return _Fault(f"{wanted}, each {wrong.wanted}", wrong.right_kind)
        return None

    return check


def _is_integer(value: Any) -> bool:
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def _is_number(value: Any) -> bool:
    if _is_integer(value):
        return bool(abs(value) <= sys.float_info.max)
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


_NAMES = {int: "an integer", float: "a finite number", bool: "true or false", str: "text"}
_NUMPY_BOOL = ("<class 'numpy.bool'>", "<class 'numpy.bool_'>")  # which is not imported for this
_TESTS: dict[type, Callable[[Any], bool]] = {
    int: _is_integer,
    float: _is_number,
    bool: lambda value: isinstance(value, bool) or str(type(value)) in _NUMPY_BOOL,
    str: lambda value: isinstance(value, str),
}


def _shown(value: Any, wrong: _Fault) -> str:
    plain = isinstance(value, (str, int, float, bool, type(None), list, tuple, dict))
    text = repr(value) if plain else f"a {type(value).__name__}"
    text = text if len(text) <= 200 else f"{text[:200]} ..."
    if isinstance(value, str) and _NAMES[float] in wrong.wanted and _is_text_in_yaml(value):
        text += " (YAML reads 1e-3 as text: write 1.0e-3)"
    return text


_POINT_AND_SIGN = re.compile(r"[^.eE]*\.[^.eE]*[eE][-+]\d+")


def _is_text_in_yaml(text: str) -> bool:
    """Whether YAML takes a number for text: its exponent wants a point before it, and a sign."""
    try:
        number = math.isfinite(float(text))
    except ValueError:
        return False
    return number and "e" in text.lower() and not _POINT_AND_SIGN.fullmatch(text)
