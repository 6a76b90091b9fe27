"""Inputs and sizes that are fixed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, parser

from qcompile.errors import InputError
from qcompile.ir.freeze import freeze
from qcompile.runtime.session import Session


def model() -> ModelProto:
    return parser.parse_model(
        '<ir_version: 3, opset_import: ["": 17]> g (float[N,4] x, int64 rate, float[4] gain, float16[M] half)'
        " => (float[N,4] y, float16[M] z) { r = Cast<to = 1>(rate) a = Mul(x, r) y = Mul(a, gain) z = Neg(half) }"
    )


def test_a_frozen_input_is_a_constant_and_no_input() -> None:
    source = model()
    frozen = freeze(source, [("rate", 3), ("gain", [1, 2, 3, 4.5]), ("half", [0.1])])
    assert [item.name for item in source.graph.input] == ["x", "rate", "gain", "half"]
    assert [item.name for item in frozen.graph.input] == ["x"]
    found = Session(frozen, threads=1).run({"x": np.ones((2, 4), np.float32)})
    np.testing.assert_array_equal(found["y"], np.tile(np.float32([3, 6, 9, 13.5]), (2, 1)))
    np.testing.assert_array_equal(found["z"], np.float16([-0.1]))


def test_one_number_fills_a_known_shape() -> None:
    frozen = freeze(model(), [("gain", 2), ("N", 5)])
    assert frozen.graph.initializer[0].dims == [4]
    assert [dim.dim_value for item in (frozen.graph.input[0], frozen.graph.output[0])
            for dim in item.type.tensor_type.shape.dim] == [5, 4, 5, 4]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rat", 3, "the model has no such input and no such size; did you mean 'rate'"),
        ("rate", 2.5, "--fix rate: 2.5 is no int64"),
        ("rate", [1], r"--fix rate: the input takes \[\], the value is \[1\]"),
        ("gain", [1, 2], r"--fix gain: the input takes \[4\], the value is \[2\]"),
        ("half", 1, r"--fix half: the input takes \[\?\], the value is \[\]"),
        ("half", [1e6], "--fix half: .1000000.0. is no float16"),
        ("rate", 10**30, "--fix rate: 1000000000000000000000000000000 is no int64"),
        ("gain", [1, 2, 3, 10**400], "--fix gain: .* is no float32"),
        ("N", 2.5, "--fix N: 2.5 is no size"),
        ("N", True, "--fix N: True is no size"),
    ],
)
def test_wrong_values_are_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        freeze(model(), [(name, value)])


def test_what_is_fixed_twice_is_named() -> None:
    with pytest.raises(InputError, match="--fix rate is given twice"):
        freeze(model(), [("rate", 3), ("rate", 4)])
