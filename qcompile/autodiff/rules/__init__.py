"""Differentiation rules, one file per family of operators; importing this package registers them."""

from qcompile.autodiff.rules import activations as activations
from qcompile.autodiff.rules import arithmetic as arithmetic
from qcompile.autodiff.rules import convolution as convolution
from qcompile.autodiff.rules import matrices as matrices
from qcompile.autodiff.rules import movement as movement
from qcompile.autodiff.rules import normalization as normalization
from qcompile.autodiff.rules import pooling as pooling
from qcompile.autodiff.rules import quantizers as quantizers
from qcompile.autodiff.rules import reductions as reductions
from qcompile.autodiff.rules import resize as resize
from qcompile.autodiff.rules import shaping as shaping
