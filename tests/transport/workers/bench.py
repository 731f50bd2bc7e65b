"""A worker's doors and the engine's desk, joined by wires that only the loop's turns move, in virtual time."""

import asyncio
import os
from types import SimpleNamespace

from headrace.engine.turn import Turn
from headrace.errors import InvalidRequest
from headrace.testing.loop import VirtualTimeLoop
from headrace.transport.grpc_messages import large_buffer
from headrace.transport.service import ServiceTable
from headrace.transport.workers.desk import Desk
from headrace.transport.workers.forward import Forwarding
from headrace.transport.workers.region import Borrowed, Region, make_region
from headrace.transport.workers.slots import PAGE

ECHO, FAIL, SLOW = "/test/Echo", "/test/Fail", "/test/Slow"
REGION = 256 * PAGE


class Wire(asyncio.Transport):
    """Carries what is written to the link at its other end, in pieces, in the next turn; while `stuck` it keeps it."""

    def __init__(self, loop, piece):
        super().__init__()
        self.loop, self.piece = loop, piece
        self.other = None
        self.kept = b""
        self.stuck = False
        self.writes = 0
        self.closed = False

    def set_write_buffer_limits(self, high=None, low=None):
        pass

    def write(self, data):
        self.writes += 1
        self.kept += data
        self.loop.call_soon(self.carry)

    def carry(self):
        while self.kept and not self.stuck and not self.closed:
            buffer = self.other.get_buffer(-1)
            size = min(len(buffer), len(self.kept), self.piece)
            buffer[:size] = self.kept[:size]
            self.kept = self.kept[size:]
            self.other.buffer_updated(size)

    def close(self):
        self.loop.call_soon(self.cut)

    abort = close

    def cut(self, error=None):
        """Both ends hear of the end."""
        if not self.closed:
            self.closed = True
            self.other.connection_lost(error)
            self.mine.connection_lost(error)


class Work:
    """What the engine has under way."""

    def __init__(self, call, final):
        self.call, self.final = call, final
        self.message = call.request
        self.finished = False
        self.cancelled = 0
        self.template = SimpleNamespace(final=final)

    def cancel(self):
        self.cancelled += 1


class Call:
    """A caller in the worker."""

    def __init__(self, request, deadline=0, door="grpc", parent=b"", state=b""):
        self.request = request
        self.received, self.deadline, self.door = 5, deadline, door
        self.traceparent, self.tracestate = parent, state
        self.under_way = None
        self.answers = []

    def reply(self, message):
        self.answers.append((message, self.under_way.template.final))

    def fail(self, error):
        self.answers.append(error)


class Pair:
    """Both sides. taken: the engine's work, in the order in which it came."""

    def __init__(self, piece=1 << 30):
        self.loop = VirtualTimeLoop()
        descriptor = make_region(REGION)
        self.region = Region(descriptor, REGION, large_buffer)
        self.borrowed = Borrowed(descriptor, REGION)
        os.close(descriptor)
        self.taken = []
        self.notices, self.loads, self.lost, self.pauses = [], [], [], []
        self.load = None
        self.final = False
        self.release = asyncio.Event()
        turn = Turn(self.loop)
        self.doors = Forwarding(
            turn,
            self.region,
            notice=self.notices.append,
            lost=self.lost.append,
            paused=self.pauses.append,
            load=lambda: self.load,
        )
        self.desk = Desk(
            Turn(self.loop),
            ServiceTable({ECHO: bytes, FAIL: self.fail}, {}, self.take, (), tasks={SLOW: self.slow}),
            self.take,
            self.borrowed,
            notice=self.notices.append,
            load=lambda *load: self.loads.append(load),
            lost=self.lost.append,
        )
        self.up, self.down = Wire(self.loop, piece), Wire(self.loop, piece)
        self.up.mine, self.up.other = self.doors.link, self.desk.link
        self.down.mine, self.down.other = self.desk.link, self.doors.link
        self.loop.call_soon(self.doors.link.connection_made, self.up)
        self.loop.call_soon(self.desk.link.connection_made, self.down)
        self.run()

    def run(self):
        self.loop.run_until_idle()

    def take(self, call):
        work = Work(call, self.final)
        call.request = None
        call.under_way = work
        self.taken.append(work)

    @staticmethod
    def fail(message):
        raise InvalidRequest("no")

    async def slow(self, message):
        await self.release.wait()
        if message == b"bad":
            raise InvalidRequest("slowly")
        return b"slow " + message

    def infer(self, request, **more):
        """A call that the engine has."""
        call = Call(request, **more)
        self.doors.infer(call)
        self.run()
        return call

    def large(self, octets):
        """A message as the transport receives large ones."""
        buffer = self.region.buffer(len(octets))
        buffer[:] = octets
        return buffer

    @property
    def free(self):
        return self.region._slots.free_octets

    def close(self):
        self.up.cut()
        self.run()
        self.loop.close()
