"""Transformers as exporters write them: shapes of inner tensors, masks, positions, windows; every piece is trained.

The networks are what TorchScript exports look like (optimum's too), with the names taken out: sizes are read from inner
tensors and put together again, masks are made by Expand and Where, positions by Range.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from networks import CORRECT, network, run
from numpy.typing import NDArray

from qcompile import Config, QModel, open_model
from qcompile.passes.partition_units import PartitionUnits
from qcompile.training.pieces import join_units
from qcompile.training.recipe import Training
from qcompile.training.reconstruction import reconstruct

SAMPLES, TOKENS, WORDS = 40, 6, 12
CONSTANTS = """<int64 i0 = {0}, int64 i1 = {1}, int64[1] v0 = {0}, int64[1] v1 = {1}, int64[1] v2 = {2},
  int64[1] heads = {2}, int64[1] rest = {-1}, int64[1] width = {16}, float zero = {0}, float half = {0.5},
  float one = {1}, float two = {2}, float root = {0.7071}, float scale = {0.3535}, float tiny = {1e-5},
  float low = {-3.4028234e38}>"""


def weights(layers: int) -> str:
    names = [f"float[16,16] {kind}{n}" for n in range(layers) for kind in ("Q", "K", "V", "O")]
    names += [f"float[16,32] U{n}, float[32,16] D{n}, float[16] B{n}" for n in range(layers)]
    names += [f"float[16] {kind}{n}" for n in range(2 * layers + 1) for kind in ("G", "H")]
    return ", ".join(names)


def norm(x: str, y: str, n: int) -> str:
    return f"{y} = LayerNormalization<axis = -1>({x}, G{n}, H{n})\n"


def decomposed(x: str, y: str, n: int) -> str:
    """A normalization by its root mean square, written out."""
    return f"""{y}s = Pow({x}, two)  {y}m = ReduceMean<axes = [-1]>({y}s)  {y}e = Add({y}m, tiny)  {y}r = Sqrt({y}e)
      {y}d = Div({x}, {y}r)  {y} = Mul({y}d, G{n})
    """


def attention(x: str, y: str, n: int, mask: str = "", turn: tuple[str, str] | None = None) -> str:
    """Attention of two heads; batch and length are read from `x`. `turn` names cosine and sine for queries and keys."""
    p = f"a{n}"
    text = f"""{p}s = Shape({x})  {p}b = Gather({p}s, v0)  {p}t = Gather({p}s, v1)
      {p}split = Concat<axis = 0>({p}b, {p}t, heads, rest)  {p}join = Concat<axis = 0>({p}b, {p}t, width)
    """
    for kind in "QKV":
        text += f"""{p}{kind}x = MatMul({x}, {kind}{n})  {p}{kind}r = Reshape({p}{kind}x, {p}split)
          {p}{kind}h = Transpose<perm = [0,2,1,3]>({p}{kind}r)
        """
    if turn:
        for kind in "QK":
            text += f"""{p}{kind}1, {p}{kind}2 = Split<axis = -1>({p}{kind}h)  {p}{kind}n = Neg({p}{kind}2)
              {p}{kind}w = Concat<axis = -1>({p}{kind}n, {p}{kind}1)  {p}{kind}c = Mul({p}{kind}h, {turn[0]})
              {p}{kind}d = Mul({p}{kind}w, {turn[1]})  {p}{kind}y = Add({p}{kind}c, {p}{kind}d)
            """
    q, k = (f"{p}{kind}{'y' if turn else 'h'}" for kind in "QK")
    masked = f"{p}masked = Add({p}scaled, {mask})" if mask else f"{p}masked = Identity({p}scaled)"
    return f"""{text} {p}kt = Transpose<perm = [0,1,3,2]>({k})  {p}scores = MatMul({q}, {p}kt)
      {p}scaled = Mul({p}scores, scale)  {masked}  {p}p = Softmax<axis = -1>({p}masked)  {p}mix = MatMul({p}p, {p}Vh)
      {p}back = Transpose<perm = [0,2,1,3]>({p}mix)  {p}flat = Reshape({p}back, {p}join)  {y} = MatMul({p}flat, O{n})
    """


def mlp(x: str, y: str, n: int) -> str:
    p = f"m{n}"
    return f"""{p}u = MatMul({x}, U{n})  {p}d = Div({p}u, root)  {p}e = Erf({p}d)  {p}f = Add({p}e, one)
      {p}g = Mul({p}u, {p}f)  {p}h = Mul({p}g, half)  {p}w = MatMul({p}h, D{n})  {y} = Add({p}w, B{n})
    """


def layers(count: int, mask: str = "", turn: tuple[str, str] | None = None, *, pre: bool = False) -> str:
    """Layers from x0 on, two tensors each: normalization behind each sum as in BERT, or (`pre`) in front of it."""
    text = ""
    for n in range(count):
        a, b, c = f"x{2 * n}", f"x{2 * n + 1}", f"x{2 * n + 2}"
        for x, y, k, branch in ((a, b, 2 * n, "attention"), (b, c, 2 * n + 1, "mlp")):
            source, result = (f"n{k}", f"r{k}") if pre else (x, f"r{k}")
            text += decomposed(x, source, k) if pre else ""
            text += attention(source, result, n, mask, turn) if branch == "attention" else mlp(source, result, n)
            text += f"{y} = Add({result}, {x})\n" if pre else f"s{k} = Add({result}, {x})\n" + norm(f"s{k}", y, k)
    return text


def encoder(count: int = 2) -> str:
    """BERT: the mask has the size of the embeddings, which belong to the first layer otherwise."""
    return f"""n (int64[N,S] ids, int64[N,S] mask, float[12,16] T, float[8,16] P, {weights(count)}, float[16,4] C)
      => (float[N,S,4] y) {CONSTANTS} {{
        idshape = Shape(ids)  length = Gather(idshape, i1)  places = Range(i0, length, i1)  position = Gather(P, places)
        words = Gather(T, ids)  sum = Add(words, position)  {norm("sum", "x0", 2 * count)}
        size = Shape(x0)  batch = Gather(size, v0)  tokens = Gather(size, v1)
        shape = Concat<axis = 0>(batch, v1, tokens, tokens)
        kept = Cast<to = 9>(mask)  wide = Unsqueeze(kept, v1)  wider = Unsqueeze(wide, v2)  all = Expand(wider, shape)
        additive = Where(all, zero, low)
        {layers(count, "additive")}
        y = MatMul(x{2 * count}, C)
    }}"""


def decoder(count: int = 2) -> str:
    """Llama: a causal mask of minus infinity over the padding mask, rotated queries and keys, its own normalization."""
    return f"""n (int64[N,S] ids, int64[N,S] mask, float[12,16] T, float[1,4,1] F, {weights(count)}, float[16,12] C)
      => (float[N,S,12] y) {CONSTANTS} {{
        x0 = Gather(T, ids)  size = Shape(x0)  batch = Gather(size, v0)  tokens = Gather(size, v1)
        length = Gather(size, i1)  places = Range(i0, length, i1)  row = Unsqueeze(places, v0)
        column = Unsqueeze(places, v1)
        seen = LessOrEqual(row, column)  kept = Cast<to = 9>(mask)  wide = Unsqueeze(kept, v1)
        wider = Unsqueeze(wide, v2)
        visible = And(seen, wider)  shape = Concat<axis = 0>(batch, v1, tokens, tokens)  all = Expand(visible, shape)
        never = Log(zero)  additive = Where(all, zero, never)
        real = Cast<to = 1>(row)  line = Unsqueeze(real, v0)  angles = MatMul(F, line)
        turned = Transpose<perm = [0,2,1]>(angles)  twice = Concat<axis = -1>(turned, turned)
        c = Cos(twice)  s = Sin(twice)  cosine = Unsqueeze(c, v1)  sine = Unsqueeze(s, v1)
        {layers(count, "additive", ("cosine", "sine"), pre=True)}
        {decomposed(f"x{2 * count}", "last", 2 * count)}  y = MatMul(last, C)
    }}"""


def vision(count: int = 2) -> str:
    """ViT: patches, a class token that is repeated for the batch, positions, a head on the class token."""
    return f"""n (float[N,3,8,8] image, float[16,3,4,4] W, float[16] A, float[1,1,16] CLASS, float[1,5,16] P,
      {weights(count)}, float[16,4] C, float[4] E) => (float[N,4] y) {CONSTANTS} {{
        patches = Conv<kernel_shape = [4,4], strides = [4,4]>(image, W, A)  size = Shape(patches)
        batch = Gather(size, v0)  channels = Gather(size, v1)  flat = Concat<axis = 0>(batch, channels, rest)
        lines = Reshape(patches, flat)  tokens = Transpose<perm = [0,2,1]>(lines)
        shape = Concat<axis = 0>(batch, v1, v1)  class = Expand(CLASS, shape)
        joined = Concat<axis = 1>(class, tokens)  x0 = Add(joined, P)
        {layers(count, pre=True)}
        {decomposed(f"x{2 * count}", "last", 2 * count)}  first = Gather<axis = 1>(last, i0)  y = Gemm(first, C, E)
    }}"""


def windows() -> str:
    """Swin: windows are folded into the batch, attended to, and put back, with the batch read from inner tensors."""
    return f"""n (float[N,3,8,8] image, float[16,3,2,2] W, float[16] A, {weights(1)}, float[16,4] C)
      => (float[N,4] y) {CONSTANTS} {{
        patches = Conv<kernel_shape = [2,2], strides = [2,2]>(image, W, A)  last = Transpose<perm = [0,2,3,1]>(patches)
        size = Shape(last)  batch = Gather(size, v0)  grid = Concat<axis = 0>(batch, v2, v2, v2, v2, rest)
        cut = Reshape(last, grid)  near = Transpose<perm = [0,1,3,2,4,5]>(cut)  four = Mul(v2, v2)
        window = Concat<axis = 0>(rest, four, width)  x0 = Reshape(near, window)
        {layers(1)}
        split = Reshape(x2, grid)  far = Transpose<perm = [0,1,3,2,4,5]>(split)  sixteen = Mul(four, four)
        row = Concat<axis = 0>(batch, sixteen, width)
        merged = Reshape(far, row)  mean = ReduceMean<axes = [1], keepdims = 0>(merged)  y = MatMul(mean, C)
    }}"""


def detector() -> str:
    """Two scales whose maps become tokens and are joined, as in the heads of detectors."""
    return f"""n (float[N,3,H,W] image, float[8,3,3,3] A, float[16,8,3,3] B, float[6,8,1,1] C, float[6,16,1,1] D)
      => (float[N,T,6] y) {CONSTANTS} {{
        a = Conv<pads = [1,1,1,1]>(image, A)  b = Relu(a)  c = Conv<pads = [1,1,1,1], strides = [2,2]>(b, B)
        d = Relu(c)
        fine = Conv(b, C)  fs = Shape(fine)  fn = Gather(fs, v0)  fc = Gather(fs, v1)
        ft = Concat<axis = 0>(fn, fc, rest)  ff = Reshape(fine, ft)
        coarse = Conv(d, D)  cs = Shape(coarse)  cn = Gather(cs, v0)  cc = Gather(cs, v1)
        ct = Concat<axis = 0>(cn, cc, rest)  cf = Reshape(coarse, ct)  all = Concat<axis = 2>(ff, cf)
        turned = Transpose<perm = [0,2,1]>(all)  y = Sigmoid(turned)
    }}"""


NETWORKS = {
    "encoder": encoder(),
    "encoder of many layers": encoder(4),
    "decoder": decoder(),
    "vision": vision(),
    "windows": windows(),
    "detector": detector(),
}


def samples(model: Any) -> dict[str, NDArray[Any]]:
    """Words behind which there is padding, masked; images."""
    random, given = np.random.default_rng(1), {}
    lengths = random.integers(TOKENS // 2, TOKENS + 1, SAMPLES)
    for item in model.graph.input:
        if item.name == "ids":
            given["ids"] = random.integers(0, WORDS, (SAMPLES, TOKENS))
        elif item.name == "mask":
            given["mask"] = (np.arange(TOKENS) < lengths[:, np.newaxis]).astype(np.int64)
        else:
            given[item.name] = random.normal(size=(SAMPLES, 3, 8, 8)).astype(np.float32)
    return given


def calibrated(text: str, **settings: Any) -> QModel:
    source = network(text, opset=17)
    model = open_model(
        source, Config(**{"w": 4, "a": 8, "steps": 60, "first_last_bits": 4, "threads": 1} | settings), samples(source)
    )
    run(model, (CORRECT[0], PartitionUnits(), *CORRECT[1:]))
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_every_piece_is_trained(name: str) -> None:
    model = calibrated(NETWORKS[name])
    outcomes = list(
        reconstruct(model, join_units(model.plan, model.plan.trained_together()), Training.of(model.config))
    )
    assert [outcome.reason for outcome in outcomes] == [""] * len(outcomes)
    errors = [(outcome.before, outcome.after) for outcome in outcomes]
    assert all(before and after and math.isfinite(before) and after <= before for before, after in errors)
    assert sum(outcome.trained for outcome in outcomes) >= len(outcomes) / 2
