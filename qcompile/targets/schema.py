"""A target is a table: which operators of a runtime have integer kernels, and what the emitted file must look like."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from qcompile.errors import InputError, nearest


@dataclass(frozen=True)
class Target:
    """Facts about a runtime, read from `targets/<name>.toml`.

    Operator names by the form in which they run on integers: `compute` with weights, `arithmetic` with
    DequantizeLinear in and QuantizeLinear out, `codes` directly on uint8; `clips` can be absorbed by a quantizer.
    `even_zero_point` names the operators that round after adding the zero point; `float_output` those whose integer
    kernel can give float32; `float_reasons` says why an operator stays float.
    """

    name: str
    opset: int
    ir_version: int
    compute: frozenset[str]
    arithmetic: frozenset[str]
    codes: frozenset[str]
    clips: frozenset[str]
    even_zero_point: frozenset[str]
    float_output: frozenset[str]
    float_reasons: dict[str, str]

    @classmethod
    def load(cls, name: str) -> Target:
        """Read the table of a target by name."""
        tables = (item for item in resources.files(__package__).iterdir() if item.name.endswith(".toml"))
        files = {item.name.removesuffix(".toml").replace("_", "-"): item for item in tables}
        if name not in files:
            raise InputError(f"--target {name} is unknown", remedy=nearest(name, files))
        table: dict[str, Any] = tomllib.loads(files[name].read_text())
        sets = ("compute", "arithmetic", "codes", "clips", "even_zero_point", "float_output")
        return cls(**table | {key: frozenset(table[key]) for key in sets})
