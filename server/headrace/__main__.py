"""The command `headrace`, also as `python -m headrace`."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Runs the command line; the exit code.

    NumPy's OpenBLAS would compute small products on a thread for each core, which spin while they wait for more: an
    image of 1080 x 1920 resized to 256 takes 37 ms of processor time then, and 7 on one thread. Threads are the
    instances' affair. It reads the environment when NumPy is first imported, hence here.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from headrace.cli import main as command_line

    return command_line()


if __name__ == "__main__":
    sys.exit(main())
