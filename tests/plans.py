"""Parts of plans that several tests build theirs from."""

from __future__ import annotations

import numpy as np

from qcompile.quant.params import WeightQuantizer, WeightSpec


def small_weight() -> WeightQuantizer:
    """Return a weight [2, 6] of 4 bits whose channels have grids of their own."""
    return WeightQuantizer(
        4,
        0,
        np.arange(12, dtype=np.uint8).reshape(2, 6),
        np.array([0.1, 0.2], np.float32),
        np.array([1, 2], np.int8),
        np.array([-8, -15], np.int8),
    )


def weight_in_blocks() -> WeightQuantizer:
    """Return a weight [6, 2] of 4 bits that has two blocks of 3 in each of its 2 channels."""
    return WeightQuantizer(
        4,
        1,
        np.arange(12, dtype=np.uint8).reshape(6, 2),
        np.array([0.1, 0.2, 0.3, 0.4], np.float32),
        np.ones(4, np.int8),
        np.full(4, -8, np.int8),
        WeightSpec(block=3),
    )
