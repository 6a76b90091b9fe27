"""Quantized files that keep all rules of a runtime, and changes that break one of them: rule_examples.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from qcompile.runtime.session import version
from qcompile.targets.schema import release

HEAD: Final = '<ir_version: 10, opset_import: ["": %d, "com.microsoft": 1, "other": 1]>\n'
OPSET: Final = 21
TABLE: Final = tomllib.loads(Path(__file__).with_name("rule_examples.toml").read_text(encoding="utf-8"))
BASES: Final[dict[str, str]] = TABLE["bases"]
BIASES: Final = {"bs": ("xs", "ws"), "cs": ("ys", "vs")}  # scales that are products of two others, in float32
# 1.27 has kernels for some forms of Gemm that later ones lack; a check of a file asks the runtime that is there
MEASURED: Final = pytest.mark.skipif(release(version()) < (1, 32), reason="rules say what ONNX Runtime 1.32 does")


@dataclass(frozen=True)
class Example:
    """A change to a file that breaks a rule, and the node that the rule is then found at.

    `effect` is what comes of it in ONNX Runtime: optimizations change the numbers ("differs"), the file loads and does
    not run ("refuses").
    """

    code: str
    name: str
    base: str
    node: str
    change: Sequence[tuple[str, str]]
    effect: str = ""
    opset: int = OPSET

    def __str__(self) -> str:
        return f"{self.code}-{self.name}"

    def kept(self) -> onnx.ModelProto:
        """Return the file without the change."""
        return parsed(BASES[self.base])

    def broken(self) -> onnx.ModelProto:
        """Return the file with the change."""
        text = BASES[self.base]
        for old, new in self.change:
            assert old in text, old
            text = text.replace(old, new)
        return parsed(text, self.opset)


def parsed(text: str, opset: int = OPSET) -> onnx.ModelProto:
    """Parse a file; scales of biases become exact float32 products (text holds decimal fractions)."""
    model = parser.parse_model(HEAD % opset + text)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, (data, weight) in BIASES.items():
        if name in tensors:
            found, one, two = (numpy_helper.to_array(tensors[item]) for item in (name, data, weight))
            if np.allclose(found, one * two):
                tensors[name].CopyFrom(numpy_helper.from_array(one * two, name))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT4:  # the parser leaves one value in each byte
            tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.INT4, tensor.dims, list(tensor.int32_data)))
    return model


EXAMPLES: Final = [Example(code, name, **row) for code, rows in TABLE["rules"].items() for name, row in rows.items()]
