"""Packed weights that are stored: taken apart one by one they are what ONNX Runtime makes of the file."""

from __future__ import annotations

import numpy as np
import pytest
from networks import network, samples

import qcompile
from qcompile import Config
from qcompile.ir import store as module
from qcompile.ir.store import Store, stored_model, values_of
from qcompile.runtime.session import Session
from qcompile.runtime.unpack import UNPACKING, unpacked

WEIGHTS = ", ".join(f"float[96, 96] {name}" for name in "UVW")
CHAIN = f"net (float[N, 96] x, {WEIGHTS}) => (float[N, 96] y) {{ a = MatMul(x, U) b = MatMul(a, V) y = MatMul(b, W) }}"


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_unpacked_weights_are_those_of_the_file(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = network(CHAIN)
    feeds = samples(source)
    config = Config(w=bits, a=8, first_last_bits=bits, method="rtn", placement="all", threads=1)
    result = qcompile.compile(source, config, feeds)
    monkeypatch.setattr(module, "LARGE_BYTES", 1000)
    store = Store()
    loaded = unpacked(stored_model(result.model, store), store)
    assert not {node.op_type for node in loaded.graph.node} & UNPACKING
    made = {tensor.name: values_of(tensor) for tensor in loaded.graph.initializer}
    readings = [node.input[0] for node in loaded.graph.node if node.op_type == "DequantizeLinear"]
    weights = [made[name] for name in readings if name in made]
    for weight in result.plan.weights.values():
        assert any(np.array_equal(weight.integers(), found) for found in weights)
    np.testing.assert_array_equal(
        Session(loaded, threads=1).run(feeds)["y"], Session(result.model, threads=1).run(feeds)["y"]
    )


def test_what_is_not_stored_stays_as_it_is() -> None:
    result = qcompile.compile(
        network(CHAIN), Config(w=4, a=8, method="rtn", placement="all", threads=1), samples(network(CHAIN))
    )
    assert unpacked(result.model, Store()) is result.model
