import pytest

from headrace.testing.sink import RecordingSink


def test_it_keeps_a_reply():
    ends = []
    sink = RecordingSink(lambda: ends.append(sink.message))
    assert repr(sink) == "<RecordingSink waiting>"
    sink.reply(b"x")
    assert (sink.message, sink.error, ends) == (b"x", None, [b"x"])
    assert repr(sink) == "<RecordingSink replied>"


def test_it_keeps_an_error():
    sink = RecordingSink()
    error = ValueError("no")
    sink.fail(error)
    assert sink.error is error
    assert repr(sink) == "<RecordingSink failed: ValueError('no')>"


@pytest.mark.parametrize("first", ["reply", "fail"])
@pytest.mark.parametrize("second", ["reply", "fail"])
def test_a_second_answer_is_an_error(first, second):
    sink = RecordingSink()
    getattr(sink, first)(ValueError())
    with pytest.raises(AssertionError, match="a second answer"):
        getattr(sink, second)(ValueError())
