"""State that stays with the runtime is what a run with copies computes, and is not overwritten too early."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

from qcompile.errors import QCompileError
from qcompile.runtime.in_place import InPlace, overwritable
from qcompile.runtime.session import Session

STEP = """<ir_version: 8, opset_import: ["" : 18]>
g (float[64] p, float[64] m, float[64] x) => (float e, float[64] q, float[64] n) <float rate = {0.1}> {
  d = Sub(p, x)  s = Mul(d, d)  e = ReduceSum<keepdims = 0>(s)
  n = Add(m, d)  c = Mul(n, rate)  q = Sub(p, c)
}"""


def step_model() -> onnx.ModelProto:
    return parser.parse_model(STEP)


def start() -> dict[str, np.ndarray]:
    return {"p": np.arange(64, dtype=np.float32), "m": np.zeros(64, np.float32)}


def test_bitwise_what_copies_give() -> None:
    bound = InPlace(step_model(), start(), {"p": "q", "m": "n"}, threads=1)
    copied, state = Session(step_model(), threads=1), start()
    for seed in range(20):
        feeds = {"x": np.random.default_rng(seed).normal(size=64).astype(np.float32)}
        results = copied.run(feeds | state)
        state = {"p": results["q"], "m": results["n"]}
        np.testing.assert_array_equal(bound.run(feeds)["e"], results["e"])
    for name, array in bound.read().items():
        np.testing.assert_array_equal(array, state[name])


def test_start_values_stay_as_they_were_and_can_be_set_again() -> None:
    given = start()
    bound = InPlace(step_model(), given, {"p": "q", "m": "n"}, threads=1)
    feeds = {"x": np.ones(64, np.float32)}
    first = bound.run(feeds)["e"].item()
    assert bound.run(feeds)["e"].item() != first
    np.testing.assert_array_equal(given["p"], start()["p"])
    bound.write(given)
    assert bound.run(feeds)["e"].item() == first


def test_state_that_is_not_written_over_stays() -> None:
    bound = InPlace(step_model(), {**start(), "x": np.ones(64, np.float32)}, {"p": "q", "m": "n"}, threads=1)
    assert bound.run({})["e"].item() == np.square(start()["p"] - 1).sum()
    np.testing.assert_array_equal(bound.read()["x"], np.ones(64))


def test_feeds_need_not_be_contiguous() -> None:
    """A copy is made of such arrays, which must live until the run is over."""
    bound = InPlace(step_model(), start(), {"p": "q", "m": "n"}, threads=1)
    wide = np.zeros((64, 1 << 12), np.float32)
    wide[:, 0] = 1
    assert bound.run({"x": wide[:, 0]})["e"].item() == np.square(start()["p"] - 1).sum()


def test_an_old_value_that_is_read_later_is_refused() -> None:
    late = step_model()
    late.graph.node.append(onnx.helper.make_node("Add", ["p", "q"], ["both"]))
    late.graph.output.append(onnx.helper.make_tensor_value_info("both", 1, [64]))
    assert overwritable(step_model(), "p", "q")
    assert not overwritable(late, "p", "q")
    with pytest.raises(QCompileError, match="'q' cannot be written over 'p'"):
        InPlace(late, start(), {"p": "q", "m": "n"}, threads=1)
