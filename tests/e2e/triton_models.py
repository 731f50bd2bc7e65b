"""A model repository as one has it for Triton: no model.toml, a config.pbtxt for each model."""

import numpy as np
from e2e.onnx_models import identity, info, model, pair, pick, scale
from onnx import helper

CONFIGS = {
    "reshaped": """
        name: "reshaped" platform: "onnxruntime_onnx" max_batch_size: 8
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] reshape: { shape: [ ] } } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 1, 1 ] reshape: { shape: [ ] } } ]
        dynamic_batching { }
    """,
    "reshaped_too": """
        backend: "onnxruntime" max_batch_size: 8
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 1, 1 ] reshape: { shape: [ ] } } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 1, 1 ] reshape: { shape: [ ] } } ]
        dynamic_batching { }
    """,
    "chain": """
        platform: "ensemble" max_batch_size: 8
        input { name: "given" data_type: TYPE_FP32 dims: [ 1 ] }
        output { name: "six" data_type: TYPE_FP32 dims: [ 1, 1 ] }
        ensemble_scheduling { step [
          { model_name: "reshaped" model_version: -1
            input_map { key: "x" value: "given" } output_map { key: "y" value: "between" } },
          { model_name: "reshaped_too" model_version: -1
            input_map { key: "x" value: "between" } output_map { key: "y" value: "six" } } ] }
    """,
    "grid": """
        backend: "onnxruntime" max_batch_size: 8
        input { name: "x" data_type: TYPE_FP32 format: FORMAT_NCHW
          dims: [ 2, -1, 2 ] reshape { shape: [ 2, -1, 1, 2 ] } }
        output { name: "y" data_type: TYPE_FP32 dims: [ 1, 2, -1, 2 ] reshape { shape: [ 2, -1, 1, 2 ] } }
        dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 100 }
    """,
    "labelled": """
        backend: "onnxruntime" max_batch_size: 4
        input { name: "x" data_type: TYPE_FP32 dims: [ 3 ] }
        output { name: "y" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" }
        instance_group [ { count: 2 kind: KIND_CPU } ]
        dynamic_batching { priority_levels: 2 default_priority_level: 1
          default_queue_policy { max_queue_size: 100 }
          priority_queue_policy { key: 2 value { timeout_action: DELAY default_timeout_microseconds: 1000 } } }
    """,
    "completed": "",
    "scalars": 'backend: "onnxruntime"',
    "warmed": """
        backend: "onnxruntime" max_batch_size: 4
        input { name: "index" data_type: TYPE_INT64 dims: [ 1 ] }
        output { name: "value" data_type: TYPE_FP32 dims: [ 1 ] }
        dynamic_batching { }
        model_warmup [ { name: "nine" batch_size: 2 count: 3
          inputs { key: "index" value { data_type: TYPE_INT64 dims: [ 1 ] input_data_file: "nine" } } } ]
    """,
    "chosen": """
        backend: "onnxruntime" max_batch_size: 16
        input [ { name: "b" data_type: TYPE_INT32 dims: [ 3 ] }, { name: "a" data_type: TYPE_FP32 dims: [ 2 ] } ]
        output { name: "twice" data_type: TYPE_INT32 dims: [ 3 ] }
        parameters { key: "intra_op_thread_count" value { string_value: "2" } }
        parameters { key: "execution_mode" value { string_value: "1" } }
        optimization { graph { level: 1 } cuda { graphs: true } }
        default_model_filename: "net.onnx"
    """,
    "unbatched": """
        backend: "onnxruntime" max_batch_size: 0 version_policy: { specific { versions: [ 1, 3 ] } }
        input { name: "x" data_type: TYPE_STRING dims: [ -1, 2 ] }
        output { name: "y" data_type: TYPE_STRING dims: [ -1, 2 ] }
    """,
    "for_gpus": 'platform: "tensorrt_plan" max_batch_size: 8',
    "mistyped": 'backend: "onnxruntime"\nmax_batch_sze: 8',
    "contradicting": """
        backend: "onnxruntime" max_batch_size: 8
        input { name: "x" data_type: TYPE_FP32 dims: [ 5 ] }
        output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }
    """,
    "sequences": 'backend: "onnxruntime" sequence_batching { iterative_sequence: true }',
}


def scalars():
    """x FP32 [N] -> y = x, and n INT64 [N], always 1."""
    nodes = [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("Equal", ["x", "x"], ["same"]),
        helper.make_node("Cast", ["same"], ["n"], to=7),
    ]
    return model(nodes, [info("x", "FP32", "N")], [info("y", "FP32", "N"), info("n", "INT64", "N")])


def write_triton_repository(root):
    """One model for each of `CONFIGS`."""
    contents = {
        "reshaped": {"1/model.onnx": scale(2, "N")},
        "reshaped_too": {"1/model.onnx": scale(2, "N")},
        "chain": {"1/.keep": b""},
        "grid": {"1/model.onnx": scale(3, "N", 2, "D", 1, 2)},
        "labelled": {"1/model.onnx": scale(1, "N", 3), "labels.txt": b"left\nmiddle\nright\n"},
        "completed": {"1/model.onnx": scale(2, "N", 4)},
        "scalars": {"1/model.onnx": scalars()},
        "warmed": {"1/model.onnx": pick(), "warmup/nine": np.array([9], np.int64).tobytes()},
        "chosen": {"1/net.onnx": pair()},
        "unbatched": {f"{version}/model.onnx": identity("BYTES", "N", 2) for version in (1, 2, 3)},
        "for_gpus": {"1/model.plan": b"a plan"},
        "mistyped": {"1/model.onnx": scale(2, "N", 4)},
        "contradicting": {"1/model.onnx": scale(2, "N", 4)},
        "sequences": {"1/model.onnx": scale(2, "N", 4)},
    }
    for name, text in CONFIGS.items():
        for file, content in contents[name].items():
            path = root / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (root / name / "config.pbtxt").write_text(text)
