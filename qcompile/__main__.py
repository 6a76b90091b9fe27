"""`python -m qcompile`."""

from qcompile.cli import run

if __name__ == "__main__":
    run()
