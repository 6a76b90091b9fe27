"""A target of one's own: a TOML file that says which known target it is like, and which facts differ."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, Final, get_args

from jsonschema import ValidationError
from jsonschema.exceptions import best_match

from qcompile.errors import InputError, nearest
from qcompile.files import parse_toml, read_bytes
from qcompile.quant.grid import Container
from qcompile.quant.plan import Bias
from qcompile.quant.plan_file import Validator

Table = dict[str, Any]
SUFFIX: Final = ".toml"
FORMS: Final = ("compute", "arithmetic", "codes")  # an operator has one of them
OPERATORS: Final = (*FORMS, "clips", "float_output")  # facts that are sets of operators
TEXTS: Final = ("purpose", "proven", "float_reason")
PACKING: Final = ("packing", "packing_alone")  # facts whose order counts
DIGITS: Final = 8  # of the hash of a table

# By the backend of the target that a file is like: facts that its writer rests on.
KEPT: Final[Mapping[str, Collection[str]]] = {
    "ort-cpu": (
        *("opset", "activations", "symmetric", "costly_zero_points", "unrounded_sums", "unrounded_floats"),
        "zero_biases",
        *("movement", "bias", "power_of_two", "per_tensor_weights", "packing_alone"),
    ),
    "academic": (*PACKING, "movement", "bias"),
    "qdq": (),
}


def is_own(name: str) -> bool:
    """Say whether `name` is that of a file of facts, and not that of a known target."""
    return name.endswith(SUFFIX)


def own_table(path: Path, known: Mapping[str, Table]) -> Table:
    """Return all facts of the target in a file: its own, and for the others those of the known target it is like.

    With them come `like`, the name of that one, and `digest`, a hash of all. Raises InputError.
    """
    given = _read(path)
    like = given.get("like")
    if like is None:
        raise InputError("the target does not say what it is like", where=str(path), remedy='give like = "tensorrt"')
    _check({"like": like}, {"like": _one_of(known)}, path)
    base = known[like]
    _check(given, _facts(base, known), path, kept=[*base, *KEPT[base["backend"]]])
    named = {"name": re.sub(r"[^\w.-]", "-", path.stem), "purpose": f"like {like}", "proven": "nothing"}
    table = base | named | given
    if table["name"] in known:
        what = f"name {table['name']!r} is that of a known target"
        raise InputError(what, where=str(path), remedy="give a name of its own")
    table["float_reasons"] = base["float_reasons"] | table["float_reasons"]
    table["codes_since"] = {op: since for op, since in base["codes_since"].items() if op in given.get("codes", [op])}
    table["codes"] = [op for op in table["codes"] if op not in table["codes_since"]]
    _refuse_contradictions(table, path)
    return table | {"digest": _digest(table)}


def _digest(table: Table) -> str:
    """Return a hash of what the facts decide: not of texts, or of the order of operators."""
    decides = {
        key: sorted(value) if isinstance(value, list) and key not in PACKING else value
        for key, value in table.items()
        if key not in (*TEXTS, "float_reasons")
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:DIGITS]


def _read(path: Path) -> Table:
    data = read_bytes(path, "target")
    try:
        return parse_toml(data)
    except ValueError as error:
        raise InputError(f"the target is not TOML: {error}", where=str(path), remedy="correct it there") from error


# --- which facts there are


_TEXT: Final = {"type": "string", "description": "a text"}
_FLAG: Final = {"type": "boolean", "description": "true or false"}


def changeable(base: Table, known: Mapping[str, Table]) -> list[str]:
    """Return the facts that a target like `base` may have of its own, without those of single operators."""
    return [key for key in _facts(base, known) if key not in ("like", "float_reasons")]


def _facts(base: Table, known: Mapping[str, Table]) -> dict[str, Any]:
    """Return the facts that a target like `base` may have, as JSON schemas.

    Operators are those that qcompile has this form for; on the kernels of one runtime, those that these are for.
    """
    tables = [base] if base["backend"] == "ort-cpu" else list(known.values())
    facts = {
        "like": _one_of(known),
        "name": _TEXT | {"pattern": r"^[\w.-]+$", "description": "a text of letters, digits, -, _ and ."},
        **dict.fromkeys(TEXTS, _TEXT),
        "float_reasons": {"type": "object", "additionalProperties": _TEXT, "description": "a table of texts"},
        "opset": {"type": "integer", "minimum": 18, "maximum": 21, "description": "a whole number from 18 to 21"},
        "activations": _one_of(get_args(Container)),
        "symmetric": _FLAG,
        "costly_zero_points": _FLAG,
        "zero_biases": _FLAG,
        "unrounded_sums": _FLAG,
        "unrounded_floats": _FLAG,
        "movement": _one_of(("codes", "behind-dq")),
        "bias": _one_of(get_args(Bias)),
        "power_of_two": _list_of(("activations", "weights")),
        "per_tensor_weights": _list_of({"depthwise", *base["compute"]}),
        "packing_alone": _list_of({"int4", "none"}),
        "packing": _list_of({form for table in tables for form in table["packing"]})
        | {"minItems": min(1, len(base["packing"]))},
        **{key: _list_of({op for table in tables for op in _operators(table, key)}) for key in OPERATORS},
    }
    return {key: schema for key, schema in facts.items() if key not in KEPT[base["backend"]]}


def _operators(table: Table, key: str) -> set[str]:
    return {*table[key], *(table["codes_since"] if key == "codes" else ())}


def _one_of(names: Collection[str]) -> dict[str, Any]:
    return {"enum": sorted(names), "description": f"one of {', '.join(sorted(names))}"}


def _list_of(names: Collection[str]) -> dict[str, Any]:
    return {
        "type": "array",
        "items": {"enum": sorted(names)},
        "uniqueItems": True,
        "description": "a list of names, each once",
    }


# --- what is wrong with a file


def _check(given: Table, facts: Mapping[str, Any], path: Path, kept: Collection[str] = ()) -> None:
    """Raise InputError for a fact that is not there, is `kept` by the known target, or has a wrong value."""
    schema = {"type": "object", "properties": facts, "additionalProperties": False}
    error = best_match(Validator(schema).iter_errors(given))
    if error is None:
        return
    if error.validator != "additionalProperties":
        raise _wrong_value(error, facts, path)
    unknown = next(key for key in given if key not in facts)
    if unknown in kept:
        what = f"a target like {given['like']} keeps its {unknown}: how files are written rests on it"
        raise InputError(what, where=str(path), remedy="leave it out")
    raise InputError(f"unknown fact {unknown!r}", where=str(path), remedy=nearest(unknown, facts))


def _wrong_value(error: ValidationError, facts: Mapping[str, Any], path: Path) -> InputError:
    """Return the error for a value: a name that is not known, or what is of another kind."""
    fact, value = str(error.absolute_path[0]), error.instance
    if error.validator == "enum" and isinstance(value, str):
        forms = [key for key in OPERATORS if key in facts and value in facts[key]["items"]["enum"]]
        if forms and fact in OPERATORS:
            what = f"{value} cannot be one of {fact}"
            return InputError(what, where=str(path), remedy=f"it can be one of {', '.join(forms)}")
        names: list[str] = error.validator_value  # type: ignore[assignment]
        return InputError(f"{fact} {value!r} is unknown", where=str(path), remedy=nearest(value, names))
    shown = json.dumps(value, default=str)[:60]
    return InputError(f"{fact} cannot be {shown}", where=str(path), remedy=f"give {facts[fact]['description']}")


def _refuse_contradictions(table: Table, path: Path) -> None:
    """Raise InputError where two facts cannot both be."""
    for one, other in combinations(FORMS, 2):
        if twice := sorted(set(table[one]) & set(table[other])):
            what = f"{twice[0]} is in {one} and in {other}: an operator has one form"
            raise InputError(what, where=str(path), remedy="leave one of them out")
    if len(alone := {"Reshape", "Flatten"} & set(table["codes"])) == 1:
        (one,), (other,) = alone, {"Reshape", "Flatten"} - alone
        what = f"codes has {one} without {other}: a Reshape to a matrix is written as Flatten"
        raise InputError(what, where=str(path), remedy="name both or none")
    if table["symmetric"] and table["activations"] == "uint8":
        what = "symmetric activations in uint8 have no code below 0"
        raise InputError(what, where=str(path), remedy='give activations = "int8"')
