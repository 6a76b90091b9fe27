"""NormalizeGraph: every rewrite applies, declines where it must, and keeps the function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from layer_graphs import ROWS, AsQModel, Build, Same
from onnx import ModelProto

from qcompile.ir.canonical import CANONICAL
from qcompile.ir.load import load_model, to_model
from qcompile.ir.simplify import SIMPLIFY
from qcompile.ir.verify import verify
from qcompile.passes.normalize_graph import NormalizeGraph
from qcompile.qmodel import QModel
from qcompile.runtime.session import Session

IMAGE = [{"x": (1, 4, 8, 8)}, {"x": (3, 4, 8, 8)}]  # two batch sizes
DYNAMIC = [{"x": (1, 4, 8, 8)}, {"x": (2, 4, 9, 12)}]  # and two spatial sizes

LINE = "g (float[N,6] x) => (float[N,6] y)"
CONV = "g (float[N,4,H,W2] x, float[5,4,3,3] W) => (float[N,5,P,Q] y)"
POOL = "g (float[N,4,H,W2] x) => (float[N,4,P,Q] y)"
GATE = " <float three = {3}, float zero = {0}, float six = {6}>"

# name: graph, inputs to compare on, operators afterwards
REWRITES = {
    "identity": (LINE + "{ a = Relu(x) b = Identity(a) y = Neg(b) }", ROWS, "Relu Neg"),
    "identity at the output": (LINE + "{ a = Relu(x) y = Identity(a) }", ROWS, "Relu"),
    "identity between input and output stays": (LINE + "{ y = Identity(x) }", ROWS, "Identity"),
    "identity of one tensor under two output names stays": (
        "g (float[N,6] x) => (float[N,6] y, float[N,6] z) { y = Relu(x) z = Identity(y) }", ROWS, "Relu Identity"),
    "dropout": (LINE + "{ a, m = Dropout(x) y = Relu(a) }", ROWS, "Relu"),
    "dropout with a used mask stays": (
        "g (float[N,6] x) => (float[N,6] y, bool[N,6] m) { a, m = Dropout(x) y = Relu(a) }", ROWS, "Dropout Relu"),
    "cast to the type of another tensor": (
        "g (float[N,6] x) => (int64[N,6] y) <int64 i = {0}> { a = CastLike(x, x) b = CastLike(a, i) y = Neg(b) }",
        ROWS, "Cast Neg"),
    "cast to the same type": (LINE + "{ a = Cast<to = 1>(x) y = Relu(a) }", ROWS, "Relu"),
    "cast to another type stays": (
        "g (float[N,6] x) => (int64[N,6] y) { a = Cast<to = 7>(x) y = Neg(a) }", ROWS, "Cast Neg"),
    "transpose in order": (
        LINE + "{ a = Transpose<perm = [0, 1]>(x) y = Relu(a) }", ROWS, "Relu"),
    "pad by nothing": (
        LINE + "<int64[4] p = {0,0,0,0}> { a = Pad(x, p) y = Relu(a) }", ROWS, "Relu"),
    "slice of everything": (
        LINE + "<int64[1] s = {0}, int64[1] e = {6}, int64[1] a = {1}>"
        "{ t = Slice(x, s, e, a) y = Relu(t) }", ROWS, "Relu"),
    "slice of a part stays": (
        "g (float[N,6] x) => (float[N,5] y) <int64[1] s = {0}, int64[1] e = {5}, int64[1] a = {1}>"
        "{ t = Slice(x, s, e, a) y = Relu(t) }", ROWS, "Slice Relu"),
    "slice by half of a size that is known once pads are folded": (
        "g (float[N,4,8,8] x) => (float[N,4,P,8] y)"
        "<int64 d = {2}, float two = {2}, int64[1] z = {0}, int64[1] a = {2}, int64[8] p = {0,0,1,0,0,0,0,0}>"
        "{ q = Add(p, p) w = Pad(x, q) s = Shape(w) n = Gather<axis = 0>(s, d) f = Cast<to = 1>(n) h = Div(f, two)"
        "  u = Unsqueeze(h, z) e = Cast<to = 7>(u) t = Slice(w, z, e, a) y = Relu(t) }", IMAGE, "Pad Slice Relu"),
    "slice with a step stays": (
        "g (float[N,6] x) => (float[N,3] y) <int64[1] s = {0}, int64[1] e = {9}, int64[1] a = {1}, int64[1] p = {2}>"
        "{ t = Slice(x, s, e, a, p) y = Relu(t) }", ROWS, "Slice Relu"),
    "slice of a dynamic dimension by a number stays": (
        "g (float[N,6] x) => (float[M,6] y) <int64[1] s = {0}, int64[1] e = {100}, int64[1] a = {0}>"
        "{ t = Slice(x, s, e, a) y = Relu(t) }", ROWS, "Slice Relu"),
    "neutral constants": (
        LINE + "<float z = {0}, float[1] o = {1}>"
        "{ a = Add(z, x) b = Mul(a, o) c = Sub(b, z) d = Div(c, o) y = Relu(d) }", ROWS, "Relu"),
    "a neutral constant that broadcasts stays": (
        "g (float[N,6] x) => (float[1,N,6] y) <float[1,1,6] z = {0,0,0,0,0,0}> { a = Add(x, z) y = Relu(a) }",
        ROWS, "Add Relu"),
    "zero minus x stays": (
        LINE + "<float z = {0}> { a = Sub(z, x) y = Relu(a) }", ROWS, "Sub Relu"),
    "Einsum that is a product": (
        "g (float[N,6] x, float[6,2,3] W) => (float[2,N,3] y) { y = Einsum<equation = \"nd,dhk->hnk\">(x, W) }",
        ROWS, "MatMul Reshape Transpose"),
    "Einsum that turns": (
        "g (float[N,6] x) => (float[6,N] y) { y = Einsum<equation = \"ab->ba\">(x) }", ROWS, "Transpose"),
    "MatMul with a vector": (
        "g (float[N,6] x, float[6] W) => (float[N] y) { y = MatMul(x, W) }", ROWS, "MatMul Squeeze"),
    "MatMul with leading ones": (
        "g (float[N,6] x, float[1,6,3] W) => (float[1,N,3] y) { y = MatMul(x, W) }", ROWS, "MatMul Unsqueeze"),
    "MatMul with a stack for the same rows": (
        "g (float[N,6] x, float[2,6,3] W) => (float[2,N,3] y) { y = MatMul(x, W) }", ROWS, "MatMul Reshape Transpose"),
    "MatMul with a stack for its own rows": (
        "g (float[N,4,8,8] x, float[4,8,160] W) => (float[N,4,8,160] y) { y = MatMul(x, W) }", IMAGE,
        "Slice MatMul Slice MatMul Slice MatMul Slice MatMul Concat"),
    "Range of lists of one number": (
        "g (float[N,6] x) => (float[M] y) <int64[1] k = {0}, float[1] a = {0}, float b = {0.25}>"
        "{ m = ReduceMax<keepdims = 0>(x) u = Unsqueeze(m, k) r = Range(a, u, b) y = Neg(r) }",
        ROWS, "ReduceMax Unsqueeze Squeeze Range Neg"),
    "clip without bounds": (LINE + "{ a = Clip(x) y = Relu(a) }", ROWS, "Relu"),
    "concat of one": (LINE + "{ a = Concat<axis = 1>(x) y = Relu(a) }", ROWS, "Relu"),
    "concat with nothing": (
        LINE + "<int64[1] z = {0}, int64[1] a = {1}>"
        "{ e = Slice(x, z, z, a) c = Concat<axis = 1>(e, x, e) y = Relu(c) }", ROWS, "Relu"),
    "If with a constant condition": (
        LINE + "<bool yes = {1}> { y = If(yes) <then_branch = t () => (float[N,6] a) { a = Relu(x) },"
        " else_branch = e () => (float[N,6] b) { b = Neg(x) }> }", ROWS, "Relu"),
    "Loop of two trips": (
        "g (float[N,6] x, float[6,6] W) => (float[N,6] y) <int64 m = {2}> { y = Loop(m, , x) <body = b"
        " (int64 i, bool c, float[N,6] s) => (bool d, float[N,6] t)"
        " { d = Identity(c) p = MatMul(s, W) t = Tanh(p) }> }",
        ROWS, "MatMul Tanh MatMul Tanh"),
    "constants through Constant, Identity, Transpose": (
        "g (float[N,6] x, float[4,6] W) => (float[N,4] y)"
        "{ i = Identity(W) t = Transpose<perm = [1, 0]>(i) b = Constant<value = float[4] {1,2,3,4}>()"
        "  m = MatMul(x, t) y = Add(m, b) }", ROWS, "Gemm"),
    "reshape with an exporter's shape": (
        "g (float[N,4,8,8] x) => (float[N,256] y) <int64 i = {0}, int64[1] r = {-1}, int64[1] ax = {0}> {"
        "  s = Shape(x) n = Gather<axis = 0>(s, i) u = Unsqueeze(n, ax) c = Concat<axis = 0>(u, r) y = Reshape(x, c) }",
        IMAGE, "Flatten"),
    "reshape with a dynamic map": (
        "g (float[N,4,H,W2] x) => (float[N,K] y) <int64 i = {0}, int64[1] r = {-1}, int64[1] ax = {0}> {"
        "  s = Shape(x) n = Gather<axis = 0>(s, i) u = Unsqueeze(n, ax) c = Concat<axis = 0>(u, r) y = Reshape(x, c) }",
        DYNAMIC, "Flatten"),
    "reshape that splits channels": (
        "g (float[N,4,8,8] x) => (float[N,2,2,8,8] y) <int64 i = {0}, int64[4] r = {2,2,8,8}, int64[1] ax = {0}> {"
        "  s = Shape(x) n = Gather<axis = 0>(s, i) u = Unsqueeze(n, ax) c = Concat<axis = 0>(u, r) y = Reshape(x, c) }",
        IMAGE, "Reshape"),
    "reshape of two dynamic dimensions keeps its chain": (
        "g (float[N,4,H,W2] x) => (float[N,K,4] y)"
        " <int64[1] a = {0}, int64[1] b = {2}, int64[1] c = {3}, int64[1] f = {4}> {"
        "  s = Shape(x) n = Gather<axis = 0>(s, a) h = Gather<axis = 0>(s, b) w = Gather<axis = 0>(s, c)"
        "  k = Mul(h, w) t = Concat<axis = 0>(n, k, f) p = Transpose<perm = [0, 2, 3, 1]>(x) y = Reshape(p, t) }",
        DYNAMIC, "Transpose Reshape"),
    "reshape to the same shape": (
        "g (float[N,4,8,8] x) => (float[N,4,8,8] y) <int64[4] s = {0,4,-1,8}> { a = Reshape(x, s) y = Relu(a) }",
        IMAGE, "Relu"),
    "reshape that would allow zeros, but has none": (
        "g (float[N,4,8,8] x) => (float[N,256] y) <int64[2] s = {-1,256}> { y = Reshape<allowzero = 1>(x, s) }",
        IMAGE, "Flatten"),
    "reshape that allows zeros, with an exporter's shape": (
        "g (float[N,4,8,8] x) => (float[N,256] y) <int64[1] r = {256}>"
        "{ n = Shape<end = 1>(x) c = Concat<axis = 0>(n, r) y = Reshape<allowzero = 1>(x, c) }", IMAGE, "Flatten"),
    "reshape that swaps the batch stays": (
        "g (float[N,6] x) => (float[6,N] y) <int64[2] s = {6,-1}> { a = Reshape(x, s) y = Relu(a) }",
        ROWS, "Reshape Relu"),
    "flatten of a matrix": (LINE + "{ a = Flatten<axis = 1>(x) y = Relu(a) }", ROWS, "Relu"),
    "dead nodes": (LINE + "{ y = Relu(x) a = Neg(x) b = Exp(a) }", ROWS, "Relu"),
    "pad into convolution": (
        CONV + "<int64[8] p = {0,0,1,0,0,0,2,1}, float z = {0}>"
        "{ a = Pad(x, p, z) y = Conv<pads = [1,1,0,0], strides = [2,2]>(a, W) }", DYNAMIC, "Conv"),
    "pad of two axes into convolution": (
        CONV + "<int64[4] p = {1,0,2,1}, float z = {0}, int64[2] a = {-2,3}>"
        "{ t = Pad(x, p, z, a) y = Conv(t, W) }", DYNAMIC, "Conv"),
    "pad of an axis by numbers that are computed": (
        POOL + "<int64[1] a = {-1}, int64[1] f = {2}, int64[1] t = {3}>"
        "{ s = Shape(x) c = Slice(s, f, t) p = Concat<axis = 0>(f, c) y = Pad<mode = \"edge\">(x, p, , a) }",
        DYNAMIC, "Shape Slice Concat Concat Gather Pad"),
    "Resize of two axes": (
        POOL + "<float[2] s = {2, 1.5}> { y = Resize<axes = [-1, 2], mode = \"linear\">(x, , s) }", DYNAMIC, "Resize"),
    "Resize of two axes to sizes": (
        "g (float[N,4,8,8] x) => (float[N,4,P,Q] y) <int64[2] s = {11, 5}> {"
        " y = Resize<axes = [2, 3], mode = \"linear\">(x, , , s) }", IMAGE, "Resize"),
    "Resize of a part": (
        POOL + "<float[1] s = {2}, float[2] r = {0.25, 0.75}> { y = Resize<axes = [3], mode = \"linear\","
        " coordinate_transformation_mode = \"tf_crop_and_resize\">(x, r, s) }",
        DYNAMIC, "Resize"),
    "Resize to sizes of an open map stays": (
        POOL + "<int64[2] s = {11, 5}> { y = Resize<axes = [2, 3], mode = \"linear\">(x, , , s) }", DYNAMIC, "Resize"),
    "pad with ones stays": (
        CONV + "<int64[8] p = {0,0,1,0,0,0,2,1}, float z = {1}>"
        "{ a = Pad(x, p, z) y = Conv(a, W) }", DYNAMIC, "Pad Conv"),
    "pad of channels stays": (
        "g (float[N,4,H,W2] x, float[5,5,3,3] W) => (float[N,5,P,Q] y) <int64[8] p = {0,1,1,0,0,0,2,1}>"
        "{ a = Pad(x, p) y = Conv(a, W) }", DYNAMIC, "Pad Conv"),
    "pad by reflection stays": (
        CONV + "<int64[8] p = {0,0,1,0,0,0,2,1}>"
        '{ a = Pad<mode = "reflect">(x, p) y = Conv(a, W) }', DYNAMIC, "Pad Conv"),
    "cropping pad stays": (
        CONV + "<int64[8] p = {0,0,-1,0,0,0,1,1}>"
        "{ a = Pad(x, p) y = Conv(a, W) }", DYNAMIC, "Pad Conv"),
    "pad with two readers": (
        "g (float[N,4,H,W2] x, float[5,4,3,3] W) => (float[N,5,P,Q] y, float[N,4,R,S] z)"
        " <int64[8] p = {0,0,1,1,0,0,1,1}>"
        "{ a = Pad(x, p) y = Conv(a, W) z = Relu(a) }", DYNAMIC, "Pad Conv Relu"),
    "pad into average pool": (
        POOL + "<int64[8] p = {0,0,1,1,0,0,1,1}>"
        "{ a = Pad(x, p) y = AveragePool<kernel_shape = [3,3], strides = [2,2]>(a) }", DYNAMIC, "AveragePool"),
    "pad before a pool that does not count its own padding stays": (
        POOL + "<int64[8] p = {0,0,1,1,0,0,1,1}>"
        "{ a = Pad(x, p) y = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]>(a) }", DYNAMIC, "Pad AveragePool"),
    "pad before a pool with ceil_mode stays": (
        POOL + "<int64[8] p = {0,0,1,1,0,0,1,1}>"
        "{ a = Pad(x, p) y = AveragePool<kernel_shape = [3,3], strides = [2,2], ceil_mode = 1>(a) }",
        DYNAMIC, "Pad AveragePool"),
    "pad before max pool stays": (
        POOL + "<int64[8] p = {0,0,1,1,0,0,1,1}>"
        "{ a = Pad(x, p) y = MaxPool<kernel_shape = [3,3]>(a) }", DYNAMIC, "Pad MaxPool"),
    "automatic padding that is none": (
        CONV +
        '{ y = Conv<auto_pad = "VALID", strides = [2,1]>(x, W) }', DYNAMIC, "Conv"),
    "mean over the map": (
        "g (float[N,4,H,W2] x) => (float[N,4,1,1] y) <int64[2] a = {2,-1}> { y = ReduceMean(x, a) }",
        DYNAMIC, "GlobalAveragePool"),
    "mean over the map without it": (
        "g (float[N,4,H,W2] x) => (float[N,4] y) <int64[2] a = {3,2}> { y = ReduceMean<keepdims = 0>(x, a) }",
        DYNAMIC, "GlobalAveragePool Flatten"),
    "mean over channels stays": (
        "g (float[N,4,H,W2] x) => (float[N,1,1,W2] y) <int64[2] a = {1,2}> { y = ReduceMean(x, a) }",
        DYNAMIC, "ReduceMean"),
    "average pool over everything": (
        "g (float[N,4,8,8] x) => (float[N,4,1,1] y) { y = AveragePool<kernel_shape = [8,8], strides = [8,8]>(x) }",
        IMAGE, "GlobalAveragePool"),
    "average pool over a part stays": (
        "g (float[N,4,8,8] x) => (float[N,4,2,1] y) { y = AveragePool<kernel_shape = [7,8]>(x) }",
        IMAGE, "AveragePool"),
    "MatMul and Add": (
        "g (float[N,6] x, float[6,4] W, float[1,4] B) => (float[N,4] y) { m = MatMul(x, W) y = Add(B, m) }",
        ROWS, "Gemm"),
    "MatMul and scalar Add": (
        "g (float[N,6] x, float[6,4] W) => (float[N,4] y) <float b = {0.5}> { m = MatMul(x, W) y = Add(m, b) }",
        ROWS, "Gemm"),
    "MatMul with another reader stays": (
        "g (float[N,6] x, float[6,4] W, float[4] B) => (float[N,4] y, float[N,4] m) { m = MatMul(x, W) y = Add(m, B) }",
        ROWS, "MatMul Add"),
    "MatMul and Add per row stays": (
        "g (float[5,6] x, float[6,4] W, float[5,1] B) => (float[5,4] y) { m = MatMul(x, W) y = Add(m, B) }",
        [{"x": (5, 6)}], "MatMul Add"),
    "MatMul of rank 3 stays": (
        "g (float[N,2,6] x, float[6,4] W, float[4] B) => (float[N,2,4] y) { m = MatMul(x, W) y = Add(m, B) }",
        [{"x": (1, 2, 6)}, {"x": (3, 2, 6)}], "MatMul Add"),
    "Gemm factors": (
        "g (float[N,6] x, float[6,4] W, float[1,4] B) => (float[N,4] y) { y = Gemm<alpha = 0.5, beta = 3.0>(x, W, B) }",
        ROWS, "Gemm"),
    "Gemm factors, transposed, scalar bias": (
        "g (float[N,6] x, float[4,6] W) => (float[N,4] y) <float b = {0.5}>"
        "{ y = Gemm<alpha = 0.5, beta = 3.0, transB = 1>(x, W, b) }", ROWS, "Gemm"),
    "HardSwish, Div behind": (
        LINE + GATE + "{"
        "  r = Neg(x) a = Add(r, three) c = Clip(a, zero, six) m = Mul(r, c) y = Div(m, six) }", ROWS, "Neg HardSwish"),
    "HardSwish, Mul by a sixth in the gate": (
        LINE + GATE[:-1] + ", float s = {0.16666667}> {"
        "  r = Neg(x) a = Add(three, r) c = Clip(a, zero, six) d = Mul(c, s) y = Mul(d, r) }", ROWS, "Neg HardSwish"),
    "HardSwish, Div in front": (
        LINE + GATE + "{"
        "  r = Neg(x) a = Add(r, three) c = Clip(a, zero, six) d = Div(r, six) y = Mul(d, c) }", ROWS, "Neg HardSwish"),
    "HardSwish from HardSigmoid": (
        LINE + "{ r = Neg(x) h = HardSigmoid<alpha = 0.1666667, beta = 0.5>(r) y = Mul(r, h) }",
        ROWS, "Neg HardSwish"),
    "HardSwish without the division": (
        LINE + GATE + "{"
        "  r = Neg(x) a = Add(r, three) c = Clip(a, zero, six) m = Mul(r, c) y = Neg(m) }",
        ROWS, "Neg HardSwish Mul Neg"),
    "HardSwish and a learned factor": (
        LINE + GATE[:-1] + ", float[1] f = {1.5}> {"
        "  r = Neg(x) a = Add(r, three) c = Clip(a, zero, six) m = Mul(r, c) d = Div(m, six) y = Mul(f, d) }",
        ROWS, "Neg HardSwish Mul"),
    "HardSigmoid": (
        LINE + GATE + "{"
        "  a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six) }", ROWS, "HardSigmoid"),
    "a gate with another slope is no HardSwish": (
        LINE + "{ r = Neg(x) h = HardSigmoid<alpha = 0.2, beta = 0.5>(r) y = Mul(r, h) }",
        ROWS, "Neg HardSigmoid Mul"),
    "a gate of another tensor is no HardSwish": (
        LINE + GATE + "{"
        "  r = Neg(x) a = Add(r, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six) }",
        ROWS, "Neg Add Clip Mul Mul"),
    "Max and Min with numbers": (
        LINE + "<float z = {0}, float[1] s = {6}, float m = {-1}> {"
        " a = Max(z, x) b = Neg(a) c = Min(b, s) d = Exp(c) y = Max(d, m) }", ROWS, "Relu Neg Clip Exp Clip"),
    "Max with a number for each column stays": (
        LINE + "<float[6] s = {1,2,3,4,5,6}> { y = Max(x, s) }", ROWS, "Max"),
    "Sum of three": (LINE + "{ a = Neg(x) b = Exp(x) y = Sum(a, x, b) }", ROWS, "Neg Exp Add Add"),
    "PRelu of the slope 0": (
        "g (float[N,4,8,8] x) => (float[N,4,8,8] y) <float[1] z = {0}> { y = PRelu(x, z) }", IMAGE, "Relu"),
    "PRelu of equal slopes": (
        "g (float[N,4,8,8] x) => (float[N,4,8,8] y) <float[4,1,1] s = {0.25,0.25,0.25,0.25}> { y = PRelu(x, s) }",
        IMAGE, "LeakyRelu"),
    "PRelu of four slopes stays": (
        "g (float[N,4,8,8] x, float[4,1,1] S) => (float[N,4,8,8] y) { y = PRelu(x, S) }", IMAGE, "PRelu"),
    "PRelu as two halves": (
        LINE + "<float[6] s = {1,2,3,4,5,-6}> {"
        " r = Relu(x) n = Neg(x) b = Relu(n) m = Mul(s, b) y = Sub(r, m) }", ROWS, "PRelu"),
    "PRelu as a sum of halves": (
        LINE + "<float[6] s = {1,2,3,4,5,-6}> {"
        " r = Relu(x) n = Neg(x) b = Relu(n) m = Mul(s, b) y = Add(m, r) }", ROWS, "PRelu"),
    "halves of two tensors stay": (
        LINE + "<float[6] s = {1,2,3,4,5,-6}> {"
        " r = Relu(x) n = Exp(x) k = Neg(n) b = Relu(k) m = Mul(s, b) y = Sub(r, m) }", ROWS,
        "Relu Exp Neg Relu Mul Sub"),
    "PRelu as a maximum": (
        LINE + "<float[6] s = {0.5,0.25,1,0,-1,-0.5}> { m = Mul(x, s) y = Max(m, x) }", ROWS, "PRelu"),
    "a maximum with a slope above 1 stays": (
        LINE + "<float[6] s = {0.5,0.25,1,0,-1,2}> { m = Mul(x, s) y = Max(m, x) }", ROWS, "Mul Max"),
    "Mish": (
        "g (float[N,6] x) => (float[N,6] y) { a = Softplus(x) b = Tanh(a) y = Mul(x, b) }", ROWS,
        "Clip Exp Add Mul Add Div Mul"),
    "power of a half": (LINE + "<float h = {0.5}> { a = Abs(x) y = Pow(a, h) }", ROWS, "Abs Sqrt"),
    "Gelu with a product in front of Erf": (
        LINE + "<float s = {0.70710678}, float o = {1}, float h = {0.5}> {"
        " a = Mul(x, s) e = Erf(a) g = Add(e, o) m = Mul(x, g) y = Mul(m, h) }", ROWS, "Div Erf Add Mul Mul"),
    "Gelu with the half inside": (
        LINE + "<float s = {1.41421356}, float o = {1}, float h = {0.5}> {"
        " a = Div(x, s) e = Erf(a) g = Add(e, o) m = Mul(g, h) y = Mul(x, m) }", ROWS, "Div Erf Add Mul Mul"),
    "Sub and Div by a constant": (
        LINE + "<float a = {2}, float b = {3}> { t = Sub(x, a) u = Relu(t) y = Div(u, b) }",
        ROWS, "Add Relu Mul"),
    "Div by zero stays": (
        LINE + "<float[6] b = {1,2,3,4,5,0}> { y = Div(x, b) }", ROWS, "Div"),
    "chains of numbers": (
        LINE + "<float a = {2}, float b = {3}, float[6] c = {1,2,3,4,5,6}> {"
        "  t = Mul(x, a) u = Add(t, b) v = Mul(u, c) w = Sub(v, a) y = Div(w, b) }", ROWS, "Mul Add"),
    "chains of integers stay": (
        "g (float[N,6] x) => (int64[N,6] y) <int64 a = {2}> { i = Cast<to = 7>(x) t = Mul(i, a) y = Div(t, a) }",
        ROWS, "Cast Mul Div"),
}  # fmt: skip


@pytest.mark.parametrize("name", REWRITES)
def test_rewrites(name: str, model_of: Build, as_qmodel: AsQModel, same_outputs: Same) -> None:
    text, shapes, expected = REWRITES[name]
    source = model_of(text)
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert [node.op for node in model.graph.nodes] == expected.split()
    verify(model.graph, after="normalize-graph")
    same_outputs(source, model.graph, shapes)  # 1e-5: a few float32 roundings
    assert NormalizeGraph().run(model) == 0


def test_every_rule_is_seen_at_work(model_of: Build, as_qmodel: AsQModel) -> None:
    seen: set[str] = set()
    for text, _, _ in REWRITES.values():
        model = as_qmodel(model_of(text))
        NormalizeGraph().run(model)
        seen |= {entry["what"] for entry in model.journal.by("normalize-graph")}
    assert {item.name for item in (*SIMPLIFY, *CANONICAL)} <= seen


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("op", ["Conv<", "MaxPool<kernel_shape = [2,3], ", "AveragePool<kernel_shape = [2,3], "])
def test_auto_pad_becomes_pads(
    op: str, stride: int, mode: str, model_of: Build, as_qmodel: AsQModel, same_outputs: Same
) -> None:
    weight = ", W" if op.startswith("Conv") else ""
    source = model_of(
        f'g (float[N,4,11,8] x, float[5,4,2,3] W) => (float[N,C,P,Q] y)'
        f'{{ y = {op} strides = [{stride},{stride}], auto_pad = "{mode}">(x{weight}) }}'
    )  # fmt: skip
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert "auto_pad" not in model.graph.nodes[0].attrs
    assert model.graph.nodes[0].attrs["kernel_shape"] == [2, 3]
    same_outputs(source, model.graph, [{"x": (1, 4, 11, 8)}, {"x": (2, 4, 11, 8)}])


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("size", ["11,8", "H,W2"])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pads_of_a_dilated_pool_are_those_of_the_runtime(
    op: str, size: str, mode: str, model_of: Build, as_qmodel: AsQModel, same_outputs: Same
) -> None:
    source = model_of(
        f"g (float[N,4,{size}] x) => (float[N,C,P,Q] y)"
        f'{{ y = {op}<kernel_shape = [2,3], dilations = [2,2], auto_pad = "{mode}">(x) }}',
        opset=19,
    )
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    front, behind = ((0, 1), (1, 1)) if mode == "SAME_UPPER" else ((1, 1), (0, 1))
    assert model.graph.nodes[0].attrs["pads"] == [*front, *behind]  # kernel - 1 in all: dilation does not count
    same_outputs(source, model.graph, [{"x": (1, 4, 11, 8)}, {"x": (2, 4, 11, 8)}])


@pytest.mark.parametrize(("stride", "left"), [(1, False), (2, True)])
def test_auto_pad_of_a_dynamic_map_is_resolved_at_stride_one_only(
    stride: int, left: bool, model_of: Build, as_qmodel: AsQModel, same_outputs: Same
) -> None:
    source = model_of(
        "g (float[N,4,H,W2] x, float[5,4,3,3] W) => (float[N,5,P,Q] y)"
        f'{{ y = Conv<strides = [{stride},{stride}], auto_pad = "SAME_UPPER">(x, W) }}'
    )
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert ("auto_pad" in model.graph.nodes[0].attrs) == left
    same_outputs(source, model.graph, DYNAMIC)


def test_gemm_ends_plain(model_of: Build, as_qmodel: AsQModel) -> None:
    model = as_qmodel(model_of(REWRITES["Gemm factors"][0]))
    NormalizeGraph().run(model)
    gemm = model.graph.nodes[0]
    assert (gemm.attrs["alpha"], gemm.attrs["beta"], list(gemm.inputs[2].shape)) == (1.0, 1.0, [4])


def test_names_are_unique_and_the_exporters_own_stay(model_of: Build, as_qmodel: AsQModel) -> None:
    source = model_of(
        "g (float[N,6] x) => (float[N,6] y) { [first] a = Relu(x) b = Neg(a) [first] c = Exp(b) [b] y = Abs(c) }"
    )
    model = as_qmodel(source)
    assert NormalizeGraph().run(model) == 2
    assert [node.name for node in model.graph.nodes] == ["first", "b_2", "first_2", "b"]


def test_nodes_out_of_order_are_sorted(model_of: Build, as_qmodel: AsQModel, same_outputs: Same) -> None:
    source = model_of("g (float[N,6] x) => (float[N,6] y) { a = Relu(x) b = Exp(a) y = Neg(b) }")
    model = as_qmodel(source)
    model.graph.nodes = list(reversed(model.graph.nodes))
    NormalizeGraph().run(model)
    assert [node.op for node in model.graph.nodes] == ["Relu", "Exp", "Neg"]


def test_equal_constants_are_shared_and_shared_ones_stay_shared(model_of: Build, as_qmodel: AsQModel) -> None:
    source = model_of(
        "g (float[N,6] x) => (float[N,6] y, float[N,6] z) <float a = {2}, float b = {2}>{ y = Mul(x, a) z = Pow(x, b) }"
    )
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert model.graph.nodes[0].inputs[1] is model.graph.nodes[1].inputs[1]


# --- what is left alone

CONTROL_FLOW = """g (float[N,6] x, bool flag) => (float[N,6] y) <float three = {3}, float[6] row = {1,2,3,4,5,6}> {
    a = Identity(x)  b = Relu(a)  c = Identity(b)  d = Constant<value = float {0.5}>()  e = Identity(d)
    t = If(flag) <
        then_branch = then () => (float[N,6] u) { v = Identity(c)  u = Mul(v, e) },
        else_branch = other () => (float[N,6] w) { q = Add(c, three)  w = Add(q, row) }
    >
    y = Identity(t)
}"""


@pytest.mark.parametrize("flag", [True, False])
def test_subgraphs_keep_reading_outer_tensors(flag: bool, model_of: Build, as_qmodel: AsQModel) -> None:
    source = model_of(CONTROL_FLOW)
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert [node.op for node in model.graph.nodes] == ["Relu", "If"]
    assert [node.op for node in model.graph.nodes[1].attrs["then_branch"].nodes] == ["Identity", "Mul"]
    assert same_with_flag(source, model, flag)
    assert NormalizeGraph().run(model) == 0


def test_a_layer_read_only_inside_a_subgraph_is_not_merged_with_its_reader(
    model_of: Build, as_qmodel: AsQModel
) -> None:
    source = model_of(
        """g (float[N,6] x, bool flag, float[6,6] W, float[6] B) => (float[N,6] y) {
            m = MatMul(x, W)
            y = If(flag) <
                then_branch = then () => (float[N,6] u) { u = Add(m, B) },
                else_branch = other () => (float[N,6] w) { w = Relu(x) }
            >
        }"""
    )
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert [node.op for node in model.graph.nodes] == ["MatMul", "If"]
    assert same_with_flag(source, model, True)


def same_with_flag(source: ModelProto, model: QModel, flag: bool) -> bool:
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32), "flag": np.array(flag)}
    before, after = (Session(item, threads=1).run(feeds)["y"] for item in (source, to_model(model.graph)))
    return bool(np.array_equal(before, after))


def test_loops_sequences_and_optionals_survive(model_of: Build, as_qmodel: AsQModel, same_outputs: Same) -> None:
    source = model_of(
        """g (float[N,6] x) => (float[N,6] y) <int64 n = {3}, bool go = {1}, int64 first = {0}> {
            i = Identity(x)
            s = SequenceConstruct(i, i)
            a = SequenceAt(s, first)
            o = Optional<type = float[N,6]>(a)
            b = OptionalGetElement(o)
            y = Loop(n, go, b) <body = body (int64 k, bool c, float[N,6] v) => (bool d, float[N,6] w) {
                d = Identity(c)  p = Add(v, i)  w = Relu(p)
            }>
        }"""
    )
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    expected = ["SequenceConstruct", "SequenceAt", "Optional", "OptionalGetElement", "Loop"]
    assert [node.op for node in model.graph.nodes] == expected
    same_outputs(source, model.graph, ROWS)


def test_sequences_and_strings_at_the_interface_survive(model_of: Build, as_qmodel: AsQModel) -> None:
    source = model_of(
        "g (seq(float[N]) x, optional(float[N]) o, string[1] t) => (seq(float[N]) y, float[N] z, string[1] r)"
        "{ y = Identity(x) z = OptionalGetElement(o) r = Identity(t) }"
    )
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    onnx.checker.check_model(to_model(model.graph), full_check=True)


def test_custom_operators_are_left_alone(model_of: Build, as_qmodel: AsQModel) -> None:
    source = model_of(
        "g (float[N,6] x) => (float[N,6] y) <float z = {0}, float o = {1}>"
        "{ c = custom.Identity(z)  a = Add(x, c)  b = custom.Mul(a, o)  y = Add(b, z) }"
    )
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert [node.op for node in model.graph.nodes] == ["Identity", "Add", "Mul"]


def test_random_numbers_are_not_folded(model_of: Build, as_qmodel: AsQModel) -> None:
    source = model_of("g (float[2] x) => (float[2] y) { r = RandomNormal<shape = [2]>() y = Add(x, r) }")
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert [node.op for node in model.graph.nodes] == ["RandomNormal", "Add"]


# --- real models


def count(model: QModel, op: str) -> int:
    return sum(node.op == op for node in model.graph.nodes)


def test_resnet20(shared_assets: Path, as_qmodel: AsQModel, same_outputs: Same) -> None:
    source = load_model(shared_assets / "models" / "resnet20.onnx")
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    kinds = {node.op for node in model.graph.nodes}
    assert kinds == {
        "Conv",
        "BatchNormalization",
        "Relu",
        "Add",
        "Slice",
        "Pad",
        "GlobalAveragePool",
        "Flatten",
        "Gemm",
    }
    same_outputs(source, model.graph, [{"image": (1, 3, 32, 32)}, {"image": (3, 3, 32, 32)}])


def test_efficientnet(shared_assets: Path, as_qmodel: AsQModel, same_outputs: Same) -> None:
    source = load_model(shared_assets / "models" / "efficientnet_lite0.onnx")
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    kinds = {node.op for node in model.graph.nodes}
    assert kinds == {"Conv", "BatchNormalization", "Clip", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
    same_outputs(source, model.graph, [{"image": (2, 3, 224, 224)}])


def test_ppocr(shared_assets: Path, as_qmodel: AsQModel, same_outputs: Same) -> None:
    source = load_model(shared_assets / "models" / "ppocr_v4_det.onnx")
    sigmoid = next(node for node in source.graph.node if node.op_type == "Sigmoid")
    source.graph.output[0].name = sigmoid.input[0]  # compare logits: the sigmoid saturates on noise
    source.graph.node.remove(sigmoid)
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert count(model, "HardSwish") == 24
    assert count(model, "Clip") == count(model, "Div") == 0
    same_outputs(
        source, model.graph, [{"x": (1, 3, 64, 96)}, {"x": (2, 3, 96, 64)}], rtol=1e-4
    )  # 62 layers of rounding
