"""The fast form of a region: convolutions on ONNX Runtime's blocked layout, where this machine has it."""

from __future__ import annotations

from dataclasses import replace

from qcompile.autodiff.blocked import to_blocked
from qcompile.runtime.blocked import block_size
from qcompile.training.region import Region


def blocked(region: Region) -> Region:
    """Return `region` on the blocked layout, masks included, or as it is where there are no such operators."""
    block = block_size()
    if block == 1:
        return region
    model = to_blocked(region.model, block)
    shapes = {item.name: item.type.tensor_type.shape.dim for item in model.graph.input}
    masks = {name: tuple(dim.dim_value for dim in shapes[name]) for name in region.masks}
    return replace(region, model=model, masks=masks)
