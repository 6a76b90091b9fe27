"""Rewrite a forward graph so that its convolutions, and what lies between them, work on the blocked layout."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, helper

from qcompile.autodiff.blocked.convolution import output_size
from qcompile.autodiff.blocked.layout import DOMAIN, padded
from qcompile.autodiff.broadcasting import sizes
from qcompile.autodiff.engine import record
from qcompile.autodiff.operators import Value
from qcompile.autodiff.registry import UnknownFormError
from qcompile.autodiff.rules.windows import Window, window_of
from qcompile.autodiff.tape import Node, Tape

# Operators that work element by element and turn zeros into zeros, so that the channels that fill a block stay zero;
# SquaredError sums them up. Clip is another, if 0 is within its bounds. SUMS are not, where they add a number.
ELEMENTWISE = {"Abs", "Add", "Elu", "FakeQuantActivation", "Gelu", "HardSwish", "Identity", "LeakyRelu", "Mul", "Neg",
               "Relu", "SquaredError", "Sub", "Tanh"}  # fmt: skip
SUMS = {"Add", "Sub"}


def to_blocked(model: ModelProto, block: int) -> ModelProto:
    """Return `model` with BlockedConv for Conv, where sizes are known and the kernel has a blocked form.

    Values between convolutions stay in the blocked layout. Graph inputs of type bool that are used with them, which are
    masks, get the blocked shape; all other inputs and outputs are as they were.
    """
    return _Rewriter(model, record(model), block).result()


@dataclass
class _Rewriter:
    """`tape` knows the shapes of the graph as it is; `blocked` and `plain` name the two forms of values."""

    model: ModelProto
    tape: Tape
    block: int
    nodes: list[NodeProto] = field(default_factory=list)
    shapes: dict[Value, list[int]] = field(default_factory=dict)
    blocked: dict[Value, Value] = field(default_factory=dict)
    plain: dict[Value, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.forward = [(proto, Node.of(proto)) for proto in graph.node]
        self.windows = {node.outputs[0]: self._window(node) for _, node in self.forward}
        uses = Counter(name for _, node in self.forward for name in node.inputs)
        uses.update(item.name for item in graph.output)
        self.used_once = {name for name, count in uses.items() if count == 1}
        self.masks = {item.name for item in graph.input if item.type.tensor_type.elem_type == TensorProto.BOOL}
        self.wanted = self._wanted()

    def result(self) -> ModelProto:
        """Rewrite node after node."""
        absorbed: set[Value] = set()
        following = {node.inputs[0]: proto for proto, node in self.forward if node.inputs}
        for proto, node in self.forward:
            output = node.outputs[0]
            window = self.windows[output]
            if output in absorbed:
                continue
            if window is not None:
                follower = following.get(output) if output in self.used_once else None
                activation = {} if follower is None else self._activation(follower)
                result = follower.output[0] if follower is not None and activation else output
                absorbed.add(result)
                self._convolution(node, window, result, activation)
            elif self._stays_blocked(node):
                self._copy(proto, self._in_blocked)
                if not self._is_single(output):
                    self.blocked[output] = output
                    count, channels, *spatial = self._sizes(output) or []
                    self.shapes[output] = [count, padded(channels, self.block), *spatial]
            else:
                self._copy(proto, self._in_plain)
        return self._finished()

    # which nodes

    def _window(self, node: Node) -> Window | None:
        """Return the window of a convolution that has a blocked form."""
        if (node.op, node.domain) != ("Conv", ""):
            return None
        data, weight = self._sizes(node.inputs[0]), self._sizes(node.inputs[1])
        if data is None or weight is None or len(data) != 4:
            return None
        try:
            window = window_of(self.tape, node, tuple(weight[2:]))
        except UnknownFormError:
            return None
        depthwise = window.group == data[1] == weight[0]
        within = all(pad < extent for pad, extent in zip((*window.front, *window.behind), window.extent * 2))
        return window if within and (window.group == 1 or depthwise) else None

    def _from_plain(self, node: Node, window: Window) -> bool:
        """Say whether a convolution reads [N, C, H, W], having fewer channels than a block."""
        return window.group == 1 and (self._sizes(node.inputs[0]) or [0, 0])[1] < self.block

    def _wanted(self) -> set[Value]:
        """Return the values that convolutions read in blocked form, themselves or through elementwise operators."""
        wanted: set[Value] = set()
        for _, node in reversed(self.forward):
            window = self.windows[node.outputs[0]]
            if window is not None and not self._from_plain(node, window):
                wanted.add(node.inputs[0])
            elif self._is_elementwise(node) and not wanted.isdisjoint(node.outputs):
                wanted.update(name for name in node.inputs if name and not self._is_single(name))
        return wanted

    def _stays_blocked(self, node: Node) -> bool:
        inputs = [name for name in node.inputs if name]
        near = any(self.blocked.get(name) == name for name in inputs) or not self.wanted.isdisjoint(node.outputs)
        return near and self._is_elementwise(node)

    def _is_elementwise(self, node: Node) -> bool:
        """Say whether a node works element by element on images of one size, numbers and masks of its own."""
        if node.domain not in ("", DOMAIN) or (
            node.op not in ELEMENTWISE and not (node.op == "Clip" and self._bounds(node))
        ):
            return False
        full = [name for name in node.inputs if name and not self._is_single(name)]
        if node.op in SUMS and len(full) < len(node.inputs):
            return False
        shapes = [self._sizes(name) for name in full]
        if not shapes or shapes[0] is None or len(shapes[0]) != 4 or any(shape != shapes[0] for shape in shapes):
            return False
        return all(
            self.tape.dtype(name) == self.tape.float_type or name in self.masks & self.used_once for name in full
        )

    def _bounds(self, clip: Node) -> list[float]:
        """Return the bounds of a Clip if they are constants with 0 in between, else nothing."""
        bounds = []
        for index, absent in ((1, -math.inf), (2, math.inf)):
            bound = self.tape.constant(clip.input(index)) if clip.input(index) else absent
            if bound is None:
                return []
            bounds.append(float(bound))
        return bounds if bounds[0] <= 0 <= bounds[1] else []

    def _activation(self, proto: NodeProto) -> dict[str, Any]:
        """Return the attributes with which a convolution does an activation itself, nothing if it does not."""
        if proto.domain:
            return {}
        if proto.op_type == "Relu":
            return {"activation": "Relu"}
        bounds = self._bounds(Node.of(proto)) if proto.op_type == "Clip" else []
        return {"activation": "Clip", "activation_params": bounds} if bounds and math.isfinite(sum(bounds)) else {}

    def _is_single(self, name: Value) -> bool:
        dims = self.tape.shape_of(name)
        return dims is not None and all(dim == 1 for dim in dims)

    def _sizes(self, name: Value) -> list[int] | None:
        dims = self.tape.shape_of(name)
        return None if dims is None else sizes(dims)

    # writing

    def _convolution(self, node: Node, window: Window, output: Value, activation: Mapping[str, Any]) -> None:
        data, weight = self._sizes(node.inputs[0]) or [], self._sizes(node.inputs[1]) or []
        source = self._in_plain(node.inputs[0]) if self._from_plain(node, window) else self._in_blocked(node.inputs[0])
        facts = {"block": self.block, **window.attributes, **activation}
        self._node("BlockedConv", [source, *node.inputs[1:]], output, facts)
        self.shapes[output] = [data[0], padded(weight[0], self.block), *output_size(window, data[2:])]
        self.blocked[output] = output

    def _copy(self, proto: NodeProto, form: Any) -> None:
        copy = NodeProto()
        copy.CopyFrom(proto)
        copy.input[:] = [form(name) for name in proto.input]
        self.nodes.append(copy)

    def _in_blocked(self, name: Value) -> Value:
        """Return the blocked form of a value, packed where it is first asked for."""
        if not name:
            return name
        if self._is_single(name):
            return self._in_plain(name)
        if name not in self.blocked:
            count, channels, *spatial = self._sizes(name) or []
            self.blocked[name] = name if name in self.masks else f"{name}/blocked"
            self.shapes[self.blocked[name]] = [count, padded(channels, self.block), *spatial]
            if name not in self.masks:
                self._node("Pack", [name], self.blocked[name], {"block": self.block})
        return self.blocked[name]

    def _in_plain(self, name: Value) -> Value:
        """Return the plain form of a value, unpacked where it is first asked for."""
        if self.blocked.get(name) != name:
            return name
        if name not in self.plain:
            self.plain[name] = f"{name}/plain"
            self._node("Unpack", [name], self.plain[name], {"channels": (self._sizes(name) or [0, 0])[1]})
            self.shapes[self.plain[name]] = self._sizes(name) or []
        return self.plain[name]

    def _node(self, op: str, inputs: list[Value], output: Value, attributes: Mapping[str, Any]) -> None:
        self.nodes.append(helper.make_node(op, inputs, [output], output, domain=DOMAIN, **attributes))

    def _finished(self) -> ModelProto:
        graph = self.model.graph
        for item in graph.output:
            if self.blocked.get(item.name) == item.name:
                raise UnknownFormError(f"the output {item.name!r} is made in the blocked layout")
        inputs = [
            helper.make_tensor_value_info(item.name, TensorProto.BOOL, self.shapes[item.name])
            if item.name in self.masks and item.name in self.shapes
            else item
            for item in graph.input
        ]
        made = {name for node in self.nodes for name in node.output}
        shapes = {name: self.shapes.get(name) or self._sizes(name) for name in made}
        floats = {name for name in made if self.tape.dtype(name) in (None, self.tape.float_type)}
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in sorted(floats)]
        rewritten = helper.make_graph(self.nodes, graph.name, inputs, graph.output, graph.initializer, value_info=infos)
        imports = [item for item in self.model.opset_import if item.domain != DOMAIN]
        imports.append(helper.make_opsetid(DOMAIN, 1))
        return helper.make_model(rewritten, opset_imports=imports, ir_version=self.model.ir_version)
