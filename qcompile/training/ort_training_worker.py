"""The other side of `ort_training`: trains one region with onnxruntime-training's artifacts and api.

Run as a plain file by the interpreter of an environment that has onnxruntime-training, onnx and numpy; commands come
through stdin, answers leave through stdout. Nothing else of qcompile is imported, since it is not installed there.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import tempfile
import types
from pathlib import Path
from typing import IO, Any

import numpy as np

Arrays = dict[str, Any]
LENGTH = struct.Struct("<Q")


def write_message(pipe: IO[bytes], header: dict[str, Any], arrays: Arrays | None = None) -> None:
    """Write a length, a JSON header that lists the arrays, and their bytes."""
    arrays = arrays or {}
    listed = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    text = json.dumps({**header, "arrays": listed}).encode()
    pipe.write(LENGTH.pack(len(text)) + text)
    for array in arrays.values():
        pipe.write(np.ascontiguousarray(array).data)
    pipe.flush()


def read_message(pipe: IO[bytes]) -> tuple[dict[str, Any], Arrays]:
    """Read what `write_message` wrote; raises EOFError where the pipe has ended."""
    header = json.loads(_read(pipe, LENGTH.unpack(_read(pipe, LENGTH.size))[0]))
    arrays = {}
    for name, kind, shape in header.pop("arrays"):
        dtype = np.dtype(kind)
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(_read(pipe, size), dtype).reshape(shape)
    return header, arrays


def _read(pipe: IO[bytes], size: int) -> bytes:
    content = pipe.read(size)
    if len(content) < size:
        raise EOFError
    return content


def training_package() -> tuple[Any, Any, Any, Any]:
    """Return onnxruntime and artifacts, api and onnxblock of its training package.

    The package's own __init__ imports torch, which these three do not need: an empty one stands in for it.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    package = types.ModuleType("onnxruntime.training")
    package.__path__ = [str(Path(onnxruntime.__file__).with_name("training"))]
    sys.modules[package.__name__] = package
    from onnxruntime.training import api, artifacts, onnxblock

    return onnxruntime, artifacts, api, onnxblock


class Training:
    """One region: the module that computes gradients, and Adam (Kingma and Ba, 2015) in float32 beside it.

    The package's own optimizer has one learning rate for all parameters and another epsilon.
    """

    def __init__(self, package: tuple[Any, Any, Any, Any], header: dict[str, Any], model: bytes) -> None:
        import onnx

        runtime, artifacts, api, onnxblock = package
        proto = onnx.load_model_from_string(model)
        self.highest: dict[str, float] = header["highest"]
        self.decays: list[float] = header["decays"]
        self.epsilon: float = header["epsilon"]
        kept = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        self.start = {name: kept[name] for name in self.highest}

        loss = type("Loss", (onnxblock.Block,), {"build": lambda self, *outputs: header["loss"]})
        options = runtime.SessionOptions()
        options.intra_op_num_threads = header["threads"]
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
            artifacts.generate_artifacts(
                proto,
                requires_grad=list(self.highest),
                loss=loss(),  # it is in the graph already
                artifact_directory=folder,
                additional_output_names=[header["reconstruction"]],
            )
            self.checkpoint = api.CheckpointState.load_checkpoint(f"{folder}/checkpoint")
            self.module = api.Module(
                f"{folder}/training_model.onnx", self.checkpoint, device=header["device"], session_options=options
            )
        self.inputs = self.module.input_names()
        self.reset()

    def reset(self) -> None:
        """Go back to the start."""
        self.steps, self.values = 0, dict(self.start)
        self.first = {name: np.zeros_like(array) for name, array in self.start.items()}
        self.second = {name: np.zeros_like(array) for name, array in self.start.items()}
        self._write()

    def state(self) -> Arrays:
        """Return the parameters and their moments."""
        first = {f"{name}/first": array for name, array in self.first.items()}
        return {**self.values, **first, **{f"{name}/second": array for name, array in self.second.items()}}

    def step(self, rates: dict[str, float], feeds: Arrays) -> float:
        """Take one step with a learning rate per parameter; return the squared error."""
        self.steps += 1
        _, error = self.module(*[feeds[name] for name in self.inputs])
        parameters = self.checkpoint.parameters
        for name in self.start:
            self._update(name, parameters[name].grad, rates[name])
        self.module.lazy_reset_grad()
        self._write()
        return float(error)

    def _update(self, name: str, gradient: Any, rate: float) -> None:
        """The operations of the step graph in its order, so that both round alike."""
        decay1, decay2 = self.decays
        self.first[name] = self.first[name] * np.float32(decay1) + gradient * np.float32(1 - decay1)
        self.second[name] = self.second[name] * np.float32(decay2) + gradient * gradient * np.float32(1 - decay2)
        correction1, correction2 = 1 / (1 - decay1**self.steps), (1 - decay2**self.steps) ** -0.5
        size = np.sqrt(self.second[name]) * np.float32(correction2) + np.float32(self.epsilon)
        change = self.first[name] / size * (np.float32(rate) * np.float32(correction1))
        self.values[name] = np.minimum(self.values[name] - change, np.float32(self.highest[name]))

    def _write(self) -> None:
        for name, array in self.values.items():
            self.checkpoint.parameters[name] = np.ascontiguousarray(array, np.float32).reshape(self.start[name].shape)


def usable_devices(runtime: Any) -> list[str]:
    """Return "cpu", and "cuda" if a session really starts there: the package lists the provider on any machine."""
    from onnx import TensorProto, helper

    tensor = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [tensor], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    return ["cpu", *(["cuda"] if "CUDAExecutionProvider" in session.get_providers() else [])]


def serve(commands: IO[bytes], answers: IO[bytes]) -> None:
    """Answer commands until their pipe ends; a failure of the package is an answer too."""
    package = training_package()
    training: Any = None
    while True:
        try:
            header, arrays = read_message(commands)
        except EOFError:
            return
        answer: dict[str, Any] = {}
        given: Arrays = {}
        try:
            if header["command"] == "check":
                answer = {"devices": usable_devices(package[0])}
            elif header["command"] == "open":
                training = Training(package, header, arrays["model"].tobytes())
            elif header["command"] == "reset":
                training.reset()
            elif header["command"] == "step":
                answer = {"error": training.step(header["rates"], arrays)}
            else:
                given = training.state()
        except Exception as error:
            answer = {"failure": " ".join(str(error).split()) or type(error).__name__}
        write_message(answers, answer, given)


if __name__ == "__main__":
    to_client = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever libraries print must not get between the answers
    serve(sys.stdin.buffer, to_client)
