"""The error of stretches: that of their own layers alone, and by channel where it is the model's output."""

from __future__ import annotations

import numpy as np
import pytest
from networks import CALIBRATE, CLASSIFIER, NETWORKS, RESIDUAL, compiled, samples

from qcompile.passes.partition_units import PartitionUnits
from qcompile.runtime.session import Session
from qcompile.simulation import simulate
from qcompile.simulation.layers import layer_errors
from qcompile.simulation.stretches import OutputError, open_stretches


def decibel(error: OutputError) -> float:
    return float(10 * np.log10(error.signal.sum() / error.noise.sum()))


@pytest.mark.parametrize("name", NETWORKS)
def test_stretches_of_one_layer_err_as_the_layer(name: str) -> None:
    """At 8 bits: narrower outputs are no part of a layer's own error."""
    model = compiled(NETWORKS[name], CALIBRATE, w=4, a=8)
    feeds = samples(model.source, 2)
    expected = layer_errors(model.graph, model.plan, [feeds])
    found = open_stretches(model.graph, model.plan, [[node] for node in expected]).errors([feeds])
    for layer, errors in zip(expected, found):
        sums = [error for error in errors if error.axis == -1]
        assert any(decibel(error) == pytest.approx(expected[layer], abs=0.01) for error in sums), layer


def test_the_whole_graph_errs_as_the_simulation() -> None:
    model = compiled(CLASSIFIER, CALIBRATE, w=4, a=4)
    feeds = samples(model.source, 6)
    exact = Session(model.source, threads=1).run(feeds)["logits"]
    made = Session(simulate(model.graph, model.plan, "float"), fuse_qdq=False, threads=1).run(feeds)["logits"]
    (errors,) = open_stretches(model.graph, model.plan, [[node.name for node in model.graph.nodes]]).errors([feeds])
    whole, classes = errors
    assert (whole.tensor, whole.axis, classes.axis) == ("logits", -1, 1)
    np.testing.assert_allclose(classes.noise, np.square(exact - made).sum(0), rtol=1e-4)
    np.testing.assert_allclose(classes.signal, np.square(exact).sum(0), rtol=1e-4)
    assert whole.share == pytest.approx(np.square(exact - made).sum() / (exact.var() * exact.size), rel=1e-4)


def test_batches_add_up() -> None:
    model = compiled(RESIDUAL, CALIBRATE, w=4, a=4)
    PartitionUnits().run(model)
    feeds = samples(model.source, 6)
    units = [unit.nodes for unit in model.plan.units]
    parts = [{name: array[some] for name, array in feeds.items()} for some in (slice(0, 2), slice(2, 6))]
    one, several = (open_stretches(model.graph, model.plan, units).errors(batches) for batches in ([feeds], parts))
    for found, expected in zip(several, one):
        np.testing.assert_allclose([e.share for e in found], [e.share for e in expected], rtol=1e-4)


def test_what_depends_on_values_is_not_compared() -> None:
    model = compiled(
        """net (float[N,3,8,8] x, float[4,3,1,1] A) => (float[N,4,8,8] y, int64[4,K] z) {
          [first] a = Conv(x, A)  [where] z = NonZero(a)  [last] y = Conv(a, B)
        }""".replace("A) =>", "A, float[4,4,1,1] B) =>"),
        CALIBRATE,
    )
    feeds = samples(model.source, 2)
    assert open_stretches(model.graph, model.plan, [["first", "where"]]).errors([feeds]) == [[]]
