"""Random graphs through the whole compiler: no crash, every file loads, fuses, runs and has the reference's codes.

    python tools/fuzz_graphs.py --graphs 500 --seed 1

Needs the dev extra. The graphs and the checks are those of tests/test_random_graphs.py.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import assets  # noqa: F401  (puts the checkout and its tests on the path)
import onnx
from graph_checks import check_file, compiled
from graph_strategies import graphs
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from qcompile import Config

BITS = st.sampled_from([2, 3, 4, 8])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the models that fail")
    given_ = parser.parse_args()
    results: Counter[str] = Counter()
    operators: Counter[str] = Counter()

    @seed(given_.seed)
    @settings(
        max_examples=given_.graphs, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(graphs(), BITS, BITS, BITS)
    def run(model: onnx.ModelProto, w: int, a: int, residual: int) -> None:
        operators.update(node.op_type for node in model.graph.node)
        try:
            result = compiled(model, Config(w=w, a=a, method="rtn", residual_bits=residual, threads=1))
            if result is not None:
                check_file(result)
            results["equal to the reference" if result is not None else "nothing to quantize"] += 1
        except Exception as error:  # every failure is counted, whatever it is
            results[f"FAILED {type(error).__name__}: {str(error).splitlines()[0][:120]}"] += 1
            if given_.keep:
                given_.keep.mkdir(parents=True, exist_ok=True)
                onnx.save(model, given_.keep / f"{results.total()}_w{w}a{a}r{residual}.onnx")

    run()
    for what, count in results.most_common():
        print(f"{count:5d}  {what}")
    print("operators:", ", ".join(f"{count} {op}" for op, count in operators.most_common()))
    sys.exit(any(what.startswith("FAILED") for what in results))


if __name__ == "__main__":
    main()
