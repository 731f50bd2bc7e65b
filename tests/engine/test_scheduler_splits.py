"""Requests of more rows than a batch holds, on a loop that is stepped by hand."""

import numpy as np
import pytest
from engine.scheduling import MS, World, poison, timing, values

from headrace.errors import (
    BackendFailed,
    DeadlineExceeded,
    DeadlineUnreachable,
    InvalidRequest,
    RegionTooSmall,
)
from headrace.messages import Signature, TensorSpec
from headrace.repository.model_config import QueueConfig
from headrace.testing.loop import VirtualTimeLoop
from headrace.testing.requests import FakeWriter


@pytest.fixture
def world():
    loop = VirtualTimeLoop()
    yield lambda **more: World(loop, **more)
    loop.close()


class TestSplitting:
    def test_a_large_request_is_answered_whole_and_counts_once(self, world):
        here = world(instances=2)
        call = here.send(20, 4.0)
        assert here.scheduler.depth() == (3, 20)
        here.run(20)
        assert values(call) == [5.0] * 40
        assert list(call.response.outputs[0].shape) == [20, 2]
        assert sorted(here.batches()) == [(4, 1), (8, 1), (8, 1)]
        assert (here.observer.requests, here.observer.rows) == (1, 20)
        assert len(here.observer.batches) == 3
        assert not here.observer.reasons

    def test_its_last_piece_shares_a_batch(self, world):
        here = world()
        large, small = here.send(10, 1.0), here.send(3, 7.0)
        here.run(20)
        assert values(large) == [2.0] * 20
        assert values(small) == [8.0] * 6
        assert here.batches() == [(8, 1), (5, 2)]
        assert (here.observer.requests, here.observer.rows) == (2, 13)

    def test_its_timing_adds_up(self, world):
        here = world()
        call = here.send(20, headrace_timing=True)
        here.run(30)
        parameters = timing(call)
        phases = ("decode", "admit", "queue", "batch", "execute", "encode")
        assert sum(parameters[f"headrace_{phase}_us"] for phase in phases) == parameters["headrace_total_us"] == 30_000
        assert parameters["headrace_queue_us"] == 20_000  # until its last piece was in a batch
        assert parameters["headrace_batch_rows"] == 4

    def test_all_its_pieces_expire_at_once_and_count_once(self, world):
        here = world()
        here.send()
        here.run()
        call = here.send(20, timeout_ns=5 * MS)
        other = here.send(1)
        here.run(5)
        assert type(call.error) is DeadlineExceeded
        here.run(20)
        assert other.response
        assert here.observer.reasons == {"deadline_exceeded": 1}

    def test_expiring_with_pieces_run_and_running(self, world):
        here = world()
        call = here.send(24, timeout_ns=15 * MS)
        handle = call.under_way
        here.run(12)
        assert len(here.model.runs) == 1
        here.run(3)
        assert type(call.error) is DeadlineExceeded
        assert not handle.finished
        here.run(10)
        assert handle.finished
        assert here.observer.reasons == {"deadline_exceeded": 1}
        assert here.observer.wasted_rows == 8
        assert here.observer.requests == 0

    def test_cancelling_with_pieces_in_all_states(self, world):
        here = world()
        call = here.send(24)
        here.run(12)
        call.cancel()
        here.run(50)
        assert len(here.model.runs) == 2
        assert here.observer.reasons == {"cancelled": 1}
        assert here.scheduler.depth() == (0, 0)
        assert call.under_way.finished

    def test_one_failing_piece_fails_it_once(self, world):
        here = world(instances=2)
        here.model.failures += [None, ValueError("second run")]
        call = here.send(30)
        here.run(100)
        assert type(call.error) is BackendFailed
        assert here.observer.reasons == {"backend_failed": 1}
        assert here.scheduler.depth() == (0, 0)

    def test_a_reply_that_cannot_be_written_is_an_error(self, world):
        here = world()
        call, other = here.send(20), here.send(3)

        class Full(FakeWriter):
            def encode(self, *_):
                raise RegionTooSmall("too small")

        call.under_way.template.reply = Full()
        here.run(30)
        assert type(call.error) is RegionTooSmall
        assert other.response
        assert here.observer.reasons == {"region_too_small": 1}
        assert here.observer.requests == 1

    def test_outputs_that_make_no_tensor_together_are_an_error(self, world):
        signature = Signature((TensorSpec("x", "FP32", (2,)),), (TensorSpec("y", "FP32", (-1,)),), 8)
        sizes = iter((3, 4, 3))
        here = world(signature=signature, compute=lambda inputs: [np.zeros((len(inputs[0]), next(sizes)), np.float32)])
        call = here.send(20)
        here.run(30)
        assert type(call.error) is InvalidRequest
        assert str(call.error) == (
            "the request has 20 rows, of which at most 8 run at once: the outputs of one run and another have rows of "
            "[[3]] and [[4]], which make no tensors together; send fewer rows at a time"
        )
        assert here.observer.reasons == {"invalid_request": 1}

    def test_a_piece_that_waits_to_be_run_alone_leaves_with_the_rest(self, world):
        here = world(compute=poison)
        call, unlucky = here.send(10, 1.0), here.send(2, 13.0)
        here.run(20)  # the last piece's batch has failed
        call.cancel()
        here.run(50)
        assert type(unlucky.error) is BackendFailed
        assert here.observer.reasons == {"cancelled": 1, "backend_failed": 1}

    def test_it_needs_room_in_the_queue_and_time(self, world):
        here = world(queue=QueueConfig(max_rows=19), learn=[(8, 10 * MS)])
        assert type(here.send(20).error) is InvalidRequest
        assert type(here.send(17, timeout_ns=29 * MS).error) is DeadlineUnreachable
        assert here.send(17, timeout_ns=30 * MS).error is None
