"""One node at a time, as passes see it."""

from __future__ import annotations

from networks import network

from qcompile.ir import Graph, Node
from qcompile.ir.prepare import prepare

CONSTANTS = """float zero = {0}, float one = {1}, float two = {2}, float[0] nothing = {}, float[4,0] none = {},
  int64[8] p = {0,0,1,0,0,0,0,1}, int64[1] i0 = {0}, int64[1] i2 = {2}, int64[1] last = {-1}, int64[4] grow = {1,1,2,2},
  float[4] s = {1,1,2,2}, int64[3] sizes = {0,0,-1}, float[1] ones = {1}, int64[4] whole = {2,4,6,6}"""


def node_of(node: str) -> Node:
    """Return one node on x, u [2,4,6,6], rows [4,4] (float), d (double); K and the like are random weights."""
    text = f"""net (float[2,4,6,6] x, float[2,4,6,6] u, float[4,4] rows, double[2,4,6,6] d, float[4,4,1,1] weight,
      float[3,4,1,1] W, float[3] B, float[1,3] BROW, float[4,5] M, float[5,4] MT, float[5] BM, float[2,4,5] M3,
      float[1,4,1,1] K, int64[1] axes) => (y) <{CONSTANTS}> {{ y = {node} }}"""
    graph: Graph = prepare(network(text), 18)
    return graph.nodes[0]
