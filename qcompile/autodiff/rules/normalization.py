"""Normalizations: by the statistics of the sample itself (layer, instance), or by stored ones (batch, inference)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompile.autodiff.broadcasting import axis_of, dims_of, rank_of, unbroadcast
from qcompile.autodiff.operators import Value
from qcompile.autodiff.registry import Gradients, UnknownFormError, attribute, vjp
from qcompile.autodiff.tape import Node, Tape


@vjp("LayerNormalization")
def _layer(g: Tape, node: Node, dy: Value, *statistics: Value | None) -> Gradients:
    """Over all axes from `axis` on; scale and bias may be broadcast."""
    if any(statistics):
        raise UnknownFormError("its mean or deviation is used")
    x, scale, bias = node.inputs[0], node.inputs[1], node.input(2)
    rank, dims = rank_of(g, x), dims_of(g, x)
    axes = list(range(axis_of(attribute(node, "axis", -1), rank), rank))
    normal, inverse = _normalized(g, x, axes, attribute(node, "epsilon", 1e-5))
    dx = _through_statistics(g, g.mul(dy, scale), normal, inverse, axes)
    dscale = unbroadcast(g, g.mul(dy, normal), dims, scale)
    return dx, dscale, unbroadcast(g, dy, dims, bias) if bias else None


@vjp("InstanceNormalization")
def _instance(g: Tape, node: Node, dy: Value) -> Gradients:
    """Over the spatial axes; scale and bias are per channel."""
    x, scale, _ = node.inputs
    rank = rank_of(g, x)
    axes = list(range(2, rank))
    normal, inverse = _normalized(g, x, axes, attribute(node, "epsilon", 1e-5))
    dx = _through_statistics(g, g.mul(dy, _per_channel(g, scale, rank)), normal, inverse, axes)
    return dx, _channel_sum(g, g.mul(dy, normal), rank), _channel_sum(g, dy, rank)


@vjp("BatchNormalization")
def _batch(g: Tape, node: Node, dy: Value, *statistics: Value | None) -> Gradients:
    """y = (x - mean) r scale + bias with r = 1/sqrt(var + epsilon); all five inputs may be trained."""
    if attribute(node, "training_mode", 0):
        raise UnknownFormError("it is in training mode")
    x, scale, _, mean, variance = node.inputs
    rank = rank_of(g, x)
    inverse = _inverse_deviation(g, variance, attribute(node, "epsilon", 1e-5))
    slope = g.mul(scale, inverse)
    total = _channel_sum(g, dy, rank)
    centered = g.sub(x, _per_channel(g, mean, rank))
    dslope = _channel_sum(g, g.mul(dy, centered), rank)
    dvariance = g.mul(g.mul(dslope, slope), g.mul(g.mul(inverse, inverse), -0.5))
    dx = g.mul(dy, _per_channel(g, slope, rank))
    return dx, g.mul(dslope, inverse), total, g.neg(g.mul(total, slope)), dvariance


def _normalized(g: Tape, x: Value, axes: Sequence[int], epsilon: float) -> tuple[Value, Value]:
    """Return (x - mean)/deviation and 1/deviation."""
    centered = g.sub(x, g.reduce_mean(x, axes, keepdims=1))
    variance = g.reduce_mean(g.mul(centered, centered), axes, keepdims=1)
    inverse = _inverse_deviation(g, variance, epsilon)
    return g.mul(centered, inverse), inverse


def _inverse_deviation(g: Tape, variance: Value, epsilon: float) -> Value:
    return g.reciprocal(g.sqrt(g.add(variance, float(epsilon))))


def _through_statistics(g: Tape, dn: Value, normal: Value, inverse: Value, axes: Sequence[int]) -> Value:
    """With n = (x - mean)/deviation: dx = (dn - mean(dn) - n mean(dn n))/deviation (Ba et al., 2016)."""
    along = g.mul(normal, g.reduce_mean(g.mul(dn, normal), axes, keepdims=1))
    return g.mul(g.sub(g.sub(dn, g.reduce_mean(dn, axes, keepdims=1)), along), inverse)


def _per_channel(g: Tape, vector: Value, rank: int) -> Value:
    return g.reshape(vector, np.array([-1] + [1] * (rank - 2), np.int64))


def _channel_sum(g: Tape, value: Value, rank: int) -> Value:
    return g.reduce_sum(value, [0, *range(2, rank)], keepdims=0)
