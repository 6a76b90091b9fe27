"""Every rule that has a twin in torch against its automatic differentiation, in float64 there and float32 here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from autodiff.cases import Case, unary
from autodiff.graphs import gradients_of, random_weights, relative_error, trainable
from autodiff.moving_cases import CASES
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

torch = pytest.importorskip("torch")
F = torch.nn.functional
Tensor = Any
TOLERANCE = 1e-4  # float32 against float64


def _constant(case: Case, index: int) -> list[int]:
    value = case.inputs[index]
    assert value is not None
    return [int(item) for item in value.reshape(-1)]


def _window(case: Case, rank: int) -> dict[str, Any]:
    """Strides, dilations and symmetric pads; other pads have no twin."""
    pads = case.attributes.get("pads", [0] * 2 * rank)
    assume(pads[:rank] == pads[rank:] and case.attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID"))
    return {"stride": case.attributes["strides"], "padding": pads[:rank]}


def _conv(case: Case, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    rank = x.ndim - 2
    more = {"dilation": case.attributes["dilations"], "groups": case.attributes["group"], **_window(case, rank)}
    if case.op == "Conv":
        return getattr(F, f"conv{rank}d")(x, w, b, **more)
    extra = case.attributes.get("output_padding", [0] * rank)
    return getattr(F, f"conv_transpose{rank}d")(x, w, b, output_padding=extra, **more)


def _max_pool(case: Case, x: Tensor) -> Tensor:
    rank, kernel = x.ndim - 2, case.attributes["kernel_shape"]
    more = _window(case, rank) | {"dilation": case.attributes["dilations"]}
    return getattr(F, f"max_pool{rank}d")(x, kernel, **more)


def _average_pool(case: Case, x: Tensor) -> Tensor:
    rank, kernel = x.ndim - 2, case.attributes["kernel_shape"]
    included = bool(case.attributes["count_include_pad"])
    return getattr(F, f"avg_pool{rank}d")(x, kernel, count_include_pad=included, **_window(case, rank))


def _gemm(case: Case, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    options = case.attributes
    product = (a.T if options["transA"] else a) @ (b.T if options["transB"] else b) * options["alpha"]
    return product if c is None else product + options["beta"] * c


def _reduce(case: Case, x: Tensor) -> Tensor:
    axes = _constant(case, 1) if len(case.inputs) > 1 else list(range(x.ndim))
    return REDUCE[case.op](x, axes, keepdim=bool(case.attributes["keepdims"]))


REDUCE: dict[str, Callable[..., Tensor]] = {
    "ReduceL1": lambda x, axes, keepdim: x.abs().sum(axes, keepdim=keepdim),
    "ReduceL2": lambda x, axes, keepdim: torch.linalg.vector_norm(x, dim=axes, keepdim=keepdim),  # 0 has gradient 0
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceMax": torch.amax,
    "ReduceMean": torch.mean,
    "ReduceMin": torch.amin,
    "ReduceSum": torch.sum,
    "ReduceSumSquare": lambda x, axes, keepdim: x.square().sum(axes, keepdim=keepdim),
}


def _norm(case: Case, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    if case.op == "LayerNormalization":
        return F.layer_norm(x, scale.shape, scale, bias, case.attributes["epsilon"])
    return F.instance_norm(x, weight=scale, bias=bias, eps=case.attributes["epsilon"])


def _clip(case: Case, x: Tensor, *bounds: Tensor) -> Tensor:
    given = iter(bounds)
    low, high = (None if value is None else next(given) for value in case.inputs[1:])
    return x.clone() if low is None and high is None else torch.clamp(x, low, high)


def _pad(case: Case, x: Tensor, value: Tensor | None = None) -> Tensor:
    pads, rank = _constant(case, 1), x.ndim
    if case.attributes["mode"] == "constant":
        border = torch.zeros((), dtype=x.dtype) if value is None else value
        flat = [amount for axis in reversed(range(rank)) for amount in (pads[axis], pads[axis + rank])]
        inner = F.pad(torch.ones_like(x), flat)
        return F.pad(x, flat) + (1 - inner) * border
    assume(rank == 4 and not any((*pads[:2], *pads[4:6])))
    mode = {"edge": "replicate", "reflect": "reflect"}[case.attributes["mode"]]
    return F.pad(x, [pads[3], pads[7], pads[2], pads[6]], mode=mode)


def _slice(case: Case, x: Tensor) -> Tensor:
    starts, ends, axes, steps = (_constant(case, index) for index in range(1, 5))
    for start, end, axis, step in zip(starts, ends, axes, steps):
        places = list(range(x.shape[axis]))[slice(start, end if end >= -x.shape[axis] else None, step)]
        x = x.index_select(axis, torch.tensor(places, dtype=torch.int64))
    return x


def _gather(case: Case, x: Tensor) -> Tensor:
    axis = case.attributes["axis"] % x.ndim
    indices = torch.from_numpy(np.asarray(case.inputs[1])) % x.shape[axis]
    if case.op == "GatherElements":
        return torch.gather(x, axis, indices)
    return x.index_select(axis, indices.reshape(-1)).reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _resize(case: Case, x: Tensor) -> Tensor:
    """Torch has half_pixel and align_corners for linear, and of nearest the oldest form."""
    form, linear = case.attributes["coordinate_transformation_mode"], case.attributes["mode"] == "linear"
    assume(form != "asymmetric" if linear else form == "asymmetric" and case.attributes["nearest_mode"] == "floor")
    more = {"mode": "bilinear", "align_corners": form == "align_corners"} if linear else {"mode": "nearest"}
    if len(case.inputs) == 4:
        return F.interpolate(x, _constant(case, 3)[2:], **more)
    return F.interpolate(x, scale_factor=np.asarray(case.inputs[2])[2:].tolist(), **more)


def _blocks(case: Case, x: Tensor) -> Tensor:
    size = case.attributes["blocksize"]
    if case.op == "DepthToSpace" and case.attributes["mode"] == "CRD":
        return F.pixel_shuffle(x, size)
    n, c, h, w = x.shape
    if case.op == "SpaceToDepth":
        return x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4).reshape(
            n, -1, h // size, w // size)  # fmt: skip
    return x.reshape(n, size, size, -1, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * size, w * size)


def _batch_norm(case: Case, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    columns = [item.reshape(-1, 1, 1) for item in (scale, bias, mean, variance)]
    return (x - columns[2]) / torch.sqrt(columns[3] + 1e-5) * columns[0] + columns[1]


def _chain(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def twin(case: Case, *terms: Tensor) -> Tensor:
        result = terms[0].clone()
        for term in terms[1:]:
            result = function(result, term)
        return result

    return twin


def _of(function: Callable[..., Tensor], *more: Any, **options: Any) -> Callable[..., Tensor]:
    return lambda case, *inputs: function(*inputs, *more, **options)


TWINS: dict[str, Callable[..., Any]] = {
    "Abs": _of(torch.abs), "Add": _of(torch.add), "AveragePool": _average_pool, "BatchNormalization": _batch_norm,
    "Cast": _of(torch.clone), "Clip": _clip, "Conv": _conv, "ConvTranspose": _conv, "Cos": _of(torch.cos),
    "Concat": lambda case, *parts: torch.cat(parts, case.attributes["axis"]),
    "DepthToSpace": _blocks,
    "Div": _of(torch.div), "Elu": _of(F.elu, 0.7), "Erf": _of(torch.erf), "Exp": _of(torch.exp),
    "Expand": lambda case, x: x.expand(_constant(case, 1)),
    "Flatten": lambda case, x: x.clone().reshape(int(np.prod(x.shape[: case.attributes["axis"] % x.ndim])), -1),
    "Gather": _gather, "GatherElements": _gather, "Gemm": _gemm, "GlobalAveragePool": lambda case, x: x.mean(
        tuple(range(2, x.ndim)), keepdim=True),
    "Gelu": lambda case, x: F.gelu(x, approximate=case.attributes["approximate"]),
    "HardSigmoid": lambda case, x: torch.clamp(0.4 * x + 0.6, 0, 1), "HardSwish": _of(F.hardswish),
    "Identity": _of(torch.clone), "InstanceNormalization": _norm, "LayerNormalization": _norm,
    "LeakyRelu": _of(F.leaky_relu, 0.2), "Log": _of(torch.log),
    "LogSoftmax": lambda case, x: torch.log_softmax(x, case.attributes["axis"]),
    "MatMul": _of(torch.matmul), "Max": _chain(torch.maximum), "MaxPool": _max_pool, "Min": _chain(torch.minimum),
    "Mul": _of(torch.mul), "Neg": _of(torch.neg),
    "PRelu": lambda case, x, slope: torch.where(x > 0, x, x * slope), "Pad": _pad,
    "Pow": lambda case, x, *exponent: torch.pow(x, exponent[0] if exponent else 2), **dict.fromkeys(REDUCE, _reduce),
    "Reciprocal": _of(torch.reciprocal),
    "Relu": _of(torch.relu), "Reshape": lambda case, x: x.reshape(_constant(case, 1)), "Resize": _resize,
    "Sigmoid": _of(torch.sigmoid), "Sin": _of(torch.sin), "Slice": _slice,
    "Softmax": lambda case, x: torch.softmax(x, case.attributes["axis"]), "Softplus": _of(F.softplus),
    "SpaceToDepth": _blocks, "Split": lambda case, x: torch.split(x, _constant(case, 1), case.attributes["axis"]),
    "Sqrt": _of(torch.sqrt), "Squeeze": lambda case, x: x.squeeze(_constant(case, 1)[0]), "Sub": _of(torch.sub),
    "Sum": _chain(torch.add), "Tanh": _of(torch.tanh), "Tile": lambda case, x: x.tile(_constant(case, 1)),
    "Transpose": lambda case, x: x.permute(case.attributes.get("perm", list(range(x.ndim))[::-1])),
    "Unsqueeze": lambda case, x: x.unsqueeze(_constant(case, 1)[0]),
    "Where": lambda case, a, b: torch.where(torch.from_numpy(np.asarray(case.inputs[0])), a, b),
}  # fmt: skip


@pytest.mark.parametrize("op", sorted(TWINS))
@given(data=st.data())
@settings(max_examples=20, suppress_health_check=[HealthCheck.filter_too_much])  # no twin, see above
def test_gradient_is_that_of_torch(op: str, data: DataObject) -> None:
    case = data.draw(CASES.get(op, unary(op)))
    names = trainable(case)
    leaves = [torch.tensor(case.inputs[int(name[1:])], dtype=torch.float64, requires_grad=True) for name in names]
    outputs = TWINS[op](case, *leaves)
    weights = random_weights(case)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum((output * torch.tensor(weight)).sum() for output, weight in zip(outputs, weights)).backward()
    found = gradients_of(case, weights)
    for name, leaf in zip(names, leaves):
        expected = np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy()
        assert relative_error(found[name], expected) <= TOLERANCE
