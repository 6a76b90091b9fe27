"""What a target is: a folder of facts about a runtime, and of what a table cannot say of single nodes.

`facts.toml` says which operators have integer kernels and what a file must look like, `forms.py` the rest.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module, resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final, Literal

import numpy as np

from qcompile.errors import InputError, nearest
from qcompile.ir import Node
from qcompile.program.operands import is_depthwise
from qcompile.quant.grid import Container, Grid, signed, unsigned
from qcompile.quant.params import Quantizer, WeightSpec
from qcompile.quant.plan import WIDE, Bias
from qcompile.targets.own import PACKING, Table, is_own, own_table

GRIDS: Final[Mapping[str, Callable[[int], Grid]]] = {"uint8": unsigned, "int8": signed}  # by the codes of a target
SETS: Final = (
    "compute",
    "arithmetic",
    "codes",
    "clips",
    "even_zero_point",
    "float_output",
    "per_tensor_weights",
)  # of operators


@dataclass(frozen=True)
class Target:
    """Facts about a runtime, read from the folder of its name.

    Operator names by the form in which they run on integers: `compute` with weights, `arithmetic` with
    DequantizeLinear in and QuantizeLinear out, `codes` directly on codes; `clips` can be absorbed by a quantizer.
    `even_zero_point` names the operators that round after adding the zero point; `float_output` those whose integer
    kernel can give float32; `float_reasons` says why an operator stays float, `float_reason` why any other does.
    `checks` return the reason why a node of an operator does, or ""; `dictated` are output quantizers that the integer
    form of an operator has.

    `purpose` says in a line what it is for, `proven` what was proven and where. `kernels` says whose integer kernels
    nodes in these forms run on: those of ONNX Runtime, which can be looked up here; those of another runtime; or none,
    so in float, on values that are rounded to the same grids.

    `backend` is what writes the files. `activations` is the type of the codes of activations, `symmetric` where their
    zero point is 0, `costly_zero_points` where one takes time, so that as many as may be are 0; `least_output_scale`
    the smallest scale of an output that a kernel takes, as a share of that of its input. `unrounded_sums`: an Add takes
    the result of the layer in front of it before it is rounded, so that operand has no quantizer. `unrounded_floats`:
    float nodes, too, read what a layer makes before it is rounded. `movement` says where what moves or clips codes
    stands: on them, or in float around them. `packing` names the forms of weights below 8 bits, the usual one first;
    `packing_alone` those of weights that alone have codes, where there is a use for such; `bias` the type that biases
    are written in. `zero_biases`: a layer may have none, or one of zeros.

    `runtime` is the oldest version that files run on. What needs a later one is counted in where `runtime` is that:
    `codes_since` names the versions from which operators are `codes`, `packing_since` those of forms of weights.

    `power_of_two` says of what scales are powers of two: "activations", "weights". `per_tensor_weights` names the
    operators, and "depthwise" convolutions, whose weights have one scale for all channels.

    A target of one's own, from a file, is `like` a known one; `digest` is a hash of its facts. Where plans are for
    several targets at once, these are the `parts`, and files are for one of them.
    """

    name: str
    purpose: str
    proven: str
    runtime: str
    backend: str
    activations: Container
    symmetric: bool
    costly_zero_points: bool
    unrounded_sums: bool
    unrounded_floats: bool
    movement: Literal["codes", "behind-dq"]
    packing: tuple[str, ...]
    packing_alone: tuple[str, ...]
    bias: Bias
    zero_biases: bool
    opset: int
    kernels: Literal["onnxruntime", "others", "none"]
    compute: frozenset[str]
    arithmetic: frozenset[str]
    codes: frozenset[str]
    clips: frozenset[str]
    even_zero_point: frozenset[str]
    float_output: frozenset[str]
    float_reason: str
    float_reasons: dict[str, str]
    least_output_scale: dict[str, float]
    checks: Mapping[str, Callable[[Node], str]]
    dictated: Mapping[str, Quantizer]
    codes_since: dict[str, str]
    packing_since: dict[str, str]
    power_of_two: tuple[str, ...] = ()
    per_tensor_weights: frozenset[str] = frozenset()
    like: str = ""
    digest: str = ""
    parts: tuple[Target, ...] = ()

    @property
    def identity(self) -> str:
        """What plans are made for: the name, and the digest of facts that only a file has."""
        return f"{self.name} ({self.digest})" if self.digest else self.name

    @property
    def written(self) -> tuple[Target, ...]:
        """The targets that files are written for: the parts, or this one."""
        return self.parts or (self,)

    @property
    def runs_here(self) -> bool:
        """Say whether ONNX Runtime runs its files on integers; else it runs them in float between quantizers."""
        return self.kernels == "onnxruntime"

    def forms_of_weights(self, pack: str) -> tuple[str, ...]:
        """Return the forms in which files hold weights below 8 bits where `pack` is asked for, in the order tried.

        What is in none of them is int8: not every weight fits INT4, and planes take its place where they can be read.
        """
        first = self.packing[0] if pack == "auto" else pack
        return {"int4": ("int4", *({"planes"} & {*self.packing})), "planes": ("planes",), "none": ()}[first]

    def grid(self, bits: int, lower: float = -np.inf) -> Grid:
        """Return the grid of an activation of so many bits whose values are not below `lower`.

        Around a zero point of 0 such values have the codes from there on, as many as others; at 8 bits the container
        has room for half of them.
        """
        grid = GRIDS[self.activations](bits)
        if not (self.symmetric and lower >= 0):
            return grid
        return grid.half if bits == WIDE else replace(grid, low=0, high=grid.steps)

    @property
    def power_activations(self) -> bool:
        """Say whether scales of activations are powers of two."""
        return "activations" in self.power_of_two

    def weight_spec(self, node: Node) -> WeightSpec:
        """Return what is asked of the scales of the weight of a layer."""
        kinds = {node.op, *(("depthwise",) if is_depthwise(node) else ())}
        return WeightSpec(not kinds.isdisjoint(self.per_tensor_weights), "weights" in self.power_of_two)

    @classmethod
    def load(cls, name: str, runtime: str | None = None) -> Target:
        """Read the facts about a known target, or those in a TOML file, for version `runtime` and later ones."""
        tables = known_tables()
        if not is_own(name) and name not in tables:
            raise InputError(f"--target {name} is unknown", remedy=nearest(name, tables))
        table = own_table(Path(name), tables) if is_own(name) else tables[name]
        forms = import_module(f"{__package__}.{table.get('like', name).replace('-', '_')}.forms")
        table |= {key: frozenset(table[key]) for key in SETS if key in table}
        table |= {key: tuple(table[key]) for key in (*PACKING, "power_of_two") if key in table}
        oldest, runtime = table["runtime"], runtime or table["runtime"]
        if release(runtime) < release(oldest):
            raise InputError(f"--runtime-version {runtime} is too old", remedy=f"give {oldest} or a later one")
        late = {op: since for op, since in table["codes_since"].items() if release(since) > release(runtime)}
        table["codes"] |= table["codes_since"].keys() - late.keys()
        reasons = {
            op: f"on {table['activations']} only from ONNX Runtime {since} (--runtime-version)"
            for op, since in late.items()
        }
        own = {"checks": forms.CHECKS, "dictated": forms.DICTATED}
        return cls(**table | own | {"runtime": runtime, "float_reasons": table["float_reasons"] | reasons})


def known() -> dict[str, Traversable]:
    """Return the files of facts of all targets, by name."""
    folders = {item.name.replace("_", "-"): item / "facts.toml" for item in resources.files(__package__).iterdir()}
    return {target: path for target, path in sorted(folders.items()) if path.is_file()}


def known_tables() -> dict[str, Table]:
    """Return the facts of all known targets as their files have them, by name."""
    return {target: tomllib.loads(path.read_text()) for target, path in known().items()}


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version such as 1.23.2, to be compared; raises InputError."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(?=$|\D)", version)
    if not found:
        raise InputError(f"--runtime-version {version} is no version", remedy="give one such as 1.23.2, or installed")
    return tuple(int(part or 0) for part in found.groups())
