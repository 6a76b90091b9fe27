"""The one door to ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from qcompile.errors import InputError, QCompileError

Arrays = dict[str, NDArray[Any]]
TWO_GB = 2**31 - 2**20  # protobuf's limit for one message, with some room
ort.set_default_logger_severity(3)

LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class Session:
    """A model ready to run.

    `model` is a ModelProto or a path; `level` one of "off", "basic", "extended", "all"; `threads` 0 means all cores.
    `fuse_qdq` False keeps QuantizeLinear and DequantizeLinear as written: the file then runs as float fake-quant.
    """

    def __init__(
        self,
        model: onnx.ModelProto | str | Path,
        *,
        level: str = "all",
        threads: int = 0,
        fuse_qdq: bool = True,
        save_optimized: Path | None = None,
        profile: Path | None = None,
    ) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = LEVELS[level]
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # errors come back as exceptions
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads burn no CPU time
        if not fuse_qdq:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if save_optimized is not None:
            options.optimized_model_filepath = str(save_optimized)
            weights = f"{save_optimized.name}.data"  # beside it: a file of its own cannot hold 2 GB
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        self._spill: tempfile.TemporaryDirectory[str] | None = None
        try:
            self._session = ort.InferenceSession(self._source(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise QCompileError(f"ONNX Runtime {ort.__version__} cannot load the model: {first_line(error)}") from error
        self.inputs = {item.name: item for item in self._session.get_inputs()}
        self.outputs = [item.name for item in self._session.get_outputs()]

    def _source(self, model: onnx.ModelProto | str | Path) -> bytes | str:
        if not isinstance(model, onnx.ModelProto):
            return str(model)
        if model.ByteSize() < TWO_GB:
            content: bytes = model.SerializeToString()
            return content
        self._spill = tempfile.TemporaryDirectory()
        path = Path(self._spill.name) / "model.onnx"
        onnx.save(model, path, save_as_external_data=True, location="model.data")
        return str(path)

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> Arrays:
        """Run once; return {output name: array} for `outputs` (all by default)."""
        names = self.outputs if outputs is None else list(outputs)
        try:
            return dict(zip(names, self._session.run(names, dict(feeds))))
        except Exception as error:
            raise InputError(f"the model cannot run on this data: {first_line(error)}") from error

    def end_profiling(self) -> Path:
        """Stop profiling and return the path of the profile."""
        return Path(self._session.end_profiling())


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message: ONNX Runtime appends stack traces."""
    return str(error).strip().split("\n", 1)[0]


def version() -> str:
    """Return the version of the installed ONNX Runtime."""
    return str(ort.__version__)


def zeros_like_inputs(session: Session, sizes: Mapping[str, int], default: int = 1) -> Arrays:
    """Return zero arrays for every input, dynamic dimensions taken from `sizes` by name, else `default`."""
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
             "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8, "tensor(bool)": np.bool_}  # fmt: skip
    return {
        name: np.zeros([dim if isinstance(dim, int) else sizes.get(dim, default) for dim in item.shape], kinds[item.type])
        for name, item in session.inputs.items()
    }


def newest_opset() -> int:
    """Return the newest opset that onnx knows and the installed ONNX Runtime loads."""
    tensor = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "probe", [tensor], [onnx.ValueInfoProto(name="y")])
    for opset in range(onnx.defs.onnx_opset_version(), 1, -1):
        imports = [onnx.helper.make_opsetid("", opset)]
        try:
            Session(onnx.helper.make_model(graph, opset_imports=imports, ir_version=8))
        except QCompileError:
            continue
        return opset
    return 1
