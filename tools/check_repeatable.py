"""The same command twice, in two processes: the files must be identical, byte for byte.

python tools/check_repeatable.py resnet20 --bits w4a4 --steps 20
python tools/check_repeatable.py lite0 --bits w8a8 --bits w2a8 --method rtn
python tools/check_repeatable.py lite0 --images 400 --bits w4a4 --steps 20 --second "--memory 1GB"

Flags that it does not know go to both commands, those after --second to the second alone. Prints the peaks of memory.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from assets import CASES
from measure import measured


def run(case_name: str, images: int, flags: Sequence[str]) -> tuple[str, int]:
    """Return the SHA-256 of the file that a run writes, and the megabytes that it took at most."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        usage = measured(CASES[case_name].command(out, images, tuple(flags)))
        return hashlib.sha256(out.read_bytes()).hexdigest(), round(usage.peak_bytes / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("--bits", action="append")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--second", default="", help="flags of the second run alone")
    given, flags = parser.parse_known_args()
    differ = False
    for precision in given.bits or ["w8a8", "w4a4"]:
        both = ["--precision", precision, *flags]
        (first, peak), (second, other) = (
            run(given.case, given.images, [*both, *more.split()]) for more in ("", given.second)
        )
        differ |= first != second
        verdict = "DIFFERENT" if first != second else "identical"
        print(f"{given.case} {precision}: {verdict} {first[:16]} {second[:16]}, peaks {peak} and {other} MB")
    raise SystemExit(1 if differ else 0)


if __name__ == "__main__":
    main()
