"""Types for mypy of what qcompile uses of onnx-graphsurgeon, which ships none."""

from collections.abc import Iterator, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray

class Tensor:
    name: str
    inputs: list[Node]
    outputs: list[Node]
    dtype: Any
    shape: Any
    type: str
    values: NDArray[Any]  # of a Constant alone; many questions tell one by its name, which no type checker follows
    def is_empty(self) -> bool: ...
    def to_constant(self, values: Any, data_location: int | None = ..., export_dtype: Any = ...) -> Constant: ...
    def to_variable(self, dtype: Any = ..., shape: Any = ...) -> Variable: ...

class Variable(Tensor):
    def __init__(self, name: str, dtype: Any = ..., shape: Any = ..., type: str = ...) -> None: ...
    @staticmethod
    def empty() -> Variable: ...

class Constant(Tensor):
    export_dtype: Any
    _values: Any  # what `values` loads on demand
    _export_dtype: Any
    def __init__(self, name: str, values: Any, data_location: int | None = ..., export_dtype: Any = ...) -> None: ...

class Node:
    op: str
    name: str
    domain: str | None
    attrs: dict[str, Any]
    inputs: list[Tensor]
    outputs: list[Variable]
    def __init__(
        self,
        op: str,
        name: str | None = ...,
        attrs: dict[str, Any] | None = ...,
        inputs: Sequence[Tensor] | None = ...,
        outputs: Sequence[Tensor] | None = ...,
        domain: str | None = ...,
    ) -> None: ...
    def __setattr__(self, name: str, value: Any) -> None: ...

class Graph:
    nodes: list[Node]
    inputs: list[Variable]
    outputs: list[Variable]
    name: str
    opset: int
    doc_string: str
    ir_version: int | None
    import_domains: Any
    functions: list[Any]
    def __init__(
        self,
        nodes: Sequence[Node] | None = ...,
        inputs: Sequence[Tensor] | None = ...,
        outputs: Sequence[Tensor] | None = ...,
        name: str | None = ...,
        doc_string: str | None = ...,
        opset: int | None = ...,
        **more: Any,
    ) -> None: ...
    def __setattr__(self, name: str, value: Any) -> None: ...
    def tensors(self, check_duplicates: bool = ...) -> dict[str, Tensor]: ...
    def cleanup(self, **options: bool) -> Graph: ...
    def toposort(self, **options: Any) -> Graph: ...
    def subgraphs(self, recursive: bool = ...) -> Iterator[Graph]: ...
    def fold_constants(self, **options: Any) -> Graph: ...
    def copy(self, tensor_map: dict[str, Tensor] | None = ...) -> Graph: ...

def import_onnx(onnx_model: onnx.ModelProto) -> Graph: ...
def export_onnx(graph: Graph, do_type_check: bool = ..., **attributes: Any) -> onnx.ModelProto: ...
