"""What a target is: a folder of facts about a runtime, and of what a table cannot say of single nodes.

`facts.toml` says which operators have integer kernels and what a file must look like, `forms.py` the rest.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module, resources
from importlib.resources.abc import Traversable
from typing import Any, Final

from qcompile.errors import InputError, nearest
from qcompile.ir import Node
from qcompile.quant.grid import Container, Grid, unsigned
from qcompile.quant.params import Quantizer

GRIDS: Final[Mapping[str, Callable[[int], Grid]]] = {"uint8": unsigned}  # by the codes that a target has


@dataclass(frozen=True)
class Target:
    """Facts about a runtime, read from the folder of its name.

    Operator names by the form in which they run on integers: `compute` with weights, `arithmetic` with
    DequantizeLinear in and QuantizeLinear out, `codes` directly on codes; `clips` can be absorbed by a quantizer.
    `even_zero_point` names the operators that round after adding the zero point; `float_output` those whose integer
    kernel can give float32; `float_reasons` says why an operator stays float, `float_reason` why any other does.
    `checks` return the reason why a node of an operator does, or ""; `dictated` are output quantizers that the integer
    form of an operator has.

    `purpose` says in a line what it is for, `proven` what was proven and where. `integer_kernels`: nodes in these forms
    run on integers; else in float, on values that are rounded to the same grids.

    `activations` is the type of the codes of activations; `least_output_scale` the smallest scale of an output that a
    kernel takes, as a share of that of its input.

    `runtime` is the oldest version that files run on. What needs a later one is counted in where `runtime` is that:
    `codes_since` names the versions from which operators are `codes`, `packing_since` those of forms of weights.
    """

    name: str
    purpose: str
    proven: str
    runtime: str
    activations: Container
    opset: int
    integer_kernels: bool
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

    def grid(self, bits: int) -> Grid:
        """Return the grid of an activation of so many bits."""
        return GRIDS[self.activations](bits)

    @classmethod
    def load(cls, name: str, runtime: str | None = None) -> Target:
        """Read what is known of a target by name, for files that run on version `runtime` and later ones."""
        facts = known()
        if name not in facts:
            raise InputError(f"--target {name} is unknown", remedy=nearest(name, facts))
        table: dict[str, Any] = tomllib.loads(facts[name].read_text())
        forms = import_module(f"{__package__}.{name.replace('-', '_')}.forms")
        sets = ("compute", "arithmetic", "codes", "clips", "even_zero_point", "float_output")
        table |= {key: frozenset(table[key]) for key in sets}
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


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version such as 1.23.2, to be compared; raises InputError."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(?=$|\D)", version)
    if not found:
        raise InputError(f"--runtime-version {version} is no version", remedy="give one such as 1.23.2, or installed")
    return tuple(int(part or 0) for part in found.groups())
