"""Every error that qcompile raises on purpose.

QCompileError          the tool failed                                         exit code 1
├── InputError         a bad command, recipe, model or data: nothing written   exit code 2
├── EmissionError      the emitted file broke a rule of its target             exit code 1
└── QualityError       there are warnings, and --strict: the file is written   exit code 3

An error says what is wrong, where, and what to do; its text is one line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class QCompileError(Exception):
    """Base of every error: `what` happened, `where`, and the `remedy`."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__("".join([what, f" ({where})" if where else "", f"; {remedy}" if remedy else ""]))


class InputError(QCompileError):
    """The command, the recipe, the model or the data cannot be used."""

    exit_code = 2


class EmissionError(QCompileError):
    """The emitted file broke a rule of its target: a fault of qcompile, never of its user."""


class QualityError(QCompileError):
    """The file is written, but there are warnings about it, and the user asked for none."""

    exit_code = 3


def expect(value: object, kinds: type | tuple[type, ...], what: str, remedy: str) -> None:
    """Raise InputError, which calls it `what`, unless `value` is one of `kinds`: for what Python code passes in."""
    if not isinstance(value, kinds):
        kind = f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"
        raise InputError(f"the {what} is {kind}", remedy=remedy)


NEAR = 0.65  # likeness of a name that was meant: one letter of three may differ
LISTED = 8  # names, where none is near


def near(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that `name` was probably meant for, or None: one that is alike or begins with it."""
    asked = name.strip("-").lower()
    names = {item.strip("-").lower(): item for item in sorted(known, reverse=True)}
    alike = difflib.get_close_matches(asked, names, n=1, cutoff=NEAR)
    begun = [item for item in names if item.startswith(asked)] if len(asked) > 2 else []
    found = [*alike, *begun[-1:]]
    return names[found[0]] if found else None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'?" for the known name near to `name`; where there is none, some that are known."""
    known = sorted(known)
    if (close := near(name, known)) is not None:
        return f"did you mean {close!r}?"
    more = len(known) - LISTED
    return f"known: {', '.join(known[:LISTED])}" + (f" and {more} more" if more > 0 else "")


def pattern(names: Iterable[str]) -> str:
    """Return a regular expression that matches these node names and no other: what --keep-float and --bits take."""
    return f"^({'|'.join(map(re.escape, names))})$"
