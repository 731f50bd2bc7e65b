"""Requests of different lengths through the whole engine: they share batches, and nobody gets what is not theirs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.shared_memory import Registered, SharedMemoryRegions
from headrace.errors import DeadlineUnreachable, InvalidRequest
from headrace.messages import Region, Signature, TensorSpec
from headrace.repository.model_config import ModelConfig
from headrace.testing.backend import FakeModel
from headrace.testing.client import InProcessServer, infer_request, output_arrays
from headrace.testing.loop import VirtualTimeLoop

MS = 1_000_000
SEQUENCE = Signature(
    (
        TensorSpec("ids", "INT32", (-1,)),
        TensorSpec("scale", "FP32", (1,)),
        TensorSpec("mask", "INT64", (-1,)),
        TensorSpec("count", "INT32", ()),
    ),
    (TensorSpec("each", "FP32", (-1, 2)), TensorSpec("pooled", "INT64", ()), TensorSpec("count", "INT32", ())),
    6,
)
TOKENS = {
    "sizes": [2, 4, 8],
    "inputs": {"ids": 1},
    "masks": {"mask": 1},
    "lengths": "count",
    "outputs": {"each": 1},
}
CONFIG = ModelConfig.model_validate({"buckets": {"tokens": TOKENS}, "inputs": {"ids": {"pad": -7, "min": 0}}})


def sequence(inputs):
    """each: an element and its place; pooled: the sum of what the mask leaves; count: as given."""
    ids, scale, mask, count = inputs
    assert ((ids >= 0) == (mask == 1)).all(), "a mask that is not 1 where there is data and 0 where there is padding"
    assert (mask.sum(axis=1) == count).all()
    each = np.stack([ids * scale, np.broadcast_to(np.arange(ids.shape[1]), ids.shape)], axis=2).astype(np.float32)
    return [each, (ids * mask).sum(axis=1), count]


requests = st.integers(0, 8).flatmap(
    lambda length: st.lists(
        st.lists(st.integers(0, 1 << 20), min_size=length, max_size=length), min_size=1, max_size=14
    ).map(lambda rows: np.array(rows, np.int32).reshape(len(rows), length))
)


class World:
    """A model with buckets behind a scheduler, on a loop that is stepped by hand."""

    def __init__(
        self, signature=SEQUENCE, compute=sequence, config=CONFIG, *, latency_ns=MS, inline_below_ns=0, directory=None
    ):
        self.loop = VirtualTimeLoop()
        self.model = FakeModel(signature, compute, latency_ns=latency_ns, spend=self.loop.clock.advance)
        self.errors = []
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self.config, self.inline_below_ns = config, inline_below_ns
        self.loop.run_until_complete(self._start(directory))

    async def _start(self, directory):
        self.memory = SharedMemoryRegions(directory)
        self.server = InProcessServer(self.loop.clock, self.memory)
        self.scheduler, self.observer = self.server.serve(
            self.model,
            config=self.config,
            inline_below_ns=self.inline_below_ns,
        )

    def send(self, ids, *, timeout_ns=0, more=None, **options):
        ids = np.atleast_2d(np.array(ids, np.int32))
        inputs = {"ids": ids, "scale": np.ones((len(ids), 1), np.float32)} | (more or {})
        return self.server.client.send(infer_request("m", inputs, **options), timeout_ns=timeout_ns)

    def run(self, ms=0):
        self.loop.run_for(ms * MS) if ms else self.loop.run_until_idle()
        assert self.errors == []

    def shapes(self):
        """Of the first input of each run."""
        return [run.inputs[0].shape for run in self.model.runs]


def learned(here, costs):
    """Teaches what one row of each bucket costs, ns."""
    for fit, _ in here.scheduler.view.buckets.all():
        here.scheduler.cost.observe(1, costs[fit.sizes[0]], fit)


@pytest.fixture
def world(tmp_path):
    made = []
    yield lambda *arguments, **more: made.append(World(*arguments, directory=tmp_path, **more)) or made[-1]
    for one in made:
        one.loop.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(requests, st.booleans()), min_size=1, max_size=8), st.booleans())
def test_each_caller_gets_what_belongs_to_its_rows_and_its_length(sent, inline):
    """Whatever shares a batch, is split or runs alone; with a mask of the client's own, or without."""
    here = World(inline_below_ns=10**12 if inline else 0)
    learned(here, dict.fromkeys((2, 4, 8), 1))  # without that, nothing runs inline
    learned(here, dict.fromkeys((2, 4, 8), 1))
    calls = []
    for ids, own_mask in sent:
        more = {"scale": np.full((len(ids), 1), len(calls) + 1, np.float32)}
        if own_mask:
            more["mask"] = np.ones(ids.shape, np.int64)
        calls.append(here.send(ids, more=more))
    here.run(100)
    for number, ((ids, _), call) in enumerate(zip(sent, calls, strict=True), 1):
        outputs = output_arrays(call.response)
        assert outputs["each"].shape == (*ids.shape, 2)
        np.testing.assert_array_equal(outputs["each"][..., 0], ids.astype(np.float32) * number)
        np.testing.assert_array_equal(outputs["each"][..., 1], np.broadcast_to(np.arange(ids.shape[1]), ids.shape))
        np.testing.assert_array_equal(outputs["pooled"], ids.sum(axis=1))
        np.testing.assert_array_equal(outputs["count"], np.full(len(ids), ids.shape[1]))
    assert {shape[1] for shape in here.shapes()} <= {2, 4, 8}
    assert here.observer.elements == sum(ids.size for ids, _ in sent)
    assert here.observer.elements + here.observer.padding == sum(run.inputs[0].size for run in here.model.runs)
    assert repr(here.scheduler.queue).endswith("0 groups>")
    here.loop.close()


def test_requests_of_different_lengths_share_a_batch(world):
    here = world()
    calls = [here.send([5]), here.send([1, 2, 3]), here.send([[4, 5, 6, 7]] * 2), here.send([8, 9])]
    here.run(10)
    assert here.shapes() == [(2, 2), (3, 4)]
    assert [output_arrays(call.response)["pooled"].tolist() for call in calls] == [[5], [6], [22, 22], [17]]
    assert (here.observer.elements, here.observer.padding) == (1 + 3 + 8 + 2, 1 + 1)


def test_requests_wait_unpadded(world):
    here = world()
    here.send([1])
    here.run()
    here.send([1, 2, 3])
    assert here.scheduler.queue.nbytes == 3 * 4 + 4


def test_a_mask_of_the_clients_own_counts(world):
    here = world(compute=lambda inputs: [np.zeros((*inputs[0].shape, 2), np.float32), inputs[2].sum(axis=1), inputs[3]])
    with_mask = here.send([[1, 2, 3]], more={"mask": np.array([[1, 0, 1]], np.int64), "count": np.array([2], np.int32)})
    without = here.send([1, 2, 3])
    here.run(10)
    assert len(here.shapes()) == 1
    assert [output_arrays(call.response)["pooled"].tolist() for call in (with_mask, without)] == [[2], [3]]
    assert [output_arrays(call.response)["count"].tolist() for call in (with_mask, without)] == [[2], [3]]


def test_the_reply_tells_how_much_was_padding(world):
    here = world()
    calls = [here.send(ids, parameters={"headrace_timing": True}) for ids in ([1, 2, 3], [1, 2, 3, 4], [[1] * 5] * 9)]
    here.run(10)
    found = [call.response.parameters["headrace_padding_percent"].int64_param for call in calls]
    assert found == [25, 0, round(100 * 3 / 8)]


def test_checks_see_the_callers_own_values(world):
    here = world()
    with pytest.raises(
        InvalidRequest, match=r"element \[0, 1\] of input 'ids' for model 'm' is -1, expected a value of at"
    ):
        assert here.send([3, -1, 2]).response


def test_too_long_is_refused(world):
    with pytest.raises(InvalidRequest, match="has 9 in dimension 1, expected at most 8, the greatest bucket"):
        assert world().send([1] * 9).response


def test_outputs_asked_for_are_cut_in_that_order(world):
    here = world()
    call = here.send([1, 2, 3], outputs=["pooled", "each"])
    here.run(10)
    assert [list(tensor.shape) for tensor in call.response.outputs] == [[1], [1, 3, 2]]


def test_a_batch_that_fails_is_run_again_one_by_one(world):
    here = world()
    here.model.failures.append(RuntimeError("too much for it"))
    calls = [here.send([1]), here.send([2, 3])]
    here.run(10)
    assert here.shapes() == [(2, 2), (1, 2), (1, 2)]
    assert [output_arrays(call.response)["pooled"].tolist() for call in calls] == [[1], [5]]


def test_an_output_of_another_size_than_the_rules_say_fails_the_request_alone(world):
    def wrong(inputs):
        each, pooled, count = sequence(inputs)
        return [each[:, :-1], pooled, count]

    here = world(compute=wrong)
    short, exact = here.send([1]), here.send([1, 2])
    here.run(10)
    assert isinstance(short.error, ValueError)  # which a transport answers with a fixed text
    assert "output 'each' has 1 in dimension 1, buckets.*.outputs makes it 2" in str(short.error)
    assert output_arrays(exact.response)["pooled"].tolist() == [3]


# --- costs and deadlines ----------------------------------------------------------------------------------------------


def test_a_deadline_is_held_against_the_cost_of_the_requests_own_bucket(world):
    here = world()
    learned(here, {2: MS, 4: 2 * MS, 8: 40 * MS})
    assert isinstance(here.send([1] * 8, timeout_ns=20 * MS).error, DeadlineUnreachable)
    call = here.send([1] * 3, timeout_ns=20 * MS)
    here.run(20)
    assert call.response


@pytest.mark.parametrize(("other", "late"), [(3, False), (8, True)])
def test_what_waits_in_other_buckets_counts_by_their_cost(world, other, late):
    here = world(latency_ns=50 * MS)
    learned(here, {2: MS, 4: 10 * MS, 8: 800 * MS})
    here.send([1] * 8)
    here.run()
    here.send([1] * other)  # no deadline: queued as if due in 1 s
    # 800 ms for what runs, 10 or 800 for what is ahead, 1 of its own
    call = here.send([1], timeout_ns=1500 * MS)
    assert isinstance(call.error, DeadlineUnreachable) == late
    here.run(200)
    assert call.ended


def test_costs_are_learned_by_bucket(world):
    here = world(latency_ns=lambda rows: rows * MS)
    here.send([[1, 2]] * 2)
    here.run(5)
    fits = {fit.sizes: fit for fit, _ in here.scheduler.view.buckets.all()}
    assert here.scheduler.cost.of(fits[2,]).mean(2) == 2 * MS
    assert here.scheduler.cost.of(fits[8,]).mean(2) == 8 * MS  # has not run: in proportion


def test_what_runs_on_the_loop_is_a_matter_of_the_bucket(world):
    here = world(inline_below_ns=5 * MS)
    learned(here, {2: MS, 4: 2 * MS, 8: 50 * MS})
    short, long = here.send([1]), here.send([1] * 8)
    assert not short.ended
    here.run()
    assert short.ended
    assert not long.ended
    here.run(10)
    assert long.ended


def test_a_bucket_that_seems_too_slow_runs_at_last(world):
    """Its prediction is doubted with each request that it refuses while nothing runs; that of others is not."""
    here = world()
    learned(here, {2: 40 * MS, 4: 40 * MS, 8: 40 * MS})
    tried = 0
    while isinstance(here.send([1] * 8, timeout_ns=45 * MS).error, DeadlineUnreachable):
        tried += 1
        assert tried < 100
    assert tried > 1
    here.run(10)
    assert here.shapes() == [(1, 8)]
    assert isinstance(here.send([1], timeout_ns=45 * MS).error, DeadlineUnreachable)


# --- other models -----------------------------------------------------------------------------------------------------


def echo_of(datatype, shape, max_batch=4):
    return Signature((TensorSpec("x", datatype, shape),), (TensorSpec("y", datatype, shape),), max_batch)


def test_a_model_without_a_batch_dimension(world):
    config = ModelConfig.model_validate({"buckets": {"n": {"sizes": [4], "inputs": {"x": 0}, "outputs": {"y": 0}}}})
    here = world(echo_of("FP32", (-1, 2), 0), lambda inputs: inputs, config)
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    call = here.server.client.send(infer_request("m", {"x": x}))
    here.run(10)
    np.testing.assert_array_equal(output_arrays(call.response)["y"], x)
    assert here.shapes() == [(4, 2)]


def test_text_beside_what_is_padded_and_text_that_is_cut(world):
    signature = Signature(
        (TensorSpec("x", "UINT8", (-1,)), TensorSpec("t", "BYTES", (1,))), (TensorSpec("y", "BYTES", (-1,)),), 2
    )
    config = ModelConfig.model_validate({"buckets": {"n": {"sizes": [4], "inputs": {"x": 1}, "outputs": {"y": 1}}}})

    def spell(inputs):
        return [np.array([[text + b"%d" % x for x in row] for row, (text,) in zip(*inputs, strict=True)], object)]

    here = world(signature, spell, config)
    sent = [
        (np.array([[1, 2]] * 3, np.uint8), np.array([[b"a"], [b"b"], [b"c"]], object)),
        (np.array([[7, 8, 9]], np.uint8), np.array([[b""]], object)),
    ]
    calls = [here.server.client.send(infer_request("m", {"x": x, "t": t})) for x, t in sent]
    here.run(20)
    assert output_arrays(calls[0].response)["y"].tolist() == [[b"a1", b"a2"], [b"b1", b"b2"], [b"c1", b"c2"]]
    assert output_arrays(calls[1].response)["y"].tolist() == [[b"7", b"8", b"9"]]


@pytest.fixture
def nines(world):
    """A model that says 9 where there is padding, and else what it was given."""
    config = ModelConfig.model_validate({"buckets": {"n": {"sizes": [4], "inputs": {"x": 1}, "outputs": {"y": 1}}}})
    return world(
        echo_of("FP32", (-1,)), lambda inputs: [np.where(inputs[0] == 0, 9, inputs[0]).astype(np.float32)], config
    )


def test_classes_are_of_the_requests_own_part(nines):
    request = infer_request("m", {"x": np.array([[1, 3, 2]], np.float32)}, outputs=["y"])
    request.outputs[0].parameters["classification"].int64_param = 4
    call = nines.server.client.send(request)
    nines.run(10)
    assert output_arrays(call.response)["y"].tolist() == [[b"3.000000:1", b"2.000000:2", b"1.000000:0"]]


def test_shared_memory_holds_the_requests_own_part(nines, tmp_path):
    (tmp_path / "r").write_bytes(bytes(64))
    nines.memory.register(Registered("r", "/r", 0, 64))
    request = infer_request("m", {"x": np.array([[1, 3, 2]], np.float32)}, outputs=["y"])
    del request.raw_input_contents[:]
    for tensor, size, offset in ((request.inputs[0], 12, 0), (request.outputs[0], 12, 32)):
        tensor.parameters["shared_memory_region"].string_param = "r"
        tensor.parameters["shared_memory_byte_size"].int64_param = size
        tensor.parameters["shared_memory_offset"].int64_param = offset
    nines.memory.view(Region("r", 0, 12))[:] = np.array([5, 6, 7], np.float32).tobytes()
    call = nines.server.client.send(request)
    nines.run(10)
    assert list(call.response.outputs[0].shape) == [1, 3]
    assert np.frombuffer(nines.memory.view(Region("r", 32, 16)), np.float32).tolist() == [5, 6, 7, 0]
