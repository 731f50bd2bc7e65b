import pytest

from headrace.repository.triton.fields import DECISIONS, Ignored, Refused, Taken, decision_of, not_taken
from headrace.rpc import model_config_pb2 as mc


def is_map(field):
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def undecided(descriptor, seen=()):
    """Every field below `descriptor` that can be set and has no decision, and those that were looked at."""
    looked_at, missing = set(), []
    for field in descriptor.fields:
        name = field.full_name.removeprefix("inference.")
        looked_at.add(name)
        if name not in DECISIONS:
            missing.append(name)
        elif isinstance(DECISIONS[name], Taken) and field.message_type is not None:
            inner = field.message_type.fields_by_name["value"].message_type if is_map(field) else field.message_type
            if inner is None:
                continue
            more, below = (
                undecided(inner, (*seen, descriptor.full_name)) if inner.full_name not in seen else ([], set())
            )
            missing += more
            looked_at |= below
    return missing, looked_at


def test_every_field_has_a_decision_and_no_decision_is_for_nothing():
    missing, looked_at = undecided(mc.ModelConfig.DESCRIPTOR)
    assert missing == []
    assert looked_at == set(DECISIONS)


def test_a_decision_that_is_missing_is_noticed(monkeypatch):
    monkeypatch.delitem(DECISIONS, "ModelQueuePolicy.max_queue_size")
    assert "ModelQueuePolicy.max_queue_size" in undecided(mc.ModelConfig.DESCRIPTOR)[0]
    message = mc.ModelConfig()
    message.dynamic_batching.default_queue_policy.max_queue_size = 1
    with pytest.raises(KeyError):
        list(not_taken(message))


def test_what_is_ignored_or_refused_says_why():
    for decision in DECISIONS.values():
        assert isinstance(decision, Taken) or len(decision.why) > 10


def test_what_is_set_is_named_by_its_path():
    message = mc.ModelConfig(metric_tags={"a": "b"}, runtime="x.so")
    message.input.add(name="x", allow_ragged_batch=True)
    message.input.add(is_shape_tensor=True)
    message.instance_group.add(name="g", host_policy="p")
    message.optimization.cuda.graphs = True
    message.sequence_batching.iterative_sequence = True
    found = dict(not_taken(message))
    assert {path: type(decision) for path, decision in found.items()} == {
        "metric_tags": Ignored,
        "runtime": Ignored,
        "input[x].allow_ragged_batch": Refused,
        "input[1].is_shape_tensor": Refused,
        "instance_group[g].host_policy": Ignored,
        "optimization.cuda": Ignored,
        "sequence_batching.iterative_sequence": Refused,
    }
    assert found["optimization.cuda"] == decision_of(mc.ModelOptimizationPolicy.DESCRIPTOR.fields_by_name["cuda"])


def test_what_is_at_its_default_is_not_set():
    message = mc.ModelConfig(runtime="")
    message.input.add(name="x", allow_ragged_batch=False, optional=False)
    assert list(not_taken(message)) == []
