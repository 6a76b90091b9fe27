"""ResNet-20 to W4A4 by block-wise BRECQ, written plainly in torch: what bench_training.py compares the compiler with.

    python tools/torch_brecq.py OUT.pt --steps 1000 --batch 32 --threads 2

Modules, autograd and torch.optim.Adam, as published code does it (Li et al., "BRECQ", 2021; Nagel et al., "AdaRound",
2020; Esser et al., "LSQ", 2020), channels-last. The compiler's schedule, parameters and placement of quantizers: 8 bits
for image, sums, pooling, first and last weights, 4 bits in front of every other convolution.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from enum import Enum
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from assets import CASES
from onnx import numpy_helper
from torch import Tensor, nn
from torch_regions import clip

from qcompile.training.recipe import FIRST_STRETCH, PULL, ParameterKind, settings_at

CASE = CASES["resnet20"]
WIDTHS = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
IMAGES, OBSERVED = 1024, 256  # to train on, and of those to choose scales with
CANDIDATES = torch.linspace(0.2, 1.2, 100)  # of a scale, as a share of what covers all values


class Mode(Enum):
    """What quantizers do."""

    FLOAT = "nothing"
    OBSERVE = "choose a scale"
    TRAIN = "round softly"
    QUANTIZED = "round"


class Switched(nn.Module):
    """A module with a mode."""

    mode = Mode.FLOAT


def switch(module: nn.Module, mode: Mode) -> None:
    """Set the mode of all quantizers inside."""
    for part in module.modules():
        if isinstance(part, Switched):
            part.mode = mode


def rounded(x: Tensor) -> Tensor:
    """Round; the gradient passes straight through."""
    return (x.round() - x).detach() + x


class Activation(Switched):
    """An activation quantizer with a trained scale."""

    start: Tensor
    low: Tensor

    def __init__(self, bits: int, signed: bool = False) -> None:
        super().__init__()
        self.bits, self.signed = bits, signed
        self.register_buffer("start", torch.ones(()))
        self.register_buffer("low", torch.zeros(()))  # the lowest code, 0 being the value 0
        self.log_scale = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """8 bits cover all values; below, the scale has the least squared error."""
        levels, values = (1 << self.bits) - 1, x.flatten()[::7]
        least, most = (min(float(x.min()), 0.0) if self.signed else 0.0), float(x.max())
        self.start.fill_((most - least) / levels)
        self.low.fill_(round(least / float(self.start)))
        if self.bits < 8:
            errors = [self.fake(values, self.start * share).sub(values).square().sum() for share in CANDIDATES]
            self.start.mul_(CANDIDATES[int(torch.stack(errors).argmin())])

    def fake(self, x: Tensor, scale: Tensor) -> Tensor:
        low = self.low.item()
        return clip(rounded(x / scale), low, low + (1 << self.bits) - 1) * scale

    def forward(self, x: Tensor) -> Tensor:
        if self.mode is Mode.OBSERVE:
            self.observe(x)
        if self.mode is Mode.FLOAT:
            return x
        return self.fake(x, self.start * torch.exp(self.log_scale))


class Layer(Switched):
    """A convolution or a linear layer with trained rounding, scales per output channel, and bias."""

    def __init__(self, weight: Tensor, bias: Tensor, bits: int, stride: int = 1) -> None:
        super().__init__()
        self.bits, self.stride, self.exact, self.stretch = bits, stride, weight, FIRST_STRETCH
        self.start = self._best_scale()
        part = torch.clamp(weight / self.start - self.floor(), 0, 1 - 1e-6)
        self.rounding = nn.Parameter(-torch.log(FIRST_STRETCH / (part - (1 - FIRST_STRETCH) / 2) - 1))
        self.log_scale = nn.Parameter(torch.zeros_like(self.start))
        self.bias = nn.Parameter(bias)

    def _best_scale(self) -> Tensor:
        """Return the scale of each output channel with the least squared error."""
        axes, half = tuple(range(1, self.exact.ndim)), 1 << (self.bits - 1)
        widest = self.exact.abs().amax(axes, keepdim=True) / (half - 0.5)
        scales = [widest * share for share in CANDIDATES]
        errors = [
            (torch.clamp((self.exact / s).round(), -half, half - 1) * s - self.exact).square().sum(axes) for s in scales
        ]
        best = torch.stack(errors).argmin(0)
        return torch.stack([scales[int(number)][channel] for channel, number in enumerate(best)])

    def floor(self) -> Tensor:
        half = 1 << (self.bits - 1)
        return torch.clamp(torch.floor(self.exact / self.start), -half, half - 2)

    def soft(self) -> Tensor:
        """Return AdaRound's rectified sigmoid."""
        return torch.clamp(torch.sigmoid(self.rounding) * self.stretch + (1 - self.stretch) / 2, 0, 1)

    def weight(self) -> Tensor:
        if self.mode in (Mode.FLOAT, Mode.OBSERVE):
            return self.exact
        up = self.soft() if self.mode is Mode.TRAIN else (self.rounding >= 0).float()
        return (self.floor() + up) * self.start * torch.exp(self.log_scale)

    def forward(self, x: Tensor) -> Tensor:
        if self.exact.ndim == 2:
            return F.linear(x, self.weight(), self.bias)
        return F.conv2d(x, self.weight(), self.bias, self.stride, 1)


class Block(nn.Module):
    """A basic block; `narrow` stands in front of the first convolution, the shortcut has 8 bits."""

    def __init__(self, conv1: Layer, conv2: Layer, extra: int, pool: bool) -> None:
        super().__init__()
        self.conv1, self.conv2, self.extra = conv1, conv2, extra
        self.narrow, self.inner = Activation(4), Activation(4)
        self.addend, self.sum = Activation(8, signed=True), Activation(8)
        self.pooled = Activation(8) if pool else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(F.relu(self.conv1(self.narrow(x))))
        y = self.addend(self.conv2(y))
        if self.extra:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        y = self.sum(F.relu(y + x))
        return y if self.pooled is None else self.pooled(y.mean((2, 3)))


class Stem(nn.Module):
    """The first convolution."""

    def __init__(self, conv: Layer) -> None:
        super().__init__()
        self.image, self.conv, self.out = Activation(8, signed=True), conv, Activation(8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(F.relu(self.conv(self.image(x))))
        return y


def network() -> nn.Sequential:
    """Return the units of the float ONNX model, batch normalization folded."""
    arrays = {t.name: numpy_helper.to_array(t) for t in onnx.load(CASE.model).graph.initializer}

    def conv(name: str, norm: str, bits: int, stride: int = 1) -> Layer:
        gain, shift, mean, variance = (
            arrays[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = gain / np.sqrt(variance + 1e-5)
        weight = torch.from_numpy(arrays[f"{name}.weight"] * factor.reshape(-1, 1, 1, 1))
        bias = torch.from_numpy(shift - mean * factor)
        return Layer(weight.contiguous(memory_format=torch.channels_last), bias, bits, stride)

    def block(number: int, inputs: int, outputs: int) -> Block:
        name, stride = f"layer{number // 3 + 1}.{number % 3}", 1 if inputs == outputs else 2
        conv1 = conv(f"{name}.conv1", f"{name}.bn1", 4, stride)
        conv2 = conv(f"{name}.conv2", f"{name}.bn2", 4)
        return Block(conv1, conv2, extra=outputs - inputs, pool=number == len(WIDTHS) - 2)

    weight, bias = (torch.from_numpy(arrays[f"linear.{part}"].copy()) for part in ("weight", "bias"))
    linear = Layer(weight, bias, bits=8)
    blocks = [block(number, *widths) for number, widths in enumerate(pairwise(WIDTHS))]
    return nn.Sequential(Stem(conv("conv1", "bn1", 8)), *blocks, linear)


def error(found: Tensor, target: Tensor) -> Tensor:
    """Return the squared error, summed over channels, mean over samples and positions."""
    return (found - target).square().sum(1).mean()


def train(unit: nn.Module, data: dict[str, Tensor], steps: int, batch: int) -> None:
    """Reconstruct one unit: `data` has its quantized input and its float output."""
    layers = [part for part in unit.modules() if isinstance(part, Layer)]
    scales = [part.log_scale for part in unit.modules() if isinstance(part, Activation)]
    optimizer = torch.optim.Adam([
        {"params": [layer.rounding for layer in layers], "kind": ParameterKind.ROUNDING},
        {"params": [layer.log_scale for layer in layers], "kind": ParameterKind.WEIGHT_SCALE},
        {"params": [layer.bias for layer in layers], "kind": ParameterKind.BIAS},
        *([{"params": scales, "kind": ParameterKind.ACTIVATION_SCALE}] if scales else []),
    ])  # fmt: skip
    count, weights = len(data["target"]), sum(layer.rounding.numel() for layer in layers)

    def output() -> tuple[Tensor, Tensor]:
        picked = torch.randperm(count)[:batch]
        return unit(data["quantized"][picked]), data["target"][picked]

    switch(unit, Mode.TRAIN)
    with torch.no_grad():
        unit_error = max(float(torch.stack([error(*output()) for _ in range(4)]).mean()), 1e-12)
    starts = [layer.soft().detach() for layer in layers]
    for step in range(steps):
        settings = settings_at(step / steps)
        for group in optimizer.param_groups:
            group["lr"] = settings.rates[group["kind"]]
        for layer in layers:
            layer.stretch = settings.stretch
        ways = [(layer.soft() - start).square().sum() for layer, start in zip(layers, starts)]
        loss = error(*output()) / unit_error + PULL / data["target"].numel() * sum(ways)
        if settings.strength:
            penalty = sum((1 - (2 * layer.soft() - 1).abs().pow(settings.exponent)).sum() for layer in layers)
            loss = loss + settings.strength / weights * penalty
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    switch(unit, Mode.QUANTIZED)


@torch.no_grad()
def outputs(unit: nn.Module, x: Tensor) -> Tensor:
    """Run a unit on all samples."""
    return torch.cat([unit(part) for part in torch.split(x, 64)])


def reconstruct(net: nn.Sequential, images: Tensor, steps: int, batch: int) -> None:
    """Train unit after unit; each sees what the trained units before it make."""
    quantized = exact = images
    for unit in net:
        target = outputs(unit, exact)
        switch(unit, Mode.OBSERVE)
        with torch.no_grad():
            unit(exact[:OBSERVED])
        train(unit, {"quantized": quantized, "target": target}, steps, batch)
        quantized, exact = outputs(unit, quantized), target


def images(source: Path, count: int | None = None) -> Iterator[Tensor]:
    """Yield batches of ready images in channels-last memory."""
    for feeds in CASE.batches(source, count, 64):
        yield torch.from_numpy(feeds[CASE.input]).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(path: Path) -> float:
    """Return the top-1 in percent of the fake-quant network that `main` wrote."""
    net = network()
    net.load_state_dict(torch.load(path))
    switch(net, Mode.QUANTIZED)
    answers = torch.cat([net(batch).argmax(1) for batch in images(CASE.evaluation)]).numpy()
    return float(np.mean(answers == CASE.labels(CASE.evaluation)) * 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="state of the trained network")
    parser.add_argument("--steps", type=int, default=1000, help="per unit")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    net = network()
    reconstruct(net, torch.cat(list(images(CASE.calibration, IMAGES))), given.steps, given.batch)
    torch.save(net.state_dict(), given.out)


if __name__ == "__main__":
    main()
