"""The blocked form of a region trains as the plain one does."""

from __future__ import annotations

import numpy as np
import pytest
from regions import feeds, whole_region

from qcompile.runtime.blocked import block_size
from qcompile.training import layout
from qcompile.training.layout import blocked
from qcompile.training.recipe import ParameterKind, settings_at
from qcompile.training.step_graph import StepGraph

STEPS = 50  # behind them differences of the last bits have grown too far
# no number of channels fills its last block, so blocked masks are known by their shape
NETWORK = """net (float[N,24,8,8] x, float[40,24,1,1] A, float[40,1,3,3] B, float[24,40,1,1] C, float[20,24,3,3] D)
=> (float[N,20,4,4] y) <float zero = {0.0}, float six = {6.0}> {
  [expand] a = Conv(x, A)  [clip1] b = Clip(a, zero, six)
  [deep] c = Conv<pads = [1,1,1,1], group = 40>(b, B)  [clip2] d = Clip(c, zero, six)
  [project] e = Conv(d, C)  [add] f = Add(e, x)
  [down] y = Conv<pads = [1,1,1,1], strides = [2,2]>(f, D)
}"""


def packed(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Bring a mask [N, C, H, W] to the blocked layout, declared `shape`."""
    count, wide, *image = shape
    full = np.ones((count, wide, *image), bool)
    full[:, : mask.shape[1]] = mask
    block = block_size()
    return full.reshape(count, wide // block, block, -1).transpose(0, 1, 3, 2).reshape(shape)


@pytest.mark.skipif(block_size() == 1, reason="this ONNX Runtime has no blocked layout on this machine")
def test_same_masks_same_loss_curve() -> None:
    region, values = whole_region(NETWORK, w=4, a=4)
    fast = blocked(region)
    assert any(node.op_type == "BlockedConv" for node in fast.model.graph.node)
    graphs = [StepGraph(item, threads=1) for item in (region, fast)]
    curves: list[list[float]] = [[], []]
    for step in range(STEPS):
        given = feeds(region, values, seed=step)
        changed = {
            name: packed(given[name], shape) for name, shape in fast.masks.items() if shape != region.masks[name]
        }
        for graph, curve, own in zip(graphs, curves, (given, given | changed)):
            curve.append(graph.run(own, settings_at(step / STEPS), 1.0))
    plain, other = map(np.array, curves)
    np.testing.assert_allclose(other[:3], plain[:3], rtol=1e-4)  # float32 sums in another order
    # later Adam makes steps of full size of last bits: means of ten steps stay close
    np.testing.assert_allclose(*(curve.reshape(-1, 10).mean(1) for curve in (other, plain)), rtol=1e-2)
    states = [graph.state for graph in graphs]
    for name, item in region.parameters.items():
        if item.kind is ParameterKind.ROUNDING:
            decided = [state[name] >= 0 for state in states]
            assert (decided[0] == decided[1]).mean() > 0.98


def test_without_masks_the_first_losses_are_the_same() -> None:
    region, values = whole_region(NETWORK, quantized=1.0, w=4, a=4)
    plain, fast = StepGraph(region, threads=1), StepGraph(blocked(region), threads=1)
    for step in range(3):
        given = feeds(region, values, seed=step)
        settings = settings_at(step / STEPS)
        assert fast.run(given, settings, 1.0) == pytest.approx(plain.run(given, settings, 1.0), rel=1e-4)


def test_without_blocked_operators_the_region_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "block_size", lambda: 1)
    region, _ = whole_region(NETWORK, w=4, a=4)
    assert blocked(region) is region
