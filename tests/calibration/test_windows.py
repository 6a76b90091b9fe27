"""The covariance under a convolution's window, against that of all windows cut out one by one."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.calibration import windows
from qcompile.calibration.windows import Windows
from qcompile.ir import Constant, Node, Variable

KINDS = {
    "depthwise": ((6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}),
    "strided": ((6, 1, 3, 3), {"group": 6, "pads": [0, 1, 1, 0], "strides": [2, 1]}),
    "dilated": ((6, 1, 2, 3), {"group": 6, "dilations": [2, 1]}),
    "groups": ((4, 3, 1, 2), {"group": 2}),
    "dense": ((5, 6, 1, 1), {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_covariance_is_that_of_all_windows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "POSITIONS", 10_000)
    shape, attributes = KINDS[kind]
    x = np.random.default_rng(0).standard_normal((3, 6, 7, 8)).astype(np.float32)
    weight = Constant("w", np.zeros(shape, np.float32))
    node = Node("Conv", "conv", dict(attributes), [Variable("x"), weight], [Variable("y")])
    observer = Windows(node)
    observer.update(x[:2])
    observer.update(x[2:])

    pads = attributes.get("pads", [0, 0, 0, 0])
    strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    padded = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    groups, (_, inputs, high, wide) = attributes.get("group", 1), shape
    for channel in range(shape[0]):
        first = channel // (shape[0] // groups) * inputs
        seen = [
            padded[n, first : first + inputs, i : i + high * dilations[0] : dilations[0]][
                :, :, j : j + wide * dilations[1] : dilations[1]
            ].ravel()
            for n in range(3)
            for i in range(0, padded.shape[2] - (high - 1) * dilations[0], strides[0])
            for j in range(0, padded.shape[3] - (wide - 1) * dilations[1], strides[1])
        ]
        expected = np.cov(np.array(seen, np.float64).T, bias=True).reshape(inputs * high * wide, -1)
        found = observer.covariance()
        np.testing.assert_allclose(found[channel if len(found) > 1 else 0], expected, rtol=1e-4, atol=1e-5)


def test_few_positions_are_spread_over_the_image() -> None:
    x = np.zeros((1, 1, 64, 64), np.float32)
    x[:, :, 40:] = 1  # a corner of it would not show this
    weight = Constant("w", np.zeros((1, 1, 1, 1), np.float32))
    observer = Windows(Node("Conv", "conv", {}, [Variable("x"), weight], [Variable("y")]))
    observer.update(x)
    assert observer.count == windows.POSITIONS
    np.testing.assert_allclose(observer.covariance(), 0.375 * 0.625, rtol=0.02)


@pytest.mark.parametrize("shape", [(3, 4, 6), (12, 6), (6,)])
@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_rows_of_a_matrix(op: str, shape: tuple[int, ...]) -> None:
    """A MatMul has no bias that takes up the mean, so that counts: its moments are about zero."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32) + 2
    weight = Constant("w", np.zeros((6, 5), np.float32))
    observer = Windows(Node(op, "layer", {}, [Variable("x"), weight], [Variable("y")]))
    observer.update(x)
    rows = x.reshape(-1, 6).astype(np.float64)
    centred = rows - rows.mean(0) * (op == "Gemm")
    assert observer.count == len(rows) and observer.outputs == 5
    np.testing.assert_allclose(observer.covariance(), (centred.T @ centred / len(rows))[None], atol=1e-5)
    np.testing.assert_allclose(observer.mean(), np.tile(rows.mean(0), (5, 1)), rtol=1e-6)


def test_mean_of_each_output_channel() -> None:
    x = np.random.default_rng(0).standard_normal((2, 6, 5, 5)).astype(np.float32)
    weight = Constant("w", np.zeros((4, 3, 1, 1), np.float32))
    observer = Windows(Node("Conv", "conv", {"group": 2}, [Variable("x"), weight], [Variable("y")]))
    observer.update(x)
    means = x.mean((0, 2, 3))
    np.testing.assert_allclose(observer.mean(), [means[:3], means[:3], means[3:], means[3:]], atol=1e-6)
