"""Forms of models that the graph library does not know are brought into those that it knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from qcompile.errors import InputError
from qcompile.ir.load import to_model
from qcompile.ir.prepare import plain_model, prepare
from qcompile.runtime.session import Session, from_bfloat16, to_bfloat16

Build = Callable[..., ModelProto]
Arrays = dict[str, NDArray[Any]]

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.standard_normal((4, 3)).astype(np.float32)


def outputs(model: ModelProto, **feeds: Any) -> Arrays:
    arrays = {name: np.asarray(array) for name, array in feeds.items()}
    return Session(model, level="off", threads=1).run(arrays)


def prepared(model: ModelProto) -> ModelProto:
    return to_model(prepare(model, 18))


def with_weight(model: ModelProto, name: str, values: NDArray[Any], kind: int) -> ModelProto:
    """Add an initializer of a type that numpy may lack."""
    if kind == TensorProto.BFLOAT16:
        tensor = helper.make_tensor(name, kind, values.shape, to_bfloat16(values).tobytes(), raw=True)
    else:
        tensor = numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(kind)), name)
    model.graph.initializer.append(tensor)
    return model


@pytest.mark.parametrize("shape", [["N", 99], [4, 5, 1]])
def test_shapes_that_an_edit_left_behind_are_forgotten(shape: list[int | str]) -> None:
    source = parser.parse_model("""<ir_version: 8, opset_import: ["": 18]> g (float[N,3] x) => (float[N,2] y)
    <float[3,5] a = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}, float[5,2] b = {1,0,0,1,1,0,0,1,1,0}> {
        h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b) }""")
    source.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, shape))
    graph = prepare(source, 18)
    assert list(graph.tensors()["h"].shape) == list(graph.tensors()["r"].shape) == ["N", 5]


# --- floats

KINDS = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "double": TensorProto.DOUBLE}
HALVES = {"float16": 0x3800, "bfloat16": 0x3F00, "double": 0.5}  # as ONNX text takes it


@pytest.mark.parametrize("kind", KINDS)
def test_other_floats_are_compiled_as_float32(kind: str, model_of: Build) -> None:
    text = f"""g ({kind}[N,3] x, bool c) => ({kind}[N,2] y, {kind}[N,3] passed, {kind}[N,2] z) {{
        passed = Identity(x)
        a = MatMul(x, w)
        s = Shape(a)
        half = ConstantOfShape<value = {kind}[1] {{{HALVES[kind]}}}>(s)
        b = Add(a, half)
        y = If(c) <then_branch = p () => ({kind}[N,2] t) {{ m = MatMul(x, w) t = Add(m, b) }},
                   else_branch = q () => ({kind}[N,2] e) {{ e = Neg(b) }}>
        f = Cast<to=1>(y)
        z = CastLike(f, x) }}"""
    weight = RANDOM.integers(-8, 8, (3, 2)).astype(np.float32) / 4  # exact in all of them
    model = with_weight(model_of(text), "w", weight, KINDS[kind])
    graph = prepare(model, 18)
    made = to_model(graph)
    assert vars(graph)["notes"] == [
        f"what it computes in {kind.replace('double', 'float64')} is compiled as float32, its interface is kept"
    ]
    types = [info.type.tensor_type.elem_type for info in (made.graph.input[0], *made.graph.output)]
    assert types == [KINDS[kind]] * 4
    x = np.round(ROWS * 4).astype(np.float32) / 4
    x = x if kind == "bfloat16" else x.astype(helper.tensor_dtype_to_np_dtype(KINDS[kind]))
    for which in (False, True):
        got = outputs(made, x=x, c=which)
        product = x @ weight
        expected = 2 * product + 0.5 if which else -product - 0.5
        np.testing.assert_array_equal(got["passed"], x)
        for name in ("y", "z"):
            assert got[name].dtype == x.dtype
            np.testing.assert_array_equal(got[name], expected)  # sums of few quarters are exact
    inside = [node for node in made.graph.node if node.op_type == "MatMul"]
    assert all(not name.startswith("x") or name == "x_float32" for node in inside for name in node.input)


def test_double_precision_for_sizes_stays(model_of: Build) -> None:
    model = model_of(
        """g (float[N,3] x) => (float[N,2] y, double[1] size) {
            y = MatMul(x, W0)  s = Shape<start=0, end=1>(x)  d = Cast<to=11>(s)  t = Constant<value = double[1] {0.1}>()
            size = Mul(d, t) }""".replace("W0", "w")
    )
    with_weight(model, "w", ROWS[:3, :2], TensorProto.FLOAT)
    assert vars(prepare(model, 18))["notes"] == []
    assert outputs(prepared(model), x=ROWS)["size"] == np.float64(4) * 0.1  # not what float32 gives


def test_large_half_weights_become_float32(model_of: Build) -> None:
    model = model_of("g (float16[N,40] x, float16[40,40] W) => (float16[N,40] y) { y = MatMul(x, W) }")
    made = prepared(model)
    weight = numpy_helper.to_array(model.graph.initializer[0])
    assert weight.dtype == np.float16  # the source is as it was
    (tensor,) = made.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), weight.astype(np.float32), strict=True)


def test_a_plain_model_has_its_own_opset_and_runs(model_of: Build) -> None:
    text = "g (bfloat16[N,40] x, float[40,40] W) => (bfloat16[N,40] y) { w = Cast<to=16>(W) y = MatMul(x, w) }"
    model = model_of(text, opset=17)
    plain = plain_model(model)
    assert plain.opset_import[0].version == 17
    x = RANDOM.integers(-4, 4, (2, 40)).astype(np.float32)
    expected = x @ numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_allclose(
        outputs(plain, x=x)["y"], expected, rtol=2**-8, atol=1e-5
    )  # rounded to 8 bits at the end


@pytest.mark.parametrize("kind", ["float8e4m3fn", "int4", "uint4", "complex64"])
@pytest.mark.parametrize("port", ["input", "output"])
def test_ports_that_numpy_lacks_are_refused(kind: str, port: str, model_of: Build) -> None:
    model = model_of("g (float[3] x) => (float[3] y) { y = Identity(x) }", opset=21)
    infos = model.graph.input if port == "input" else model.graph.output
    infos[0].type.tensor_type.elem_type = TensorProto.DataType.Value(kind.upper())
    with pytest.raises(
        InputError, match=f"the model's {port} '[xy]' is {kind}; export the model with a float32 {port}"
    ):
        prepare(model, 18)


def test_an_input_that_is_no_tensor_is_refused(model_of: Build) -> None:
    model = model_of("g (seq(float[2,3]) x) => (float[M,3] y) { y = ConcatFromSequence<axis = 0>(x) }")
    with pytest.raises(InputError, match="the model's input 'x' is a sequence; export the model with a float32 input"):
        prepare(model, 18)


def test_a_sequence_of_halves_is_refused(model_of: Build) -> None:
    model = model_of("g (float16[2,3] x) => (seq(float16[1,3]) y) { y = SplitToSequence(x) }")
    with pytest.raises(InputError, match="'y' is a sequence or an optional of half or double precision; export"):
        prepare(model, 18)


def test_bfloat16_is_rounded_to_nearest_even() -> None:
    values = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, -3.14159, np.inf], np.float32)
    codes = to_bfloat16(values)
    import onnxruntime as ort

    value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(codes, TensorProto.BFLOAT16)
    assert from_bfloat16(value).tolist() == [1, 1, 1 + 2**-6, -3.140625, np.inf]


# --- names, functions, sparse tensors, open sizes


def test_names_of_subgraphs_become_unique(model_of: Build) -> None:
    model = model_of(
        """g (float[N,3] x, float[N,3] s, bool c) => (float[N,3] y, float[N,3] z) {
            s2, all = Scan<num_scan_inputs=1, body = b (float[3] s, float[3] x) => (float[3] y, float[3] o) {
                y = Add(s, x) o = Identity(y) }>(first, x)
            first_again = Identity(all)
            z = If(c) <then_branch = p () => (float[N,3] t) { t = Add(first_again, s) },
                       else_branch = q () => (float[N,3] t) { t = Sub(first_again, s) }>
            y = Neg(z) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "first"))
    sums = np.cumsum(ROWS, axis=0)
    for which in (False, True):
        got = outputs(prepared(model), x=ROWS, s=ROWS * 2, c=which)
        expected = sums + ROWS * 2 if which else sums - ROWS * 2
        np.testing.assert_allclose(got["z"], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(got["y"], -got["z"])


def test_a_body_may_take_the_names_of_its_own_outputs(model_of: Build) -> None:
    """The body reads `s`, which the node outside makes: by name alone the node would depend on itself."""
    model = model_of(
        """g (float[3] s0, float[N,3] t) => (float[3] s, float[N,3] all) {
            s, all = Scan<num_scan_inputs=1, body = b (float[3] s, float[3] e) => (float[3] n, float[3] o) {
                n = Add(s, e) o = Identity(n) }>(s0, t) }"""
    )
    got = outputs(prepared(model), s0=ROWS[0], t=ROWS)
    np.testing.assert_allclose(got["all"], ROWS[0] + np.cumsum(ROWS, axis=0), rtol=1e-5, atol=1e-6)


FUNCTIONS = """<ir_version: 9, opset_import: ["": MODEL, "own": 1]>
    g (float[N,3,4,4] x, bool c) => (float[N,3,4,4] y) {
        a = own.block <axis = 1> (x)
        y = If(c) <then_branch = p () => (float[N,3,4,4] t) { t = own.act(a) },
                   else_branch = q () => (float[N,3,4,4] e) { e = Neg(a) }> }
    <domain: "own", opset_import: ["": 17]>
    act (v) => (r) { s = Sigmoid(v) m = ReduceMax <axes = [2, 3]> (s) r = Mul(v, m) }
    <domain: "own", opset_import: ["": 17, "own": 1]>
    block <axis> (v) => (r) { s = Softmax <axis: int = @axis> (v) r = own.act(s) }"""


@pytest.mark.parametrize("opset", [17, 18, 20])
def test_nested_functions_of_an_older_opset(opset: int) -> None:
    old = parser.parse_model(FUNCTIONS.replace("MODEL", "17"))  # that ONNX Runtime runs
    x = RANDOM.standard_normal((2, 3, 4, 4)).astype(np.float32)
    made = prepared(parser.parse_model(FUNCTIONS.replace("MODEL", str(opset))))
    assert not made.functions
    for which in (False, True):
        np.testing.assert_allclose(outputs(made, x=x, c=which)["y"], outputs(old, x=x, c=which)["y"], rtol=1e-6)


@pytest.mark.parametrize(("call", "expected"), [("", 1.5), ("<by=3.0>", 4.5)])
def test_attributes_of_functions_have_defaults(call: str, expected: float) -> None:
    model = parser.parse_model(f"""<ir_version: 9, opset_import: ["": 18, "own": 1]>
        g (float[N,3] x) => (float[N,3] y) {{ y = own.outer{call} (x) }}
        <domain: "own", opset_import: ["": 18, "own": 1]>
        outer <by: float = 0.0> (v) => (r) {{ a = own.plus<by: float = @by> (v)  r = own.plus (a) }}
        <domain: "own", opset_import: ["": 18]>
        plus <by: float = 1.5> (v) => (r) {{ c = Constant<value_float: float = @by> ()  r = Add (v, c) }}""")
    np.testing.assert_allclose(outputs(prepared(model), x=ROWS)["y"], ROWS + expected, rtol=1e-6)


def test_a_function_that_cannot_be_converted_is_named() -> None:
    text = """<ir_version: 9, opset_import: ["": 20, "own": 1]>
        g (float[N,3] x) => (float[N,1] y) { y = own.most <axes=[1]> (x) }
        <domain: "own", opset_import: ["": 17]> most <axes> (v) => (r) { r = ReduceMax <axes: ints = @axes> (v) }"""
    with pytest.raises(
        InputError, match=r"function 'most' has opset 17, the model 20; ReduceMax cannot be converted: .+; exp"
    ):
        prepare(parser.parse_model(text), 18)


@pytest.mark.parametrize("places", [[1, 5], [[0, 1], [2, 1]]])
def test_sparse_initializers_and_constants(places: Any, model_of: Build) -> None:
    model = model_of(
        """g (float[3,2] x, bool c) => (float[3,2] y) {
            a = Add(x, sparse)
            y = If(c) <then_branch = p () => (float[3,2] t) { t = Add(a, kept) },
                       else_branch = q () => (float[3,2] e) { e = Identity(a) }> }"""
    )

    def sparse(name: str) -> onnx.SparseTensorProto:
        values = numpy_helper.from_array(np.array([10, 20], np.float32), name)
        return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array(places), f"{name}_at"), [3, 2])

    model.graph.sparse_initializer.append(sparse("sparse"))
    constant = helper.make_node("Constant", [], ["kept"], sparse_value=sparse("values"))
    model.graph.node[-1].attribute[0].g.node.insert(0, constant)
    full = np.array([[0, 10], [0, 0], [0, 20]], np.float32)
    x = ROWS[:3, :2]
    for which in (False, True):
        expected = x + full * (1 + which)
        np.testing.assert_allclose(outputs(prepared(model), x=x, c=which)["y"], expected, rtol=1e-6)


def test_a_size_below_zero_is_open(model_of: Build) -> None:
    model = model_of("g (float[N,3] x) => (float[N,3] y) { a = Relu(x) y = Neg(a) }")
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = -1
    graph = prepare(model, 18)
    assert list(graph.inputs[0].shape) == [None, 3]
    assert outputs(to_model(graph), x=ROWS)["y"].shape == (4, 3)


@pytest.mark.parametrize(("written", "bins"), [("", 5), ("<onesided=1>", 5), ("<onesided=0>", 8)])
def test_a_spectrum_has_one_side_unless_it_says_otherwise(written: str, bins: int, model_of: Build) -> None:
    model = model_of(f"""g (float[N,32,1] x) => (float[N,4,K,2] y) <int64 step = {{8}}, int64 size = {{8}}> {{
        s = STFT{written}(x, step, , size)  y = Neg(s) }}""")
    graph = prepare(model, 18)
    (spectrum,) = graph.nodes[0].outputs
    assert list(spectrum.shape)[1:] == [4, bins, 2]
    assert outputs(to_model(graph), x=ROWS[:1, :1].repeat(32, 0)[None])["y"].shape == (1, 4, bins, 2)
