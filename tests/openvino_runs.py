"""Files in OpenVINO's CPU plugin: what they compute, and the type in which their layers run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx

LAYERS = {"Convolution", "FullyConnected"}  # operators with weights; GroupConvolution is a Convolution here
INTEGERS = {"u8", "i8"}


def openvino_model(model: onnx.ModelProto) -> Any:
    """Return `model` as OpenVINO runs it on one thread, in float32 where it is not in integers."""
    import openvino

    core, options = openvino.Core(), {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return core.compile_model(core.read_model(model.SerializeToString()), "CPU", options)


def outputs(compiled: Any, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Run it once; return the outputs by name."""
    return {output.any_name: values for output, values in compiled(dict(feeds)).items()}


def layer_types(compiled: Any) -> Counter[str]:
    """Return in which type layers run, u8, i8 or f32, and how many: OpenVINO does not keep all of their names."""
    facts = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    return Counter(item["runtimePrecision"].value for item in facts if item["layerType"].value in LAYERS)
