"""Any graph: it compiles, fuses, runs, and its file has the codes of the integer reference."""

from __future__ import annotations

import onnx
from graph_checks import check_file, compiled
from graph_strategies import graphs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcompile import Config

BITS = st.sampled_from([2, 3, 4, 8])


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(graphs(), BITS, BITS, BITS)
def test_the_file_of_any_graph_has_the_codes_of_the_reference(model: onnx.ModelProto, w: int, a: int, r: int) -> None:
    result = compiled(model, Config(w=w, a=a, residual_bits=r, threads=1))
    if result is not None:
        check_file(result)
