"""A client in the process: real ModelInferRequest messages through the real InferService, without a transport."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.datatypes import DATATYPES
from headrace.engine.policies import cost_model
from headrace.engine.scheduler import Scheduler
from headrace.engine.sequence import SequenceScheduler
from headrace.engine.sequence_plan import plan_sequences
from headrace.engine.shared_memory import NoSharedMemory
from headrace.engine.turn import Turn
from headrace.pipeline import bytes_tensor
from headrace.repository.catalog import Catalog
from headrace.repository.model_config import ModelConfig
from headrace.rpc import inference_pb2 as pb
from headrace.testing.observer import RecordingObserver
from headrace.testing.sink import RecordingSink
from headrace.testing.worker import VirtualWorker
from headrace.transport.infer import InferService

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headrace.clock import Clock
    from headrace.engine.instances import Supply
    from headrace.engine.served import Served
    from headrace.engine.worker import Worker
    from headrace.messages import Buffer, ParameterValue, SharedMemory
    from headrace.testing.backend import FakeModel

    Array = np.ndarray[Any, Any]


def infer_request(
    model: str,
    inputs: Mapping[str, Array],
    *,
    version: str = "",
    request_id: str = "",
    parameters: Mapping[str, ParameterValue] | None = None,
    outputs: Sequence[str] = (),
) -> pb.ModelInferRequest:
    """The message, tensors raw. Arrays of objects are BYTES; other dtypes tell their datatype (uint16 is UINT16)."""
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for key, value in (parameters or {}).items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(request.parameters[key], kind, value)
    for name, array in inputs.items():
        datatype = next(d.name for d in DATATYPES.values() if d.numpy == array.dtype)
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(bytes_tensor.encode(array) if array.dtype == object else array.tobytes())
    for name in outputs:
        request.outputs.add(name=name)
    return request


def output_arrays(response: pb.ModelInferResponse) -> dict[str, Array]:
    """The outputs of a reply by name; BYTES as arrays of objects, BF16 as uint16."""
    arrays: dict[str, Array] = {}
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        shape = tuple(tensor.shape)
        datatype = DATATYPES[tensor.datatype]
        if datatype.itemsize:
            array: Array = np.frombuffer(raw, datatype.numpy)
        else:
            array = np.array(bytes_tensor.decode(raw, int(np.prod(shape, dtype=np.int64))), dtype=object)
        arrays[tensor.name] = array.reshape(shape)
    return arrays


class ClientCall(RecordingSink):
    """One call: an `InferCall` that remembers how it ended, and can be cancelled."""

    def __init__(
        self, request: Buffer, received: int = 0, deadline: int = 0, on_end: Callable[[], None] | None = None
    ) -> None:
        super().__init__(on_end)
        self.request: Buffer | None = request
        self.received = received
        self.deadline = deadline
        self.cancelled = False

    @property
    def response(self) -> pb.ModelInferResponse:
        """The reply, parsed. Raises the error that came in its place; AssertionError while there is neither."""
        if self.error is not None:
            raise self.error
        assert self.ended, "not answered"
        return pb.ModelInferResponse.FromString(bytes(self.message))

    def cancel(self) -> None:
        """The caller goes away; a later answer would be an AssertionError."""
        if not self.ended:
            self.cancelled = self.ended = True
            self.request = None
            if self.under_way is not None:
                self.under_way.cancel()


class InProcessClient:
    """Calls an `InferService` as a transport would."""

    def __init__(self, service: InferService, clock: Clock) -> None:
        self._service = service
        self._clock = clock

    def send(
        self,
        request: pb.ModelInferRequest | bytes,
        *,
        timeout_ns: int = 0,
        on_end: Callable[[], None] | None = None,
    ) -> ClientCall:
        """Hands a message over; `timeout_ns` is the RPC's deadline from now, 0 for none."""
        message = request if isinstance(request, bytes) else request.SerializeToString()
        now = self._clock()
        call = ClientCall(message, now, now + timeout_ns if timeout_ns else 0, on_end)
        self._service(call)
        self._service.take()
        return call

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        timeout_ns: int = 0,
        **more: Any,  # noqa: ANN401
    ) -> dict[str, Array]:
        """The outputs by name. more: see `infer_request`. Raises what the server answers in their place."""
        done = asyncio.Event()
        call = self.send(infer_request(model, inputs, **more), timeout_ns=timeout_ns, on_end=done.set)
        await done.wait()
        return output_arrays(call.response)


class InProcessServer:
    """Models behind an `InferService`, on the running event loop, and a client.

    refused: reasons of the requests that did not get as far as a model. memory: shared with the client.
    """

    def __init__(self, clock: Clock, memory: SharedMemory | None = None) -> None:
        self.clock = clock
        self.catalog: Catalog[Served] = Catalog()
        self.turn = Turn(asyncio.get_running_loop())
        self.refused: Counter[str] = Counter()
        self.service = InferService(
            self.catalog, self.turn, lambda reason: self.refused.update([reason]), memory or NoSharedMemory()
        )
        self.client = InProcessClient(self.service, clock)

    def __repr__(self) -> str:
        return f"<InProcessServer {self.catalog!r}>"

    def serve(
        self,
        model: FakeModel,
        name: str = "m",
        version: int = 1,
        *,
        config: ModelConfig | None = None,
        inline_below_ns: int = 0,
        learn: Sequence[tuple[int, int]] = (),
        worker: type[Worker] = VirtualWorker,
        supply: Supply | None = None,
    ) -> tuple[Scheduler, RecordingObserver]:
        """Publishes a model. learn: (rows, nanoseconds) that its cost model begins with. supply: of new instances."""
        scheduler, observer = self._scheduler(model, name, version, config, inline_below_ns, learn, worker, supply)
        self.catalog.ready(name, version, scheduler)
        return scheduler, observer

    def serve_stateful(
        self,
        model: FakeModel,
        config: ModelConfig,
        name: str = "m",
        version: int = 1,
        *,
        directory: Path = Path(),
        inline_below_ns: int = 0,
        learn: Sequence[tuple[int, int]] = (),
        worker: type[Worker] = VirtualWorker,
        supply: Supply | None = None,
    ) -> tuple[SequenceScheduler, RecordingObserver]:
        """Publishes a model that has sequences. directory: with the files of initial states."""
        assert config.sequence is not None
        scheduler, observer = self._scheduler(model, name, version, config, inline_below_ns, learn, worker, supply)
        plan = plan_sequences(config.sequence, model.signature, config.instances, directory)
        served = SequenceScheduler(scheduler, plan, self.clock, self.turn)
        self.catalog.ready(name, version, served)
        return served, observer

    def _scheduler(
        self,
        model: FakeModel,
        name: str,
        version: int,
        config: ModelConfig | None,
        inline_below_ns: int,
        learn: Sequence[tuple[int, int]],
        worker: type[Worker],
        supply: Supply | None,
    ) -> tuple[Scheduler, RecordingObserver]:
        config = config or ModelConfig()
        cost = cost_model(config, model.signature, inline_below_ns)
        for rows, elapsed in learn:
            cost.observe(rows, elapsed)
        instances = [model.make_instance(index) for index in range(config.instances)]
        scheduler = Scheduler(name, str(version), model, config, instances, cost, self.clock, self.turn, worker, supply)
        observer = RecordingObserver()
        scheduler.observer = observer
        return scheduler, observer
