"""`python -m qcompile`, and the console script. Reading all the code takes a while: it listens to signals before."""

import signal

from qcompile.signals import hand_over, leave, listen
from qcompile.stdio import steady_streams


def run() -> None:
    """Run the command line: a terminal that closes and a polite kill end it as Ctrl-C does."""
    listen(leave)
    steady_streams()
    from qcompile.cli import main

    try:
        main()
    finally:
        hand_over(signal.SIG_IGN)  # the exit code stands


if __name__ == "__main__":
    run()
