"""Forms: which nodes run on integers, and why others do not."""

from __future__ import annotations

import pytest
from networks import (
    CHAIN,
    FLOAT_ISLAND,
    TRANSPOSED,
    network,
)
from placed import BODY, W4A4, between, bits, placed, reason

from qcompile import Config, InputError, plan_only
from qcompile.quant.plan import Form


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
    notes = [entry for entry in result.qmodel.journal.by("choose-forms") if entry.get("node") == "island"]
    assert notes == [{"pass": "choose-forms", "what": "kept float", "node": "island", "reason": why}]
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
        ("MatMul(D, x)", "its first operand is constant"),
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
    for text in ("y = Tanh(x)", "y = BatchNormalization(x, A, B, C, D)"):
        with pytest.raises(InputError, match=r"nothing to quantize: the model has no Conv, Gemm or MatMul; run it"):
            placed(f"net (float[N,4] x, float[4] A, float[4] B, float[4] C, float[4] D) => (float[N,4] y) {{ {text} }}")


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
