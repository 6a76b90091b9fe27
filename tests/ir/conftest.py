"""Fixtures of the tests of graphs and files."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from onnx import ModelProto

CONV = "g (float[N,4,8,8] x, float[16,4,5,5] W, float[16] B) => (float[N,16,4,4] y) { [conv] y = Conv(x, W, B) }"


@pytest.fixture
def conv(model_of: Callable[..., ModelProto]) -> ModelProto:
    """One convolution with 1600 weights: large enough to be held aside."""
    return model_of(CONV)
