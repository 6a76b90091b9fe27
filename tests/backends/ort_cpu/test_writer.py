"""The emitted file: its text, its rules, the kernels ONNX Runtime makes of it, and its codes against the reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from golden_text import golden_text
from graph_checks import fused_kernels
from networks import (
    CALIBRATE,
    CHAIN,
    CLASSIFIER,
    EMIT,
    HARD_SWISH,
    NETWORKS,
    RELU6,
    RESIDUAL,
    SHARED_WEIGHT,
    SQUEEZE_EXCITE,
    TRANSPOSED,
    Arrays,
    compiled,
    initializers,
    network,
    samples,
)

from qcompile import QModel
from qcompile.backends import check
from qcompile.backends.ort_cpu.writer import OrtWriter
from qcompile.calibration.collect import tap
from qcompile.program.lower import Kind, lower
from qcompile.quant.plan import Form
from qcompile.runtime.fused import is_integer, optimized_nodes
from qcompile.runtime.session import Session
from qcompile.simulation import simulate

PRECISIONS = {"w8a8": {"w": 8, "a": 8}, "w4a4": {"w": 4, "a": 4}, "w2a3": {"w": 2, "a": 3, "residual_bits": 3}}


@pytest.fixture(scope="module")
def emitted() -> Callable[[str, str], QModel]:
    """Compile a network once for all tests of this file."""
    made: dict[tuple[str, str], QModel] = {}

    def build(name: str, precision: str) -> QModel:
        if (name, precision) not in made:
            made[name, precision] = compiled(NETWORKS[name], EMIT, **PRECISIONS[precision])
        return made[name, precision]

    return build


Emitted = Callable[[str, str], QModel]


def file_of(model: QModel) -> onnx.ModelProto:
    assert model.emitted is not None
    return model.emitted


def planned(model: QModel) -> list[str]:
    return [name for name, node in model.plan.nodes.items() if node.form in (Form.COMPUTE, Form.ARITHMETIC)]


@pytest.mark.parametrize("name", NETWORKS)
def test_text(name: str, emitted: Emitted, golden: Callable[[str, str], None]) -> None:
    golden(f"ort-cpu/{name}.txt", golden_text(file_of(emitted(name, "w4a4"))))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_file_is_valid_and_breaks_no_rule(name: str, precision: str, emitted: Emitted) -> None:
    model = emitted(name, precision)
    onnx.checker.check_model(file_of(model), full_check=True)
    assert check(file_of(model), model.target, planned(model)) == []


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_planned_node_is_an_integer_kernel(name: str, precision: str, emitted: Emitted) -> None:
    model = emitted(name, precision)
    kernels = fused_kernels(file_of(model), planned(model))
    assert {node: kernel for node, kernel in kernels.items() if not is_integer(kernel)} == {}


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_that_was_kept_float_becomes_an_integer_kernel(name: str, emitted: Emitted) -> None:
    model = emitted(name, "w4a4")
    kept = {node for node, placed in model.plan.nodes.items() if placed.form is Form.FLOAT}
    assert [node for node, kernel in optimized_nodes(file_of(model)) if node in kept and is_integer(kernel)] == []


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_codes_are_those_of_the_integer_reference(name: str, precision: str, emitted: Emitted) -> None:
    model = emitted(name, precision)
    codes, reference = beside_reference(model, "all")
    for value, found in codes.items():
        if off_by_rounding(model, value):
            assert np.abs(found.astype(int) - reference[value]).max() <= 1  # float operators: their last bit
        else:
            np.testing.assert_array_equal(found, reference[value], value)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_without_optimizations_codes_are_one_rounding_away(name: str, precision: str, emitted: Emitted) -> None:
    """Level off computes in float between the quantizers. Each layer alone: at most 0.1 % of codes, by one step."""
    model = emitted(name, precision)
    codes, reference = beside_reference(model, "off")
    off = {value: np.abs(found.astype(int) - reference[value]) for value, found in codes.items()}
    assert max(error.max() for error in off.values()) <= 1
    assert sum(np.count_nonzero(error) for error in off.values()) <= 1 + sum(e.size for e in off.values()) // 1000


def beside_reference(model: QModel, level: str) -> tuple[Arrays, Arrays]:
    """Return the codes of the file's tensors, and what the integer reference makes of each layer's own inputs."""
    feeds = samples(model.source, 3, seed=7)
    codes = tapped_codes(file_of(model), model, feeds, level)
    return codes, simulate(model.graph, model.plan, "integer").run(feeds, given=codes)


def tapped_codes(file: onnx.ModelProto, model: QModel, feeds: Arrays, level: str) -> Arrays:
    """Run a file with every tensor of codes given out besides."""
    steps = lower(model.graph, model.plan).steps
    made = {name for node in file.graph.node for name in node.output}
    names = [value.name for step in steps for value in step.outputs if value.quantizer and value.name in made]
    watched = onnx.ModelProto()
    watched.CopyFrom(file)
    tap(watched, names)
    return Session(watched, level=level, threads=1).run(feeds, names)


def off_by_rounding(model: QModel, value: str) -> bool:
    """Say whether a value of the program was made by a float operator or by AveragePool, which sums in float."""
    for step in lower(model.graph, model.plan).steps:
        if value in {output.name for output in step.outputs}:
            pooled = step.node is not None and step.node.op == "AveragePool"
            return pooled or (step.kind is Kind.ENCODE and step.inputs[0].name not in ("image", "x"))
    raise AssertionError(value)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_close_to_float(name: str, emitted: Emitted) -> None:
    """Independent of everything else here: 8 bits leave an SQNR of 20 dB and more on small random networks."""
    model = emitted(name, "w8a8")
    feeds = samples(model.source, 8, seed=7)
    expected, found = (Session(source, threads=1).run(feeds) for source in (model.source, file_of(model)))
    for output, values in expected.items():
        error = np.mean((values - found[output]) ** 2) / np.mean(values**2)
        assert 0 < error < 0.01, output


# weights


def test_packings_compute_the_same() -> None:
    feeds = samples(network(CHAIN), 2)
    files = [file_of(compiled(CHAIN, EMIT, w=3, a=4, pack=pack)) for pack in ("none", "planes", "int4")]
    outputs = [Session(file, threads=1).run(feeds)["y"] for file in files]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])
    assert [file.opset_import[0].version for file in files] in ([18, 18, 18], [18, 18, 21])  # by whether int4 fits


def test_planes_make_the_file_smaller_and_fold_at_load() -> None:
    plain, packed = (file_of(compiled(CHAIN, EMIT, w=4, a=4, pack=pack)) for pack in ("none", "planes"))
    assert packed.ByteSize() < plain.ByteSize()
    assert "BitShift" in {node.op_type for node in packed.graph.node}
    assert sorted(op for _, op in optimized_nodes(packed)) == sorted(op for _, op in optimized_nodes(plain))


def test_small_weights_are_not_packed() -> None:
    file = file_of(compiled(RESIDUAL, EMIT, w=4, a=4, pack="planes"))
    assert "BitShift" not in {node.op_type for node in file.graph.node}


def test_int4_initializer_raises_opset_and_ir() -> None:
    file = file_of(compiled(RESIDUAL, EMIT, w=4, a=4, pack="int4"))
    kinds = {tensor.name: tensor.data_type for tensor in file.graph.initializer}
    assert kinds["W2_int4"] == onnx.TensorProto.INT4 and "W1_int8" in kinds  # the first layer keeps 8 bits
    assert (file.opset_import[0].version, file.ir_version) == (21, 10)
    onnx.checker.check_model(file, full_check=True)
    model = compiled(RESIDUAL, EMIT, w=4, a=4, pack="int4")
    assert all(map(is_integer, fused_kernels(file, planned(model)).values()))


@pytest.mark.parametrize("pack, opset, ir_version", [("auto", 18, 8), ("int4", 21, 10)])
def test_opset_and_ir(pack: str, opset: int, ir_version: int) -> None:
    """The widest target, unless a packing that needs more is asked for by name."""
    file = file_of(compiled(CLASSIFIER, EMIT, pack=pack))
    assert (file.opset_import[0].version, file.ir_version, file.producer_name) == (opset, ir_version, "qcompile")


def test_int4_keeps_the_meaning_of_operators_that_changed_until_then() -> None:
    """GroupNormalization takes a scale per group up to opset 20, one per channel from 21 on."""
    source = network(
        """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B) => (float[N,4,P,Q] y)
        <float[2] scale = {1, 2}, float[2] bias = {0, 1}> {
          [first] a = Conv(x, A)  [norm] b = GroupNormalization<num_groups = 2>(a, scale, bias)  [last] y = Conv(b, B)
        }"""
    )
    model = compiled(source, EMIT, w=4, a=4, first_last_bits=4, pack="int4")
    Session(file_of(model), threads=1).run(samples(source, 2))


def test_newer_opset_is_kept() -> None:
    source = network(CLASSIFIER, opset=21)
    model = compiled(source, EMIT, w=4, a=4)
    assert file_of(model).opset_import[0].version == 21
    assert all(map(is_integer, fused_kernels(file_of(model), planned(model)).values()))


def test_shared_weight_is_stored_once_for_equal_precision() -> None:
    file = file_of(compiled(SHARED_WEIGHT, EMIT))
    assert [name for name in initializers(file) if name.startswith("W1_int8")] == ["W1_int8"]
    narrow = file_of(compiled(SHARED_WEIGHT, EMIT, w=4, a=4))  # the first layer at 8 bits, the other two at 4
    assert [name for name in initializers(narrow) if name.startswith("W1_int8")] == ["W1_int8", "W1_int8_2"]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("joined", "shared_weight")])
def test_file_loads_where_weights_are_made_uint8(name: str, emitted: Emitted) -> None:
    """From ONNX Runtime 1.32 on this option refuses int8 zero points that several weights share."""
    file = file_of(emitted(name, "w8a8"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = samples(file, 2)
    for output, expected in Session(file, threads=1).run(feeds).items():
        np.testing.assert_array_equal(session.run([output], feeds)[0], expected)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_no_weight_is_m128(name: str, precision: str, emitted: Emitted) -> None:
    """Two products of -128 do not fit the int16 in which kernels on Arm add them."""
    model = emitted(name, precision)
    weights = [weight.integers() for weight in model.plan.weights.values()]
    stored = [array for array in initializers(file_of(model)).values() if array.dtype == np.int8 and array.ndim > 1]
    assert min(array.min() for array in [*weights, *stored]) >= -127


# activations


def test_codes_below_8_bits_have_their_clip() -> None:
    arrays = initializers(file_of(compiled(RELU6, EMIT, w=4, a=4)))
    clips = [node for node in file_of(compiled(RELU6, EMIT, w=4, a=4)).graph.node if node.op_type == "Clip"]
    assert [[int(arrays[name]) for name in node.input[1:]] for node in clips] == [[0, 15]]


def test_hard_sigmoid_is_one_product_and_hard_swish_two() -> None:
    gate = [node.op_type for node in file_of(compiled(SQUEEZE_EXCITE)).graph.node if "gate" in node.name]
    assert gate == ["Mul"]
    swish = [node.name for node in file_of(compiled(HARD_SWISH)).graph.node if node.op_type == "Mul"]
    assert swish == ["swish/HardSigmoid", "swish"]
    assert not {"HardSigmoid", "HardSwish"} & {node.op_type for node in file_of(compiled(HARD_SWISH)).graph.node}


def test_float_layer_reads_codes_through_scales_per_channel() -> None:
    """Behind a scalar scale ONNX Runtime would round its float weight to int8 per tensor."""
    file = file_of(compiled(TRANSPOSED, EMIT))
    arrays = initializers(file)
    up = next(node for node in file.graph.node if node.name == "up")
    guard = next(node for node in file.graph.node if node.output[0] == up.input[0])
    assert guard.op_type == "DequantizeLinear"
    assert arrays[guard.input[1]].shape == arrays[guard.input[2]].shape == (4,)
    assert np.ptp(arrays[guard.input[1]]) == 0


def test_float_gemm_of_a_transposed_input() -> None:
    source = network(
        """net (float[4,3,2,2] x, float[4,3,1,1] A, float[16,5] B, float[4,6] C) => (float[4,5] y, float[16,6] z) {
          [first] a = Conv(x, A)  [flat] f = Flatten(a)  [plain] y = Gemm(f, B)  [turned] z = Gemm<transA = 1>(f, C)
        }"""
    )
    model = compiled(source, EMIT)
    assert model.plan.form("turned") is Form.FLOAT
    Session(file_of(model), threads=1).run(samples(source, 4))


def test_mean_of_maps_that_have_none() -> None:
    """Behind a normalisation the mean is nothing but rounding, and so the scale of its codes tiny."""
    model = compiled(
        """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B) => (float[N,4,P,Q] y)
        <float[4] one = {1, 1, 1, 1}, float[4] zero = {0, 0, 0, 0}> {
          [first] a = Conv(x, A)  [norm] b = InstanceNormalization(a, one, zero)  [inner] c = Conv(b, B)
          [pool] p = GlobalAveragePool(b)  [gate] g = Conv(p, B)  [mul] m = Mul(c, g)  [last] y = Conv(m, B)
        }"""
    )
    Session(file_of(model), threads=1).run(samples(model.source, 2))


def test_output_that_is_read_inside_too() -> None:
    model = compiled(
        """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B) => (float[N,4,P,Q] y, float[N,4,P,Q] b) {
          [first] a = Conv(x, A)  [relu] b = Relu(a)  [last] y = Conv(b, B)
        }""",
        EMIT,
        w=4,
        a=4,
        first_last_bits=4,
    )
    found = Session(file_of(model), threads=1).run(samples(model.source, 2))
    assert found["b"].min() >= 0 and len(np.unique(found["b"])) > 16  # 8 bits outside, whatever the layer reads
    assert check(file_of(model), model.target, planned(model)) == []


def test_constant_that_is_an_output() -> None:
    model = compiled(
        """net (float[N,3,8,8] x, float[4,3,1,1] A) => (float[N,4,P,Q] y, float[2] k) <float[2] k = {1, 2}>
        { [only] y = Conv(x, A) }"""
    )
    found = Session(file_of(model), threads=1).run(samples(model.source, 2))
    np.testing.assert_array_equal(found["k"], [1, 2])


def test_tensor_that_a_branch_captures() -> None:
    source = network(
        """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B) => (float[N,4,8,8] y) <float zero = {0}> {
          [first] a = Conv(x, A)  [relu] b = Relu(a)  [inner] c = Conv(b, B)
          [mean] m = ReduceMean<keepdims = 0>(x)  [big] t = Greater(m, zero)
          [if] e = If(t)<then_branch = yes () => (float[N,4,8,8] u) { u = Neg(b) },
            else_branch = no () => (float[N,4,8,8] v) { v = Add(c, zero) }>
          [last] y = Conv(e, B)
        }"""
    )
    model = compiled(source, EMIT, batch=1)
    onnx.checker.check_model(file_of(model), full_check=True)
    assert check(file_of(model), model.target, planned(model)) == []
    sessions = [Session(file, threads=1) for file in (source, file_of(model))]
    branches = set()
    for sample in samples(source, 8)["x"]:
        expected, found = (session.run({"x": sample[None]})["y"] for session in sessions)
        assert np.mean((expected - found) ** 2) < 0.01 * np.mean(expected**2)  # 8 bits: above 20 dB
        branches.add(sample.mean() > 0)
    assert branches == {True, False}


def test_clip_on_codes_to_less_than_a_step() -> None:
    model = compiled(
        """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B) => (float[N,4,P,Q] y, float[N,4,P,Q] a)
        <float lo = {0}, float hi = {0.001}> {
          [first] a = Conv(x, A)  [clip] b = Clip(a, lo, hi)  [last] y = Conv(b, B)
        }"""
    )
    assert check(file_of(model), model.target, planned(model)) == []


def test_names_of_the_graph_are_not_taken_for_new_tensors() -> None:
    """A graph whose own tensors have the names that emission likes."""
    model = compiled(
        """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B) => (float[N,4,P,Q] y) {
          [x_q8] A_dq = Conv(x, A)  [A_int8] b_q4 = Relu(A_dq)  [Q] b_u8 = Conv(b_q4, B)  [y] uint8_0 = Relu(b_u8)
          [last] y = Conv(uint8_0, B)
        }""",
        EMIT,
        w=4,
        a=4,
    )
    onnx.checker.check_model(file_of(model), full_check=True)
    assert check(file_of(model), model.target, planned(model)) == []


def test_fake_form_has_float_weights_and_the_files_quantizers() -> None:
    model = compiled(RESIDUAL, CALIBRATE, w=4, a=4)
    fake = OrtWriter(model.graph, model.plan, lower(model.graph, model.plan), "none", fake=True).model()
    arrays = initializers(fake)
    np.testing.assert_array_equal(arrays["W2"], model.plan.weights["first"].dequantize())
    assert not any(array.dtype == np.int8 for array in arrays.values())
    real = file_of(compiled(RESIDUAL, EMIT, w=4, a=4))
    quantizers = [sorted(n.name for n in file.graph.node if n.op_type == "QuantizeLinear") for file in (fake, real)]
    assert quantizers[0] == quantizers[1]


def test_emitting_twice_gives_the_same_bytes() -> None:
    model = compiled(SQUEEZE_EXCITE, EMIT, w=4, a=4)
    first = file_of(model).SerializeToString()
    EMIT[-1].run(model)
    assert file_of(model).SerializeToString() == first
