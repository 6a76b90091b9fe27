"""Which nodes of the emitted files run on integer kernels, which do not, and why.

python tools/check_fusion.py resnet20 lite0 ppocr --bits w8a8 --bits w4a4
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from assets import CASES
from measure import measured
from rich.console import Console
from rich.table import Table


def audit(case_name: str, precision: str, images: int) -> dict[str, Any]:
    """Compile and return the audit of the report."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        flags = ("--precision", precision, "--method", "rtn", "--report", str(report))
        measured(CASES[case_name].command(Path(folder) / "out.onnx", images, flags))
        found: dict[str, Any] = json.loads(report.read_text())["audit"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=sorted(CASES))
    parser.add_argument("--bits", action="append")
    parser.add_argument("--images", type=int, default=16)
    given = parser.parse_args()
    summary = Table("model", "bits", "planned", "integer", "kernels of the optimized graph")
    details = Table("model", "bits", "nodes", "operator", "why it is float")
    missed = 0
    for case in given.cases:
        for precision in given.bits or ["w8a8"]:
            found = audit(case, precision, given.images)
            fused = found["fused"]
            kernels = ", ".join(f"{count} {op}" for op, count in found["kernels"].items())
            summary.add_row(case, precision, str(fused["planned"]), str(fused["integer"]), kernels)
            for node in fused["missing"]:
                details.add_row(case, precision, node["node"], node["kernel"], f"NOT FUSED: {node['rule']}")
            reasons = Counter((node["op"], node["reason"]) for node in found["float_nodes"])
            for (op, reason), count in reasons.most_common():
                details.add_row(case, precision, str(count), op, reason)
            missed += len(fused["missing"])
    for table in (summary, details):
        Console().print(table)
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
