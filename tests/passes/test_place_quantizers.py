"""Placement: which nodes run on integers and why others do not, where quantizers stand, how many bits each has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import (
    ATTENTION,
    CHAIN,
    CHANNELS_LAST,
    CLASSIFIER,
    CONCAT,
    ELEMENTWISE,
    FLOAT_ISLAND,
    HARD_SWISH,
    MOVERS,
    NETWORKS,
    PLACE,
    RELU6,
    RESIDUAL,
    SQUEEZE_EXCITE,
    TRANSPOSED,
    compiled,
    network,
)

from qcompile import Config, InputError, Plan, open_model, plan_only
from qcompile.program.forms import HARD_SIGMOID
from qcompile.quant.params import ActivationSpec
from qcompile.quant.plan import Form

W4A4: dict[str, Any] = {"w": 4, "a": 4}
BODY = "float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B"  # conv, something, conv


def placed(text: str, **settings: Any) -> Plan:
    return compiled(text, PLACE, **settings).plan


def forms(plan: Plan) -> dict[str, str]:
    return {name: str(node.form) for name, node in plan.nodes.items()}


def bits(plan: Plan) -> dict[str, int]:
    return {key: spec.bits for key, spec in plan.specs.items()}


def reason(plan: Plan, node: str) -> str:
    assert plan.form(node) is Form.FLOAT
    return plan.nodes[node].reason


def between(nodes: str, *, constants: str = "", outputs: str = "", inputs: str = "", **settings: Any) -> Plan:
    """Place two convolutions, A and B, with `nodes` between tensors a and b."""
    return placed(
        f"net ({BODY}{inputs}) => (float[N,4,P,Q] y{outputs}) <{constants}>"
        f"{{ [first] a = Conv(x, A)  {nodes}  [last] y = Conv(b, B) }}",
        **settings,
    )


# bits


def test_chain_has_asked_bits_inside_and_8_at_both_ends() -> None:
    plan = placed(CHAIN, **W4A4)
    assert forms(plan) == {
        "conv1": "compute", "relu1": "absorbed", "conv2": "compute", "relu2": "absorbed", "conv3": "compute",
    }  # fmt: skip
    assert {name: (node.weight_bits, node.input_bits) for name, node in plan.nodes.items() if node.weight_bits} == {
        "conv1": (8, 8), "conv2": (4, 4), "conv3": (8, 8),
    }  # fmt: skip
    assert plan.specs == {
        "image": ActivationSpec(8),
        "b": ActivationSpec(4, 0.0, np.inf),
        "d": ActivationSpec(8, 0.0, np.inf),
        "y": ActivationSpec(8),
    }
    assert plan.nodes["conv1"].reason == "first or last" == plan.nodes["conv3"].reason


def test_first_and_last_bits() -> None:
    plan = placed(CHAIN, **W4A4, first_last_bits=5)
    assert (plan.nodes["conv1"].weight_bits, plan.nodes["conv3"].input_bits) == (5, 5)
    assert bits(plan) == {"image": 5, "b": 4, "d": 5, "y": 8}


def test_all_that_see_no_compute_node_before_or_behind_are_first_or_last() -> None:
    """Two stems and two heads: every end counts, whatever the order of the nodes."""
    plan = placed(
        """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,3,1,1] B, float[4,4,1,1] C, float[4,4,1,1] D)
        => (float[N,4,P,Q] y, float[N,4,P,Q] z) {
          [stem1] a = Conv(x, A)  [stem2] b = Conv(x, B)  [add] c = Add(a, b)  [inner] d = Conv(c, C)
          [head1] y = Conv(d, D)  [head2] z = Conv(c, D)
        }""",
        **W4A4,
    )
    edges = {name for name, node in plan.nodes.items() if node.reason == "first or last"}
    assert edges == {"stem1", "stem2", "head1", "head2"}
    assert bits(plan)["c"] == 8 and bits(plan)["c@4"] == 4  # head2 asks for 8, inner for 4


def test_bits_of_named_nodes_the_last_match_wins() -> None:
    plan = placed(CHAIN, bits=(("conv", 3, 5), ("conv2$", 2, 6)))
    assert {name: (node.weight_bits, node.input_bits) for name, node in plan.nodes.items() if node.weight_bits} == {
        "conv1": (3, 5), "conv2": (2, 6), "conv3": (3, 5),
    }  # fmt: skip
    assert plan.nodes["conv2"].reason == "--bits conv2$"
    assert bits(plan) == {"image": 5, "b": 6, "d": 5, "y": 8}


def test_products_of_activations_have_8_bits_unless_they_are_named() -> None:
    plan = placed(ATTENTION, **W4A4, bits=(("scores", 3, 5),))
    assert (plan.nodes["scores"].weight_bits, plan.nodes["scores"].input_bits) == (0, 5)
    assert (plan.nodes["mix"].weight_bits, plan.nodes["mix"].input_bits) == (0, 8)
    assert (bits(plan)["q"], bits(plan)["v"]) == (5, 8)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"bits": (("conv9", 4, 4),)}, r"--bits 'conv9' matches no node; did you mean 'conv\d'\?"),
        ({"bits": (("relu1", 4, 4),)}, "--bits 'relu1' matches no node"),  # it has no bits of its own
        ({"keep_float": ("conv1", "nothing")}, "--keep-float 'nothing' matches no node"),
        (
            {"keep_float": ("conv2",), "bits": (("conv2$", 4, 4),)},
            r"--bits 'conv2\$' has no effect: 'conv2' stays float \(--keep-float conv2\)",
        ),
    ],
)
def test_pattern_that_matches_nothing_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        placed(CHAIN, **settings)


# the trunk of a residual network


def test_trunk_is_wide_with_a_second_narrow_quantizer() -> None:
    plan = placed(RESIDUAL, **W4A4)
    assert bits(plan) == {"image": 8, "trunk": 8, "trunk@4": 4, "c": 4, "d": 8, "t": 8, "y": 8}
    assert plan.specs["trunk"] == ActivationSpec(8, 0.0, np.inf)
    assert plan.specs["trunk@4"] == ActivationSpec(4, 0.0, np.inf)
    assert (plan.key("trunk"), plan.key("trunk", 4), plan.key("trunk", 8)) == ("trunk", "trunk@4", "trunk")
    assert plan.specs["t"].even_zero_point and not plan.specs["d"].even_zero_point  # QLinearAdd rounds late


@pytest.mark.parametrize("residual, expected", [(4, {"trunk": 4}), (3, {"trunk": 4}), (6, {"trunk": 6, "trunk@4": 4})])
def test_residual_bits(residual: int, expected: dict[str, int]) -> None:
    plan = placed(RESIDUAL, **W4A4, residual_bits=residual)
    assert {key: count for key, count in bits(plan).items() if key.startswith("trunk")} == expected


def test_a_narrow_quantizer_behind_a_sum_needs_no_even_zero_point() -> None:
    """A kernel that rounds late writes the wide codes; the narrow ones are made from these, or from the real value."""
    plan = between(
        "[sum] b = Add(a, a)  [twice] z = Add(b, b)  [end] u = Conv(z, B)",
        outputs=", float[N,4,P,Q] u",
        **W4A4,
        first_last_bits=4,
    )
    assert plan.specs["b"].even_zero_point and not plan.specs["b@4"].even_zero_point


@pytest.mark.parametrize("order", ["u, S", "S, u"])
def test_the_bias_of_a_product_is_added_to_its_float_output(order: str) -> None:
    """Eight bits of the sum in front of it would cost accuracy for nothing: the kernel gives float32."""
    plan = placed(f"""net (float[N,6,8] x, float[8,8] A, float[8] S, float[8,4] B) => (float[N,6,4] y) {{
      [first] u = MatMul(x, A)  [bias] v = Add({order})  [relu] w = Relu(v)  [last] y = MatMul(w, B)
    }}""")
    assert reason(plan, "bias") == "the bias of a MatMul is added to its float32 output"
    assert set(plan.groups) == {"x", "w"}


def test_a_sum_behind_a_product_that_others_read_too_is_no_bias() -> None:
    plan = placed("""net (float[N,6,8] x, float[8,8] A, float[8] S, float[8,4] B) => (float[N,6,4] y, float[N,6,4] z) {
      [first] u = MatMul(x, A)  [sum] v = Add(u, S)  [last] y = MatMul(v, B)  [other] z = MatMul(u, B)
    }""")
    assert plan.form("sum") is Form.ARITHMETIC


def test_readers_of_different_bits_get_the_widest_and_a_narrow_one() -> None:
    plan = placed(CONCAT, w=4, a=4, bits=(("left", 4, 3), ("right", 4, 6)))
    assert bits(plan)["b"] == 6 and bits(plan)["b@3"] == 3
    assert plan.narrow_keys("b") == ["b@3"]


def test_graph_output_inside_is_wide() -> None:
    plan = between("[relu] b = Relu(a)", outputs=", float[N,4,P,Q] b", **W4A4, first_last_bits=4)
    assert bits(plan) == {"x": 4, "b": 8, "b@4": 4, "y": 8}


# clips


@pytest.mark.parametrize(
    "clip, constants, bounds",
    [
        ("Relu(a)", "", (0, np.inf)),
        ("Clip(a, lo, hi)", "float lo = {0}, float hi = {6}", (0, 6)),
        ("Clip(a, lo, hi)", "float lo = {-1}, float hi = {2.5}", (-1, 2.5)),
        ("Clip(a, lo)", "float lo = {-3}", (-3, np.inf)),
        ("Clip(a, , hi)", "float hi = {0}", (-np.inf, 0)),
    ],
)
def test_clip_is_absorbed_with_its_bounds(clip: str, constants: str, bounds: tuple[float, float]) -> None:
    plan = between(f"[clip] b = {clip}", constants=constants)
    assert plan.form("clip") is Form.ABSORBED
    assert plan.specs["b"] == ActivationSpec(8, *bounds)
    assert "a" not in plan.groups


def test_bounds_of_two_clips_in_a_row_are_intersected() -> None:
    constants = "float lo = {-1}, float hi = {4}"
    plan = between("[relu] r = Relu(a) [clip] b = Clip(r, lo, hi)", constants=constants)
    assert plan.specs["b"] == ActivationSpec(8, 0, 4)


def test_clip_behind_an_addition_keeps_the_even_zero_point() -> None:
    plan = between("[add] s = Add(a, a) [clip] b = Clip(s, lo, hi)", constants="float lo = {-1}, float hi = {4}")
    assert plan.specs["b"] == ActivationSpec(8, -1, 4, even_zero_point=True)


@pytest.mark.parametrize(
    "nodes, outputs",
    [
        ("[relu] r = Relu(a)  [add] b = Add(r, a)", ""),  # two readers
        ("[relu] b = Relu(a)", ", float[N,4,P,Q] a"),  # its input is a graph output
        ("[pool] p = MaxPool<kernel_shape = [2,2]>(a)  [relu] b = Relu(p)", ""),  # others may read what it moves
    ],
)
def test_clip_that_is_not_alone_clips_codes(nodes: str, outputs: str) -> None:
    plan = between(nodes, outputs=outputs)
    assert plan.form("relu") is Form.CODES
    clipped = "b" if "b = Relu" in nodes else "r"
    assert plan.groups[clipped] == "a" and plan.specs["a"].lower == -np.inf


@pytest.mark.parametrize("lower, upper", [(1, 6), (-6, -1), (0, 0)])
def test_clip_to_an_interval_without_zero_stays_float(lower: float, upper: float) -> None:
    plan = between("[clip] b = Clip(a, lo, hi)", constants=f"float lo = {{{lower}}}, float hi = {{{upper}}}")
    assert reason(plan, "clip") == "its interval does not contain zero"


def test_clip_whose_bounds_are_computed_stays_float() -> None:
    plan = between("[top] m = ReduceMax<keepdims = 0>(x)  [clip] b = Clip(a, , m)")
    assert reason(plan, "clip") == "its bounds are not constant"


def test_clip_behind_a_float_node_is_absorbed_by_the_quantizer_behind_it() -> None:
    plan = between("[tanh] t = Tanh(a)  [relu] b = Relu(t)")
    assert plan.form("relu") is Form.ABSORBED
    assert plan.specs["b"] == ActivationSpec(8, 0, np.inf) and "t" not in plan.groups


def test_clip_behind_hard_sigmoid_keeps_its_bounds() -> None:
    plan = between(
        "[gate] g = HardSigmoid(a)  [clip] b = Clip(g, lo, hi)", constants="float lo = {0}, float hi = {0.5}"
    )
    assert plan.form("clip") is not Form.ABSORBED or plan.specs["b"].fixed is None


# light nodes


def test_classifier_keeps_its_logits_float() -> None:
    plan = placed(CLASSIFIER, **W4A4)
    assert forms(plan) == {
        "conv1": "compute", "relu1": "absorbed", "conv2": "compute", "relu2": "absorbed", "pool": "arithmetic",
        "flatten": "codes", "head": "compute",
    }  # fmt: skip
    assert bits(plan) == {"image": 8, "b": 4, "d": 8, "e": 8}
    assert plan.groups["f"] == "e" and "logits" not in plan.groups


def test_last_convolution_has_a_quantizer_for_only_then_it_is_integer() -> None:
    assert bits(placed(CHAIN, **W4A4))["y"] == 8


def test_concat_inputs_have_quantizers_of_their_own() -> None:
    plan = placed(CONCAT, **W4A4)
    assert plan.form("join") is Form.ARITHMETIC
    assert {name: plan.groups[name] for name in "cef"} == {"c": "c", "e": "e", "f": "f"}
    assert plan.specs["e"] == ActivationSpec(8, 0.0, np.inf)


def test_product_with_a_constant() -> None:
    plan = placed(ELEMENTWISE, **W4A4)
    assert set(forms(plan).values()) == {"compute", "arithmetic"}
    assert bits(plan) == {"image": 8, "a": 8, "K": 8, "b": 8, "c": 8, "d": 8, "e": 8, "f": 8, "y": 8}
    even = {name for name, spec in plan.specs.items() if spec.even_zero_point}
    assert even == {"b", "d", "f"}  # Mul, AveragePool, Mul


def test_squeeze_and_excite() -> None:
    plan = placed(SQUEEZE_EXCITE, **W4A4)
    assert Form.FLOAT not in {node.form for node in plan.nodes.values()}
    assert plan.specs["h"].fixed == HARD_SIGMOID and plan.specs["h"].bits == HARD_SIGMOID.bits
    assert bits(plan)["c"] == 4 and bits(plan)["i"] == 8


def test_hard_swish() -> None:
    plan = placed(HARD_SWISH, **W4A4)
    assert plan.form("swish") is Form.ARITHMETIC
    assert plan.specs["b"] == ActivationSpec(8, even_zero_point=True)


def test_narrow_quantizer_behind_hard_sigmoid_is_calibrated() -> None:
    plan = between("[gate] b = HardSigmoid(a)", **W4A4, first_last_bits=4)
    assert plan.specs["b"].fixed == HARD_SIGMOID and plan.specs["b@4"] == ActivationSpec(4)


def test_movers_share_the_quantizer_of_what_they_move() -> None:
    plan = placed(MOVERS, **W4A4)
    assert forms(plan) == {
        "conv1": "compute", "pool": "codes", "pad": "codes", "up": "codes", "turn": "codes", "shape": "codes",
        "cut": "codes", "parts": "codes", "conv2": "compute",
    }  # fmt: skip
    assert plan.groups == {"image": "image", "y": "y"} | dict.fromkeys("abcdefhij", "a")


def test_mover_in_front_of_the_first_layer_moves_codes() -> None:
    plan = placed(CHANNELS_LAST, **W4A4)
    assert plan.form("turn") is Form.CODES and plan.groups["a"] == "image"
    assert plan.form("back") is Form.CODES and plan.groups["y"] == "d"


def test_mover_with_a_float_reader_too_stays_float() -> None:
    plan = placed(
        f"""net ({BODY}) => (float[N,4,P,Q] y, float[N,8,8,3] z) {{
          [turn] a = Transpose<perm = [0,1,3,2]>(x)  [first] b = Conv(a, A)  [last] y = Conv(b, B)  [tanh] z = Tanh(a)
        }}"""
    )
    assert reason(plan, "turn") == "moves float values"


ISLANDS = {  # node, constants, channels of its output, reason
    "Tanh": ("b = Tanh(a)", "", 4, "no integer kernel"),
    "Sub": ("b = Sub(a, a)", "", 4, "no integer kernel"),
    "Softmax": ("b = Softmax<axis = 1>(a)", "", 4, "the integer kernel rounds differently from the operator"),
    "DepthToSpace": (
        "b = DepthToSpace<blocksize = 2>(a)", "", 1, "on uint8 only from ONNX Runtime 1.21.0 (--runtime-version)",
    ),
    "linear Resize": (
        'b = Resize<mode = "linear">(a, , s)', "float[4] s = {1,1,2,2}", 4, "linear Resize truncates on uint8",
    ),
    "Pad with ones": (
        "b = Pad(a, p, v)", "int64[8] p = {0,0,1,0,0,0,0,0}, float v = {1}", 4, "pads with another value than zero",
    ),
    "MaxPool with indices": ("b, i = MaxPool<kernel_shape = [2,1]>(a)", "", 4, "gives indices"),
    "AveragePool": ("b = AveragePool<kernel_shape = [2,1], ceil_mode = 1>(a)", "", 4, "dilated or ceil_mode"),
    "HardSigmoid": ("b = HardSigmoid<beta = 0.6>(a)", "", 4, "the integer form needs beta = 0.5"),
    "custom": ("b = custom.Something(a)", "", 4, "operator of the custom domain custom"),
    "Concat": ("b = Concat<axis = 2>(a, k)", "float[1,4,1,1] k = {1, 2, 3, 4}", 4, "it joins a constant"),
}  # fmt: skip


@pytest.mark.parametrize("node, constants, channels, why", ISLANDS.values(), ids=ISLANDS)
def test_float_island_has_its_reason(node: str, constants: str, channels: int, why: str) -> None:
    text = f"""net (float[1,3,8,1] x, float[4,3,1,1] A, float[4,{channels},1,1] C)
      => (float[1,4,P,Q] y) <{constants}> {{
      [first] a = Conv(x, A)  [island] {node}  [last] y = Conv(b, C)
    }}"""
    result = plan_only(network(text), Config(w=4, a=4))
    assert reason(result.plan, "island") == why
    notes = [entry for entry in result.qmodel.journal.by("place-quantizers") if entry.get("node") == "island"]
    assert notes == [{"pass": "place-quantizers", "what": "kept float", "node": "island", "reason": why}]
    assert bits(result.plan) == {"x": 8, "a": 8, "b": 8, "y": 8}


def test_resize_nearest_moves_codes() -> None:
    constants = "float[4] s = {1,1,2,2}"
    assert between('[up] b = Resize<mode = "nearest">(a, , s)', constants=constants).form("up") is Form.CODES


def test_transposed_convolution_stays_float_between_integer_layers() -> None:
    plan = placed(TRANSPOSED, **W4A4)
    assert reason(plan, "up") == "no integer kernel, per tensor or per channel"
    assert bits(plan) == {"image": 8, "b": 8, "c": 8, "y": 8}


def test_float_island_of_several_nodes_has_quantizers_only_at_its_ends() -> None:
    plan = placed(FLOAT_ISLAND, **W4A4)
    assert set(plan.groups) == {"image", "a", "b", "c", "e", "y"}  # not d, which only Neg and Abs touch


def test_arithmetic_that_leads_to_no_compute_node_stays_float() -> None:
    plan = placed(f"net ({BODY}) => (float[N,4,P,Q] y) {{ [first] a = Conv(x, A)  [add] y = Add(a, a) }}")
    assert reason(plan, "add") == "its neighbours are float: quantizing it alone costs time and accuracy"


def test_arithmetic_on_float_values_stays_float() -> None:
    plan = between("[t1] t = Tanh(a)  [t2] u = Abs(a)  [add] v = Add(t, u)  [neg] b = Neg(v)")
    assert reason(plan, "add") == "its neighbours are float: quantizing it alone costs time and accuracy"


def test_matmul_with_a_float_addition_behind_it_gives_float() -> None:
    """The Add of a bias in front of the output is float: the kernel's own float32 is better than 8 bits of it."""
    plan = placed(
        """net (float[N,6,8] x, float[8,8] A, float[8] K) => (float[N,6,8] y) {
          [matmul] a = MatMul(x, A)  [add] y = Add(a, K)
        }"""
    )
    assert plan.form("add") is Form.FLOAT
    assert "a" not in plan.groups


# compute nodes that cannot


@pytest.mark.parametrize(
    "node, inputs, why",
    [
        ("Conv(x, v)", "float[4,3,1,1] v", "its weight is not a float32 constant"),
        ("Conv(x, A, v)", "float[4] v", "its bias is not one constant per output channel"),
    ],
)
def test_layer_without_constants_stays_float(node: str, inputs: str, why: str) -> None:
    text = f"""net (float[N,3,8,8] x, {inputs}, float[4,3,1,1] A, float[4,4,1,1] B) => (float[N,4,P,Q] y) {{
      [odd] a = {node}  [last] y = Conv(a, B)
    }}"""
    assert reason(plan_only(network(text)).plan, "odd") == why


@pytest.mark.parametrize(
    "node, why",
    [
        ("Gemm<transA = 1>(x, A)", "Gemm with transA, alpha or beta"),
        ("MatMul(A, x)", "its first operand is constant"),
        ("MatMul(stack, D)", "its weight is not a matrix"),
    ],
)
def test_matrix_product_in_another_form_stays_float(node: str, why: str) -> None:
    inputs = "float[4,4] x, float[2,4,4] stack, float[4,4] A, float[2,4,4] D, float[4,4] B"
    text = f"""net ({inputs}) => (float y, float z) {{
      [odd] y = {node}  [plain] z = Gemm(x, B)
    }}"""
    assert reason(plan_only(network(text)).plan, "odd") == why


@pytest.mark.parametrize(
    "made",
    ["w = Expand(column, wide)", "w = custom.Unknown(column)"],  # more than is stored; and what nobody can compute
)
def test_weight_that_is_computed_from_constants_stays_float(made: str) -> None:
    text = f"""net (float[N,4] x, float[4,4] B) => (float[N,4] z, float[N,P] y)
      <float[4,1] column = {{1, 2, 3, 4}}, int64[2] wide = {{4, 20000}}> {{
      {made}  [plain] z = Gemm(x, B)  [relu] a = Relu(z)  [odd] y = MatMul(a, w)
    }}"""
    assert reason(plan_only(network(text)).plan, "odd") == "its weight is computed from constants in every run"


def test_double_precision_stays_float() -> None:
    text = """net (double[N,3,8,8] x, double[4,3,1,1] A, float[4,4,1,1] B) => (float[N,4,P,Q] y) {
      [odd] a = Conv(x, A)  [cast] b = Cast<to = 1>(a)  [last] y = Conv(b, B)
    }"""
    assert reason(plan_only(network(text)).plan, "odd") == "not float32"


def test_float16_weights_are_compiled_as_float32() -> None:
    text = "net (float16[N,3,8,8] x, float16[4,3,1,1] A) => (float16[N,4,P,Q] y) { [only] y = Conv(x, A) }"
    assert plan_only(network(text)).plan.nodes["only"].form is Form.COMPUTE


def test_keep_float() -> None:
    plan = placed(CHAIN, **W4A4, keep_float=("conv2", "relu2"))
    assert reason(plan, "conv2") == "--keep-float conv2" and reason(plan, "relu2") == "--keep-float relu2"
    assert bits(plan) == {"image": 8, "b": 8, "d": 8, "y": 8}  # b is read by a float node, d by the last


def test_nothing_left_to_quantize_is_an_error_with_the_reasons() -> None:
    with pytest.raises(InputError, match=r"nothing to quantize: .* \(--keep-float \.\); check --keep-float"):
        placed(CHAIN, keep_float=(".",))
    with pytest.raises(InputError, match=r"nothing to quantize: the model has no Conv, Gemm or MatMul$"):
        placed("net (float[N,4] x) => (float[N,4] y) { y = Tanh(x) }")


# control flow


def test_tensor_that_a_branch_captures_has_a_float_reader() -> None:
    plan = placed(
        f"""net ({BODY}) => (float[N,4,8,8] y) <float half = {{0.5}}> {{
          [first] a = Conv(x, A)  [relu] b = Relu(a)  [inner] c = Conv(b, B)
          [mean] m = ReduceMean<keepdims = 0>(x)  [big] t = Greater(m, half)
          [if] e = If(t)<then_branch = yes () => (float[N,4,8,8] u) {{ u = Neg(b) }},
            else_branch = no () => (float[N,4,8,8] v) {{ v = Mul(c, half) }}>
          [last] y = Conv(e, B)
        }}""",
        **W4A4,
        bits=(("inner", 4, 4),),
    )
    assert reason(plan, "if").startswith("control flow")
    assert bits(plan)["b"] == 8 and bits(plan)["b@4"] == 4  # read in float by the branch, narrow by the layer
    assert {"c", "e"} <= plan.groups.keys()


# properties of every network


@pytest.mark.parametrize("settings", [{}, W4A4, {"w": 2, "a": 3, "residual_bits": 3}], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_plan_is_complete(name: str, settings: dict[str, int]) -> None:
    model = compiled(NETWORKS[name], PLACE, **settings)
    plan = model.plan
    assert plan.nodes.keys() == {node.name for node in model.graph.nodes}
    assert all(node.reason for node in plan.nodes.values() if node.form is Form.FLOAT)
    assert set(plan.groups.values()) <= plan.specs.keys()
    assert {key.split("@")[0] for key in plan.specs} == set(plan.groups.values())  # no quantizer that nobody reads
    assert all(plan.groups[root] == root for root in plan.groups.values())


def test_placing_twice_gives_the_same_plan() -> None:
    model = open_model(network(RELU6), Config(w=4, a=4))
    for item in PLACE:
        item.run(model)
    before = (dict(model.plan.nodes), dict(model.plan.groups), dict(model.plan.specs))
    assert PLACE[-1].run(model) == 3
    assert before == (model.plan.nodes, model.plan.groups, model.plan.specs)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"w": 4, "a": 4}, []),
        ({"w": 4, "keep_float": ("conv2",)}, ["--w 4 has no effect"]),
        ({"w": 4, "a": 2, "keep_float": ("conv2",)}, ["--w 4 has no effect", "--a 2 has no effect"]),
        ({"w": 4, "a": 4, "bits": (("conv2", 3, 3),)}, ["--w 4 has no effect", "--a 4 has no effect"]),
        ({"keep_float": ("conv2",)}, []),
    ],
)
def test_bits_that_no_layer_has_are_told(settings: dict[str, Any], told: list[str]) -> None:
    journal = compiled(CHAIN, PLACE, method="rtn", **settings).journal
    texts = [entry["text"] for entry in journal.by("place-quantizers") if entry["what"] == "warning"]
    assert [text.partition(":")[0] for text in texts] == told
