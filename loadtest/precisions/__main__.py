"""Makes the versions of the models in lower precisions, and tells in metrics.json and README.md what came out.

    python -m precisions                    all models that have some, in models/
    python -m precisions digits --timing 0

The models themselves have to be there: `make models` does all of it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from precisions.build import MODEL_FILE, NotMade, build
from precisions.card import write_table
from precisions.lines import TEXTLINE
from precisions.sentences import MINILM
from precisions.subject import FP32
from precisions.tables import CYTOLOGY, DIGITS

MODELS = Path(__file__).parents[2] / "models"
SUBJECTS = {subject.model: subject for subject in (DIGITS, CYTOLOGY, TEXTLINE, MINILM)}


def main() -> int:
    """See the module's docstring. 1 if a version could not be made."""
    parser = argparse.ArgumentParser(
        "precisions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"which (all): {', '.join(SUBJECTS)}")
    parser.add_argument("--repository", type=Path, default=MODELS, help="where the models are (%(default)s)")
    parser.add_argument("--timing", metavar="SECONDS", type=float, default=20.0, help="for each version (%(default)s)")
    args = parser.parse_args()
    if unknown := set(args.models) - set(SUBJECTS):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(SUBJECTS)}")
    status = 0
    for name in args.models or SUBJECTS:
        directory = args.repository / name
        if not (directory / str(FP32.version) / MODEL_FILE).is_file():
            print(f"{directory}: not built yet; `make models` builds it", file=sys.stderr)
            status = 1
            continue
        try:
            told = build(SUBJECTS[name], directory, args.timing)
        except NotMade as error:
            print(error, file=sys.stderr)
            status = 1
        else:
            write_table(directory / "README.md", told)
    return status


if __name__ == "__main__":
    sys.exit(main())
