"""What one writes when asked for a model behind HTTP: FastAPI around an ONNX Runtime session with one thread.

    python fastapi_endpoint.py DIR --port 8200      serves DIR/*.onnx, in the environment that ./setup makes

The request and the reply are those of the Open Inference Protocol with tensors in JSON, so that the same load goes to
all. One process, uvicorn with uvloop and httptools, no batching; the session runs in the endpoint, which for a tiny
model is quicker than a thread.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class Request(BaseModel):
    id: str = ""
    inputs: list[Tensor]


class Reply(BaseModel):
    id: str
    model_name: str
    outputs: list[Tensor]


def make_app(models: Path) -> FastAPI:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = {
        path.stem: onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for path in models.glob("*.onnx")
    }
    app = FastAPI()

    @app.get("/v2/models/{model}/ready")
    async def ready(model: str) -> dict[str, bool]:
        return {"ready": bool(sessions[model])}

    @app.post("/v2/models/{model}/infer")
    async def infer(model: str, request: Request) -> Reply:
        feed: dict[str, Any] = {
            tensor.name: np.array(tensor.data, np.float32).reshape(tensor.shape) for tensor in request.inputs
        }
        session = sessions[model]
        arrays = session.run(None, feed)
        outputs = [
            Tensor(name=spec.name, shape=list(array.shape), datatype="FP32", data=array.ravel().tolist())
            for spec, array in zip(session.get_outputs(), arrays, strict=True)
        ]
        return Reply(id=request.id, model_name=model, outputs=outputs)

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    uvicorn.run(make_app(args.models), host="127.0.0.1", port=args.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
