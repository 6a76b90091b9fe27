"""The one door to ONNX Runtime."""

from __future__ import annotations

import ctypes
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from qcompile.errors import InputError, QCompileError
from qcompile.files import OURS
from qcompile.ir.load import split_files, weight_bytes
from qcompile.ir.protos import tensors_of
from qcompile.ir.store import place_of
from qcompile.memory import release_freed_memory

Arrays = dict[str, NDArray[Any]]
NAME = f"ONNX Runtime {ort.__version__}"
BFLOAT16 = "tensor(bfloat16)"
SMALL, LARGE = 1 << 20, 1 << 27  # bytes of weights
PLACE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+:\d+ .*?\) (?=[A-Z])")
NO_PROVIDER = "pip install onnxruntime-gpu in place of onnxruntime, or use --device cpu"
NO_DEVICE = "check the driver and that CUDA and cuDNN fit this onnxruntime, or use --device cpu"
ort.set_default_logger_severity(3)

LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
SMALLEST = '<ir_version: 8, opset_import: ["": 17]> g (float[1] x) => (float[1] y) { y = Identity(x) }'
PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}

KERNELS = """g (float[1,2] x, uint8[1,2] p) => (float[1,2] y, uint8[1,2] u)
    <float s = {1}, uint8 z = {0}, uint8 m = {15}, int8[2,2] w = {1,1,1,1}, float[2] t = {1,1}, int8[2] o = {0,0}> {
    q = QuantizeLinear(x, s, z)  c = Clip(q, z, m)  d = DequantizeLinear(c, s, z)  v = DequantizeLinear<axis=1>(w, t, o)
    y = Gemm(d, v)  b = BitShift<direction="RIGHT">(p, p)  a = BitwiseAnd(b, p)  u = BitwiseOr(a, p) }"""


class Session:
    """A model ready to run.

    `model` is a ModelProto or a path; `level` one of "off", "basic", "extended", "all"; `threads` 0 means all cores.
    `outputs` are the names of those that are arrays of numbers: sequences, maps and texts have nothing to compare.
    `fuse_qdq` False keeps QuantizeLinear and DequantizeLinear as written: the file then runs as float fake-quant.
    `packed` False leaves large weights mapped as they are: every run takes longer, and memory holds no copy of them.
    `fault` is the error that a failure to load or to run is: InputError for a model of the user's, else our own.
    bfloat16, which numpy lacks, is float32 in feeds and outputs.
    `provider` is "cpu", or "cuda" with the CPU for what has no kernel there; InputError if it is not to be had.
    """

    def __init__(
        self,
        model: onnx.ModelProto | str | Path,
        *,
        level: str = "all",
        threads: int = 0,
        fuse_qdq: bool = True,
        packed: bool = True,
        provider: str = "cpu",
        fault: type[QCompileError] = QCompileError,
        save_optimized: Path | None = None,
        profile: Path | None = None,
    ) -> None:
        self.provider, self.fault = provider, fault
        if PROVIDERS[provider][0] not in ort.get_available_providers():
            raise InputError(f"the installed onnxruntime has no {provider.upper()} provider", remedy=NO_PROVIDER)
        options = ort.SessionOptions()
        options.graph_optimization_level = LEVELS[level]
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # errors come back as exceptions
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads burn no CPU time
        if not fuse_qdq:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if not packed and isinstance(model, onnx.ModelProto) and weight_bytes(model) >= LARGE:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if save_optimized is not None:
            options.optimized_model_filepath = str(save_optimized)
            weights = f"{save_optimized.name}.data"  # beside it: a file of its own cannot hold 2 GB
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        try:
            with loadable(model) as source:
                self._session = ort.InferenceSession(source, options, providers=PROVIDERS[provider])
        except QCompileError:
            raise
        except OSError as error:
            what, where = f"cannot hand the model to ONNX Runtime: {error.strerror or error}", tempfile.gettempdir()
            raise InputError(what, where=where, remedy="make room there") from error
        except Exception as error:
            remedy = "check that the float model runs on this ONNX Runtime" if fault is InputError else ""
            raise fault(f"{NAME} cannot load the model: {first_line(error)}", remedy=remedy) from error
        if self._session.get_providers()[0] != PROVIDERS[provider][0]:  # it falls back to the CPU without an error
            raise InputError(f"onnxruntime cannot start its {provider.upper()} provider", remedy=NO_DEVICE)
        self.inputs = {item.name: item for item in self._session.get_inputs()}
        self.outputs = [item.name for item in self._session.get_outputs() if is_numeric(item.type)]
        self._others = [item.name for item in self._session.get_outputs() if not is_numeric(item.type)]
        ports = [*self._session.get_inputs(), *self._session.get_outputs()]
        self._bfloat16 = any(item.type == BFLOAT16 for item in ports)

    @property
    def metadata(self) -> dict[str, str]:
        """The properties of the model."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> Arrays:
        """Run once; return {output name: array} for `outputs` (all by default)."""
        names = self.outputs if outputs is None else list(outputs)
        run = self._run_bfloat16 if self._bfloat16 else self._session.run
        try:
            return dict(zip(names, run(names, dict(feeds))))
        except Exception as error:
            raise self._failure(error) from error

    def run_all(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run once; return all outputs, as arrays those too that are sequences, maps or texts (`as_array`)."""
        others = [] if self._bfloat16 else self._others
        return {name: as_array(value) for name, value in self.run(feeds, [*self.outputs, *others]).items()}

    def _failure(self, error: Exception) -> QCompileError:
        if self.fault is InputError:
            what = f"the model cannot run on this data: {first_line(error)}"
            return InputError(what, remedy="give samples that the float model runs on")
        return self.fault(
            f"{NAME} cannot run what was made of the model: {first_line(error)}", remedy="please report it"
        )

    def _run_bfloat16(self, names: list[str], feeds: Arrays) -> list[NDArray[Any]]:
        """Run a model with bfloat16 at its border, which is float32 on our side: numpy has no such type."""
        values = {}
        for name, array in feeds.items():
            if self.inputs[name].type == BFLOAT16:
                codes = to_bfloat16(array)
                values[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(codes, onnx.TensorProto.BFLOAT16)
            else:
                values[name] = ort.OrtValue.ortvalue_from_numpy(array)
        made = self._session.run_with_ort_values(names, values)
        return [from_bfloat16(value) if value.data_type() == BFLOAT16 else value.numpy() for value in made]

    def binding(self) -> Any:
        """Return an empty IOBinding of this session."""
        return self._session.io_binding()

    def held(self, array: NDArray[Any]) -> Any:
        """Return an OrtValue on the session's device; on the CPU it is the memory of `array` itself."""
        device = "cuda" if self.provider == "cuda" else "cpu"
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, 0)

    def run_bound(self, binding: Any) -> None:
        """Run once with what is bound, by us: raises QCompileError where that fails."""
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise self._failure(error) from error

    def end_profiling(self) -> Path:
        """Stop profiling and return the path of the profile."""
        return Path(self._session.end_profiling())


@contextmanager
def loadable(model: onnx.ModelProto | str | Path) -> Iterator[bytes | str]:
    """Give what ONNX Runtime loads: a path, or the bytes of a small model.

    A session keeps the bytes it was made from, so a large model goes through files that are gone once it is loaded. Its
    weights stand in one of their own: what is mapped has not to be copied.
    """
    if not isinstance(model, onnx.ModelProto):
        yield str(model)
        return
    folder = stored_in(model)
    if folder is None and weight_bytes(model) < SMALL:
        yield model.SerializeToString()
        return
    release_freed_memory()
    with nullcontext(str(folder)) if folder else tempfile.TemporaryDirectory(prefix=OURS) as place:
        path = Path(place) / f"{secrets.token_hex(4)}.onnx"
        files = split_files(model, path)
        try:
            for part, content in files.items():
                with part.open("wb") as file:
                    file.writelines(content)
            yield str(path)
        finally:
            for part in files:
                part.unlink(missing_ok=True)


def stored_in(model: onnx.ModelProto) -> Path | None:
    """Return the folder in which weights of a model are stored, or None: then all are inside."""
    places = (place_of(tensor) for _, tensor in tensors_of(model))
    return next((place.path.parent for place in places if place is not None), None)


def to_bfloat16(array: NDArray[Any]) -> NDArray[np.uint16]:
    """Return the bits of float32 values in bfloat16, rounded to nearest even."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(value: Any) -> NDArray[np.float32]:
    """Return an OrtValue of bfloat16 as float32."""
    shape = value.shape()
    size = int(np.prod(shape, dtype=np.int64))
    codes = np.frombuffer(ctypes.string_at(value.data_ptr(), 2 * size), np.uint16) if size else np.empty(0, np.uint16)
    return (codes.astype(np.uint32) << 16).view(np.float32).reshape(shape)


def is_numeric(kind: str) -> bool:
    """Say whether a type, as ONNX Runtime writes it, is an array of numbers."""
    return kind.startswith("tensor(") and kind != "tensor(string)"


def as_array(value: Any) -> NDArray[Any]:
    """Return what an output holds as one array: the parts of a sequence, of maps their values, nothing as no values."""
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, list | dict):
        return np.asarray(value if value is not None else [])
    parts = [as_array(part) for part in (value.values() if isinstance(value, dict) else value)]
    alike = len({part.shape for part in parts}) == 1
    return np.stack(parts) if alike else np.concatenate([np.zeros(0, np.float32), *map(np.ravel, parts)])


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, without the place in the source of ONNX Runtime."""
    return PLACE.sub("", str(error).strip().split("\n", 1)[0])


def version() -> str:
    """Return the version of the installed ONNX Runtime."""
    return str(ort.__version__)


@cache
def newest_opset() -> int:
    """Return the newest opset for which the installed ONNX Runtime has the kernels that a quantized file needs."""
    for opset in range(onnx.defs.onnx_opset_version(), 1, -1):
        try:
            Session(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]>{KERNELS}'), level="off")
        except QCompileError:
            continue
        return opset
    return 1


def require_provider(provider: str) -> None:
    """Raise InputError unless a session starts on `provider`, "cpu" or "cuda"."""
    if provider != "cpu":
        Session(onnx.parser.parse_model(SMALLEST), provider=provider)
