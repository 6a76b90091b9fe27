"""What the outputs of graphs are: one graph for each way in which one shows it."""

from __future__ import annotations

import re

import numpy as np
import pytest
from onnx import numpy_helper, parser

from qcompile.ir.prepare import prepare
from qcompile.ir.shapes import infer_shapes
from qcompile.runtime.outputs import Output, OutputKind, describe_outputs

IMAGE, TOKENS = "float[N,3,8,8] x", "int64[N,T] ids, int64[N,T] attention_mask"
WEIGHTS = {
    "w10": (3, 10),
    "w12": (12, 10),
    "w64": (3, 64),
    "w4": (3, 4),
    "b10": (10,),
    "k": (3, 3, 1, 1),
    "e": (50, 16),
}


def described(inputs: str, outputs: str, body: str, *, labelled: bool = False) -> dict[str, Output]:
    """Return what the outputs of a graph are; its weights are those of WEIGHTS that it reads."""
    read = set(re.findall(r"\w+", body))
    weights = ", ".join(f"float{list(shape)} {name}" for name, shape in WEIGHTS.items() if name in read)
    text = f'<ir_version: 8, opset_import: ["": 18]> net ({inputs}, {weights}) => ({outputs}) {{ {body} }}'
    model = parser.parse_model(text.replace(", )", ")"))
    made = [numpy_helper.from_array(np.ones(WEIGHTS[name], np.float32), name) for name in WEIGHTS if name in read]
    model.graph.initializer.extend(made)
    graph = prepare(model, 18)
    infer_shapes(graph)
    return describe_outputs(graph, labelled=labelled)


AXIS = "axis = Constant<value = int64[1] {1}>()"
POOLED = "p = GlobalAveragePool(x) f = Flatten(p) "
CASES = {
    "softmax": (
        IMAGE,
        "float[N,4] y",
        POOLED + "z = MatMul(f, w4) y = Softmax<axis = -1>(z)",
        Output(OutputKind.CLASSES, -1),
    ),
    "softmax over channels, then flat": (
        IMAGE,
        "float[N,3] y",
        "p = GlobalAveragePool(x) s = Softmax<axis = 1>(p) y = Flatten(s)",
        Output(OutputKind.CLASSES, -1),
    ),
    "softmax of a segmentation": (IMAGE, "float[N,3,8,8] y", "y = Softmax<axis = 1>(x)", Output(OutputKind.CLASSES, 1)),
    "softmax, channels moved to the end": (
        IMAGE,
        "float[N,8,8,3] y",
        "s = LogSoftmax<axis = 1>(x) y = Transpose<perm = [0,2,3,1]>(s)",
        Output(OutputKind.CLASSES, 3),
    ),
    "a map that nothing decides on": (IMAGE, "float[N,3,8,8] y", "y = Conv(x, k)", Output()),
    "a map that an ArgMax reads": (
        IMAGE,
        "float[N,3,8,8] y, int64[N,1,8,8] c",
        "y = Conv(x, k) c = ArgMax<axis = 1>(y)",
        Output(OutputKind.CLASSES, 1),
    ),
    "logits whose Softmax goes out too": (
        IMAGE,
        "float[N,4] y, float[N,4] p4",
        POOLED + "y = MatMul(f, w4) p4 = Softmax<axis = 1>(y)",
        Output(OutputKind.CLASSES, 1),
    ),
    "an ArgMax": (IMAGE, "int64[N,8,8] y", "y = ArgMax<axis = 1, keepdims = 0>(x)", Output(OutputKind.DECISIONS)),
    "an ArgMax behind a Cast": (
        IMAGE,
        "int32[N,1,8,8] y",
        "c = ArgMax<axis = 1>(x) y = Cast<to = 6>(c)",
        Output(OutputKind.DECISIONS),
    ),
    "whole numbers": (IMAGE, "int64[4] y", "y = Shape(x)", Output(OutputKind.WHOLE)),
    "pixels in bytes": (IMAGE, "uint8[N,3,8,8] y", "c = Conv(x, k) y = Cast<to = 2>(c)", Output(OutputKind.VALUES)),
    "booleans": (IMAGE, "bool[N,3,8,8] y", "y = Greater(x, x)", Output(OutputKind.WHOLE)),
    "a classifier or an embedding": (
        IMAGE,
        "float[N,10] y",
        POOLED + "y = Gemm(f, w10, b10)",
        Output(OutputKind.HEAD, 1),
    ),
    "a flattened map": (
        "float[N,3,2,2] x",
        "float[N,10] y",
        "f = Flatten(x) y = MatMul(f, w12)",
        Output(OutputKind.HEAD, 1),
    ),
    "one token": (
        "float[N,5,3] x",
        "float[N,10] y",
        "i = Constant<value = int64 {0}>() t = Gather<axis = 1>(x, i) y = Gemm(t, w10, b10)",
        Output(OutputKind.HEAD, 1),
    ),
    "few numbers behind a pool": (IMAGE, "float[N,4] y", POOLED + "y = MatMul(f, w4)", Output()),
    "no pool": ("float[N,3] x", "float[N,10] y", "y = Gemm(x, w10, b10)", Output()),
    "named logits": (
        "float[N,3] x",
        "float[N,10] out_logits",
        "out_logits = Gemm(x, w10, b10)",
        Output(OutputKind.CLASSES, -1),
    ),
    "logits of words by position": (
        "float[N,T,3] x",
        "float[N,T,10] logits",
        "m = MatMul(x, w10) logits = Add(m, b10)",
        Output(OutputKind.CLASSES, -1),
    ),
    "hidden channels by position": ("float[N,T,3] x", "float[N,T,64] y", "y = MatMul(x, w64)", Output()),
    "attention itself": (
        "float[N,T,3] x",
        "float[N,T,T] a, float[N,T,3] z",
        "t = Transpose<perm = [0,2,1]>(x) s = MatMul(x, t) a = Softmax<axis = -1>(s) z = MatMul(a, x)",
        Output(),
    ),
    "one probability": (
        IMAGE,
        "float[N,1] y",
        f"{AXIS} {POOLED} r = ReduceMean(f, axis) y = Softmax(r)",
        Output(),
    ),
    "a named mask": (TOKENS, "float[N,T,16] y", "y = Gather(e, ids)", Output(mask="attention_mask")),
    "a mask of padding": (
        "int64[N,T] ids, bool[N,T] key_padding_mask",
        "float[N,T,16] y",
        "y = Gather(e, ids)",
        Output(mask="key_padding_mask", mask_is_padding=True),
    ),
    "a mask and one vector per sample": (
        "int64[N,T] ids, int64[N,T] attention_mask",
        "float[N,16] y",
        f"{AXIS} h = Gather(e, ids) y = ReduceMean<keepdims = 0>(h, axis)",
        Output(),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_kind_of_an_output(case: str) -> None:
    inputs, outputs, body, expected = CASES[case]
    found = described(inputs, outputs, body)
    assert next(iter(found.values())) == expected


def test_labels_say_that_there_are_classes() -> None:
    found = described(
        "float[N,3] x", "float[N,10] y, float[N,10] z", "y = Gemm(x, w10, b10) z = Relu(y)", labelled=True
    )
    assert found == {"y": Output(OutputKind.CLASSES, 1), "z": Output()}


WIRED = """
  h = Gather(e, ids) t = Transpose<perm = [0,2,1]>(h) s = MatMul(h, t)
  f = Cast<to = 1>(given) m = Unsqueeze(f, axis) n = Neg(m) masked = Add(s, n) a = Softmax(masked) y = MatMul(a, h)
"""


def test_a_mask_is_known_by_where_it_goes() -> None:
    """`types` goes to a Gather as token numbers do; `given` is added to the scores of an attention."""
    body = f"{AXIS} k2 = Gather(e, types) {WIRED} z = Add(y, k2)"
    found = described("int64[N,T] ids, int64[N,T] types, int64[N,T] given", "float[N,T,16] z", body)
    assert found == {"z": Output(mask="given")}
