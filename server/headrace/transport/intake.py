"""From calls that have arrived to the queues of their models: what is the same for every protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, TypeVar

from headrace.engine.screening import screened
from headrace.errors import HeadraceError, reason_of
from headrace.messages import InferRequest
from headrace.transport.service import InferCall

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.engine.served import Served
    from headrace.engine.turn import Turn
    from headrace.messages import Buffer, ReplySink
    from headrace.pipeline.decode import RequestTemplate
    from headrace.repository.catalog import Catalog

_LARGE = 64 << 10
"""A message that is not left waiting for others: it would push them out of the processor's cache, and they it."""

CallT = TypeVar("CallT", bound=InferCall)


class Intake(ABC, Generic[CallT]):
    """An `Infer` for the calls of one protocol, which says how a request of it is opened.

    What arrives in one turn of the loop is taken together at its end: each step does the next request while it is
    still in the processor's cache, and what requests of one look have in common is done once for all of them; so is
    the look at what their inputs hold.

    catalog: resolves a name and version to what serves it. turn: at whose end requests are taken.
    refused: hears the reason of each request that ended before its model was known. failed: where there is one, hears
    of its sink too, and when the request came.
    """

    def __init__(self, catalog: Catalog[Served], turn: Turn, refused: Callable[[str], None]) -> None:
        self._catalog = catalog
        self._turn = turn
        self._refused = refused
        self._arrived: list[CallT] = []
        self._generation = catalog.generation
        self.failed: Callable[[ReplySink, int, str], None] | None = None

    @abstractmethod
    def _open(self, message: Buffer, call: CallT) -> tuple[RequestTemplate, Sequence[Buffer], bytes]:
        """Template, tensors of the right sizes and id field of a request. Raises HeadraceError."""

    @abstractmethod
    def _named(self, message: Buffer, call: CallT) -> tuple[str, str]:
        """Name and version of the model that a request which could not be opened is for, as far as it says them."""

    @abstractmethod
    def _forget(self) -> None:
        """Drops what is known of looks: the models are others than they were."""

    def __call__(self, call: CallT) -> None:
        """See `service.Infer`."""
        arrived = self._arrived
        if not arrived:
            self._turn.take(self.take)
        arrived.append(call)
        if len(call.request or b"") >= _LARGE:  # while it is in the processor's cache
            self.take()

    def gather(self, call: CallT) -> None:
        """The same for a call from another process: a large message waits as well, for it is in no cache of ours."""
        if not self._arrived:
            self._turn.take(self.take)
        self._arrived.append(call)

    def take(self) -> None:
        """Hands what has arrived to the schedulers, the requests of one look together as long as no other comes."""
        calls, self._arrived = self._arrived, []
        if self._generation != self._catalog.generation:
            self._forget()
            self._generation = self._catalog.generation
        requests: list[InferRequest] = []
        alike: RequestTemplate | None = None
        for call in calls:
            message = call.request
            if message is None:  # its caller has gone away
                continue
            call.request = None
            try:
                template, parts, id_field = self._open(message, call)
            except Exception as error:  # a bug of ours must not take the connection along
                self._unfit(message, call, error)
                continue
            if template is not alike:
                self._submit(requests)
                requests = []
                alike = template
            nbytes = template.total or sum(map(len, parts))
            requests.append(InferRequest(template, parts, nbytes, call, id_field, call.received, call.deadline))
        self._submit(requests)

    def _submit(self, requests: list[InferRequest]) -> None:
        if not requests:
            return
        template: RequestTemplate = requests[0].template  # type: ignore[assignment]
        served: Served = template.owner  # type: ignore[assignment]
        try:
            if template.screen is not None:
                requests, refused = screened(requests, template.screen, served.observer)
                for request, error in refused:
                    request.sink.fail(error)
                if not requests:
                    return
            served.submit(requests)
        except Exception as error:
            for request in requests:
                served.observer.refused(reason_of(error), request=request)
                request.sink.fail(error)

    def _unfit(self, message: Buffer, call: CallT, error: Exception) -> None:
        """Ends a call with the error that opening it gave; it counts for the model that it names, if that serves."""
        reason = reason_of(error)
        try:
            observer = self._catalog.resolve(*self._named(message, call)).observer
        except HeadraceError:
            self._refused(reason)
            if self.failed is not None:
                self.failed(call, call.received, reason)
        else:
            observer.unfit(call, call.received, reason)
        call.fail(error)
