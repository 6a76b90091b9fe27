"""The node cases of the onnx package through the compiler, alone and in a chain between a Conv and a MatMul.

    python tools/check_nodes.py                    all cases, both forms, rounded to W8A8
    python tools/check_nodes.py --only '^test_(scan|loop)' --form chain --keep build/nodes

A case alone has the inputs of its test data. In a chain its first float32 input comes out of a Conv and its first
float32 output goes into a MatMul; the other inputs are constants. What is looked for: tracebacks, failures of ours
(exit code 1), and files that are neither within 20 dB of the float model nor warned of. Refusals are printed by what
they say, so that a person can judge whether it is true.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import assets  # noqa: F401  (puts the checkout on the path)
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test import loader
from rich.console import Console
from rich.table import Table

from qcompile.cli import main as command_line

Feed = dict[str, NDArray[Any]]
SAMPLES = 8
OPSET = 18  # of the ends of a chain whose case names none
AT_ONCE = 60  # cases in one pool of processes
LEAST_SQNR = 20.0
NEAR = 0.9  # samples of a chain are the case's own input times 0.9 to 1: they stay in the operator's domain
ort.set_default_logger_severity(4)


@dataclass(frozen=True, eq=False)
class Case:
    """A model with samples, and the form it is tried in."""

    name: str
    form: str
    model: bytes
    feeds: tuple[Feed, ...]


@dataclass(frozen=True)
class Found:
    """What came out of one case: a kind such as "file" or "exit 1", and details."""

    name: str
    form: str
    kind: str
    detail: str = ""


# --- the cases


def cases(only: str, forms: list[str]) -> Iterator[Case]:
    """Yield the cases whose name matches, each in the forms asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = loader.load_model_tests(kind="node")
    for item in known:
        if not re.search(only, item.name) or not item.data_sets:
            continue
        inputs, _ = item.data_sets[0]
        if "alone" in forms and (case := alone(item, inputs)) is not None:
            yield case
        if "chain" in forms and (case := chain(item, inputs)) is not None:
            yield case


def alone(item: Any, inputs: list[Any]) -> Case | None:
    """Return the case as it stands, where its inputs are arrays."""
    names = [value.name for value in item.model.graph.input]
    if not names or not all(isinstance(array, np.ndarray) for array in inputs):
        return None
    return Case(item.name, "alone", item.model.SerializeToString(), (dict(zip(names, inputs)),))


def chain(item: Any, inputs: list[Any]) -> Case | None:
    """Return Conv, the case, MatMul as one model; None where the case has no float32 tensor at both ends."""
    graph = item.model.graph
    if item.model.functions or not all(isinstance(array, np.ndarray) for array in inputs):
        return None
    values = dict(zip([value.name for value in graph.input], inputs))
    first = next((name for name, array in values.items() if array.dtype == np.float32 and array.size), None)
    last = next((v.name for v in graph.output if v.type.tensor_type.elem_type == TensorProto.FLOAT), None)
    if first is None or last is None:
        return None
    shape = [1, 1, values[first].size, 1]
    front = [
        helper.make_node("Conv", ["chain_x", "chain_w"], ["chain_a"], "chain_conv", kernel_shape=[1, 1]),
        helper.make_node("Reshape", ["chain_a", "chain_shape"], [first], "chain_front"),
    ]
    behind = [
        helper.make_node("Reshape", [last, "chain_column"], ["chain_b"], "chain_behind"),
        helper.make_node("MatMul", ["chain_b", "chain_v"], ["chain_y"], "chain_matmul"),
    ]
    constants = {
        "chain_w": np.ones((1, 1, 1, 1), np.float32),
        "chain_shape": np.array(values[first].shape, np.int64),
        "chain_column": np.array([-1, 1], np.int64),
        "chain_v": np.array([[0.5, -1, 2, 0.25]], np.float32),
        **{name: array for name, array in values.items() if name != first},
    }
    joined = helper.make_graph(
        [*front, *graph.node, *behind],
        "chain",
        [helper.make_tensor_value_info("chain_x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("chain_y", TensorProto.FLOAT, [None, 4])],
        [*graph.initializer, *(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())],
    )
    domains = [entry for entry in item.model.opset_import if entry.domain in ("", "ai.onnx")]
    domains = [*item.model.opset_import, *([] if domains else [helper.make_opsetid("", OPSET)])]
    model = helper.make_model(joined, opset_imports=domains, ir_version=item.model.ir_version)
    column = values[first].reshape(shape)
    factors = np.linspace(NEAR, 1, SAMPLES, dtype=np.float32)
    return Case(item.name, "chain", model.SerializeToString(), tuple({"chain_x": column * f} for f in factors))


# --- one case


def attempt(case: Case, keep: str | None) -> Found:
    """Compile a case and judge what comes out; the float model has to run first, else the case says nothing."""
    try:
        expected = run(case.model, case.feeds)
    except Exception as error:  # ONNX Runtime has no kernel, or the data does not fit: nobody's fault here
        return Found(case.name, case.form, "float model does not run", first_line(error))
    if not all(np.isfinite(value).all() for one in expected for value in one if is_float(value)):
        return Found(case.name, case.form, "float model gives no finite numbers")
    with tempfile.TemporaryDirectory() as folder:
        path = write(case, Path(folder if keep is None else keep) / f"{case.name}_{case.form}")
        return judged(case, path, expected)


def write(case: Case, path: Path) -> Path:
    """Write model and samples as a user would have them; return the model's path."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "in.onnx").write_bytes(case.model)
    for number, feed in enumerate(case.feeds):
        data = path / "data" / f"test_data_set_{number}"
        data.mkdir(parents=True, exist_ok=True)
        for place, (name, array) in enumerate(feed.items()):
            onnx.save_tensor(numpy_helper.from_array(np.asarray(array), name), data / f"input_{place}.pb")
    return path / "in.onnx"


def judged(case: Case, path: Path, expected: list[list[Any]]) -> Found:
    """Compile the model at `path` and compare the file with the float model's outputs."""
    out, report = path.with_name("out.onnx"), path.with_name("report.json")
    code, text = compiled(path, out, report)
    last = text.strip().splitlines()[-1] if text.strip() else ""
    if "Traceback" in text:
        return Found(case.name, case.form, "TRACEBACK", last)
    if code:
        left = " AND A FILE" if out.exists() else ""
        return Found(case.name, case.form, f"exit {code}{left}", last.removeprefix("error: "))
    try:
        ratio = sqnr(expected, run(out.read_bytes(), case.feeds))
    except Exception as error:
        return Found(case.name, case.form, "FILE DOES NOT RUN", first_line(error))
    warned = bool(json.loads(report.read_text())["warnings"])
    if ratio >= LEAST_SQNR:
        return Found(case.name, case.form, "file", f"{ratio:.0f} dB")
    return Found(case.name, case.form, "file, warned of" if warned else "FILE BELOW 20 dB", f"{ratio:.1f} dB")


def compiled(path: Path, out: Path, report: Path) -> tuple[int, str]:
    """Run the command line in this process; return its exit code and all it printed."""
    said = io.StringIO()
    words = [path, "-o", out, "--data", path.with_name("data"), "--method", "rtn", "--threads", 1, "--report", report]
    code = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            command_line([*map(str, words)])
        except SystemExit as end:
            code = int(end.code or 0)
    return code, said.getvalue()


def run(model: bytes, feeds: tuple[Feed, ...]) -> list[list[Any]]:
    """Return the outputs of each feed, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [session.run(None, feed) for feed in feeds]


def sqnr(expected: list[list[Any]], got: list[list[Any]]) -> float:
    """Return the signal-to-noise ratio in dB of the worst float output over all feeds."""
    worst = np.inf
    for one, two in zip(zip(*expected), zip(*got)):
        if not is_float(one[0]):
            continue
        if any(np.shape(a) != np.shape(b) for a, b in zip(one, two)):
            return -np.inf
        left, right = (np.concatenate([np.ravel(part).astype(np.float64) for part in side]) for side in (one, two))
        noise = float(((left - right) ** 2).sum())
        worst = min(worst, 10 * np.log10(max(float((left**2).sum()), 1e-30) / noise) if noise else np.inf)
    return float(worst)


def is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__


# --- all of them


def examined(found: list[Case], jobs: int, keep: str | None) -> Iterator[Found]:
    """Try every case in another process, some at a time; what kills it is found by trying those again, each alone."""
    for start in range(0, len(found), AT_ONCE):
        part = found[start : start + AT_ONCE]
        results = together(part, jobs, keep)
        again = [case for case, result in zip(part, results) if result is None]
        crashed = {case: together([case], 1, keep)[0] or Found(case.name, case.form, "CRASH") for case in again}
        yield from (result or crashed[case] for case, result in zip(part, results))
        print(f"{min(start + AT_ONCE, len(found))} of {len(found)}", file=sys.stderr, flush=True)


def together(part: list[Case], jobs: int, keep: str | None) -> list[Found | None]:
    """Try cases in one pool of processes; None for those that were open when a process died."""
    with ProcessPoolExecutor(jobs) as pool:
        running = [pool.submit(attempt, case, keep) for case in part]
        return [done.result() if done.exception() is None else None for done in running]


def pattern(found: Found) -> str:
    """Return a detail with names and numbers left out, so that equal ones can be counted."""
    return re.sub(r"'[^']*'|\([^)]*/[^)]*\)|\d+", "*", found.detail)[:150]


def show(results: list[Found]) -> None:
    """Print how many cases came to what, and one example of each detail of those that are no files."""
    counts = Counter((item.form, item.kind) for item in results)
    table = Table("form", "what came out", "cases")
    for (form, kind), count in sorted(counts.items()):
        table.add_row(form, kind, str(count))
    groups: dict[tuple[str, str, str], list[Found]] = defaultdict(list)
    for item in results:
        if item.kind != "file":
            groups[item.form, item.kind, pattern(item)].append(item)
    for (form, kind, _), same in sorted(groups.items(), key=lambda entry: (entry[0][:2], -len(entry[1]))):
        names = ", ".join(item.name.removeprefix("test_") for item in same[:4])
        print(f"{len(same):4d}  {form}, {kind}: {same[0].detail[:260]}  [{names}]")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX", help="names of cases")
    parser.add_argument("--form", action="append", choices=("alone", "chain"), help="both without it")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", metavar="FOLDER", help="leave models, samples and files there")
    given = parser.parse_args()
    found = list(cases(given.only, given.form or ["alone", "chain"]))
    results = sorted(examined(found, given.jobs, given.keep), key=lambda item: (item.name, item.form))
    show(results)
    bad = [
        item
        for item in results
        if item.kind.isupper() or item.kind.startswith(("exit 1", "FILE ")) or " AND " in item.kind
    ]
    print(f"{len(results)} cases, {len(bad)} of them bad")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
