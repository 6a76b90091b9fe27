"""Units that 8 bits cannot serve are found by their own error and stay float; others do not, whatever their bits."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import pytest
from networks import NETWORKS, Arrays, network, samples
from onnx import numpy_helper

import qcompile
from qcompile import Config, PassManager, open_model
from qcompile.passes.float_where_inexact import FloatWhereInexact
from qcompile.pipeline import PREPARE, numbers, place
from qcompile.quant.plan import Form
from qcompile.runtime.session import Session

LENGTH, BINS = 32, 17
# A spectral front end: windowed cosines and sines, power, logarithm; what reads it, a small convolutional network.
TAIL = """ [power] p = Add(rr, ii)  [floor] q = Add(p, tiny)  [log] l = Log(q)
  [conv1] c = Conv<pads = [1, 1]>(l, W1, B1)  [relu] d = Relu(c)  [conv2] y = Conv(d, W2) }"""
HEAD = """net (float[N,1,320] x, float[24,17,3] W1, float[24] B1, float[6,24,1] W2) => (float[N,6,T] y)
  <float tiny = {1e-10}> {"""
FRONTS = {
    "convolutions": """ [real] r = Conv<strides = [16]>(x, C)  [imaginary] i = Conv<strides = [16]>(x, S)
  [square] rr = Mul(r, r)  [square2] ii = Mul(i, i) """,
    "one convolution": """ [both] b = Conv<strides = [16]>(x, CS)  [parts] r, i = Split<axis = 1, num_outputs = 2>(b)
  [square] rr = Mul(r, r)  [square2] ii = Mul(i, i) """,
    "powers": """ [real] r = Conv<strides = [16]>(x, C)  [imaginary] i = Conv<strides = [16]>(x, S)
  [square] rr = Pow(r, two)  [square2] ii = Pow(i, two) """,
}


def spectral(front: str) -> onnx.ModelProto:
    text = (HEAD + FRONTS[front] + TAIL).replace("<float tiny", "<float two = {2}, float tiny")
    model = network(text)
    place, window = np.arange(LENGTH), np.hanning(LENGTH + 1)[:LENGTH]
    angles = 2 * np.pi * np.outer(np.arange(BINS), place) / LENGTH
    cosines, sines = ((window * f(angles))[:, None].astype(np.float32) for f in (np.cos, np.sin))
    for name, values in (("C", cosines), ("S", sines), ("CS", np.concatenate([cosines, sines]))):
        if any(name in node.input for node in model.graph.node):
            model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def sounds(count: int, seed: int) -> Arrays:
    """Return tones that fade: their spectra span six orders of magnitude."""
    random = np.random.default_rng(seed)
    time = np.arange(320) / 320
    frequency, phase = random.uniform(5, 120, (2, count, 3, 1))
    tones = np.sin(2 * np.pi * frequency * time + phase) * 10.0 ** random.uniform(-4, 0, (count, 3, 1))
    fading = 10.0 ** (-4 * time * random.uniform(0, 1, (count, 1)))
    noise = random.normal(0, 1e-6, (count, 320))
    return {"x": (tones.sum(1) * fading + noise)[:, None].astype(np.float32)}


def sqnr(source: onnx.ModelProto, emitted: onnx.ModelProto, feeds: Arrays, channels: slice = slice(None)) -> float:
    exact, found = (Session(model, threads=1).run(feeds)["y"][:, channels] for model in (source, emitted))
    return float(10 * np.log10(exact.var() / np.square(exact - found).mean()))


def compiled(source: onnx.ModelProto, data: Arrays, **settings: Any) -> qcompile.Result:
    return qcompile.compile(source, Config(**{"threads": 1, "placement": "all"} | settings), data)


@pytest.mark.parametrize("front", FRONTS)
def test_a_spectral_front_end_stays_float(front: str) -> None:
    source = spectral(front)
    found = compiled(source, sounds(48, 0))
    (note,) = found.qmodel.journal.by("float-where-inexact")
    layers = {"real", "imaginary"} if front != "one convolution" else {"both"}
    assert layers <= set(note["nodes"])
    assert found.plan.form("conv1") is Form.COMPUTE and found.plan.form("conv2") is Form.COMPUTE
    assert "8 bits" in found.plan.nodes[min(layers)].reason
    assert sqnr(source, found.model, sounds(16, 1)) > 20


def test_forced_it_is_on_integers_and_near_nothing() -> None:
    source = spectral("convolutions")
    forced = tuple((node.name, 8, 8) for node in source.graph.node if node.op_type == "Conv")
    found = compiled(source, sounds(48, 0), bits=forced)
    assert found.plan.form("real") is Form.COMPUTE and found.plan.form("imaginary") is Form.COMPUTE
    assert sqnr(source, found.model, sounds(16, 1)) < 12


DETECTOR = """net (float[N,3,16,16] x, float[16,3,3,3] W1, float[16] B1, float[5,16,1,1] W2) => (float[N,5,16,16] y) {
  [first] a = Conv<pads = [1,1,1,1]>(x, W1, B1)  [relu] b = Relu(a)  [head] y = Conv(b, W2)
}"""


@pytest.mark.parametrize("large", [1e5, 1.0])
def test_a_head_of_wide_range_stays_float(large: float) -> None:
    """One output of 1e4 beside some of 1e-1, on one scale: only the first would be left."""
    source = network(DETECTOR)
    weight = next(item for item in source.graph.initializer if item.name == "W2")
    values = numpy_helper.to_array(weight) * np.array([large, 1, 1, 1, 1], np.float32).reshape(5, 1, 1, 1)
    weight.CopyFrom(numpy_helper.from_array(values, "W2"))
    found = compiled(source, samples(source, 32))
    assert found.plan.form("first") is Form.COMPUTE
    assert (found.plan.form("head") is Form.FLOAT) == (large > 1)
    assert sqnr(source, found.model, samples(source, 8, seed=5), slice(1, 5)) > 20


@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_usual_networks_are_left_alone(name: str, bits: int) -> None:
    source = network(NETWORKS[name])
    model = open_model(source, Config(threads=1, w=bits, a=bits), samples(source, 32))
    config = model.config
    look = FloatWhereInexact(place(config), numbers(config))
    PassManager((*PREPARE, *place(config), *numbers(config), look)).run(model)
    assert model.kept_float == {} and list(model.journal.by("float-where-inexact")) == []


def test_what_would_leave_nothing_on_integers_is_a_warning() -> None:
    source = network(
        """net (float[N,1,320] x, float[17,1,32] C) => (float[N,17,T] y) <float tiny = {1e-10}> {
          [real] r = Conv<strides = [16]>(x, C)  [square] p = Mul(r, r)  [floor] q = Add(p, tiny)  [log] y = Log(q) }"""
    )
    found = compiled(source, sounds(48, 0))
    (note,) = found.qmodel.journal.by("float-where-inexact")
    assert note["what"] == "warning" and re.search("8 bits lose", note["text"])
    assert found.plan.form("real") is Form.COMPUTE
