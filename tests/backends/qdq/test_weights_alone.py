"""Weights that alone are quantized, per channel and in blocks: what files hold and compute, and what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import CORRECT, MATRICES, compiled, network, samples
from onnx import TensorProto, numpy_helper

from qcompile import Config, InputError, PassManager, QModel, compile, open_model
from qcompile.backends import check
from qcompile.passes.fit_filters import FitFilters
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.pipeline import build
from qcompile.quant.plan import Form
from qcompile.runtime.session import Session
from qcompile.simulation import simulate

LAYERS = ("wide", "narrow", "head", "last")
SETTINGS = {"w": 4, "a": 32, "first_last_bits": 4}
TARGETS = ("tensorrt", "academic", "ort-cuda")


def emitted(target: str = "tensorrt", **settings: Any) -> QModel:
    """Return the network with quantized weights, without training."""
    return compiled(
        MATRICES, (*CORRECT[:-1], FitFilters(long=True), CORRECT[-1], InsertQDQ()), target=target, **settings
    )


def dequantized(model: QModel) -> dict[str, onnx.NodeProto]:
    """Return the DequantizeLinear of each layer's weight, by layer."""
    assert model.emitted is not None
    makers = {node.output[0]: node for node in model.emitted.graph.node}
    return {node.name: makers[node.input[1]] for node in model.emitted.graph.node if node.name in LAYERS}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("block", [None, 16])
@pytest.mark.parametrize("w", [8, 4, 2])
def test_file_computes_what_the_simulation_does(target: str, block: int | None, w: int) -> None:
    model = emitted(target, **SETTINGS | {"w": w, "first_last_bits": w, "block_size": block})
    assert model.emitted is not None and check(model.emitted, model.target) == []
    feeds = samples(model.source)
    file = Session(model.emitted, level="off", fuse_qdq=False)
    fake = Session(simulate(model.graph, model.plan, "float"), level="off", fuse_qdq=False)
    for output, expected in fake.run(feeds).items():
        np.testing.assert_array_equal(file.run(feeds)[output], expected)


@pytest.mark.parametrize("block", [None, 32])
def test_nothing_but_weights_has_codes(block: int | None) -> None:
    model = emitted(**SETTINGS, block_size=block)
    assert model.plan.quantizers == {} and model.plan.groups == {}
    forms = {name: node.form for name, node in model.plan.nodes.items()}
    assert {name for name, form in forms.items() if form is not Form.FLOAT} == set(LAYERS)
    assert model.plan.precision() == "w4a32"
    assert model.emitted is not None
    assert not any(node.op_type == "QuantizeLinear" for node in model.emitted.graph.node)


def test_blocks_lie_along_the_inputs_where_these_fall_into_such() -> None:
    """Those of `narrow` are the rows of its matrix, those of `head` the columns; 7 and 240 = 7.5 * 32 do not."""
    model = emitted(**SETTINGS, block_size=32)
    assert model.emitted is not None
    kinds = {tensor.name: tensor for tensor in model.emitted.graph.initializer}
    found = {}
    for layer, node in dequantized(model).items():
        attributes = {item.name: item.i for item in node.attribute}
        found[layer] = (attributes, list(kinds[node.input[1]].dims))
        assert kinds[node.input[0]].data_type == TensorProto.INT4
    assert found["wide"] == ({"axis": 0, "block_size": 32}, [2, 96])
    assert found["narrow"] == ({"axis": 0, "block_size": 32}, [3, 40])
    assert found["head"] == ({"axis": 0}, [7])
    assert found["last"] == ({"axis": 1}, [12])
    wide = emitted(**SETTINGS, block_size=16).plan.weights["head"]
    assert wide.shared_shape == (7, 15) and wide.scale.shape == (105,)


@pytest.mark.parametrize("block", [None, 16])
def test_pack_none_keeps_int8(block: int | None) -> None:
    model = compile(
        network(MATRICES),
        Config(**SETTINGS, block_size=block, method="rtn", target="tensorrt", pack="none"),
        samples(network(MATRICES), 8),
    )
    kinds = {tensor.data_type for tensor in model.model.graph.initializer}
    assert TensorProto.INT8 in kinds and TensorProto.INT4 not in kinds


def outputs(model: onnx.ModelProto, feeds: dict[str, Any]) -> Any:
    return next(iter(Session(model, level="off", fuse_qdq=False).run(feeds).values()))


def test_smaller_blocks_err_less() -> None:
    feeds, source = samples(network(MATRICES), 32, seed=3), network(MATRICES)
    exact = outputs(source, feeds)
    errors = []
    for size in (None, 32, 16):
        made = emitted(**SETTINGS, block_size=size).emitted
        assert made is not None
        errors.append(float(np.square(outputs(made, feeds) - exact).mean()))
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize("block", [None, 16])
@pytest.mark.parametrize("target", TARGETS)
def test_what_is_trained_is_what_is_emitted(block: int | None, target: str) -> None:
    source = network(MATRICES)
    config = Config(**SETTINGS | {"w": 3, "first_last_bits": 3}, block_size=block, target=target, steps=100, threads=1)
    random = np.random.default_rng(0)  # 8 directions of 64: what the roundings of a weight do together matters
    data = {"x": (random.standard_normal((300, 6, 8)) @ random.standard_normal((8, 64))).astype(np.float32)}
    model = open_model(source, config, data)
    PassManager(build(config)).run(model)
    first = model.outcomes[0]
    assert first.trained and first.after < first.before / 3 and model.emitted is not None
    fake = Session(simulate(model.graph, model.plan, "float"), level="off", fuse_qdq=False)
    feeds = samples(source, 8, seed=9)
    np.testing.assert_array_equal(next(iter(fake.run(feeds).values())), outputs(model.emitted, feeds))


def test_integers_of_blocks_are_those_of_their_scales() -> None:
    """Read from the file: the nearest of the 16 to each weight, or one that a fit preferred."""
    model = compiled(MATRICES, (*CORRECT, InsertQDQ()), target="tensorrt", **SETTINGS, block_size=16)
    assert model.emitted is not None
    stored = {tensor.name: tensor for tensor in model.emitted.graph.initializer}
    node = dequantized(model)["wide"]
    scale = numpy_helper.to_array(stored[node.input[1]])
    codes = numpy_helper.to_array(stored[node.input[0]]).astype(np.float32)
    weight = next(numpy_helper.to_array(item) for item in model.source.graph.initializer if item.name == "W1")
    expected = np.clip(np.rint(weight / np.repeat(scale, 16, 0)), -8, 7)
    np.testing.assert_array_equal(codes, expected)


def test_ort_cuda_gives_matrices_to_the_kernel_that_unpacks(tmp_path: Path) -> None:
    """ONNX Runtime makes the same node of it on every provider; Gemm has no such kernel in every version."""
    model = emitted("ort-cuda", **SETTINGS, block_size=16)
    assert model.emitted is not None and model.plan.form("head") is Form.FLOAT
    Session(model.emitted, threads=1, save_optimized=tmp_path / "optimized.onnx")
    ran = onnx.load(tmp_path / "optimized.onnx").graph.node
    kinds = {node.output[0]: node.op_type for node in ran}
    made = {node.name: node.output[0] for node in model.emitted.graph.node}
    assert {kinds[made[layer]] for layer in ("wide", "narrow")} == {"MatMulNBits"}


REFUSED = {
    "a target that has no use for it": ({"a": 32}, "of no use on ort-cpu"),
    "codes of activations on a target that has none": ({"target": "ort-cuda"}, "--a 8 is of no use on ort-cuda"),
    "inputs of one layer": (
        {"a": 32, "bits": ("x=4,8",), "target": "tensorrt"},
        "quantizes inputs, --a 32 weights alone; give x=4,32",
    ),
    "blocks beside codes": ({"block_size": 32, "target": "tensorrt"}, "beside quantized inputs"),
    "no power of two": ({"a": 32, "block_size": 48, "target": "tensorrt"}, "no power of two"),
    "too small": ({"a": 32, "block_size": 8, "target": "tensorrt"}, "out of range"),
    "between": ({"a": 16, "target": "tensorrt"}, "out of range"),
    "a form of weights that it lacks": (
        {"a": 32, "pack": "planes", "target": "tensorrt"},
        "it takes: auto, int4, none",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    settings, text = REFUSED[case]
    with pytest.raises(InputError, match=text):
        open_model(network(MATRICES), Config(**settings))
