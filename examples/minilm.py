"""Ranks sentences by how near they are in meaning to a query: `python examples/minilm.py QUERY [SENTENCE...]`.

Without sentences it reads them from standard input, one a line. Needs `pip install tritonclient[grpc] tokenizers` and
a server with the model: `make models`, which also writes tokenizer.json, then `make serve`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc.aio as grpcclient
from tritonclient.utils import InferenceServerException

try:
    from tokenizers import Tokenizer
except ImportError:
    sys.exit("tokenizers is needed: pip install tokenizers")

TOKENIZER = Path(__file__).parents[1] / "models" / "minilm" / "tokenizer.json"


async def embed(client: grpcclient.InferenceServerClient, ids: list[int]) -> np.ndarray:
    """The embedding of one sentence, FP32 [384], of length 1. Padding and its mask are the server's affair."""
    tokens = np.array([ids], np.int64)
    tensor = grpcclient.InferInput("input_ids", list(tokens.shape), "INT64")
    tensor.set_data_from_numpy(tokens)
    result = await client.infer("minilm", [tensor])
    return result.as_numpy("sentence_embedding")[0]


async def similarities(url: str, tokenizer: Tokenizer, query: str, sentences: list[str]) -> np.ndarray:
    """The cosine of each sentence's embedding and the query's, from -1 to 1. All are sent at once."""
    async with grpcclient.InferenceServerClient(url) as client:
        encoded = [tokenizer.encode(text).ids for text in (query, *sentences)]
        first, *others = await asyncio.gather(*(embed(client, ids) for ids in encoded))
    return np.array(others) @ first


def main() -> None:
    parser = argparse.ArgumentParser(description="Ranks sentences by how near they are in meaning to a query.")
    parser.add_argument("query", metavar="QUERY")
    parser.add_argument("sentences", metavar="SENTENCE", nargs="*")
    parser.add_argument("--url", default="127.0.0.1:8001", help="gRPC address (default: %(default)s)")
    args = parser.parse_args()

    if not TOKENIZER.is_file():
        sys.exit(f"{TOKENIZER} is not there; `make models` writes it")
    sentences = args.sentences or [line for line in map(str.strip, sys.stdin) if line]
    if not sentences:
        parser.error("no sentence to compare with the query")
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    try:
        found = asyncio.run(similarities(args.url, tokenizer, args.query, sentences))
    except InferenceServerException as error:
        sys.exit(f"{args.url}: {error.message()}")
    for cosine, sentence in sorted(zip(found.tolist(), sentences, strict=True), reverse=True):
        print(f"{cosine:5.2f}  {sentence}")


if __name__ == "__main__":
    main()
