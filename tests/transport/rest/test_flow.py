import asyncio
from unittest.mock import Mock

from headrace.transport.rest.flow import Flow


def test_reading():
    transport = Mock()
    flow = Flow(transport, 60)
    for _ in range(2):
        flow.pause_reads()
        flow.resume_reading()  # uvicorn's, without effect
    assert repr(flow) == "<Flow does not read, write_paused=False>"
    for _ in range(2):
        flow.resume_reads()
    assert [call[0] for call in transport.method_calls] == ["pause_reading", "resume_reading"]


def test_writing():
    async def main():
        flow = Flow(Mock(), 60)
        await flow.drain()
        flow.pause_writing()
        waiting = asyncio.create_task(flow.drain())
        await asyncio.sleep(0)
        assert (flow.write_paused, waiting.done()) == (True, False)
        flow.resume_writing()
        await waiting
        return flow.write_paused

    assert asyncio.run(main()) is False
