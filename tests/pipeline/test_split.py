from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import BackendFailed, QueueTimeout
from headrace.messages import Signature, State, TensorSpec
from headrace.pipeline import bytes_tensor
from headrace.pipeline.cropping import Crop, Cut
from headrace.pipeline.split import Split
from headrace.testing.requests import FakeOwner, FakeWriter, make_request


class Owner(FakeOwner):
    """Ends waiting pieces as a scheduler does."""

    def cancel(self, request):
        super().cancel(request)
        if request.state is State.WAITING:
            request.state = State.DONE
        elif request.state is State.RUNNING:
            request.state = State.ABANDONED


def split(rows, max_rows, *, dims=(2,), texts=1, owner=None, **more):
    """A request of a FP32 and a BYTES input whose values are the row numbers, split."""
    floats = np.arange(rows, dtype=np.float32).repeat(int(np.prod(dims)))
    strings = np.array([[f"{row}/{at}" for at in range(texts)] for row in range(rows)], dtype=object)
    request = make_request(
        rows,
        parts=[floats.tobytes(), bytes_tensor.encode(strings)],
        shapes=(dims, (texts,)),
        owner=owner or Owner(),
        **more,
    )
    signature = Signature((TensorSpec("x", "FP32", dims), TensorSpec("t", "BYTES", (-1,))), (), max_rows)
    reasons = Counter()
    return Split(request, signature, max_rows, lambda reason: reasons.update([reason])), reasons


def answer(piece, parameters=b""):
    """Replies to a piece with its own inputs."""
    rows = piece.template.rows
    shapes = ((rows, *piece.template.shapes[0]), (rows, *piece.template.shapes[1]))
    piece.sink.reply(piece.template.reply.encode(b"", [bytes(part) for part in piece.parts], shapes, parameters))


def test_the_pieces_hold_the_rows_in_order():
    work, _ = split(5, 2, now=7, expires=900, rpc_deadline=800)
    assert [piece.template.rows for piece in work.pieces] == [2, 2, 1]
    assert [np.frombuffer(piece.parts[0], np.float32)[::2].tolist() for piece in work.pieces] == [[0, 1], [2, 3], [4]]
    assert [bytes_tensor.decode(piece.parts[1], piece.template.rows) for piece in work.pieces] == [
        [b"0/0", b"1/0"],
        [b"2/0", b"3/0"],
        [b"4/0"],
    ]
    whole = work.whole
    assert whole.parts == ()
    for piece in work.pieces:
        assert (piece.received, piece.expires, piece.order) == (7, 900, whole.order)
        assert (piece.rpc_deadline, piece.nbytes) == (800, sum(map(len, piece.parts)))
        assert piece.template.key == whole.template.key
        assert piece.template.whole is whole
    assert sum(piece.nbytes for piece in work.pieces) == whole.nbytes
    assert repr(work) == "<Split into 3 pieces, 3 missing>"


@given(
    st.integers(2, 40),
    st.integers(1, 9),
    st.sampled_from([(), (2,), (0,), (2, 3)]),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_joined_is_as_if_never_split(rows, max_rows, dims, texts, rng):
    work, reasons = split(rows, max_rows, dims=dims, texts=texts)
    expected = split(rows, rows, dims=dims, texts=texts)[0].pieces[0]
    pieces = list(work.pieces)
    rng.shuffle(pieces)
    for piece in pieces:
        assert not work.whole.sink.ended
        answer(piece)
        piece.state = State.DONE
    outputs, shapes, parameters = work.whole.sink.message
    assert outputs == [bytes(part) for part in expected.parts]
    assert shapes == ((rows, *dims), (rows, texts))
    assert parameters == b""
    assert work.whole.state is State.DONE
    assert work.finished
    assert not reasons


def test_the_reply_has_the_timing_of_the_last_piece():
    work, _ = split(5, 2, timing=True)
    for piece, parameters in zip(work.pieces[::-1], (b"first", b"second", b"third"), strict=True):
        assert piece.template.timing
        answer(piece, parameters)
    assert work.whole.sink.message[2] == b"third"


def test_the_first_failure_is_that_of_the_whole_and_counts_once():
    work, reasons = split(6, 2)
    one, two, three = work.pieces
    one.state = State.DONE
    answer(one)
    two.state = State.RUNNING
    three.sink.fail(BackendFailed("broken"))
    assert str(work.whole.sink.error) == "broken"
    assert two.state is State.ABANDONED
    two.sink.fail(QueueTimeout("later"))
    assert reasons == {"backend_failed": 1}
    assert work.whole.state is State.DONE
    assert not work.finished  # the second piece still runs
    two.state = State.DONE
    assert work.finished


def test_a_late_piece_does_not_answer_a_failed_whole():
    work, _ = split(4, 2)
    work.pieces[0].sink.fail(BackendFailed("broken"))
    answer(work.pieces[1])
    assert work.whole.sink.error is not None


def test_an_unforeseen_error_has_a_reason_too():
    work, reasons = split(4, 2)
    error = ZeroDivisionError()
    work.pieces[0].sink.fail(error)
    assert work.whole.sink.error is error
    assert reasons == {"internal": 1}


@pytest.mark.parametrize("done", [0, 1, 2])
def test_cancelling_gives_up_all_pieces_in_whatever_state(done):
    owner = Owner()
    work, reasons = split(8, 2, owner=owner)
    for piece in work.pieces[:done]:
        answer(piece)
        piece.state = State.DONE
    work.pieces[3].state = State.RUNNING
    work.cancel()
    work.cancel()
    assert work.whole.state is State.ABANDONED
    assert [piece.state for piece in work.pieces] == [State.DONE] * 3 + [State.ABANDONED]
    answer(work.pieces[3])
    assert not work.whole.sink.ended
    assert reasons == {"cancelled": 1}
    work.pieces[3].state = State.DONE
    assert work.finished


def test_cancelling_after_the_reply_does_nothing():
    work, reasons = split(4, 2)
    for piece in work.pieces:
        answer(piece)
    work.cancel()
    assert work.whole.state is State.DONE
    assert not reasons


def test_pieces_are_cut_one_by_one_and_the_whole_not_again():
    values = np.arange(5, dtype=np.float32).repeat(2)
    request = make_request(5, parts=[values.tobytes()], shapes=((2,),), owner=Owner())
    request.template.reply = Crop(FakeWriter(), [TensorSpec("y", "FP32", (-1,))], [[Cut(1, 2, 1)]])
    work = Split(request, Signature((TensorSpec("x", "FP32", (2,)),), (), 2), 2, lambda reason: None)
    for piece in work.pieces:
        rows = piece.template.rows
        message = piece.template.reply.encode(b"", [bytes(piece.parts[0])], ((rows, 2),))
        assert (len(message[0][0]), message[1]) == (4 * rows, ((rows, 1),))
        piece.sink.reply(message)
    raw, shapes, _ = request.sink.message
    assert np.frombuffer(raw[0], np.float32).tolist() == [0, 1, 2, 3, 4]
    assert shapes == ((5, 1),)
