"""Looks of requests of sequences."""

import numpy as np
import pytest
from transport.inferring import World

from headrace.errors import InvalidRequest
from headrace.messages import SequenceFlags
from headrace.pipeline.decode import build_template
from headrace.pipeline.wire import field_text, length_prefixed
from headrace.rpc import inference_pb2 as pb
from headrace.testing.client import infer_request
from headrace.transport import infer as infer_module


@pytest.fixture
def world():
    world = World()
    yield world
    world.loop.close()


class TestSequences:
    """The parameters that tell sequences apart are no part of what is known of a look."""

    def message(self, sequence, *, start=False, end=False, request_id="", **parameters):
        flags = {"sequence_id": sequence, "sequence_start": start, "sequence_end": end}
        return infer_request(
            "m", {"x": np.zeros((1, 2), np.float32)}, request_id=request_id, parameters={**flags, **parameters}
        ).SerializeToString()

    def test_requests_of_all_sequences_look_alike(self, world, monkeypatch):
        built = []
        monkeypatch.setattr(
            infer_module, "build_template", lambda *arguments: built.append(1) or build_template(*arguments)
        )
        for sequence in (1, 2, "three", 1 << 62):
            for start, end in ((True, False), (False, False), (False, True)):
                template, _, id_field = world.opened(self.message(sequence, start=start, end=end, request_id="i"))
                assert template.sequence == SequenceFlags(sequence, start, end)
                assert field_text(id_field) == "i"
        assert len(built) == 1
        template, *_ = world.opened(self.message(1, headrace_timing=True))
        assert (template.timing, template.sequence) == (True, SequenceFlags(1))
        assert len(built) == 2

    def test_the_second_of_a_sequence_is_recognised(self, world):
        message = self.message(5)
        assert world.recognised(message) is None
        template, *_ = world.opened(message)
        assert world.recognised(message)[0] is template
        assert world.opened(message)[0] is template

    def test_a_request_without_sequence_has_none(self, world):
        world.opened(self.message(5))
        plain, *_ = world.opened(infer_request("m", {"x": np.zeros((1, 2), np.float32)}).SerializeToString())
        assert plain.sequence is None

    def test_sequences_push_out_no_other_looks(self, world, monkeypatch):
        monkeypatch.setattr(infer_module, "_SEQUENCE_LOOKS", 10)
        other = infer_request("two", {"a": np.zeros((1, 2), np.float32), "b": np.array([["x"]], dtype=object)})
        known, *_ = world.opened(other.SerializeToString())
        for sequence in range(1, 36):
            template, *_ = world.opened(self.message(sequence))
            assert template.sequence.id == sequence
            assert sum(len(looks.templates) for looks in world.service._heads.values()) <= 2 + 10
        assert world.opened(other.SerializeToString())[0] is known
        assert world.recognised(self.message(35)) is not None
        assert world.service._looks == 2

    def test_when_models_change_they_are_forgotten(self, world):
        message = self.message(5)
        before, *_ = world.opened(message)
        world.service._forget()
        after, *_ = world.opened(message)
        assert after is not before

    @pytest.mark.parametrize("known", [False, True])
    def test_of_two_keys_of_a_parameter_the_last_one_counts(self, world, known):
        """No library writes two; to a parser they are one field, which comes again."""
        if known:
            world.opened(self.message(5))
        value = length_prefixed(2, pb.InferParameter(int64_param=1).SerializeToString())
        keys = length_prefixed(1, b"sequence_id") + length_prefixed(1, b"headrace_mine")
        request = infer_request("m", {"x": np.zeros((1, 2), np.float32)}).SerializeToString()
        name = pb.ModelInferRequest(model_name="m").SerializeToString()
        message = name + length_prefixed(4, keys + value) + request.removeprefix(name)
        assert pb.ModelInferRequest.FromString(message).parameters["headrace_mine"].int64_param == 1
        for _ in range(2):
            template, *_ = world.opened(message)
            assert template.sequence is None

    def test_bad_parameters_are_refused_known_look_or_not(self, world):
        good = self.message(5)
        for _ in range(2):
            bad = pb.ModelInferRequest.FromString(good)
            bad.parameters["sequence_id"].double_param = 1.5
            with pytest.raises(InvalidRequest, match=r"parameter 'sequence_id' is 1\.5"):
                world.service._open(bad.SerializeToString(), None)
            assert world.opened(good) is not None

    def test_an_id_as_long_as_may_be(self, world):
        sequence = "x" * 128
        for start in (True, False, False):
            template, *_ = world.opened(self.message(sequence, start=start))
            assert template.sequence == SequenceFlags(sequence, start)
        assert world.recognised(self.message(sequence)) is not None

    def test_typed_contents(self, world):
        request = infer_request("m", {}, parameters={"sequence_id": 5})
        tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
        tensor.contents.fp32_contents.extend([1, 2])
        for _ in range(2):
            template, parts, _ = world.opened(request.SerializeToString())
            assert template.sequence == SequenceFlags(5)
            assert np.frombuffer(parts[0], np.float32).tolist() == [1, 2]
