"""A worker, as the engine starts it. Signals are for the engine, and they may come while this is being imported."""

import signal
import sys

for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(_number, signal.SIG_IGN)

from headrace.transport.workers.process import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
