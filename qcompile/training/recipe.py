"""How a unit is trained: learning rates, regulariser and their schedules, as data.

The settings are those that work at short budgets: the rounding variables travel far in few steps, and the regulariser
is relative to the loss before training, so that large activations do not leave weights undecided.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from qcompile.config import Config, Device, Engine, Method
from qcompile.memory import parse_size


class ParameterKind(StrEnum):
    """Kinds of trained parameters."""

    ROUNDING = "rounding"
    WEIGHT_SCALE = "weight_scale"  # logarithm of a factor, per output channel
    ACTIVATION_SCALE = "activation_scale"  # logarithm of a factor
    BIAS = "bias"


# Adam's learning rates. That of the rounding variables is constant; the others fall to zero along a cosine.
RATES = {
    ParameterKind.ROUNDING: 0.1,
    ParameterKind.WEIGHT_SCALE: 0.01,
    ParameterKind.ACTIVATION_SCALE: 0.003,
    ParameterKind.BIAS: 0.003,
}
WARM_UP = 0.2  # of the steps without regulariser
FIRST_EXPONENT, LAST_EXPONENT = 20.0, 2.0
FIRST_STRETCH, LAST_STRETCH = 1.2, 6.0  # of the sigmoid between two codes: AdaRound's, and one that is nearly hard
STRENGTH = 30.0  # of the regulariser, per weight, beside a loss of 1 before training
PULL = 30.0  # of rounding variables to their start, per weight, where there are as many weights as target values

VALUES_PER_WEIGHT = 10  # that samples give a unit at least where they determine it: with fewer it learns them by heart

# Probability that an element is quantized in training, by method: where samples determine the unit, and where they do
# not. AdaRound (Nagel et al., 2020) and BRECQ (Li et al., 2021) train on quantized values, QDrop (Wei et al., 2022) on
# a mixture with float, which flattens the loss: it helps against learning by heart; elsewhere it only takes time.
QUANTIZED = {
    "adaround": (1.0, 1.0),
    "brecq": (1.0, 1.0),
    "qdrop": (1.0, 0.75),
    "mrecg": (1.0, 0.75),
    "mrecg-brecq": (1.0, 1.0),
}
STEPS = {"fast": 100, "default": 500, "max": 3000}  # by effort
BATCH = 16


@dataclass(frozen=True)
class Training:
    """How pieces are trained: by which method, for how many steps a unit, on how many samples at once, and by what.

    `memory` is the bytes that values between pieces may take; None: a share of what is free.
    """

    method: Method = "mrecg"
    steps: int = STEPS["default"]
    batch: int = BATCH
    memory: int | None = None
    engine: Engine = "auto"
    device: Device = "cpu"

    @classmethod
    def of(cls, config: Config) -> Training:
        """Return what the configuration says."""
        steps = config.steps or STEPS[config.effort or "default"]
        memory = None if config.memory is None else parse_size("--memory", config.memory)
        return cls(config.chosen_method, steps, config.recon_batch or BATCH, memory, config.engine, config.device)


DEFAULT = Training()
SCORING = Training(steps=100)  # a first look


@dataclass(frozen=True)
class Settings:
    """What one step is given: learning rates by kind, strength and exponent of the rounding regulariser, and how far
    the sigmoid between two codes is stretched: more and more, so that few weights are left to be rounded at the end.
    """

    rates: dict[ParameterKind, float]
    strength: float
    exponent: float
    stretch: float


FROZEN = Settings(dict.fromkeys(ParameterKind, 0.0), 0.0, FIRST_EXPONENT, FIRST_STRETCH)


def settings_at(progress: float) -> Settings:
    """Return the settings at `progress` in 0..1 of the steps."""
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    rates = {kind: rate if kind is ParameterKind.ROUNDING else rate * cosine for kind, rate in RATES.items()}
    later = max(0.0, (progress - WARM_UP) / (1 - WARM_UP))
    exponent = FIRST_EXPONENT + (LAST_EXPONENT - FIRST_EXPONENT) * later
    stretch = FIRST_STRETCH * (LAST_STRETCH / FIRST_STRETCH) ** later
    return Settings(rates, STRENGTH if progress >= WARM_UP else 0.0, exponent, stretch)


def draw_mask(random: np.random.Generator, shape: tuple[int, ...], quantized: float) -> np.ndarray:
    """Return booleans of `shape`, True with probability `quantized`, which is a multiple of 1/4."""
    size = math.prod(shape)
    if quantized == 1.0:
        return np.ones(shape, np.bool_)
    first, second = (
        np.unpackbits(np.frombuffer(random.bytes(-(-size // 8)), np.uint8), count=size).view(np.bool_) for _ in range(2)
    )
    drawn = {0.25: first & second, 0.5: first, 0.75: first | second}[quantized]
    return drawn.reshape(shape)
