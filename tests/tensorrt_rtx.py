"""TensorRT-RTX, whose parser and ahead-of-time builder need no GPU: what they say of a file."""

from __future__ import annotations

from pathlib import Path

import tensorrt_rtx_bindings as trt


class _Messages(trt.ILogger):
    """Keeps warnings and errors."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.found: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        if severity <= trt.ILogger.WARNING:
            self.found.append(message)


def complaints(path: Path, sizes: int = 1) -> list[str]:
    """Return what parser and builder say against a file; nothing where an engine was built without a warning.

    Sizes of inputs that the file leaves open are `sizes`.
    """
    messages = _Messages()
    builder = trt.Builder(messages)
    network = builder.create_network(0)
    if not trt.OnnxParser(network, messages).parse_from_file(str(path)):
        return messages.found or ["the parser gives no network"]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = [sizes if size < 0 else size for size in tensor.shape]
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    if builder.build_serialized_network(network, config) is None:
        messages.found.append("the builder gives no engine")
    return messages.found
