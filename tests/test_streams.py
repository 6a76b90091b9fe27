"""Models that take one feed in each run (numbers, states, time first), and tensors that have no values in some runs."""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np
import pytest
from networks import network

import qcompile
from qcompile import Config
from qcompile.quant.plan import Form
from qcompile.runtime.session import Session

Feed = dict[str, Any]
COUNT = 24

STATE = """g (float gain, float[N,32] x, float[2,N,16] state, float[24,32] W1, float[24] B1, float[1,64,24] WI,
  float[1,64,16] WH, float[4,16] W2, float[4] B2) => (float[N,4] y, float[2,N,16] next) {
    zero = Constant<value = int64[1] {0}>()
    a = Gemm<transB = 1>(x, W1, B1)  r = Relu(a)  s = Unsqueeze(r, zero)
    h0, c0 = Split<axis = 0, num_outputs = 2>(state)
    o, h1, c1 = LSTM<hidden_size = 16>(s, WI, WH, , , h0, c0)
    next = Concat<axis = 0>(h1, c1)  q = Squeeze(h1, zero)  m = Mul(q, gain)  y = Gemm<transB = 1>(m, W2, B2) }"""
JOINT = """g (float[T,16] frames, float[U,16] tokens, float[32,16] W1, float[32,16] W2, float[8,32] W3, float[8] B3)
  => (float[T,U,8] y) {
    one = Constant<value = int64[1] {1}>()  zero = Constant<value = int64[1] {0}>()
    flat = Constant<value = int64[2] {-1, 32}>()
    f = Gemm<transB = 1>(frames, W1)  t = Gemm<transB = 1>(tokens, W2)  g = Unsqueeze(f, one)  u = Unsqueeze(t, zero)
    s = Add(g, u)  h = Relu(s)  k = Reshape(h, flat)  z = Gemm<transB = 1>(k, W3, B3)
    sizes = Shape(s)  two = Constant<value = int64[1] {2}>()  tu = Slice(sizes, zero, two)
    eight = Constant<value = int64[1] {8}>()  full = Concat<axis = 0>(tu, eight)  y = Reshape(z, full) }"""
TIME_FIRST = """g (float[T,1,16] x, float[1,48,16] WI, float[1,48,16] WH, float[16,4] W) => (float[T,1,4] y) {
    one = Constant<value = int64[1] {1}>()
    o = GRU<hidden_size = 16>(x, WI, WH)  q = Squeeze(o, one)  y = MatMul(q, W) }"""
WRITTEN = """g (float[N,3,8,8] x, float[8,3,3,3] W1, float[8] B1, float[8,4] W2) => (float[P,Q,4] y) {
    a = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(x, W1, B1)  r = Relu(a)
    shape = Constant<value = int64[3] {1, 8, 64}>()  t = Reshape(r, shape)
    s = Transpose<perm = [0,2,1]>(t)  y = MatMul(s, W2) }"""


def normal(*shape: int, seed: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


DATA: dict[str, Any] = {
    STATE: {"x": normal(COUNT, 32), "state": normal(2 * COUNT, 1, 16) / 2, "gain": normal(COUNT)},
    JOINT: [{"frames": normal(3, 16, seed=k), "tokens": normal(4 + k % 3, 16, seed=k + 99)} for k in range(COUNT)],
    TIME_FIRST: [{"x": normal(6, 1, 16, seed=k)} for k in range(COUNT)],
    WRITTEN: {"x": normal(COUNT, 3, 8, 8)},
}
FEED: dict[str, Feed] = {
    STATE: {"gain": np.array(0.5, np.float32), "x": normal(1, 32, seed=1), "state": normal(2, 1, 16, seed=2) / 2},
    JOINT: {"frames": normal(5, 16, seed=1), "tokens": normal(2, 16, seed=2)},
    TIME_FIRST: {"x": normal(9, 1, 16, seed=1)},
    WRITTEN: {"x": normal(1, 3, 8, 8, seed=1)},
}
NAMES = ["state and a number", "two batch axes", "time first", "batch 1 written inside"]


def decibels(source: Any, emitted: Any, feed: Feed) -> float:
    """Return the signal-to-noise ratio of the worst output."""
    expected, found = Session(source, threads=1).run(feed), Session(emitted, threads=1).run(feed)
    noise = {name: np.square(found[name] - values).sum() for name, values in expected.items()}
    return min(10 * float(np.log10(np.square(expected[name]).sum() / max(noise[name], 1e-30))) for name in noise)


@pytest.mark.parametrize("text", DATA, ids=NAMES)
def test_eight_bits(text: str) -> None:
    source = network(text)
    result = qcompile.compile(source, Config(threads=1), DATA[text])
    assert decibels(source, result.model, FEED[text]) > 25
    assert result.report["data"]["samples"] == COUNT - 2 and result.report["data"]["held_back"] == 2
    assert result.report["audit"]["agreement"] | {"outputs": {}} == {"samples": COUNT, "held_back": 2, "outputs": {}}
    assert "one sample in each run" in result.report["data"]["first_batch"][-1]
    assert [item.name for item in result.model.graph.input] == list(FEED[text])


@pytest.mark.parametrize("text", [STATE, TIME_FIRST, WRITTEN], ids=[NAMES[0], *NAMES[2:]])
def test_four_bits_are_trained_feed_by_feed(text: str) -> None:
    source = network(text)
    config = Config(w=4, a=4, first_last_bits=4, steps=120, threads=1)
    result = qcompile.compile(source, config, DATA[text])
    rounded = qcompile.compile(source, Config(w=4, a=4, first_last_bits=4, method="rtn", threads=1), DATA[text])
    assert decibels(source, result.model, FEED[text]) > max(decibels(source, rounded.model, FEED[text]) - 3, 10)
    pieces = [entry for entry in result.report["journal"] if entry["pass"] == "reconstruct"]
    assert pieces and not any(entry.get("reason") for entry in pieces)


def test_training_needs_feeds_of_one_size() -> None:
    with pytest.raises(qcompile.InputError, match="training needs samples of one size, those of 'tokens' differ"):
        qcompile.compile(network(JOINT), Config(w=4, a=4, steps=20, threads=1), DATA[JOINT])


def test_evaluation_and_batches_of_feeds() -> None:
    mean = "m = MatMul(s, W2)  y = ReduceMean<axes = [1], keepdims = 0>(m)"
    source = network(WRITTEN.replace("y = MatMul(s, W2)", mean).replace("float[P,Q,4] y", "float[P,4] y"), opset=17)
    session, images = Session(source, threads=1), DATA[WRITTEN]["x"]
    labels = np.array([session.run({"x": image[None]})["y"].argmax() for image in images])
    labels[0] = (labels[0] + 1) % 4
    result = qcompile.compile(
        source, Config(batch=8, threads=1), {"x": images}, evaluation={"x": images, "labels": labels}
    )
    top1 = result.report["audit"]["top1"]
    assert top1["samples"] == COUNT and top1["float"] == pytest.approx(100 * (COUNT - 1) / COUNT)
    assert "--batch has no effect: one sample in each run, since it cannot run two" in " ".join(
        result.report["warnings"]
    )


def test_noise_for_models_that_take_one_feed() -> None:
    source = network(STATE)
    result = qcompile.compile(source, Config(random_data=True, threads=1))
    assert decibels(source, result.model, FEED[STATE]) > 20


# --- one branch for each rate

RATES = """g (float[N,32] x, int64 rate, float[24,32] W1, float[12,32] W2, float[4,24] W3, float[4,12] W4)
  => (float[N,4] y) {
    k = Constant<value = int64 {16000}>()  high = Equal(rate, k)
    y = If(high) <
      then_branch = p () => (float[N,4] a) { b = Gemm<transB = 1>(x, W1)  c = Relu(b)  a = Gemm<transB = 1>(c, W3) },
      else_branch = q () => (float[N,4] d) { e = Gemm<transB = 1>(x, W2)  f = Tanh(e)
        d = Gemm<transB = 1>(f, W4) }> }"""


@pytest.mark.parametrize(("rate", "forms"), [(16000, "compute compute"), (8000, "compute float compute")])
def test_a_branch_is_compiled_where_the_rate_is_fixed(rate: int, forms: str) -> None:
    source = network(RATES)
    data = {"x": normal(COUNT, 32), "rate": np.array(rate)}
    result = qcompile.compile(source, Config(fix=(f"rate={rate}",), threads=1), data)
    assert [item.name for item in result.model.graph.input] == ["x"]
    placed = [str(node.form) for node in result.plan.nodes.values() if node.form is not Form.ABSORBED]
    assert placed == forms.split()
    exact = Session(source, threads=1).run({"x": normal(2, 32, seed=1), "rate": np.array(rate)})["y"]
    found = Session(result.model, threads=1).run({"x": normal(2, 32, seed=1)})["y"]
    assert np.square(exact).sum() > 300 * np.square(found - exact).sum()  # 25 dB


def test_what_to_fix_is_named() -> None:
    source, data = network(RATES), {"x": normal(COUNT, 32), "rate": np.full(COUNT, 16000)}
    with pytest.raises(qcompile.InputError, match=r"control flow.*--fix rate=VALUE takes one branch and compiles it"):
        qcompile.compile(source, Config(threads=1), data)


# --- no values

CACHE = """g (float[N,1,16] x, float[N,P,16] past, float[16,16] WQ, float[16,16] WK, float[16,16] WV, float[16,8] WO)
  => (float[N,1,8] y, float[N,R,16] present) {
    q = MatMul(x, WQ)  k = MatMul(x, WK)  present = Concat<axis = 1>(past, k)
    t = Transpose<perm = [0,2,1]>(present)  s = MatMul(q, t)  p = Softmax<axis = -1>(s)
    v = MatMul(present, WV)  c = MatMul(p, v)  y = MatMul(c, WO) }"""
STAGES = """g (float[1,16] x, float[1,16] V, float[16,16] W1, float[16,8] W2) => (float[K,8] boxes, float[1,8] z) {
    flat = Constant<value = int64[1] {-1}>()  limit = Constant<value = float {1.8}>()
    f = Reshape(x, flat)  g = Greater(f, limit)  c = Compress<axis = 1>(x, g)  k = Transpose<perm = [1,0]>(c)
    l = MatMul(k, V)  r = Relu(l)  boxes = MatMul(r, W2)
    h = MatMul(x, W1)  o = Relu(h)  z = MatMul(o, W2) }"""


def steps(lengths: list[int]) -> list[Feed]:
    return [{"x": normal(1, 1, 16, seed=k), "past": normal(1, n, 16, seed=k + 99)} for k, n in enumerate(lengths)]


def test_a_cache_that_is_empty_in_the_first_step() -> None:
    source = network(CACHE)
    result = qcompile.compile(source, Config(threads=1), steps([0, 3] * 12))
    assert min(decibels(source, result.model, feed) for feed in steps([0, 3, 3])) > 25


def test_a_cache_that_is_always_empty() -> None:
    feeds = steps([0] * 24)
    data = {name: np.concatenate([feed[name] for feed in feeds]) for name in ("x", "past")}
    result = qcompile.compile(network(CACHE), Config(threads=1), data)
    assert min(decibels(network(CACHE), result.model, feed) for feed in (feeds[0], *steps([3]))) > 25
    source = network(CACHE.replace("N,P,16", "N,0,16"))  # the model itself says so
    result = qcompile.compile(source, Config(w=4, a=8, steps=20, threads=1), data)
    assert decibels(source, result.model, feeds[0]) > 20
    assert [item.name for item in result.model.graph.input] == ["x", "past"]
    pieces = [entry for entry in result.report["journal"] if entry["pass"] == "reconstruct"]
    assert pieces and not any(entry.get("reason") for entry in pieces)


def test_a_layer_that_never_gets_a_row() -> None:
    source = network("""g (float[N,16] x, float[P,16] past, float[16,8] W, float[16,8] V)
      => (float[N,8] y, float[P,8] z) { y = MatMul(x, W)  z = MatMul(past, V) }""")
    feeds = [{"x": normal(1, 16, seed=k), "past": normal(0, 16)} for k in range(24)]
    with pytest.raises(
        qcompile.InputError, match="saw no value of tensor 'past'; give samples that have some"
    ) as error:
        qcompile.compile(source, Config(threads=1), feeds)
    _, advised = shlex.split(error.value.remedy.partition(", or ")[2])
    result = qcompile.compile(source, Config(keep_float=(advised,), threads=1), feeds)
    assert decibels(source, result.model, {"x": normal(1, 16, seed=99), "past": normal(3, 16)}) > 25
    assert len([name for name, node in result.plan.nodes.items() if node.form is Form.COMPUTE]) == 1


@pytest.mark.parametrize("bits", [8, 4])
def test_a_second_stage_that_gets_no_row(bits: int) -> None:
    source, data = network(STAGES), normal(32, 16)
    counts = (data > 1.8).sum(1)
    assert (counts == 0).any() and (counts > 1).any()
    options = {} if bits == 8 else {"method": "mrecg", "steps": 20}
    result = qcompile.compile(source, Config(w=bits, a=8, threads=1, **options), {"x": data})
    for row in (int(counts.argmax()), int(counts.argmin())):
        outputs = Session(result.model, threads=1).run({"x": data[row : row + 1]})
        assert outputs["boxes"].shape == (counts[row], 8)
    assert decibels(source, result.model, {"x": data[counts.argmax()][None]}) > 20
