"""Tiny networks as ONNX text, one for each thing that placement and emission must get right; how to compile them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from qcompile import Config, PassManager, QModel, open_model, pipeline
from qcompile.passes.assign_bits import AssignBits
from qcompile.passes.calibrate import Calibrate
from qcompile.passes.choose_forms import ChooseForms
from qcompile.passes.correct_bias import CorrectBias
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.passes.normalize_graph import NormalizeGraph
from qcompile.passes.place_quantizers import PlaceQuantizers
from qcompile.passes.score_capacity import ScoreCapacity
from qcompile.passes.settle_scales import SettleScales
from qcompile.passmanager import Pass, PassRun

Arrays = dict[str, NDArray[Any]]

PLACEMENT: Final[tuple[Pass, ...]] = (ChooseForms(), AssignBits(), PlaceQuantizers())
PLACE: Final[tuple[Pass, ...]] = (NormalizeGraph(), *PLACEMENT)
CALIBRATE: Final[tuple[Pass, ...]] = (*PLACE, Calibrate())
CORRECT: Final[tuple[Pass, ...]] = (*CALIBRATE, CorrectBias())
EMIT: Final[tuple[Pass, ...]] = (*CALIBRATE, SettleScales(), InsertQDQ())

CHAIN = """net (float[N,3,8,8] image, float[16,3,3,3] W1, float[16] B1, float[16,16,3,3] W2, float[16] B2,
  float[4,16,1,1] W3) => (float[N,4,P,Q] y) {
  [conv1] a = Conv<pads = [1,1,1,1]>(image, W1, B1)  [relu1] b = Relu(a)
  [conv2] c = Conv<pads = [1,1,1,1], strides = [2,2]>(b, W2, B2)  [relu2] d = Relu(c)
  [conv3] y = Conv(d, W3)
}"""
RESIDUAL = """net (float[N,3,8,8] image, float[4,3,3,3] W1, float[4] B1, float[4,4,3,3] W2, float[4,4,3,3] W3,
  float[4] B3, float[4,4,1,1] W4) => (float[N,4,P,Q] y) {
  [stem] a = Conv<pads = [1,1,1,1]>(image, W1, B1)  [relu] trunk = Relu(a)
  [first] b = Conv<pads = [1,1,1,1]>(trunk, W2)  [inner] c = Relu(b)
  [second] d = Conv<pads = [1,1,1,1]>(c, W3, B3)
  [add] s = Add(d, trunk)  [outer] t = Relu(s)
  [head] y = Conv(t, W4)
}"""
MATRICES = """net (float[N,6,64] x, float[64,96] W1, float[96] B1, float[96,40] W2, float[7,240] W3, float[7] B3,
  float[7,12] W4) => (float[N,P] y) {
  [wide] a = MatMul(x, W1)  [bias] b = Add(a, B1)  [relu] c = Relu(b)
  [narrow] d = MatMul(c, W2)  [flat] e = Flatten(d)  [head] f = Gemm<transB = 1>(e, W3, B3)
  [last] y = MatMul(f, W4)
}"""
RELU6 = """net (float[N,3,8,8] image, float[8,3,1,1] W1, float[8] B1, float[8,1,3,3] W2, float[8] B2, float[4,8,1,1] W3)
  => (float[N,4,P,Q] y) <float zero = {0}, float six = {6}> {
  [expand] a = Conv(image, W1, B1)  [clip1] b = Clip(a, zero, six)
  [depthwise] c = Conv<group = 8, pads = [1,1,1,1]>(b, W2, B2)  [clip2] d = Clip(c, zero, six)
  [project] y = Conv(d, W3)
}"""
CONCAT = """net (float[N,3,8,8] image, float[4,3,1,1] W1, float[2,4,3,3] W2, float[3,4,1,1] W3, float[4,5,1,1] W4)
  => (float[N,4,P,Q] y) {
  [stem] a = Conv(image, W1)  [relu] b = Relu(a)
  [left] c = Conv<pads = [1,1,1,1]>(b, W2)  [right] d = Conv(b, W3)  [relu_r] e = Relu(d)
  [join] f = Concat<axis = 1>(c, e)
  [head] y = Conv(f, W4)
}"""
JOINED = """net (float[N,3,8,8] image, float[4,3,1,1] W1, float[4,4,3,3] W2, float[4,8,1,1] W3) => (float[N,4,P,Q] y) {
  [stem] a = Conv(image, W1)  [relu] b = Relu(a)  [turn] t = Transpose<perm = [0,1,3,2]>(b)
  [left] c = Conv<pads = [1,1,1,1]>(b, W2)  [right] d = Conv<pads = [1,1,1,1]>(t, W2)
  [join] e = Concat<axis = 1>(c, d)  [head] y = Conv(e, W3)
}"""
SQUEEZE_EXCITE = """net (float[N,3,8,8] image, float[6,3,3,3] W1, float[2,6,1,1] W2, float[2] B2, float[6,2,1,1] W3,
  float[6] B3, float[4,6,1,1] W4) => (float[N,4,P,Q] y) {
  [stem] a = Conv(image, W1)  [relu] b = Relu(a)
  [pool] c = GlobalAveragePool(b)
  [squeeze] d = Conv(c, W2, B2)  [relu_s] e = Relu(d)
  [excite] f = Conv(e, W3, B3)  [gate] h = HardSigmoid<alpha = 0.2, beta = 0.5>(f)
  [scale] i = Mul(b, h)
  [head] y = Conv(i, W4)
}"""
HARD_SWISH = """net (float[N,3,8,8] image, float[4,3,3,3] W1, float[4,4,1,1] W2) => (float[N,4,P,Q] y) {
  [conv1] a = Conv(image, W1)  [swish] b = HardSwish(a)  [conv2] y = Conv(b, W2)
}"""
PRELU = """net (float[N,3,8,8] image, float[4,3,3,3] W1, float[4,1,1] S1, float[4,1,3,3] W2, float[4,1,1] S2,
  float[4,4,1,1] W3) => (float[N,4,P,Q] y) {
  [conv1] a = Conv<pads = [1,1,1,1]>(image, W1)  [slopes1] b = PRelu(a, S1)
  [depthwise] c = Conv<group = 4, pads = [1,1,1,1]>(b, W2)  [slopes2] d = PRelu(c, S2)
  [conv2] y = Conv(d, W3)
}"""
CLASSIFIER = """net (float[N,3,8,8] image, float[4,3,3,3] W1, float[4] B1, float[6,4,1,1] W2, float[5,6] W3,
  float[5] B3) => (float[N,5] logits) {
  [conv1] a = Conv(image, W1, B1)  [relu1] b = Relu(a)  [conv2] c = Conv(b, W2)  [relu2] d = Relu(c)
  [pool] e = GlobalAveragePool(d)  [flatten] f = Flatten(e)
  [head] logits = Gemm<transB = 1>(f, W3, B3)
}"""
FLOAT_ISLAND = """net (float[N,3,8,8] image, float[4,3,1,1] W1, float[4,4,1,1] W2, float[4,4,1,1] W3)
  => (float[N,4,P,Q] y) {
  [conv1] a = Conv(image, W1)  [tanh] b = Tanh(a)  [conv2] c = Conv(b, W2)  [neg] d = Neg(c)  [abs] e = Abs(d)
  [conv3] y = Conv(e, W3)
}"""
SHARED_WEIGHT = """net (float[N,4,8,8] image, float[4,4,3,3] W1, float[4] B1, float[4,4,1,1] W2) => (float[N,4,P,Q] y) {
  [once] a = Conv<pads = [1,1,1,1]>(image, W1, B1)  [relu1] b = Relu(a)
  [again] c = Conv<pads = [1,1,1,1]>(b, W1, B1)  [relu2] d = Relu(c)
  [third] e = Conv<pads = [1,1,1,1]>(d, W1)  [head] y = Conv(e, W2)
}"""
TRANSPOSED = """net (float[N,3,8,8] image, float[4,3,1,1] W1, float[4,2,2,2] W2, float[4,2,1,1] W3)
  => (float[N,4,P,Q] y) {
  [conv1] a = Conv(image, W1)  [relu] b = Relu(a)
  [up] c = ConvTranspose<strides = [2,2]>(b, W2)  [conv2] y = Conv(c, W3)
}"""
CHANNELS_LAST = """net (float[N,8,8,3] image, float[4,3,3,3] W1, float[4,4,1,1] W2) => (float[N,P,Q,4] y) {
  [turn] a = Transpose<perm = [0,3,1,2]>(image)  [conv1] b = Conv(a, W1)  [relu] c = Relu(b)  [conv2] d = Conv(c, W2)
  [back] y = Transpose<perm = [0,2,3,1]>(d)
}"""
MOVERS = """net (float[N,4,8,8] image, float[4,4,1,1] W1, float[4,2,1,1] W2) => (float[N,4,P,Q] y) <
  int64[8] pads = {0,0,1,0,0,0,0,1}, int64[4] sizes = {0,0,-1,4}, float[4] twice = {1,1,2,2},
  int64[1] from = {1}, int64[1] to = {4}, int64[1] axis = {1}
> {
  [conv1] a = Conv(image, W1)  [pool] b = MaxPool<kernel_shape = [2,2], strides = [2,2]>(a)
  [pad] c = Pad(b, pads)  [up] d = Resize<mode = "nearest">(c, , twice)  [turn] e = Transpose<perm = [0,1,3,2]>(d)
  [shape] f = Reshape(e, sizes)  [cut] h = Slice(f, from, to, axis)  [parts] i, j = Split<axis = 1, num_outputs = 2>(h)
  [conv2] y = Conv(i, W2)
}"""
ELEMENTWISE = """net (float[N,3,8,8] image, float[4,3,1,1] W1, float[4,1,1] K, float[4,4,1,1] W2)
  => (float[N,4,P,Q] y) {
  [conv1] a = Conv(image, W1)  [scaled] b = Mul(a, K)  [leaky] c = LeakyRelu<alpha = 0.1>(b)
  [mean] d = AveragePool<kernel_shape = [2,2], pads = [1,1,0,0]>(c)  [gate] e = Sigmoid(d)  [gated] f = Mul(d, e)
  [conv2] y = Conv(f, W2)
}"""
ATTENTION = """net (float[N,6,8] x, float[8,8] WQ, float[8,8] WK, float[8,8] WV, float[8,4] WO) => (float[N,6,4] y) {
  [query] q = MatMul(x, WQ)  [key] k = MatMul(x, WK)  [value] v = MatMul(x, WV)
  [turn] t = Transpose<perm = [0,2,1]>(k)  [scores] s = MatMul(q, t)  [softmax] p = Softmax<axis = -1>(s)
  [mix] m = MatMul(p, v)  [head] y = MatMul(m, WO)
}"""

NETWORKS: Final[dict[str, str]] = {
    "chain": CHAIN,
    "residual": RESIDUAL,
    "relu6": RELU6,
    "concat": CONCAT,
    "joined": JOINED,
    "squeeze_excite": SQUEEZE_EXCITE,
    "hard_swish": HARD_SWISH,
    "prelu": PRELU,
    "classifier": CLASSIFIER,
    "float_island": FLOAT_ISLAND,
    "shared_weight": SHARED_WEIGHT,
    "transposed": TRANSPOSED,
    "channels_last": CHANNELS_LAST,
    "movers": MOVERS,
    "elementwise": ELEMENTWISE,
    "attention": ATTENTION,
}


def network(text: str, *, opset: int = 18, seed: int = 0) -> onnx.ModelProto:
    """Parse the text of a graph; inputs in capitals become random weights that keep a signal's size, by fan-in."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}, "custom": 1]> {text}')
    random = np.random.default_rng(seed)
    for item in [item for item in model.graph.input if item.name.isupper()]:
        model.graph.input.remove(item)
        dims = [dim.dim_value for dim in item.type.tensor_type.shape.dim]
        values = random.normal(0, np.prod(dims[1:]) ** -0.5 if len(dims) > 1 else 0.3, dims).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, item.name))
    return model


def samples(model: onnx.ModelProto, count: int = 16, seed: int = 1) -> Arrays:
    """Return normally distributed samples for every input; unknown sizes are 8."""
    random = np.random.default_rng(seed)
    shapes = {
        item.name: [dim.dim_value or 8 for dim in item.type.tensor_type.shape.dim][1:] for item in model.graph.input
    }
    return {name: random.normal(0, 1, (count, *shape)).astype(np.float32) for name, shape in shapes.items()}


def compiled(source: str | onnx.ModelProto, passes: tuple[Pass, ...] = EMIT, **settings: Any) -> QModel:
    """Run `passes` on a network with 16 samples."""
    model = network(source) if isinstance(source, str) else source
    opened = open_model(model, Config(**{"threads": 1} | settings), samples(model))
    run(opened, passes)
    return opened


def run(model: QModel, passes: Iterable[Pass]) -> list[PassRun]:
    """Run `passes` with the settings of the model's configuration, where they have none of their own."""
    config = model.config
    ours = (*pipeline.place(config), ScoreCapacity(config.stride_factor), pipeline.fuse(config))
    ours += (*pipeline.numbers(config), *pipeline.change_channels(config), *pipeline.emit(config))
    settled = {type(item): item for item in ours}
    ready = (settled[type(item)] if type(item) in settled and item == type(item)() else item for item in passes)
    return PassManager(ready).run(model)


def initializers(model: onnx.ModelProto) -> Arrays:
    """Return the initializers of a file by name (INT4 as int8)."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
