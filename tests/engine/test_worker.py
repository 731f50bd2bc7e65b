import asyncio
import threading
from unittest.mock import Mock

import numpy as np
import pytest

from headrace.engine.worker import VIEW_BYTES, Job, OutputRows, Worker
from headrace.messages import Batch, Signature, TensorSpec
from headrace.testing.backend import ECHO, FakeModel
from headrace.testing.clock import FakeClock
from headrace.testing.requests import make_request

FP32 = TensorSpec("y", "FP32", (2,))
TEXT = TensorSpec("t", "BYTES", (-1,))


def rows_of(array, spec=FP32, rows=None, *, batched=True):
    return OutputRows(array, spec, len(array) if rows is None else rows, batched=batched)


def floats(*shape):
    return np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)


class TestOutputRows:
    def test_rows_are_cut_out(self):
        output = rows_of(floats(4, 2))
        assert output.dims == (2,)
        assert np.frombuffer(output.cut(1, 3), np.float32).tolist() == [2, 3, 4, 5]
        assert output.cut(0, 4) == floats(4, 2).tobytes()
        assert output.cut(2, 2) == b""

    def test_it_owns_its_bytes(self):
        array = floats(1, 2)
        output = rows_of(array)
        array[:] = 9
        assert np.frombuffer(output.cut(0, 1), np.float32).tolist() == [0, 1]

    def test_an_array_in_another_order_of_memory(self):
        output = rows_of(np.asfortranarray(floats(3, 2)))
        assert np.frombuffer(output.cut(1, 2), np.float32).tolist() == [2, 3]

    def test_large_rows_are_not_copied(self):
        array = np.arange(3 * VIEW_BYTES, dtype=np.uint8).reshape(3, VIEW_BYTES)
        found = rows_of(array, TensorSpec("y", "UINT8", (VIEW_BYTES,)))
        whole, part = found.cut(0, 3), found.cut(1, 2)
        assert (type(whole), type(part)) == (bytes, memoryview)
        assert part == array[1].tobytes()
        assert np.shares_memory(np.frombuffer(whole, np.uint8), np.frombuffer(part, np.uint8))

    def test_texts_are_cut_by_rows(self):
        output = rows_of(np.array([["a", "bc"], ["", "d"]], dtype=object), TEXT)
        assert output.dims == (2,)
        assert output.cut(0, 1) == b"\1\0\0\0a\2\0\0\0bc"
        assert output.cut(1, 2) == b"\0\0\0\0\1\0\0\0d"
        assert output.cut(0, 2) == output.cut(0, 1) + output.cut(1, 2)

    def test_without_batching_all_is_one(self):
        output = rows_of(floats(3, 2), TensorSpec("y", "FP32", (-1, 2)), 1, batched=False)
        assert output.dims == (3, 2)
        assert output.cut(0, 1) == floats(3, 2).tobytes()
        output = rows_of(np.array(["a", "b"], dtype=object), TEXT, 1, batched=False)
        assert output.cut(0, 1) == b"\1\0\0\0a\1\0\0\0b"

    def test_rows_may_be_empty(self):
        output = rows_of(floats(3, 0), TensorSpec("y", "FP32", (-1,)))
        assert output.cut(0, 2) == b""
        assert rows_of(np.empty((2, 0), dtype=object), TEXT).cut(0, 1) == b""

    @pytest.mark.parametrize("shape", [(3, 2), (4, 3), (4,), (4, 2, 1), ()])
    def test_a_wrong_shape(self, shape):
        text = rf"^output 'y' has shape \[{', '.join(map(str, shape))}\], its signature says \[4, 2\]$"
        with pytest.raises(ValueError, match=text):
            rows_of(floats(*shape), rows=4)

    def test_a_wrong_datatype(self):
        with pytest.raises(ValueError, match=r"^output 'y' is float64, its signature says FP32$"):
            rows_of(floats(4, 2).astype(np.float64))


def job(rows=1, value=0.0, model=None):
    batch = Batch([make_request(rows)], rows, "full")
    data = np.full((rows, 2), value, np.float32).tobytes()
    return Job(batch, [[data]], [(rows, 2)], [0], ECHO.outputs)


def worker_of(model, done=None, loop=None, clock=None):
    return Worker(3, model.make_instance(0), loop, clock or FakeClock(), done, batched=True)


def test_running_here_and_now():
    clock = FakeClock(100)
    model = FakeModel(latency_ns=7, spend=clock.advance)
    worker = worker_of(model, clock=clock)
    work = job(2, 5.0)
    worker.run(work)
    assert work.error is None
    assert work.outputs[0].cut(0, 1) == np.array([5, 5], np.float32).tobytes()
    assert (work.batch.started, work.batch.finished) == (100, 107)
    assert repr(worker) == "<Worker 3>"


def test_what_is_packed_first_is_not_execution():
    clock = FakeClock(100)
    model = FakeModel(latency_ns=7, spend=clock.advance)
    work = job(2)

    def pack(inputs, shapes):
        assert (inputs, shapes) == ([[bytes(16)]], [(2, 2)])
        clock.advance(30)
        return [[np.full((2, 2), 5, np.float32).tobytes()]]

    work.pack = pack
    worker_of(model, clock=clock).run(work)
    assert work.outputs[0].cut(0, 1) == np.array([5, 5], np.float32).tobytes()
    assert (work.batch.started, work.batch.finished) == (130, 137)


def test_what_is_no_exception_is_a_failure_of_the_batch_too():
    class Panic(BaseException):
        """As pyo3_runtime.PanicException, by which Rust's panics reach Python."""

    model = FakeModel()
    model.failures.append(Panic("index out of bounds"))
    work = job()
    worker_of(model).run(work)
    assert type(work.error) is RuntimeError
    assert str(work.error) == "Panic('index out of bounds')"
    assert type(work.error.__cause__) is Panic


def test_what_cannot_be_packed_fails():
    work = job()
    work.pack = lambda inputs, shapes: 1 / 0
    worker_of(FakeModel()).run(work)
    assert isinstance(work.error, ZeroDivisionError)


@pytest.mark.parametrize(
    "compute",
    [
        lambda inputs: 1 / 0,
        lambda inputs: [inputs[0][:-1]],
        lambda inputs: [inputs[0].astype(np.float16)],
    ],
)
def test_a_failure_is_in_the_job(compute):
    work = job(2)
    worker_of(FakeModel(compute=compute)).run(work)
    assert isinstance(work.error, Exception)
    assert work.batch.finished >= work.batch.started > 0


def test_an_instance_that_returns_too_few_outputs():
    class Instance:
        def run(self, inputs, shapes, outputs):
            return []

    work = job()
    Worker(0, Instance(), None, FakeClock(), None, batched=True).run(work)
    assert isinstance(work.error, ValueError)


def test_a_thread_of_its_own_runs_jobs_in_order_and_reports_on_the_loop():
    async def main():
        done = asyncio.Queue()
        loop_thread = threading.get_ident()
        threads = set()

        def compute(inputs):
            threads.add(threading.get_ident())
            return inputs

        def on_done(worker, work):
            assert threading.get_ident() == loop_thread
            done.put_nowait((worker, work))

        model = FakeModel(compute=compute)
        worker = worker_of(model, on_done, asyncio.get_running_loop())
        jobs = [job(1, value) for value in range(20)]
        for work in jobs:
            worker.start(work)
        assert repr(worker) == "<Worker 3, with a thread>"
        assert [await asyncio.wait_for(done.get(), 10) for _ in jobs] == [(worker, work) for work in jobs]
        assert len(threads) == 1
        assert loop_thread not in threads
        worker.close()
        worker._thread.join(10)
        assert model.instances[0].closed

    asyncio.run(main())


def test_without_a_thread_to_be_had_a_batch_fails_and_the_next_tries_again(monkeypatch):
    async def main():
        done = asyncio.Queue()
        worker = worker_of(FakeModel(), lambda worker, work: done.put_nowait(work), asyncio.get_running_loop())
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
            worker.start(job())
            failed = await done.get()
        assert str(failed.error) == "can't start new thread"
        worker.start(job())
        assert (await asyncio.wait_for(done.get(), 10)).error is None
        worker.close()

    asyncio.run(main())


def test_closing_while_the_thread_runs_waits_for_the_batch():
    async def main():
        done = asyncio.Event()
        model = FakeModel()
        worker = worker_of(model, lambda *_: done.set(), asyncio.get_running_loop())
        (instance,) = model.instances
        instance.hold()
        worker.start(job())
        worker.close()
        assert not instance.closed
        instance.release()
        await asyncio.wait_for(done.wait(), 10)
        worker._thread.join(10)
        assert instance.closed

    asyncio.run(main())


def test_closing_without_a_thread():
    model = FakeModel()
    worker_of(model).close()
    assert model.instances[0].closed


def test_an_instance_on_a_device_is_not_closed_on_the_calling_thread():
    closed_on = []

    class Instance:
        device = "a device"

        def close(self):
            closed_on.append(threading.current_thread())

    worker = Worker(0, Instance(), None, FakeClock(), None, batched=True)
    worker.close()
    worker._thread.join(10)
    assert closed_on == [worker._thread]


def test_an_instance_that_cannot_be_closed_is_told_of(caplog):
    worker = worker_of(FakeModel())
    worker.instance.close = Mock(side_effect=OSError("device busy"))
    worker.close()
    assert "an instance could not be closed" in caplog.text
    assert "device busy" in caplog.text


def test_a_thread_outlives_the_loop_without_a_word():
    model = FakeModel()

    async def main():
        worker = worker_of(model, None, asyncio.get_running_loop())
        model.instances[0].hold()
        worker.start(job())
        return worker

    worker = asyncio.run(main())
    model.instances[0].release()
    worker._thread.join(10)
    assert not worker._thread.is_alive()
    assert model.instances[0].closed


def test_it_takes_a_signature_of_several_outputs():
    signature = Signature(ECHO.inputs, (FP32, TEXT), 8)
    model = FakeModel(signature, lambda inputs: [inputs[0], np.array([["a"]] * len(inputs[0]), dtype=object)])
    work = job(2)
    work.indices, work.specs = [1, 0], [TEXT, FP32]
    worker_of(model).run(work)
    assert [output.dims for output in work.outputs] == [(1,), (2,)]
