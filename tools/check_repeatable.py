"""The same command twice, in two processes: the files must be identical, byte for byte.

python tools/check_repeatable.py resnet20 --bits w4a4
python tools/check_repeatable.py lite0 --bits w8a8 --bits w2a8
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path

from assets import CASES
from measure import measured


def digests(case_name: str, precision: str, images: int) -> list[str]:
    """Return the SHA-256 of the file that each of two runs writes."""
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / name for name in ("first.onnx", "second.onnx")]
        for out in outs:
            measured(CASES[case_name].command(out, images, ("--precision", precision)))
        return [hashlib.sha256(out.read_bytes()).hexdigest() for out in outs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("--bits", action="append")
    parser.add_argument("--images", type=int, default=32)
    given = parser.parse_args()
    differ = False
    for precision in given.bits or ["w8a8", "w4a4"]:
        first, second = digests(given.case, precision, given.images)
        differ |= first != second
        print(f"{given.case} {precision}: {'DIFFERENT' if first != second else 'identical'} {first[:16]} {second[:16]}")
    raise SystemExit(1 if differ else 0)


if __name__ == "__main__":
    main()
