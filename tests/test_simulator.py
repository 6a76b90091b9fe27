"""`qcompile.simulate`: plans and files, on integers and in float, against runs of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from networks import NETWORKS, RESIDUAL, Arrays, network, samples

import qcompile
from qcompile import Config, InputError

SHIFTS = """like = "tensorrt"
bias = "int32"
unrounded_sums = false
arithmetic = ["Add", "Mul", "Concat", "GlobalAveragePool"]
power_of_two = ["activations", "weights"]
per_tensor_weights = ["depthwise", "MatMul"]
"""
BLOCKS = """net (float[N,32] x, float[32,32] A, float[32,8] B) => (float[N,8] y) {
  [one] a = MatMul(x, A)  [relu] b = Relu(a)  [two] y = MatMul(b, B)
}"""
EXACT = ("chain", "residual", "relu6", "concat", "squeeze_excite", "movers", "classifier", "attention", "prelu")


def compiled(name: str, **settings: Any) -> tuple[onnx.ModelProto, qcompile.Result, Arrays]:
    """Return a network, what became of it, and samples that nothing was fitted to."""
    source = network(NETWORKS[name])
    config = Config(**{"threads": 1, "method": "rtn", "placement": "auto"} | settings)
    return source, qcompile.compile(source, config, samples(source, count=32)), samples(source, seed=9)


def run(file: onnx.ModelProto, feeds: Arrays, *, fused: bool = True) -> Arrays:
    """Run a file as users do, or without integer kernels."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if not fused:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(file.SerializeToString(), options)
    return dict(zip([item.name for item in session.get_outputs()], session.run(None, feeds)))


def assert_equal(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("bits", [{}, {"w": 4, "a": 4}], ids=str)
def test_integers_are_those_of_onnx_runtime(name: str, bits: dict[str, int]) -> None:
    """The interpreted plan and the file give what ONNX Runtime gives, bit for bit."""
    source, result, feeds = compiled(name, **bits)
    expected = run(result.model, feeds)
    assert_equal(qcompile.simulate(result.model, feeds), expected)
    assert_equal(qcompile.simulate(result.plan, feeds, source), expected)


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt", "academic"])
@pytest.mark.parametrize("name", ["chain", "residual", "classifier"])
def test_fake_quantization_is_the_file_without_integer_kernels(name: str, target: str) -> None:
    source, result, feeds = compiled(name, target=target, w=4, a=4)
    expected = run(result.model, feeds, fused=False)
    assert_equal(qcompile.simulate(result.model, feeds, mode="fake-quant"), expected)
    for output, found in qcompile.simulate(result.plan, feeds, source, mode="fake-quant").items():
        np.testing.assert_allclose(found, expected[output], atol=1e-5 * np.abs(expected[output]).max())


def test_saved_files_are_read(tmp_path: Path) -> None:
    source, result, feeds = compiled("residual", w=4, a=4)
    onnx.save(source, tmp_path / "in.onnx")
    expected = run(result.model, feeds)
    for plan in ("p.npz", "folder"):
        result.save(tmp_path / "out.onnx", plan=tmp_path / plan)
        assert_equal(qcompile.simulate(tmp_path / plan, feeds, tmp_path / "in.onnx"), expected)
    assert_equal(qcompile.simulate(str(tmp_path / "out.onnx"), feeds), expected)


def test_a_target_from_a_file(tmp_path: Path) -> None:
    """What rounds as ONNX Runtime does is known once the file is given."""
    path = tmp_path / "mine.toml"
    path.write_text('like = "ort-cpu"\narithmetic = []\n', encoding="utf-8")
    source, result, feeds = compiled("residual", target=str(path))
    expected, config = run(result.model, feeds), Config(target=str(path))
    for given in (result.model, result.plan):
        with pytest.raises(InputError, match=r"mine \(\w+\) is a target from a file; give config="):
            qcompile.simulate(given, feeds, source)
        assert_equal(qcompile.simulate(given, feeds, source, config), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "int"}, "mode 'int' is unknown; did you mean 'integer'?"),
        ({"model": None}, "a plan computes nothing without its model"),
        ({"feeds": {}}, "input 'image' has no value; the inputs are image"),
        ({"feeds": [1]}, "the feeds is of type list"),
        ({"source": 3}, "the source is of type int"),
        ({"source": "none.npz"}, "cannot read the plan"),
        ({"source": "none.onnx"}, "there is no such file"),
        ({"source": network(RESIDUAL)}, "qcompile did not write this file"),
        ({"model": network(NETWORKS["chain"])}, "the plan does not fit the model"),
    ],
    ids=str,
)
def test_what_cannot_be_simulated(changes: dict[str, Any], message: str) -> None:
    source, result, feeds = compiled("residual")
    given = {"source": result.plan, "feeds": feeds, "model": source} | changes
    with pytest.raises(InputError) as error:
        qcompile.simulate(**given)
    assert message in str(error.value)


def test_feeds_have_the_types_of_the_model() -> None:
    source, result, feeds = compiled("residual")
    with pytest.raises(InputError, match="the values of input 'image' are float64; give float32"):
        qcompile.simulate(result.plan, {"image": feeds["image"].astype(np.float64)}, source)
    with pytest.raises(InputError, match="there is no input 'photo'"):
        qcompile.simulate(result.plan, feeds | {"photo": feeds["image"]}, source)


def test_a_plan_is_for_one_model(tmp_path: Path) -> None:
    _, result, feeds = compiled("residual")
    result.save(tmp_path / "out.onnx", plan=tmp_path / "p.npz")
    other = network(RESIDUAL)
    other.graph.initializer[0].raw_data = bytes(len(other.graph.initializer[0].raw_data))
    with pytest.raises(InputError, match="made for another model or other weights"):
        qcompile.simulate(tmp_path / "p.npz", feeds, other)


def test_a_file_for_other_kernels_has_no_integers() -> None:
    _, result, feeds = compiled("chain", target="tensorrt")
    with pytest.raises(
        InputError, match='integer kernels of tensorrt are not here; give the plan, or mode="fake-quant"'
    ):
        qcompile.simulate(result.model, feeds)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("bits", [{}, {"w": 4, "a": 4}], ids=str)
def test_with_powers_of_two_float_is_exact(tmp_path: Path, name: str, bits: dict[str, int]) -> None:
    """Float32 holds sums of codes times powers of two: what rounds once gives what the file gives in float."""
    path = tmp_path / "shifts.toml"
    path.write_text(SHIFTS, encoding="utf-8")
    config = Config(target=str(path), threads=1)
    source, result, feeds = compiled(name, target=str(path), **bits)
    expected = run(result.model, feeds, fused=False)
    assert_equal(qcompile.simulate(result.plan, feeds, source, config), expected)


@pytest.mark.parametrize("target", ["tensorrt", "academic", "openvino"])
def test_other_scales_make_single_codes_differ(target: str) -> None:
    """Float32 rounds the products of scales and sums: what lies next to a half may become another code."""
    source, result, feeds = compiled("residual", target=target)
    (found,), (expected,) = (
        qcompile.simulate(result.plan, feeds, source, mode=mode).values() for mode in ("integer", "fake-quant")
    )
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())
    assert np.mean(np.abs(found - expected) > 1e-4 * np.abs(expected).max()) < 0.02


@pytest.mark.parametrize("settings", [{}, {"block_size": 16}], ids=str)
def test_a_saved_plan_of_weights_alone_is_read_again(tmp_path: Path, settings: dict[str, int]) -> None:
    source = network(BLOCKS)
    config = Config(target="tensorrt", w=4, a=32, method="rtn", threads=1, **settings)
    data = samples(source, count=32)
    result = qcompile.compile(source, config, data)
    result.save(tmp_path / "out.onnx", plan=tmp_path / "p.npz")
    again = qcompile.compile(source, config, data, plan=tmp_path / "p.npz")
    assert again.model.SerializeToString() == result.model.SerializeToString()
    for mode in ("integer", "fake-quant"):
        for output, found in qcompile.simulate(tmp_path / "p.npz", data, source, mode=mode).items():
            expected = run(result.model, data, fused=False)[output]
            np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
