"""Convolutions on ONNX Runtime's blocked layout: an operator of our own, its rules, and graphs rewritten to it.

ONNX Runtime's fast float convolution works on [N, C/B, H, W, B], C filled up to a multiple of B with zeros. Its own
operators (domain com.microsoft.nchwc) can be written in a model and take computed weights, for which plain Conv is
slow. They are for training on this machine only: whether they are there is probed, and no emitted file has them.
"""

from qcompile.autodiff.blocked import convolution as convolution
from qcompile.autodiff.blocked.rewrite import to_blocked as to_blocked
