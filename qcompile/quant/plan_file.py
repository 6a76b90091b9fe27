"""Save a plan and read it back: one .npz (JSON inside), or a folder with plan.json beside arrays.npz, for editing.

Decisions are JSON, held against `SCHEMA`; weights' codes, their grids and biases are arrays, each once. What stands on
edges is by tensor, then by reader ("" is the tensor's own). What the plan was made for (target, fingerprint of the
model) is part of the file.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from jsonschema.validators import extend
from numpy.typing import NDArray

from qcompile.errors import InputError
from qcompile.files import Content, parse_json, read_bytes, write_files
from qcompile.flags import BITS, FLOAT_BITS
from qcompile.quant.grid import Container, Grid
from qcompile.quant.params import ActivationSpec, Quantizer, WeightQuantizer, WeightSpec
from qcompile.quant.plan import Bias, Boundary, Edge, Form, NodePlan, Plan, Unit
from qcompile.quant.plan_check import plan_problem

VERSION = 7
AGAIN = "make it again with --save-plan"
ARRAYS = ("codes", "scale", "step", "offset")  # of a WeightQuantizer
Contents = dict[str, NDArray[Any]]

_BITS = {"type": "integer", "minimum": BITS[0], "maximum": BITS[1]}
_BITS_OR_NONE = {"enum": [0, *range(BITS[0], BITS[1] + 1)], "type": "integer"}
_INPUT_BITS = {"enum": [0, *range(BITS[0], BITS[1] + 1), FLOAT_BITS], "type": "integer"}
_BLOCK = {"type": "integer", "minimum": 0}
_NAMES = {"type": "array", "items": {"type": "string"}}
_LARGEST = 3.5e38  # a little above float32's: no whole number is too large for a float
_BOUND = {"type": ["number", "null"], "minimum": -_LARGEST, "maximum": _LARGEST}


def record(**properties: Any) -> dict[str, Any]:
    """Return the schema of an object that has these properties and no others."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _table(row: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": row}


_CODE = {"type": "integer", "minimum": -128, "maximum": 255}
_GRID = record(low=_CODE, high=_CODE, container={"enum": get_args(Container)})
_QUANTIZER = record(
    grid=_GRID,
    scale={"type": "number", "exclusiveMinimum": 0, "maximum": _LARGEST},
    zero_point=_CODE,
)
_EDGE = record(tensor={"type": "string"}, reader={"type": "string"})
_NODE = record(
    form={"enum": [str(form) for form in Form]},
    reason={"type": "string"},
    weight_bits=_BITS_OR_NONE,
    input_bits=_INPUT_BITS,
    block=_BLOCK,
)
_SPEC = record(
    grid=_GRID,
    lower=_BOUND,
    upper=_BOUND,
    even_zero_point={"type": "boolean"},
    fixed={"anyOf": [{"type": "null"}, _QUANTIZER]},
    symmetric={"type": "boolean"},
    centred={"type": "number", "minimum": 1, "maximum": 2},
    power_of_two={"type": "boolean"},
)
_WEIGHT = record(
    bits=_BITS,
    axis={"type": "integer", "minimum": 0},
    per_tensor={"type": "boolean"},
    block=_BLOCK,
    power_of_two={"type": "boolean"},
)
_UNIT = record(name={"type": "string"}, nodes=_NAMES, inputs=_NAMES, outputs=_NAMES, note={"type": "string"})
_BOUNDARY = record(
    first={"type": "string"},
    second={"type": "string"},
    differential={"type": "number", "minimum": -_LARGEST, "maximum": _LARGEST},
    homogeneous={"type": "boolean"},
    inner={"type": "boolean"},
)
_POSITIVE = {"type": "number", "minimum": 0, "maximum": _LARGEST}
SCHEMA = record(
    version={"const": VERSION},
    target={"type": "string"},
    fingerprint={"type": "string"},
    nodes=_table(_NODE),
    groups=_table({"type": "string"}),
    reads=_table(_table(_EDGE)),
    specs=_table(_table(_SPEC)),
    quantizers=_table(_table(_QUANTIZER)),
    weights=_table(_WEIGHT),
    biases=_NAMES,
    units={"type": "array", "items": _UNIT},
    capacities=_table(_POSITIVE),
    boundaries={"type": "array", "items": _BOUNDARY},
    losses=_table(_POSITIVE),
    untouched=_NAMES,
    unrounded=_NAMES,
    regions={"type": "array", "items": _NAMES},
    recipe={"type": "string"},
    backend={"type": "string"},
    bias={"enum": get_args(Bias)},
)


# 4.0 is no integer here: it would be one of Python's floats
_WHOLE = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
Validator = extend(Draft202012Validator, type_checker=_WHOLE)  # type: ignore[no-untyped-call]
VALIDATOR = Validator(SCHEMA)


def save_plan(plan: Plan, path: Path, *, target: str, fingerprint: str) -> None:
    """Write `plan`, whole or not at all; raises InputError."""
    write_files(plan_files(plan, path, target=target, fingerprint=fingerprint), made=plan_folders(path))


def plan_files(plan: Plan, path: Path, *, target: str, fingerprint: str) -> dict[Path, Content]:
    """Return what to write for `plan`: one file where `path` ends in .npz, else two in a folder of that name."""
    document = to_json(plan, target=target, fingerprint=fingerprint)
    arrays = _arrays(plan)
    places = plan_places(path)
    if len(places) == 1:
        text = json.dumps(document).encode()
        return {path: [_npz({"plan": np.frombuffer(text, np.uint8), **arrays})]}
    return dict(zip(places, ([json.dumps(document, indent=1).encode()], [_npz(arrays)]), strict=True))


def plan_places(path: Path) -> tuple[Path, ...]:
    """Return the files that make up the plan of that name."""
    return tuple(folder / name for folder in plan_folders(path) for name in ("plan.json", "arrays.npz")) or (path,)


def plan_folders(path: Path) -> tuple[Path, ...]:
    """Return the folder of the plan of that name, if it is one."""
    return () if path.suffix == ".npz" and not path.is_dir() else (path,)


def load_plan(path: Path, *, target: str, fingerprint: str) -> Plan:
    """Read a plan; raise InputError where it is not one, or was made for another target or another model."""
    plan, made_from = read_plan_file(path)
    if plan.target != target:
        what = f"the plan was made for target {plan.target!r}, not {target!r}"
        raise InputError(what, where=str(path), remedy=AGAIN)
    if made_from != fingerprint:
        raise InputError("the plan was made for another model or other weights", where=str(path), remedy=AGAIN)
    if problem := plan_problem(plan):
        raise InputError(f"the plan has a wrong entry: {problem}", where=str(path), remedy=AGAIN)
    return plan


def read_plan_file(path: Path) -> tuple[Plan, str]:
    """Read a plan, whatever it was made for, and the fingerprint of its model; raise InputError where it is none."""
    document, arrays = _contents(path)
    if isinstance(document, dict) and document.get("version", VERSION) != VERSION:
        raise InputError("the plan is of another version of qcompile", where=str(path), remedy=AGAIN)
    if (error := best_match(VALIDATOR.iter_errors(document))) is not None:
        where = "/".join(map(str, error.absolute_path))
        raise InputError(f"the plan has a wrong entry: {error.message[:200]}", where=f"{path}: {where}", remedy=AGAIN)
    wanted = {f"weights/{index}/{key}" for index in range(len(document["weights"])) for key in ARRAYS}
    wanted |= {f"biases/{index}" for index in range(len(document["biases"]))}
    if wanted != arrays.keys():
        raise InputError("the plan's arrays do not belong to it", where=str(path), remedy=AGAIN)
    return from_json(document, arrays), document["fingerprint"]


def _contents(path: Path) -> tuple[Any, Contents]:
    """Return the document and the arrays in the files of a plan."""
    parts = [read_bytes(part, "plan") for part in (plan_places(path) if path.is_dir() else (path,))]
    try:
        arrays = _read_npz(parts[-1])
        return parse_json(parts[0] if len(parts) > 1 else arrays.pop("plan").tobytes()), arrays
    except Exception as error:  # zipfile, zlib and numpy each raise their own
        remedy = "give a file or folder that --save-plan wrote"
        raise InputError(f"not a plan: {error or type(error).__name__}", where=str(path), remedy=remedy) from error


def to_json(plan: Plan, *, target: str, fingerprint: str) -> dict[str, Any]:
    """Return the decisions as plain JSON values, without arrays; infinite bounds are null."""
    return {
        "version": VERSION,
        "target": target,
        "fingerprint": fingerprint,
        "nodes": {name: asdict(node) for name, node in plan.nodes.items()},
        "groups": plan.groups,
        "reads": _by_tensor({edge: key._asdict() for edge, key in plan.reads.items()}),
        "specs": _by_tensor({key: _spec_row(spec) for key, spec in plan.specs.items()}),
        "quantizers": _by_tensor({key: _plain(quantizer) for key, quantizer in plan.quantizers.items()}),
        "weights": {
            name: {"bits": weight.bits, "axis": weight.axis, **asdict(weight.spec)}
            for name, weight in plan.weights.items()
        },
        "biases": list(plan.biases),
        "units": [
            {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(unit).items()}
            for unit in plan.units
        ],
        "capacities": plan.capacities,
        "boundaries": [asdict(boundary) for boundary in plan.boundaries],
        "losses": plan.losses,
        "untouched": plan.untouched,
        "unrounded": plan.unrounded,
        "regions": [list(region) for region in plan.regions],
        "recipe": plan.recipe,
        "backend": plan.backend,
        "bias": plan.bias,
    }


def from_json(document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Plan:
    """Return the plan behind `to_json` and its arrays; raises KeyError where an array is missing."""
    return Plan(
        nodes={name: NodePlan(**{**row, "form": Form(row["form"])}) for name, row in document["nodes"].items()},
        groups=dict(document["groups"]),
        reads={edge: Edge(**row) for edge, row in _by_edge(document["reads"])},
        specs={key: _spec(row) for key, row in _by_edge(document["specs"])},
        quantizers={key: _quantizer(row) for key, row in _by_edge(document["quantizers"])},
        weights={
            name: WeightQuantizer(
                row["bits"],
                row["axis"],
                **{key: arrays[f"weights/{index}/{key}"] for key in ARRAYS},
                spec=WeightSpec(row["per_tensor"], row["power_of_two"], row["block"]),
            )
            for index, (name, row) in enumerate(document["weights"].items())
        },
        biases={name: arrays[f"biases/{index}"] for index, name in enumerate(document["biases"])},
        units=[
            Unit(row["name"], tuple(row["nodes"]), tuple(row["inputs"]), tuple(row["outputs"]), row["note"])
            for row in document["units"]
        ],
        capacities=dict(document["capacities"]),
        boundaries=[Boundary(**row) for row in document["boundaries"]],
        losses=dict(document["losses"]),
        untouched=list(document["untouched"]),
        unrounded=list(document["unrounded"]),
        regions=[tuple(region) for region in document["regions"]],
        recipe=document["recipe"],
        target=document["target"],
        backend=document["backend"],
        bias=document["bias"],
    )


def _by_tensor(rows: Mapping[Edge, dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the rows of edges by tensor, then by reader."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for edge, row in rows.items():
        found.setdefault(edge.tensor, {})[edge.reader] = row
    return found


def _by_edge(table: Mapping[str, Mapping[str, dict[str, Any]]]) -> Iterator[tuple[Edge, dict[str, Any]]]:
    return ((Edge(tensor, reader), row) for tensor, rows in table.items() for reader, row in rows.items())


def _arrays(plan: Plan) -> Contents:
    weights = enumerate(plan.weights.values())
    return {
        **{f"weights/{index}/{key}": getattr(weight, key) for index, weight in weights for key in ARRAYS},
        **{f"biases/{index}": bias for index, bias in enumerate(plan.biases.values())},
    }


def _npz(arrays: Contents) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # no key of ours is called allow_pickle
    return buffer.getvalue()


def _read_npz(data: bytes) -> Contents:
    if not data.startswith(b"PK"):  # numpy would speak of pickles
        raise ValueError("it is no .npz")
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return dict(archive)


def _spec(row: Mapping[str, Any]) -> ActivationSpec:
    lower = -math.inf if row["lower"] is None else row["lower"]
    upper = math.inf if row["upper"] is None else row["upper"]
    fixed = _quantizer(row["fixed"]) if row["fixed"] else None
    rest = {key: row[key] for key in ("even_zero_point", "symmetric", "centred", "power_of_two")}
    return ActivationSpec(Grid(**row["grid"]), lower, upper, fixed=fixed, **rest)


def _quantizer(row: Mapping[str, Any]) -> Quantizer:
    return Quantizer(**{**row, "grid": Grid(**row["grid"])})


def _spec_row(spec: ActivationSpec) -> dict[str, Any]:
    return {
        "grid": asdict(spec.grid),
        "lower": _finite(spec.lower),
        "upper": _finite(spec.upper),
        "even_zero_point": spec.even_zero_point,
        "fixed": _plain(spec.fixed) if spec.fixed else None,
        "symmetric": spec.symmetric,
        "centred": spec.centred,
        "power_of_two": spec.power_of_two,
    }


def _finite(bound: float) -> float | None:
    return float(bound) if math.isfinite(bound) else None


def _plain(quantizer: Quantizer) -> dict[str, Any]:
    return {
        "grid": asdict(quantizer.grid),
        "scale": float(quantizer.scale),
        "zero_point": int(quantizer.zero_point),
    }
