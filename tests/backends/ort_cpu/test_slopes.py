"""The factors of operators that are written as products."""

from __future__ import annotations

import numpy as np

from qcompile.backends.ort_cpu.slopes import SHIFTED_SIGMOID
from qcompile.program.operands import HARD_SWISH_SLOPE
from qcompile.targets.ort_cpu.forms import DICTATED, HARD_SIGMOID


def test_hard_sigmoid_is_an_integer_product() -> None:
    """What its zero points say: codes of clip(slope*x + 1/2, 0, 1), written with zero point 128 and read with 0."""
    assert DICTATED == {"HardSigmoid": HARD_SIGMOID}
    x = np.linspace(-6, 6, 49)
    written = np.clip(
        np.rint(HARD_SWISH_SLOPE * x / HARD_SIGMOID.scale) + SHIFTED_SIGMOID.zero_point, 0, HARD_SIGMOID.grid.high
    )
    read = (written - HARD_SIGMOID.zero_point) * HARD_SIGMOID.scale
    # Half a step of rounding; at the top a whole one, for the largest code is 255/256.
    np.testing.assert_allclose(read, np.clip(x / 6 + 0.5, 0, 1), rtol=0, atol=1 / 256)
