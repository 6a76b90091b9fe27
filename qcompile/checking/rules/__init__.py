"""The rules by code: what they say is in catalogue.toml, what finds them is a function of a quantized file.

A rule that only a runtime can answer has no function.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final, Literal

from qcompile.checking.graph import QuantizedFile
from qcompile.checking.rules import numbers, openvino, ort_cpu, ort_waste, tensorrt
from qcompile.emission.emitted import Finding
from qcompile.errors import InputError, nearest

Severity = Literal["wrong", "slow", "note"]


@dataclass(frozen=True)
class Rule:
    """What can be wrong with a quantized file.

    `runtimes` are those where it holds. `kernels`: "missed", a node that breaks it runs in float there; "used", it is
    about integer kernels, so it says nothing of a node that runs in float; "kept", the node is not optimized away.
    """

    code: str
    title: str
    runtimes: tuple[str, ...]
    severity: Severity
    why: str
    mend: str
    kernels: Literal["missed", "used", "kept", ""] = ""

    def contradicted(self, integer: Mapping[str, bool], node: str) -> bool:
        """Say whether a node cannot break it by what the runtime makes of it.

        `integer` says of the nodes that are left in the optimized graph whether they run on integers.
        """
        if node not in integer:
            return self.kernels == "kept"
        return self.kernels == ("missed" if integer[node] else "used")

    def find(self, file: QuantizedFile) -> list[Finding]:
        """Return (node, detail) for every place where the file breaks it; none for what only a runtime can tell."""
        found = FUNCTIONS.get(self.code)
        return list(dict(found(file)).items()) if found else []


FUNCTIONS: Final = {
    "QC101": ort_cpu.one_quantizer,
    "QC102": ort_cpu.absorbed_clips,
    "QC103": ort_cpu.byte_weights,
    "QC104": ort_cpu.byte_activations,
    "QC105": ort_cpu.integer_bias,
    "QC106": ort_cpu.lonely_int8,
    "QC107": ort_cpu.plain_gemm,
    "QC109": ort_cpu.unmerged_sums,
    "QC111": ort_cpu.weight_axis,
    "QC112": ort_cpu.tensor_activations,
    "QC113": ort_cpu.merged_pairs,
    "QC114": ort_cpu.bias_scale,
    "QC115": ort_cpu.moved_int8,
    "QC121": ort_waste.unsigned_weights,
    "QC122": ort_waste.weights_in_float,
    "QC123": ort_waste.useful_pairs,
    "QC124": ort_waste.moves_on_codes,
    "QC125": ort_waste.no_float_pad,
    "QC126": ort_waste.static_convolutions,
    "QC131": ort_waste.no_saturation,
    "QC132": ort_waste.no_lowest_depthwise,
    "QC133": ort_waste.stored_in_codes,
    "QC134": ort_waste.known_operators,
    "QC201": numbers.no_wrapping,
    "QC202": numbers.whole_bias,
    "QC203": numbers.sound_scales,
    "QC204": numbers.room_for_sums,
    "QC205": numbers.axis_known,
    "QC301": tensorrt.symmetric,
    "QC302": tensorrt.signed_codes,
    "QC303": tensorrt.float_bias,
    "QC304": tensorrt.readable_types,
    "QC305": tensorrt.no_bit_operators,
    "QC306": tensorrt.pairs_alone,
    "QC307": tensorrt.int4_read_by_pairs,
    "QC308": tensorrt.int4_weights_alone,
    "QC309": tensorrt.constants_behind_pairs,
    "QC310": tensorrt.fused_outputs,
    "QC401": openvino.plain_weights,
    "QC402": openvino.transposed_floats,
    "QC403": openvino.symmetric_weights,
    "QC404": openvino.zero_points_of_convolutions,
    "QC405": openvino.byte_activations,
    "QC406": openvino.static_layers,
    "QC407": openvino.operators_read,
    "QC408": openvino.one_scale_of_convolutions,
}


def _read() -> Mapping[str, Rule]:
    table = tomllib.loads((resources.files(__package__) / "catalogue.toml").read_text(encoding="utf-8"))
    return {code: Rule(**row | {"code": code, "runtimes": tuple(row["runtimes"])}) for code, row in table.items()}


RULES: Final = _read()
RUNTIMES: Final = tuple(dict.fromkeys(runtime for rule in RULES.values() for runtime in rule.runtimes))


def rule_of(code: str) -> Rule:
    """Return the rule of a code such as QC101; raises InputError."""
    if code.upper() not in RULES:
        raise InputError(f"--explain {code} is no rule", remedy=nearest(code.upper(), RULES))
    return RULES[code.upper()]
