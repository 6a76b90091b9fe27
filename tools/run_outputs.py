"""Run models on inputs from files and write the bytes of their outputs; needs numpy and onnxruntime only.

    python tools/run_outputs.py jobs.json

`jobs.json`: [{"model": file, "inputs": {name: {"file": raw bytes, "type": "float32", "shape": []}}, "output": file}].
The bytes of all outputs, in the model's order, are written to the output's file. run_outputs.mjs does so under node.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


def run(job: dict[str, Any]) -> None:
    """Run one model and write its outputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
    feeds = {
        name: np.fromfile(item["file"], item["type"]).reshape(item["shape"]) for name, item in job["inputs"].items()
    }
    Path(job["output"]).write_bytes(b"".join(output.tobytes() for output in session.run(None, feeds)))


if __name__ == "__main__":
    for each in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        run(each)
