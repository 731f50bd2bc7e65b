import onnx
import pytest
from onnx import TensorProto, helper


@pytest.fixture
def identity(tmp_path):
    """A model that gives back what it takes."""
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 32]) for name in ("INPUT", "OUTPUT")]
    graph = helper.make_graph([helper.make_node("Identity", ["INPUT"], ["OUTPUT"])], "g", info[:1], info[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 9
    path = tmp_path / "model.onnx"
    onnx.save(made, path)
    return path
