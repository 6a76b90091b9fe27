"""The passes of the compiler, one per file. Their order is in `qcompile.pipeline`, how to write one in README.md."""

if __name__ != "qcompile.passes":
    raise ImportError("this folder is the package qcompile.passes: import it by that name")
