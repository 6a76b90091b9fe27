"""What the tests of passes over layers share: types of fixtures, shapes of inputs, and models to run such a pass on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from onnx import ModelProto, numpy_helper

from qcompile.passes.fold_batch_norm import FoldBatchNorm
from qcompile.passes.normalize_graph import NormalizeGraph
from qcompile.passmanager import Pass
from qcompile.qmodel import QModel

Build = Callable[..., ModelProto]
AsQModel = Callable[[ModelProto], QModel]
Same = Callable[..., None]

MAP = [{"x": (1, 4, 6, 5)}, {"x": (3, 4, 7, 9)}]
ROWS = [{"x": (1, 6)}, {"x": (5, 6)}]
TOKENS = [{"x": (1, 2, 6)}, {"x": (3, 2, 6)}]


def folded(source: ModelProto, as_qmodel: AsQModel) -> QModel:
    """Return the model as it is behind fold-batch-norm."""
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    FoldBatchNorm().run(model)
    return model


def check_rescaling(
    item: Pass,
    fact: str,
    count: int,
    source: ModelProto,
    shapes: Sequence[Mapping[str, Sequence[int]]],
    as_qmodel: AsQModel,
    same_outputs: Same,
) -> None:
    """Assert that a pass changes `count` places, notes that as `fact`, keeps the function, and does nothing again."""
    model = folded(source, as_qmodel)
    assert item.run(model) == count
    assert [entry[fact] for entry in model.journal.by(item.name)] == ([count] if count else [])
    same_outputs(source, model.graph, shapes)  # 1e-5: float32 weights rounded once more
    assert item.run(model) == 0


def spread_channels(source: ModelProto, weight: str, exponents: Sequence[float]) -> None:
    """Multiply the output channels of a convolution's weight by powers of ten."""
    for tensor in source.graph.initializer:
        if tensor.name == weight:
            scale = 10.0 ** np.array(exponents).reshape(-1, 1, 1, 1)
            values = (numpy_helper.to_array(tensor) * scale).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, weight))
