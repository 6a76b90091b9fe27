"""Run emitted files on several versions of ONNX Runtime and compare their outputs byte for byte.

    python tools/check_versions.py build/environments lite0_w4a4.onnx lite0_w2a8.onnx

Environments are made in the folder named first where they are not there yet (pip install onnxruntime==VERSION), and
used again. The inputs come from a fixed seed. The version that runs this script is compared too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VERSIONS = ("1.19.2", "1.22.1")


def digests(files: Sequence[str], dynamic: int) -> list[str]:
    """Return the SHA-256 of each file's outputs, or what went wrong; with numpy and onnxruntime only."""
    import onnxruntime as ort

    found = []
    for file in files:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        try:
            session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
            feeds = random_feeds(session.get_inputs(), dynamic)
            outputs = b"".join(output.tobytes() for output in session.run(None, feeds))
            found.append(hashlib.sha256(outputs).hexdigest()[:16])
        except Exception as error:
            found.append(f"failed: {str(error).splitlines()[0][:80]}")
    return found


def random_feeds(inputs: Sequence[Any], dynamic: int) -> dict[str, Any]:
    """Return float32 inputs from a fixed seed, two samples each where their number is open."""
    import numpy as np

    generator, feeds = np.random.default_rng(0), {}
    for item in inputs:
        shape = [size if isinstance(size, int) else dynamic for size in item.shape]
        shape[0] = 2 if not isinstance(item.shape[0], int) else shape[0]
        feeds[item.name] = generator.uniform(-2, 2, shape).astype(np.float32)
    return feeds


def interpreter(folder: Path, runtime: str) -> Path:
    """Return the Python of the environment with a package, such as onnxruntime==1.19.2, making it first if need be."""
    home = folder / runtime.replace("==", "-")
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        venv.create(home, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", runtime, "numpy"], check=True)
    return python


def main() -> None:
    if sys.argv[1:2] == ["--digests"]:  # the call in an environment
        print(json.dumps(digests(sys.argv[3:], int(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--version", action="append", help=f"default: {', '.join(VERSIONS)}")
    parser.add_argument("--dynamic", type=int, default=224, help="size of dynamic dimensions behind the batch")
    given = parser.parse_args()
    import onnxruntime

    pythons = {
        version: str(interpreter(given.folder, f"onnxruntime=={version}")) for version in given.version or VERSIONS
    }
    pythons[onnxruntime.__version__] = sys.executable
    table = {}
    for version, python in pythons.items():
        command = [python, __file__, "--digests", str(given.dynamic), *given.files]
        table[version] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    differ = False
    for place, file in enumerate(given.files):
        row = {version: found[place] for version, found in table.items()}
        same = len(set(row.values())) == 1 and not any(text.startswith("failed") for text in row.values())
        differ |= not same
        print(f"{Path(file).name}: {'identical' if same else 'DIFFERENT'}")
        for version, text in row.items():
            print(f"  {version:10} {text}")
    raise SystemExit(1 if differ else 0)


if __name__ == "__main__":
    main()
