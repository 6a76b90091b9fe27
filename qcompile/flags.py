"""Flags: what the help says of a field of the configuration, which values it takes, and how notations are read."""

from __future__ import annotations

import json
import math
import re
from dataclasses import Field, dataclass, field, fields
from typing import Any

from qcompile.errors import InputError, nearest

BITS = (2, 8)
FLOAT_BITS = 32  # of inputs that are not quantized: weights alone are
AUTO = "auto"
ACCEPTED: dict[type, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}
TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


@dataclass(frozen=True)
class Flag:
    """What the command line and the checks know about a field: its help, and which values are right."""

    group: str
    help: str
    kind: type = str
    metavar: str = ""
    short: str = ""
    least: float = -math.inf
    most: float = math.inf
    choices: tuple[str, ...] = ()
    words: tuple[str, ...] = ()  # texts that stand for a number
    beyond: tuple[int, ...] = ()  # numbers that are right too


def flag(default: Any, group: str, text: str, **facts: Any) -> Any:
    """Declare a dataclass field with its `Flag`."""
    return field(default=default, metadata={"flag": Flag(group, text, **facts)})


def bit_count(default: int, text: str, **facts: Any) -> Any:
    """Declare a number of bits."""
    return flag(default, "Precision", text, kind=int, metavar="BITS", least=BITS[0], most=BITS[1], **facts)


def flag_of(item: Field[Any]) -> Flag:
    """Return the `Flag` of a field of `Config` or `Files`."""
    found: Flag = item.metadata["flag"]
    return found


def flag_name(field_name: str) -> str:
    """Return the flag of a field as it is written on the command line."""
    return f"--{field_name.replace('_', '-')}"


# --- checks


def check(settings: Any) -> None:
    """Raise InputError, naming the flag, unless every value has the type, the range and the name it may have."""
    for item in fields(settings):
        value, known = getattr(settings, item.name), flag_of(item)
        where = flag_name(item.name)
        if type(value) is type(item.default) and value == item.default:  # 8.0 and True are no whole numbers
            continue
        if isinstance(item.default, tuple):
            if not isinstance(value, tuple):
                raise InputError(f"{where} takes a list", where=repr(value), remedy=f"give [{known.metavar!r}, ...]")
        elif known.choices and value not in known.choices:
            raise InputError(f"{where} {value} is unknown", remedy=nearest(str(value), known.choices))
        elif not has_type(value, known.kind):
            raise InputError(f"{where} {value!r} has the wrong type", remedy=f"give {TYPE_NAMES[known.kind]}")
        elif known.kind in (int, float) and value not in known.beyond:
            check_range(where, value, known.least, known.most)


def has_type(value: object, kind: type) -> bool:
    """Say whether `value` is one for a flag of this kind; a truth value is not a number."""
    return isinstance(value, ACCEPTED[kind]) and isinstance(value, bool) == (kind is bool)


def check_range(where: str, value: float, least: float, most: float) -> None:
    """Raise InputError unless `value` lies in least .. most; `where` is the flag."""
    if not least <= value <= most:
        remedy = f"give {least:g} or more" if most == math.inf else f"give {least:g} to {most:g}"
        raise InputError(f"{where} {value} is out of range", remedy=remedy)


def check_pattern(where: str, pattern: str) -> None:
    """Raise InputError unless `pattern` is a regular expression."""
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        what = f"{where} {pattern!r} is not a regular expression: {error}"
        raise InputError(what, remedy=r"put a \ in front of a sign that is meant as it stands") from error


# --- notations


def parse_fix(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE, VALUE a number, true or false, or a list of such as JSON writes it; raises InputError."""
    name, _, value = str(text).rpartition("=")
    try:
        found = json.loads(value, parse_constant=lambda word: None)
    except (ValueError, RecursionError):
        found = None
    if not name or not is_number(found):
        remedy = "give NAME=VALUE: an input and a number or a list, or a symbolic size and a number"
        raise InputError(f"--fix {text!r} is not NAME=VALUE", remedy=remedy)
    return name, found


def is_number(value: Any) -> bool:
    """Say whether `value` is a number, a truth value, or a list of such."""
    return all(map(is_number, value)) if isinstance(value, list) else isinstance(value, int | float)


def parse_precision(text: Any) -> dict[str, int]:
    """Return the values of `w` and `a` in a text such as w4a4."""
    found = re.fullmatch(r"w(\d+)a(\d+)", str(text), re.IGNORECASE)
    if not found:
        raise InputError(
            f"--precision {text} is not of the form w4a4",
            remedy="give wXaY with X and Y from 2 to 8, Y 32 for weights alone",
        )
    return {"w": int(found[1]), "a": int(found[2])}


def parse_override(item: Any) -> tuple[str, int, int]:
    """Return (regular expression, weight bits, input bits), of that or of a text REGEX=W,A."""
    if isinstance(item, tuple | list) and [type(part) for part in item] == [str, int, int]:
        return item[0], item[1], item[2]
    found = re.fullmatch(r"(.+)=(\d+),(\d+)", item) if isinstance(item, str) else None
    if not found:
        raise InputError(f"--bits {item} is not of the form REGEX=W,A", remedy="for example --bits 'layer1=4,8'")
    return found[1], int(found[2]), int(found[3])


def parse_region(group: Any) -> tuple[str, ...]:
    """Return the units of one region: of a text UNIT+UNIT, or of a list of names and numbers."""
    parts = group.split("+") if isinstance(group, str) else group
    if not isinstance(parts, list | tuple) or not all(has_type(part, str) or has_type(part, int) for part in parts):
        raise InputError(f"--fuse {group!r} is no region", remedy="give UNIT+UNIT, or a list of names and numbers")
    if not (names := tuple(str(part).strip() for part in parts)) or not all(names):
        raise InputError(f"--fuse {group!r} lacks a unit", remedy="give UNIT+UNIT, or a list of names and numbers")
    return names
