"""Training steps of a region in torch: the same graph, parameters, quantizers, loss and schedule as our step graph.

`Plain` is the usual code of QDrop (Wei et al., 2022), AdaRound (Nagel et al., 2020) and LSQ (Esser et al., 2020):
autograd, rounding by detach, torch.where on torch.rand_like, torch.optim.Adam; channels-last throughout. What an expert
would make of it is in torch_tuned.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, helper, numpy_helper
from step_regions import BATCH, Subject
from torch import Tensor, nn

from qcompile.quant.params import largest_code
from qcompile.training.recipe import ParameterKind, Settings
from qcompile.training.region import STRETCH
from qcompile.training.rounding import own_scale

Array = NDArray[Any]
Layer = Callable[..., Tensor]
QUANTIZED = 0.5  # probability that an element is quantized


def channels_last(array: Array) -> Tensor:
    """Return a copy of an array as a tensor; images and filters in channels-last memory."""
    tensor = torch.from_numpy(np.array(array))
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


class Clip(torch.autograd.Function):
    """clip(codes, low, high) of rounded values, with a gradient at the bounds."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.bounds = low - 0.5, high + 0.5  # the codes are integers
        return torch.clamp(codes, low, high)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return torch.ops.aten.hardtanh_backward(dy, *ctx.saved_tensors, *ctx.bounds), None, None


def passes_at_bounds() -> bool:
    """Say whether torch.clamp has a gradient where the value is a bound: up to 2.13."""
    bound = torch.zeros((), requires_grad=True)
    torch.clamp(bound, 0, 1).backward()  # type: ignore[no-untyped-call]
    return bool(bound.grad)


clip: Layer = torch.clamp if passes_at_bounds() else Clip.apply


def soft(variable: Tensor, stretch: float) -> Tensor:
    """Return AdaRound's rectified sigmoid."""
    return torch.clamp(torch.sigmoid(variable) * stretch + (1 - stretch) / 2, 0, 1)


def filter_shapes(graph: GraphProto, arrays: dict[str, Array]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what our graph holds as rows, one per filter, and torch as [O, I, kh, kw]."""
    made = {node.output[0]: node for node in graph.node}
    shapes: dict[str, tuple[int, ...]] = {}
    for node in graph.node:
        weight = made.get(node.input[0]) if node.op_type == "Reshape" else None
        if weight is not None and weight.op_type == "FakeQuantWeight":
            variable, scale, base, *_ = weight.input
            target = tuple(int(size) for size in arrays[node.input[1]])
            step, factor = made[scale].input[0], made[made[scale].input[1]].input[0]
            per_filter = (target[0], *(1 for _ in target[1:]))
            shapes |= {variable: target, base: target, step: per_filter, factor: per_filter}
    return shapes


class TorchRegion(ABC):
    """A region ready to be trained; `step` is one training step, which returns the squared error it saw."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.region = subject, subject.region
        graph = self.region.model.graph
        arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        shapes = filter_shapes(graph, arrays)
        self.constants = {
            name: channels_last(array.reshape(shapes.get(name, array.shape))) if array.ndim else array.item()
            for name, array in arrays.items()
        }
        self.trained = {
            name: nn.Parameter(channels_last(item.start.reshape(shapes.get(name, item.start.shape))))
            for name, item in self.region.parameters.items()
        }
        self.of_kind = {
            kind: [self.trained[name] for name, item in self.region.parameters.items() if item.kind is kind]
            for kind in ParameterKind
        }
        self.weights = sum(variable.numel() for variable in self.of_kind[ParameterKind.ROUNDING])
        self.codes = next(name for name in self.region.feeds if name.endswith("/codes"))
        self.input = self.codes.removesuffix("/codes")
        self.output = next(name for name in self.region.feeds if name.endswith("/target")).removesuffix("/target")
        self.layers = [(self._layer(node), tuple(node.input), node.output[0]) for node in self._nodes()]
        self.caches = {name: self._exact(name, subject.samples(name)) for name in self.region.feeds}
        self.optimizer = self.adam([{"params": found, "kind": kind} for kind, found in self.of_kind.items() if found])

    def _nodes(self) -> list[NodeProto]:
        """Return the nodes between the region's input and its output: the mixture in front and the loss are our own."""
        wanted, kept = {self.output}, []
        for node in reversed(self.region.model.graph.node):
            if node.output[0] in wanted and node.output[0] != self.input:
                kept.append(node)
                wanted.update(node.input)
        return kept[::-1]

    def _layer(self, node: NodeProto) -> Layer:
        given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type == "FakeQuantActivation":
            return self.activation(*(given[end] - given["zero_point"] for end in ("low", "high")))
        return self.weight(node) if node.op_type == "FakeQuantWeight" else LAYERS[node.op_type](given)

    def _exact(self, name: str, values: Array) -> Tensor:
        """Return samples as float32; codes are integers on the grid of the DequantizeLinear that reads them."""
        if name != self.codes:
            return channels_last(values)
        node = next(item for item in self.region.model.graph.node if name in item.input)
        scale, zero = (self.constants[item] for item in node.input[1:])
        return channels_last((values.astype(np.float32) - np.float32(zero)) * np.float32(scale))

    def step(self, settings: Settings, unit_error: float, given: dict[str, Array] | None = None) -> float:
        """Train on samples and masks drawn at random, or on the feeds that our step graph was given."""
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rates[group["kind"]]
        feeds = self._picked() if given is None else self._fed(given)
        self.optimizer.zero_grad()
        mask = feeds.get(f"{self.input}/mask")
        values: dict[str, Any] = {**self.constants, **self.trained, **feeds, STRETCH: settings.stretch}
        values[self.input] = self.mix(feeds[f"{self.input}/exact"], feeds[self.codes], mask)
        self.settings, self.unit_error = settings, unit_error
        for layer, inputs, output in self.layers:
            values[output] = layer(*map(values.get, inputs))
        error = self.error(values[self.output], feeds[f"{self.output}/target"])
        (error / unit_error + self.penalty()).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            for name, item in self.region.parameters.items():
                if np.isfinite(item.highest):
                    self.trained[name].clamp_(max=item.highest)
        return error.item()

    def _picked(self) -> dict[str, Tensor]:
        picked = torch.randperm(self.subject.count)[:BATCH]
        return {name: cache[picked] for name, cache in self.caches.items()}

    def _fed(self, given: dict[str, Array]) -> dict[str, Tensor]:
        masks = {name: self.mask(given[name]) for name in self.region.masks}
        return masks | {name: self._exact(name, given[name]) for name in self.region.feeds}

    @abstractmethod
    def adam(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer: ...

    @abstractmethod
    def mask(self, array: Array) -> Tensor:
        """Return booleans as what `mix` takes."""

    @abstractmethod
    def mix(self, exact: Tensor, quantized: Tensor, mask: Tensor | None) -> Tensor:
        """Take each element from the one or the other, by `mask` or by chance."""

    @abstractmethod
    def activation(self, low: int, high: int) -> Layer:
        """Return a quantizer of so many steps below and above 0: (x, scale, mask or None) -> y."""

    @abstractmethod
    def weight(self, node: NodeProto) -> Layer:
        """Return a weight's soft rounding: (variable, scale, base, stretch) -> weight."""

    @abstractmethod
    def error(self, found: Tensor, target: Tensor) -> Tensor:
        """Return the squared error, summed over channels, mean over samples and positions."""

    @abstractmethod
    def penalty(self) -> Tensor | float:
        """Return the rounding regulariser."""


class Plain(TorchRegion):
    """As the papers' authors write it."""

    def adam(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.Adam(groups)

    def mask(self, array: Array) -> Tensor:
        return channels_last(array)

    def mix(self, exact: Tensor, quantized: Tensor, mask: Tensor | None) -> Tensor:
        return torch.where(torch.rand_like(exact) < QUANTIZED if mask is None else mask, quantized, exact)

    def activation(self, low: int, high: int) -> Layer:
        def quantize(x: Tensor, scale: Tensor, mask: Tensor | None) -> Tensor:
            place = x / scale
            rounded = (place.round() - place).detach() + place
            return self.mix(x, clip(rounded, low, high) * scale, mask)

        return quantize

    def weight(self, node: NodeProto) -> Layer:
        owner = self.region.parameters[node.input[0]].owner
        layer = next(item for item in self.subject.qmodel.graph.nodes if item.name == owner)
        quantizer = self.subject.qmodel.plan.weights[owner]
        given = np.asarray(layer.inputs[1].values, np.float32)
        exact, step = channels_last(given), channels_last(quantizer.along(own_scale(given, quantizer) * quantizer.step))
        offset = channels_last(quantizer.along((quantizer.offset / quantizer.step).astype(np.float32)))
        highest = largest_code(quantizer.bits) - 1  # of the code below

        def quantize(variable: Tensor, scale: Tensor, base: Tensor, stretch: float) -> Tensor:
            low = torch.clamp(torch.floor(exact / step - offset), 0, highest)
            return (low + soft(variable, stretch) + offset) * scale

        return quantize

    def error(self, found: Tensor, target: Tensor) -> Tensor:
        return (found - target).square().sum(1).mean()

    def penalty(self) -> Tensor | float:
        if self.settings.strength == 0:
            return 0.0
        exponent, stretch = self.settings.exponent, self.settings.stretch
        codes = [soft(variable, stretch) for variable in self.of_kind[ParameterKind.ROUNDING]]
        terms = [(1 - (2 * code - 1).abs().pow(exponent)).sum() for code in codes]
        return self.settings.strength / self.weights * torch.stack(terms).sum()


def conv(given: dict[str, Any]) -> Layer:
    """Return a convolution; pads must be the same on both ends."""
    pads, rank = given.get("pads", [0, 0, 0, 0]), 2
    if pads[:rank] != pads[rank:]:
        raise SystemExit(f"torch has no convolution with the pads {pads}")
    stride, dilation, group = given.get("strides", 1), given.get("dilations", 1), given.get("group", 1)
    return lambda x, weight, bias: F.conv2d(x, weight, bias, stride, pads[:rank], dilation, group)


LAYERS: dict[str, Callable[[dict[str, Any]], Layer]] = {
    "Conv": conv,
    "Gemm": lambda given: F.linear,
    "Relu": lambda given: torch.relu_,
    "Clip": lambda given: F.hardtanh_,
    "Add": lambda given: torch.add,
    "Mul": lambda given: torch.mul,
    "Exp": lambda given: torch.exp,
    "Reshape": lambda given: lambda weight, shape: weight,  # of rows to filters, which they are here
}
