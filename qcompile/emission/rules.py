"""What the files of all targets must satisfy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from qcompile.emission.emitted import Emitted, Finding


def no_unused_initializer(emitted: Emitted) -> Iterator[Finding]:
    """Every initializer is read: ONNX Runtime warns of each one that is not."""
    for name in emitted.initializers:
        if name not in emitted.readers and name not in emitted.outputs:
            yield name, "nothing reads this initializer"


def unique_names(emitted: Emitted) -> Iterator[Finding]:
    """Every node has a name of its own: kernels are found again by it."""
    yield from repeated((node.name for node in emitted.nodes), "node")
    yield from repeated((name for node in emitted.nodes for name in node.output if name), "output")


def repeated(names: Iterable[str], what: str) -> Iterator[Finding]:
    """Yield a finding for every name that is empty or not unique."""
    for name, count in Counter(names).items():
        if not name or count > 1:
            yield name or "(no name)", f"{count} {what}s have this name" if name else f"{count} {what}s have no name"
