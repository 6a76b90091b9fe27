"""Graphs for every rewrite of normalize-graph: where it applies, and where it declines."""

from __future__ import annotations

from layer_graphs import ROWS

IMAGE = [{"x": (1, 4, 8, 8)}, {"x": (3, 4, 8, 8)}]  # two batch sizes
DYNAMIC = [{"x": (1, 4, 8, 8)}, {"x": (2, 4, 9, 12)}]  # and two spatial sizes

OPSETS = {"Swish": 24, "Swish with a slope": 24}  # of operators that are newer than the others
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
    "Einsum that sums in one operand": (
        "g (float[N,6] x, float[6,2,3] W) => (float[N,2] y) { y = Einsum<equation = \"nd,dhk->nh\">(x, W) }", ROWS,
        "MatMul"),
    "Einsum that turns": (
        "g (float[N,6] x) => (float[6,N] y) { y = Einsum<equation = \"ab->ba\">(x) }", ROWS, "Transpose"),
    "MatMul with a vector": (
        "g (float[N,6] x, float[6] W) => (float[N] y) { y = MatMul(x, W) }", ROWS, "MatMul Squeeze"),
    "MatMul with leading ones": (
        "g (float[N,6] x, float[1,6,3] W) => (float[1,N,3] y) { y = MatMul(x, W) }", ROWS, "MatMul Unsqueeze"),
    "MatMul with a constant on its left": (
        "g (float[5,6] x, float[3,5] W) => (float[3,6] y) { y = MatMul(W, x) }", [{"x": (5, 6)}],
        "Transpose MatMul Transpose"),
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
    "region of interest that holds nothing": (
        POOL + "<float[0] r = {}, float[4] s = {1, 1, 2, 2}> { y = Resize<mode = \"nearest\">(x, r, s) }",
        DYNAMIC, "Resize"),
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
    "Swish": (LINE + "{ y = Swish(x) }", ROWS, "Sigmoid Mul"),
    "Swish with a slope": (LINE + "{ y = Swish<alpha = 1.702>(x) }", ROWS, "Mul Sigmoid Mul"),
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
