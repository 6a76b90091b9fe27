"""The float simulation against the integer reference: on the same codes, layer by layer, a rounding apart at most."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_strategies import graphs
from graph_strategies import samples as drawn_samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import (
    CALIBRATE,
    CORRECT,
    EMIT,
    NETWORKS,
    RESIDUAL,
    SHARED_WEIGHT,
    Arrays,
    compiled,
    initializers,
    run,
    samples,
)

from qcompile import Config, InputError, QModel, open_model
from qcompile.calibration.collect import tap
from qcompile.program.lower import lower
from qcompile.quant.bias import integer_bias
from qcompile.runtime.session import Session
from qcompile.simulation import simulate

PRECISIONS = {"w8a8": (8, 8), "w4a4": (4, 4), "w2a3": (2, 3)}


def codes_of_float(model: QModel, feeds: Arrays, *, level: str = "all") -> Arrays:
    """Run the float simulation with every tensor of codes given out."""
    simulation = simulate(model.graph, model.plan, "float")
    made = {name for node in simulation.graph.node for name in node.output}
    steps = lower(model.graph, model.plan).steps
    names = [value.name for step in steps for value in step.outputs if value.quantizer and value.name in made]
    tap(simulation, names)
    return Session(simulation, level=level, fuse_qdq=False, threads=1).run(feeds, names)


def differing(model: QModel, feeds: Arrays) -> tuple[int, int, int]:
    """Return the largest difference, how many codes differ, and how many were compared, each layer alone."""
    codes = codes_of_float(model, feeds)
    reference = simulate(model.graph, model.plan, "integer").run(feeds, given=codes)
    off = [np.abs(found.astype(int) - reference[name]) for name, found in codes.items()]
    return (
        max(int(error.max()) for error in off),
        sum(int(np.count_nonzero(error)) for error in off),
        sum(error.size for error in off),
    )


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_layers_alone_differ_by_rounding(name: str, precision: tuple[int, int]) -> None:
    model = compiled(NETWORKS[name], CALIBRATE, w=precision[0], a=precision[1])
    largest, count, total = differing(model, samples(model.source, 16, seed=5))
    assert largest <= 1
    assert count <= 1 + total // 1000


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(graphs(), st.sampled_from([2, 3, 4, 8]), st.sampled_from([3, 4, 8]))
def test_layers_of_any_graph_differ_by_rounding(source: onnx.ModelProto, w: int, a: int) -> None:
    model = open_model(source, Config(w=w, a=a, threads=1), {"x": drawn_samples(source, 8)})
    try:
        run(model, CALIBRATE)
    except InputError as error:
        assert "nothing to quantize" in str(error)
        return
    largest, count, total = differing(model, {"x": drawn_samples(source, 8, seed=3)})
    assert largest <= 1
    assert count <= 2 + total // 1000  # a drawn graph can be a few dozen codes


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_a_valid_float_model_with_the_graphs_own_inputs_and_outputs(name: str) -> None:
    model = compiled(NETWORKS[name], CALIBRATE, w=4, a=4)
    simulation = simulate(model.graph, model.plan, "float")
    onnx.checker.check_model(simulation, full_check=True)
    for ports in ("input", "output"):
        expected = [item.name for item in getattr(model.source.graph, ports) if not item.name.isupper()]
        assert [item.name for item in getattr(simulation.graph, ports)] == expected
    kinds = {tensor.data_type for tensor in simulation.graph.initializer}
    assert not kinds & {onnx.TensorProto.INT8, onnx.TensorProto.INT32, onnx.TensorProto.INT4}


def test_weights_and_biases_are_what_the_integers_stand_for() -> None:
    model = compiled(RESIDUAL, CORRECT, w=3, a=4)
    arrays = initializers(simulate(model.graph, model.plan, "float"))
    for node, stem in (("stem", "W1"), ("first", "W2"), ("second", "W3"), ("head", "W4")):
        np.testing.assert_array_equal(arrays[stem], model.plan.weights[node].dequantize())
    data = model.plan.quantizers[model.plan.key("c", "second")]
    codes, scale = integer_bias(model.plan.biases["second"], data.scale, model.plan.weights["second"].scale)
    np.testing.assert_array_equal(arrays["B3"], codes.astype(np.float32) * scale)


def test_a_weight_that_is_shared_has_a_version_for_each_precision() -> None:
    model = compiled(SHARED_WEIGHT, CALIBRATE, w=4, a=4)
    arrays = initializers(simulate(model.graph, model.plan, "float"))
    versions = [array for name, array in arrays.items() if name.startswith("W1")]
    assert len(versions) == 2  # the first layer at 8 bits, two others at 4


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_emitted_file_without_its_kernels(name: str) -> None:
    """The file run unoptimized, whose weights and biases are the same numbers behind DequantizeLinear."""
    model = compiled(NETWORKS[name], EMIT, w=4, a=4)
    assert model.emitted is not None
    feeds = samples(model.source, 4, seed=5)
    file = Session(model.emitted, level="off", threads=1).run(feeds)
    simulation = Session(simulate(model.graph, model.plan, "float"), level="off", threads=1).run(feeds)
    for output, expected in file.items():
        np.testing.assert_array_equal(simulation[output], expected)


def test_simulating_changes_neither_graph_nor_plan() -> None:
    model = compiled(RESIDUAL, EMIT, w=4, a=4)
    assert model.emitted is not None
    before = model.emitted.SerializeToString()
    simulate(model.graph, model.plan, "float")
    simulate(model.graph, model.plan, "integer").run(samples(model.source, 1))
    EMIT[-1].run(model)
    assert model.emitted.SerializeToString() == before
