"""minilm: no labels, but a task: which paragraph belongs to a summary, in the docstrings of scikit-learn.

It is calibrated, where it is, with those of SciPy.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from precisions.subject import Data, Precision, Subject
from precisions.texts import documented

if TYPE_CHECKING:
    from pathlib import Path

    from precisions.subject import Array, Run

PAIRS = 200
EVALUATED = 100
CALIBRATED = 64
LEAST_CHARACTERS = 60
TOKENS = 64
"""Longer texts are cut, shorter ones padded."""


def _data(directory: Path) -> Data:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)

    def encoded(texts: list[str]) -> dict[str, Array]:
        found = tokenizer.encode_batch(texts)
        return {
            "input_ids": np.array([one.ids for one in found], np.int64),
            "attention_mask": np.array([one.attention_mask for one in found], np.int64),
        }

    pairs = _pairs()
    summaries, paragraphs = encoded([one for one, _ in pairs]), encoded([one for _, one in pairs])
    calibration = encoded([text for _, text in islice(documented("scipy"), 0, 4 * CALIBRATED, 4)])

    def measure(run: Run, reference: Run) -> dict[str, float]:
        (queries,), (found,), (expected,) = run(summaries), run(paragraphs), reference(paragraphs)
        cosines = queries @ found.T
        ranks = (cosines >= np.diag(cosines)[:, None]).sum(axis=1)
        return {
            "recall_at_1": float(np.mean(ranks == 1)),
            "mean_reciprocal_rank": float(np.mean(1 / ranks)),
            "cosine_with_fp32": float(np.mean(np.sum(found * expected, axis=1))),
        }

    return Data(calibration, {name: rows[:EVALUATED] for name, rows in paragraphs.items()}, "", measure)


def _pairs() -> list[tuple[str, str]]:
    """Summaries and their paragraphs, which are of some length and not those of another summary as well."""
    found: dict[str, str] = {}
    for summary, paragraph in documented("sklearn"):
        if len(paragraph) >= LEAST_CHARACTERS:
            found.setdefault(paragraph, summary)
        if len(found) == PAIRS:
            break
    return [(summary, paragraph) for paragraph, summary in found.items()]


# Not int8-dynamic: its scales are of whole batches, and an embedding would depend on what else is in its batch.
_INT8 = ("--recipe", "int8", "--calibration-rows", str(CALIBRATED), "--no-search")
MINILM = Subject("minilm", (Precision("int8", 2, _INT8),), _data, rows=16)
