"""MatMul with vectors, stacks of matrices and constants on its left becomes MatMul with a matrix on its right."""

from __future__ import annotations

import pytest
from layer_graphs import AsQModel, Build, Same

from qcompile.ir import Constant
from qcompile.passes.normalize_graph import NormalizeGraph

# shape of the data, shape of the weight, operators afterwards
PRODUCTS = {
    "a vector": ("N,5,6", "6", "MatMul Squeeze"),
    "a vector and rows": ("N,6", "6", "MatMul Squeeze"),
    "leading ones": ("N,4,5,6", "1,1,6,7", "MatMul"),
    "more leading ones than the data has dimensions": ("N,6", "1,1,6,7", "MatMul Unsqueeze Unsqueeze"),
    "a stack for the same rows": ("N,1,5,6", "4,6,7", "MatMul Squeeze Reshape Transpose"),
    "a stack of stacks for the same rows": ("N,1,1,5,6", "2,3,6,7", "MatMul Squeeze Reshape Transpose"),
    "a stack for rows without its dimension": ("N,6", "4,6,7", "MatMul Reshape Transpose"),
    "a stack of stacks, one dimension missing": ("1,N,6", "2,3,6,7", "MatMul Squeeze Reshape Transpose"),
    "a stack behind ones": ("N,1,5,6", "1,4,6,7", "MatMul Squeeze Reshape Transpose"),
    "a stack for its own rows": ("N,2,5,32", "2,32,40", "Slice MatMul Slice MatMul Concat"),
    "small ones stay": ("N,2,5,6", "2,6,7", "MatMul"),
    "many stay": ("N,20,5,32", "20,32,40", "MatMul"),
    "a matrix stays": ("N,5,6", "6,7", "MatMul"),
    "an open dimension stays": ("1,N,5,6", "2,6,7", "MatMul"),
}


@pytest.mark.parametrize("data, weight, operators", PRODUCTS.values(), ids=PRODUCTS)
def test_products(
    data: str, weight: str, operators: str, model_of: Build, as_qmodel: AsQModel, same_outputs: Same
) -> None:
    source = model_of(f"g (float[{data}] x, float[{weight}] W) => (float y) {{ y = MatMul(x, W) }}")
    source.graph.output[0].type.tensor_type.ClearField("shape")
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert sorted(node.op for node in model.graph.nodes) == sorted(operators.split())
    sizes = (2,) if operators == "MatMul" else (1, 3)  # of the open dimension
    same_outputs(
        source, model.graph, [{"x": [int(dim.replace("N", str(n))) for dim in data.split(",")]} for n in sizes]
    )
    assert NormalizeGraph().run(model) == 0


@pytest.mark.parametrize(
    "data, operators",
    {
        "6,N": "MatMul Transpose Transpose",
        "N,6,3": "MatMul Transpose Transpose",
        "N,2,6,3": "MatMul Transpose Transpose",
        "6": "MatMul",
    }.items(),
)
def test_a_constant_on_the_left(
    data: str, operators: str, model_of: Build, as_qmodel: AsQModel, same_outputs: Same
) -> None:
    source = model_of(f"g (float[{data}] x, float[5,6] W) => (float y) {{ y = MatMul(W, x) }}")
    source.graph.output[0].type.tensor_type.ClearField("shape")
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert sorted(node.op for node in model.graph.nodes) == operators.split()
    same_outputs(source, model.graph, [{"x": [int(dim.replace("N", "4")) for dim in data.split(",")]}])
    product = next(node for node in model.graph.nodes if node.op == "MatMul")
    assert isinstance(product.inputs[1], Constant) == (operators != "MatMul")
