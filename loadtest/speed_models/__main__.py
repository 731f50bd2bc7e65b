"""Builds models with the shapes of ResNet-50 and BERT-base, with random weights, to measure speed with.

    PYTHONPATH=loadtest python3 -m speed_models                        all, into .cache/speed-models
    PYTHONPATH=loadtest python3 -m speed_models bert-fp16 --out DIR

The same command makes the same models everywhere; they take about 1 GB, and git ignores them. It needs numpy and onnx;
INT8 also needs onnxruntime with onnxruntime.quantization. Without that, those models are left out, with a message, and
the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from speed_models import store
from speed_models.quantize import NoQuantizer

DEFAULT = Path(__file__).parents[2] / ".cache/speed-models"


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        "speed_models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (all): {', '.join(store.NAMES)}")
    parser.add_argument("--out", type=Path, default=DEFAULT, help="directory (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a few channels and layers, to see that it works")
    args = parser.parse_args()
    if unknown := set(args.names) - set(store.NAMES):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(store.NAMES)}")
    status = 0
    for name in args.names or store.NAMES:
        began = time.monotonic()
        try:
            path = store.file(name, args.out, store.TINY if args.tiny else store.Sizes())
        except NoQuantizer as error:
            print(f"{name} left out: {error}", file=sys.stderr)
            status = 1
        else:
            print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB, {time.monotonic() - began:.1f} s", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
