"""Training steps of a region in torch as an expert would tune them.

One autograd.Function per quantizer with a hand-written backward pass in few passes over the tensor, masks from random
bytes, the rounding variables' sigmoid and power computed once, the weights' floor beforehand, fused Adam.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import NodeProto
from step_regions import Subject
from torch import Tensor
from torch_regions import Array, Layer, TorchRegion

aten = torch.ops.aten


class Activation(torch.autograd.Function):
    """LSQ with drop. Backward: dx = dy where dropped or inside the grid; dscale = (<dy, y> - <dx, x>) / scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, mask: Tensor, low: int, high: int) -> Tensor:
        y = torch.div(x, scale).round_().clamp_(low, high).mul_(scale)
        torch.lerp(x, y, mask, out=y)
        ctx.save_for_backward(x, scale, mask, y)
        ctx.bounds = low, high
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, mask, y = ctx.saved_tensors
        step = scale.item()
        low, high = ((end + half) * step for end, half in zip(ctx.bounds, (-0.5, 0.5)))
        inside = aten.hardtanh_backward(dy, x, low, high)
        dx = torch.lerp(dy, inside, mask, out=inside)
        return dx, (dot(dy, y) - dot(dx, x)) / step, None, None, None


class Weight(torch.autograd.Function):
    """AdaRound's soft rounding with its regulariser, whose gradient joins here and whose value nobody needs."""

    @staticmethod
    def forward(
        ctx: Any, variable: Tensor, scale: Tensor, base: Tensor, stretch: float, strength: float, exponent: float
    ) -> Tensor:
        sigmoid = torch.sigmoid(variable)
        code = torch.clamp(sigmoid * stretch + (1 - stretch) / 2, 0, 1)
        place = base + code
        ctx.save_for_backward(sigmoid, code, scale, place)
        ctx.stretch, ctx.regulariser = stretch, (strength, exponent)
        return place * scale

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        sigmoid, code, scale, place = ctx.saved_tensors
        strength, exponent = ctx.regulariser
        dcode = dy * scale
        if strength:
            twice = code * 2 - 1
            dcode -= (twice * twice.abs().pow_(exponent - 2)).mul_(2 * strength * exponent)
        dcode = aten.hardtanh_backward(dcode, code, 0, 1).mul_(ctx.stretch)
        dscale = (dy * place).sum(tuple(range(1, dy.ndim)), keepdim=True)
        return aten.sigmoid_backward(dcode, sigmoid), dscale, None, None, None, None


quantized: Layer = Activation.apply
rounded: Layer = Weight.apply


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of products of two tensors of one memory layout, a scalar."""
    if a.ndim == 4:
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))


class Tuned(TorchRegion):
    """The same step with fewer passes."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.random = np.random.Generator(np.random.SFC64(0))

    def adam(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.Adam(groups, fused=True)

    def mask(self, array: Array) -> Tensor:
        tensor = torch.from_numpy(array.astype(np.float32))
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    def draw(self, like: Tensor) -> Tensor:
        """Return a random mask as float32 in the memory layout of `like`."""
        shape = [like.shape[axis] for axis in (0, 2, 3, 1)] if like.ndim == 4 else list(like.shape)
        bits = np.unpackbits(np.frombuffer(self.random.bytes(-(-like.numel() // 8)), np.uint8), count=like.numel())
        mask = torch.from_numpy(bits.reshape(shape)).float()
        return mask.permute(0, 3, 1, 2) if like.ndim == 4 else mask

    def mix(self, exact: Tensor, quantized: Tensor, mask: Tensor | None) -> Tensor:
        return torch.lerp(exact, quantized, self.draw(exact) if mask is None else mask)

    def activation(self, low: int, high: int) -> Layer:
        return lambda x, scale, mask: quantized(x, scale, self.draw(x) if mask is None else mask, low, high)

    def weight(self, node: NodeProto) -> Layer:
        return lambda variable, scale, base, stretch: rounded(
            variable, scale, base, stretch, self.settings.strength / self.weights, self.settings.exponent
        )

    def error(self, found: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(found, target, reduction="sum") * (found.shape[1] / found.numel())

    def penalty(self) -> float:
        return 0.0  # its gradient is part of Weight
