"""Random nodes that move elements; see cases.py. `CASES` has a strategy for every operator with a rule."""

from __future__ import annotations

from typing import Any

import numpy as np
from autodiff.cases import (
    SEEDS,
    SHAPES,
    Case,
    broadcast,
    clip,
    convolution,
    gemm,
    images,
    ints,
    matmul,
    normal,
    normalization,
    over_axis,
    pool,
    positive,
    power,
    prelu,
    reduction,
    unary,
    where,
)
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy


@st.composite
def reshape(draw: DrawFn) -> Case:
    shape = draw(SHAPES)
    return Case("Reshape", (normal(draw(SEEDS), shape), ints(*draw(st.permutations(shape)))))


@st.composite
def transpose(draw: DrawFn) -> Case:
    shape = draw(SHAPES)
    order = draw(st.none() | st.permutations(range(len(shape))))
    return Case("Transpose", (normal(draw(SEEDS), shape),), {} if order is None else {"perm": order})


@st.composite
def squeeze(draw: DrawFn, op: str) -> Case:
    shape = draw(SHAPES)
    axis = draw(st.integers(0, len(shape)))
    data = [*shape[:axis], 1, *shape[axis:]] if op == "Squeeze" else shape
    return Case(op, (normal(draw(SEEDS), data), ints(axis)))


@st.composite
def concat(draw: DrawFn) -> Case:
    shape = draw(SHAPES)
    axis, count = draw(st.integers(-len(shape), len(shape) - 1)), draw(st.integers(1, 3))
    parts = []
    for _ in range(count):
        shape[axis] = draw(st.integers(1, 3))
        parts.append(normal(draw(SEEDS), shape))
    return Case("Concat", tuple(parts), {"axis": axis})


@st.composite
def split(draw: DrawFn) -> Case:
    shape = draw(SHAPES)
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    lengths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    shape[axis] = sum(lengths)
    return Case("Split", (normal(draw(SEEDS), shape), ints(*lengths)), {"axis": axis}, outputs=len(lengths))


@st.composite
def slices(draw: DrawFn) -> Case:
    shape = [size + 2 for size in draw(SHAPES)]
    axes = sorted(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    starts = [draw(st.integers(0, shape[axis] - 1)) for axis in axes]
    ends = [draw(st.integers(start + 1, start + 6)) for start in starts]
    steps = [draw(st.sampled_from([1, 1, 2])) for _ in axes]
    if draw(st.booleans()):
        starts, ends, steps = ends, [start - 20 if start == 0 else start - 1 for start in starts], [-1] * len(axes)
    return Case("Slice", (normal(draw(SEEDS), shape), ints(*starts), ints(*ends), ints(*axes), ints(*steps)))


@st.composite
def pad(draw: DrawFn) -> Case:
    shape = [size + 2 for size in draw(SHAPES)]
    mode = draw(st.sampled_from(["constant", "constant", "edge", "reflect"]))
    pads = ints(*(draw(st.integers(0, 2)) for _ in range(2 * len(shape))))
    value = (np.array(0.5, np.float32),) if mode == "constant" and draw(st.booleans()) else ()
    return Case("Pad", (normal(draw(SEEDS), shape), pads, *value), {"mode": mode})


@st.composite
def gather(draw: DrawFn) -> Case:
    shape = draw(SHAPES)
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    picked = draw(st.lists(st.integers(1, 3), max_size=2))
    indices = np.random.default_rng(draw(SEEDS)).integers(-shape[axis], shape[axis], size=picked)
    return Case("Gather", (normal(draw(SEEDS), shape), np.asarray(indices)), {"axis": axis})


@st.composite
def gather_elements(draw: DrawFn) -> Case:
    shape = draw(SHAPES)
    axis = draw(st.integers(0, len(shape) - 1))
    indices = np.random.default_rng(draw(SEEDS)).integers(0, shape[axis], size=shape)
    return Case("GatherElements", (normal(draw(SEEDS), shape), indices), {"axis": axis})


@st.composite
def expand(draw: DrawFn) -> Case:
    shape = draw(SHAPES)
    target = [size if draw(st.booleans()) else 1 for size in shape]
    return Case("Expand", (normal(draw(SEEDS), target), ints(*shape)))


@st.composite
def tile(draw: DrawFn) -> Case:
    shape = draw(SHAPES)
    return Case("Tile", (normal(draw(SEEDS), shape), ints(*(draw(st.integers(1, 3)) for _ in shape))))


@st.composite
def blocks(draw: DrawFn, op: str) -> Case:
    block, n, c, h, w = (draw(st.integers(1, 3)) for _ in range(5))
    if op == "SpaceToDepth":
        return Case(op, (normal(draw(SEEDS), [n, c, h * block, w * block]),), {"blocksize": block})
    mode = draw(st.sampled_from(["DCR", "CRD"]))
    return Case(op, (normal(draw(SEEDS), [n, c * block * block, h, w]),), {"blocksize": block, "mode": mode})


@st.composite
def resize(draw: DrawFn) -> Case:
    shape = [draw(st.integers(1, 2)), draw(st.integers(1, 2)), *(draw(st.integers(2, 5)) for _ in range(2))]
    mode = draw(st.sampled_from(["nearest", "linear"]))
    attributes: dict[str, Any] = {
        "mode": mode,
        "coordinate_transformation_mode": draw(st.sampled_from(["half_pixel", "asymmetric", "align_corners"])),
    }
    if mode == "nearest":
        attributes["nearest_mode"] = draw(st.sampled_from(["floor", "round_prefer_floor"]))
    x = normal(draw(SEEDS), shape)
    aligned = attributes["coordinate_transformation_mode"] == "align_corners"
    if not aligned and draw(st.booleans()):  # by scales the reference and ONNX Runtime align corners differently
        scales = np.array([1, 1, *(draw(st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0])) for _ in range(2))], np.float32)
        return Case("Resize", (x, None, scales), attributes)
    return Case("Resize", (x, None, None, ints(*shape[:2], *(draw(st.integers(2, 8)) for _ in range(2)))), attributes)


REDUCTIONS = ("L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Sum", "SumSquare")
CASES: dict[str, SearchStrategy[Case]] = {
    **{op: over_axis(op) for op in ("Softmax", "LogSoftmax", "Flatten")},
    **{op: unary(op, positive) for op in ("Log", "Sqrt", "Reciprocal")},
    **{op: broadcast(op) for op in ("Add", "Sub", "Mul")},
    **{op: broadcast(op, count=3) for op in ("Sum", "Max", "Min")},
    **{op: convolution(op) for op in ("Conv", "ConvTranspose")},
    **{op: pool(op) for op in ("MaxPool", "AveragePool")},
    **{op: images(op) for op in ("GlobalAveragePool",)},
    **{op: normalization(op) for op in ("LayerNormalization", "InstanceNormalization", "BatchNormalization")},
    **{f"Reduce{kind}": reduction(f"Reduce{kind}") for kind in REDUCTIONS},
    **{op: squeeze(op) for op in ("Squeeze", "Unsqueeze")},
    **{op: blocks(op) for op in ("DepthToSpace", "SpaceToDepth")},
    "Cast": unary("Cast", to=11),
    "Clip": clip(),
    "Concat": concat(),
    "Div": broadcast("Div", values=positive),
    "Elu": unary("Elu", alpha=0.7),
    "Expand": expand(),
    "Gather": gather(),
    "GatherElements": gather_elements(),
    "Gelu": st.sampled_from(["none", "tanh"]).flatmap(lambda form: unary("Gelu", approximate=form)),
    "Gemm": gemm(),
    "HardSigmoid": unary("HardSigmoid", alpha=0.4, beta=0.6),
    "HardSwish": unary("HardSwish", lambda seed, shape: 4 * normal(seed, shape)),
    "LeakyRelu": unary("LeakyRelu", alpha=0.2),
    "MatMul": matmul(),
    "Pad": pad(),
    "PRelu": prelu(),
    "Pow": power(),
    "Reshape": reshape(),
    "Resize": resize(),
    "Slice": slices(),
    "Split": split(),
    "Tile": tile(),
    "Transpose": transpose(),
    "Where": where(),
}
