"""The facts of a target as TOML: to read, and to begin a file of one's own with."""

from __future__ import annotations

import json
from typing import Any

from qcompile.targets.own import changeable
from qcompile.targets.schema import Target, known_tables

OF_ONE = ("name", "purpose", "proven")  # what two targets do not share


def as_file(name: str) -> str:
    """Return a target as a file that says it; behind what differs stands what the target it is like has there.

    Of a known target it is a file that is like it and changes nothing. Raises InputError.
    """
    target, tables = Target.load(name), known_tables()
    like = Target.load(target.like) if target.like else target
    lines = [f'like = "{like.name}"']
    for key in changeable(tables[like.name], tables):
        value, there = (_text(getattr(item, key)) for item in (target, like))
        if target.like and key in OF_ONE:
            lines.append(f"{key} = {value}")
        elif key not in OF_ONE:
            lines.append(f"{key} = {value}" + (f"  # there {there}" if value != there else ""))
    known = like.float_reasons if target.like else target.float_reasons
    own = {op: text for op, text in target.float_reasons.items() if known.get(op) != text}
    return "\n".join([*lines, *(["[float_reasons]"] if own else []), *(f"{op} = {_text(own[op])}" for op in own)])


def _text(value: Any) -> str:
    """Return a value as TOML has it; a set is sorted."""
    return json.dumps(sorted(value) if isinstance(value, frozenset) else value)
