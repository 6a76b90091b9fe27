"""The compiler with some of its constants changed: what an ablation needs and no user does.

    python tools/altered.py qcompile.training.recipe:PULL=0.0 qcompile.training.recipe:RATES.rounding=0.3 -- in.onnx ...

What stands before -- is MODULE:NAME=VALUE or, for an entry of a dictionary, MODULE:NAME.KEY=VALUE; all else goes to
qcompile.
"""

from __future__ import annotations

import ast
import sys

import assets  # noqa: F401  (puts the checkout on the path)

import qcompile.commands  # noqa: F401  (all code is there before it is changed)
from qcompile.__main__ import run


def alter(text: str) -> None:
    """Change one constant, in its module and in those that have imported it."""
    place, _, value = text.partition("=")
    module, _, name = place.partition(":")
    name, _, key = name.partition(".")
    old, new = getattr(sys.modules[module], name), ast.literal_eval(value)
    if key:
        (known,) = (item for item in old if str(item) == key)
        old[known] = new
        return
    for other in [item for item in sys.modules.values() if item.__name__.startswith("qcompile")]:
        if getattr(other, name, None) is old:
            setattr(other, name, new)


def main() -> None:
    end = sys.argv.index("--")
    for text in sys.argv[1:end]:
        alter(text)
    sys.argv = ["qcompile", *sys.argv[end + 1 :]]
    run()


if __name__ == "__main__":
    main()
