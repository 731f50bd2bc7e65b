"""gRPC on grpcio's asyncio server: what the native transport is held against, and the way out if it fails a client.

It serves the same table of RPCs. A call costs it a task, a future and a crossing of threads inside grpcio.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import unquote

import grpc
from grpc import aio

from headrace.clock import Clock, monotonic_ns
from headrace.errors import ShuttingDown, let_go
from headrace.transport.grpc_head import percent_encode
from headrace.transport.infer_stream import InferStream
from headrace.transport.service import INFER_PATH, INFER_STREAM_PATH, ServiceTable, StreamHandler, UnaryHandler
from headrace.transport.status import grpc_status
from headrace.transport.trace_context import take_out

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from headrace.messages import Buffer, Cancellable
    from headrace.transport.tls.files import Credentials
    from headrace.transport.tls.security import Security

    Context = aio.ServicerContext[bytes, bytes]
    Handler = grpc.RpcMethodHandler[bytes, bytes]
    UnaryBehaviour = Callable[[bytes, Context], Awaitable[bytes]]
    StreamBehaviour = Callable[[AsyncIterator[bytes], Context], Awaitable[None]]
    Router = grpc.GenericRpcHandler[bytes, bytes]
else:
    Router = grpc.GenericRpcHandler

_TAKE_OVER_SECONDS = 1.0
"""For the calls that grpcio has read when the server is to leave, and has not handed over."""

CODES = {code.value[0]: code for code in grpc.StatusCode}


class ReferenceTransport:
    """A `GrpcTransport` on grpcio.

    max_message_bytes bounds a request message; replies have no bound. security: if the port speaks TLS. traced: see
    `NativeTransport`.
    """

    def __init__(
        self,
        table: ServiceTable,
        host: str,
        port: int,
        *,
        max_message_bytes: int,
        security: Security | None = None,
        traced: bool = False,
        clock: Clock = monotonic_ns,
    ) -> None:
        self._traced = traced
        self._table = table
        self._host = host
        self._port = port
        self._max_message_bytes = max_message_bytes
        self._security = security
        self._clock = clock
        self._server: aio.Server | None = None
        self._streams: set[asyncio.Timeout] = set()
        self._open_streams = 0
        self._infer_streams: set[asyncio.Event] = set()
        self._draining = False
        self._calls = 0

    def __repr__(self) -> str:
        state = "draining" if self._draining else "serving" if self._server else "not started"
        return f"<ReferenceTransport {self._host}:{self._port} {state}, {self._open_streams} streams>"

    async def start(self) -> int:
        """Binds, listens and returns the port. OSError: cannot bind."""
        options = [
            ("grpc.max_receive_message_length", self._max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # else a second server on the port would silently take half of the calls
        ]
        if self._security is not None:
            timeout_s = self._security.settings.tls.handshake_timeout_s
            options.append(("grpc.server_handshake_timeout_ms", math.ceil(timeout_s * 1000)))
        server = aio.server(handlers=[_Router(self._handlers())], options=options)
        host = f"[{self._host}]" if ":" in self._host else self._host
        try:
            address = f"{host}:{self._port}"
            if self._security is None:
                self._port = server.add_insecure_port(address)
            else:
                self._port = server.add_secure_port(address, _credentials(self._security))
        except RuntimeError as error:
            raise OSError(f"cannot listen on {host}:{self._port}") from error
        await server.start()
        self._server = server
        return self._port

    async def drain(self, seconds: float) -> bool:
        """Refuses new calls, ends the streams, and waits for the unary calls under way, `seconds` at most."""
        self._draining = True
        for limit in self._streams:
            limit.reschedule(asyncio.get_running_loop().time())
        for changed in self._infer_streams:
            changed.set()
        if self._server:
            await self._taken_over(min(seconds, _TAKE_OVER_SECONDS))
            await self._server.stop(seconds)
        return True  # grpcio does not say what it has cut off

    async def _taken_over(self, seconds: float) -> None:
        """Returns once grpcio has handed over the calls that it has read: its stop would cancel them unanswered."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        seen = -1
        while seen != self._calls and loop.time() < end:
            seen = self._calls
            await asyncio.sleep(_TAKE_OVER_SECONDS / 20)

    async def close(self) -> None:
        """Cancels what is left."""
        if self._server:
            await self._server.stop(None)

    def _handlers(self) -> dict[str, Handler]:
        """Handlers by path. Without serialisers grpcio hands the bytes through as they are."""
        unary = {path: grpc.unary_unary_rpc_method_handler(_unary(h)) for path, h in self._table.unary.items()}
        streams = {
            # a call of one request message looks no different on the wire
            path: grpc.stream_stream_rpc_method_handler(self._stream(handler))
            for path, handler in self._table.streams.items()
        }
        return {
            **unary,
            **streams,
            INFER_PATH: grpc.unary_unary_rpc_method_handler(self._infer),
            INFER_STREAM_PATH: grpc.stream_stream_rpc_method_handler(self._infer_stream),
        }

    async def _infer(self, message: bytes, context: Context) -> bytes:
        self._calls += 1
        if self._draining:
            await _abort(context, ShuttingDown("Server is shutting down and has stopped accepting new requests"))
        received = self._clock()
        call = _InferCall(message, received, self._deadline(context), *self._trace(context))
        self._table.infer(call)
        try:
            return await call.answer
        except asyncio.CancelledError:  # the caller has gone away, or its deadline has passed
            call.cancel()
            raise
        except Exception as error:
            await _abort(context, error)

    def _deadline(self, context: Context) -> int:
        """Of a call, monotonic ns, 0 for none."""
        remaining = context.time_remaining()
        return 0 if remaining is None else self._clock() + int(remaining * 1e9)

    def _trace(self, context: Context) -> tuple[bytes, bytes]:
        """Traceparent and tracestate of a call; empty where nobody asks."""
        if not self._traced:
            return b"", b""
        metadata = context.invocation_metadata() or ()
        _, parent, state = take_out(
            [(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in metadata]
        )
        return parent, state

    async def _infer_stream(self, messages: AsyncIterator[bytes], context: Context) -> None:
        if self._draining:
            await _abort(context, ShuttingDown("Server is shutting down"))
        breaks = ("triton_grpc_error", "true") in (context.invocation_metadata() or ())
        changed, room = asyncio.Event(), asyncio.Event()
        stream = InferStream(self._table.infer, changed.set, self._deadline(context), breaks=breaks)
        stream.traceparent, stream.tracestate = self._trace(context)

        async def read() -> None:
            try:
                async for message in messages:
                    stream.take(message, self._clock())
                    while stream.waiting_octets:  # what is not read is not sent
                        room.clear()
                        await room.wait()
            finally:
                changed.set()

        reading = asyncio.create_task(read())
        self._infer_streams.add(changed)
        try:
            # what was answered before the error is sent, too
            while stream.ready or (stream.error is None and not (stream.idle and (reading.done() or self._draining))):
                await changed.wait()
                changed.clear()
                ready, stream.ready = stream.ready, []
                for response in ready:
                    await context.write(response)
                if self._draining:
                    stream.forget_waiting()
                stream.pump()
                room.set()
        finally:
            self._infer_streams.discard(changed)
            finished = reading.done()
            reading.cancel()
            stream.cancel()
        if stream.error is not None or not finished:
            await _abort(context, stream.error or ShuttingDown("Server is shutting down"))

    def _stream(self, handler: StreamHandler) -> StreamBehaviour:
        async def call(messages: AsyncIterator[bytes], context: Context) -> None:
            self._open_streams += 1
            try:
                await self._until_drained(handler, messages, context)
            except Exception as error:
                await _abort(context, error)
            finally:
                self._open_streams -= 1

        return call

    async def _until_drained(self, handler: StreamHandler, messages: AsyncIterator[bytes], context: Context) -> None:
        """Runs a stream to its end, or to the draining of the server: a watch would hold it up for ever."""
        answers = handler(messages)
        while True:
            limit = asyncio.timeout(0 if self._draining else None)
            try:
                async with limit:
                    self._streams.add(limit)
                    message = await anext(answers, None)
            except TimeoutError:
                raise ShuttingDown("the server is shutting down") from None
            finally:
                self._streams.discard(limit)
            if message is None:
                return
            await context.write(message)  # to its end: meanwhile grpcio takes no status


def _credentials(security: Security) -> grpc.ServerCredentials:
    """Those in force at each handshake: grpcio asks for them from threads of its own."""
    first = security.credentials
    assert first is not None
    given = [first]

    def configuration(now: Credentials) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(now.key, now.chain)], root_certificates=now.client_ca)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        now = security.credentials
        if now is None or now is given[0]:
            return None
        given[0] = now
        return configuration(now)

    return grpc.dynamic_ssl_server_credentials(
        configuration(first),
        changed,  # type: ignore[arg-type] # None: as before
        require_client_authentication=bool(first.settings.client_ca),
    )


class _Router(Router):
    """Finds a call's handler by its path; grpcio answers UNIMPLEMENTED where there is none."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """The handler of a path."""
        return self._handlers.get(handler_call_details.method)


class _InferCall:
    """An `InferCall` that a coroutine waits for. An answer that comes after its cancellation is dropped."""

    door = "grpc"

    def __init__(
        self, request: Buffer, received: int, deadline: int, traceparent: bytes = b"", tracestate: bytes = b""
    ) -> None:
        self.traceparent = traceparent
        self.tracestate = tracestate
        self.request: Buffer | None = request
        self.received = received
        self.deadline = deadline
        self.under_way: Cancellable | None = None
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def cancel(self) -> None:
        """The caller has gone away."""
        self.request = None
        if self.under_way is not None:
            self.under_way.cancel()

    def reply(self, message: Buffer) -> None:
        self.under_way = None
        if not self.answer.done():
            self.answer.set_result(bytes(message))

    def fail(self, error: BaseException) -> None:
        self.under_way = None
        if not self.answer.done():
            self.answer.set_exception(error)


def _unary(handler: UnaryHandler) -> UnaryBehaviour:
    async def call(message: bytes, context: Context) -> bytes:
        try:
            return handler(message)
        except Exception as error:
            await _abort(context, error)

    return call


async def _abort(context: Context, error: BaseException) -> NoReturn:
    """Ends the call with the status of the error, its message no longer than clients take it."""
    status = grpc_status(error)
    let_go(error)  # grpcio keeps what comes of it
    message = unquote(percent_encode(status.message).decode())
    await context.abort(CODES[status.code], message, status.trailers)
