"""Whether copies hide behind computation: the device's own clock, with one and with two batches in flight."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, NamedTuple

from gpu_check.registry import Failed, check
from gpu_check.timeline import STEPS, Span, beside_computation, svg

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from gpu_check.context import Context
    from gpu_check.registry import Figures
    from headrace.backends.device import Device, Event
    from headrace.backends.staging import Lane

    Array = np.ndarray[Any, Any]

ROWS, WIDTH = 8192, 1024
NBYTES = ROWS * WIDTH * 4
"""33 MB a batch each way, and 100 GFLOP: copying and computing take about as long."""
BATCHES = 20
TRIES = 3
HIDDEN = 0.5
POSSIBLE = 1.5
"""What cannot be hidden; 1 is all there is, and a batch alone also waits for the processor."""
COMPARED = 64
"""Rows of a lane's output that are compared with the processor's."""


@check("overlap", needs=("numpy", "onnx", "onnxruntime"), seconds=15)
def overlap(context: Context) -> Figures:
    """With two batches in flight, copies of one go while the other is computed; with a picture of it."""
    from gpu_check.agreement import BOUNDS

    device = context.open_device()
    with ExitStack() as stack:
        lanes = [stack.enter_context(closing(_lane(device, number))) for number in range(2)]
        computations = [_computation(lane, context) for lane in lanes]
        in_flight(lanes, computations, BATCHES)  # what ONNX Runtime and the driver do the first time; clocks go up
        # the best of a few, so that what else the machine does is not taken for copies
        one = min((in_flight(lanes[:1], computations[:1], BATCHES) for _ in range(TRIES)), key=_per_batch)
        two = min((in_flight(lanes, computations, BATCHES) for _ in range(TRIES)), key=_per_batch)
        errors = {f"error, lane {number}": _error(lane, number) for number, lane in enumerate(lanes)}
    title = f"{device.name}: two batches in flight, {NBYTES / 1e6:.0f} MB each way, by event timestamps"
    (context.drawings / "overlap.svg").write_text(svg(title, two))
    if bad := [f"{lane}: {found:.3g}" for lane, found in errors.items() if not found <= BOUNDS["fp32"]]:
        raise Failed(f"{', '.join(bad)}; expected at most {BOUNDS['fp32']}", errors)
    return {**judged(one, two), **errors}


def _error(lane: Lane, number: int) -> float:
    """Of what the lane's last batch has brought back: that of nothing, or of the other lane, is above 1."""
    from gpu_check.agreement import error
    from gpu_check.sessions import on_cpu
    from gpu_check.small_models import perceptron
    from headrace.messages import TensorSpec

    got = lane.result(0, TensorSpec("y", "FP32", (WIDTH,)), (ROWS, WIDTH))[:COMPARED]
    return error(got, on_cpu(perceptron(WIDTH), {"x": _input(number)[:COMPARED]})[0])


def judged(one: Sequence[Span], two: Sequence[Span]) -> Figures:
    """Figures of batches run one at a time and two at a time.

    hidden: what the second batch in flight saves, as a share of the most it could, which is the smaller of copies and
    computation. Raises Failed where it is below HIDDEN: spans alone would not do, since a copy that waits for another
    one lies beside computation too.
    """
    each = {step: _mean([span.end - span.start for span in one if span.step == step]) for step in STEPS}
    copies = each["upload"] + each["download"]
    alone, together = _per_batch(one), _per_batch(two)
    hidden = (alone - together) / min(copies, each["compute"])
    figures = {
        **{f"{step}_ms": value for step, value in each.items()},
        "one_in_flight_ms": alone,
        "two_in_flight_ms": together,
        "hidden": hidden,
        "copies_beside_computation": beside_computation(two),
        "timeline_ms": [[span.lane, span.batch, span.step, round(span.start, 4), round(span.end, 4)] for span in two],
    }
    if hidden > POSSIBLE:
        raise Failed(f"{hidden:.2f} of the copies is hidden, more than there are: the runs were not alike", figures)
    if not hidden >= HIDDEN:
        raise Failed(f"{hidden:.2f} of the copies is hidden, expected at least {HIDDEN}", figures)
    return figures


def _per_batch(spans: Sequence[Span]) -> float:
    whole = max(span.end for span in spans) - min(span.start for span in spans)
    return whole / len({span.batch for span in spans})


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class _Marks(NamedTuple):
    """Events of one batch: before and behind each step."""

    lane: int
    batch: int
    events: list[Event]


def in_flight(lanes: Sequence[Lane], computations: Sequence[Callable[[], None]], batches: int) -> list[Span]:
    """Runs batches over the lanes by turns, the next one of a lane as soon as its last one is done.

    computations: for each lane, what puts its computation into the lane's stream. Times begin with the first batch.
    """
    marks: list[_Marks] = []
    with ExitStack() as stack:

        def mark(lane: Lane) -> Event:
            return stack.enter_context(closing(lane.stream.record(timed=True)))

        for batch in range(batches):
            number = batch % len(lanes)
            lane = lanes[number]
            if batch >= len(lanes):
                marks[batch - len(lanes)].events[-1].synchronize()
            events = [mark(lane)]
            lane.upload(0, NBYTES)
            events.append(mark(lane))
            computations[number]()
            events.append(mark(lane))
            lane.download(0, NBYTES)
            events.append(mark(lane))
            marks.append(_Marks(number, batch, events))
        for lane in lanes:
            lane.stream.synchronize()
        base = marks[0].events[0]
        times = [[0.0 if event is base else event.milliseconds_since(base) for event in m.events] for m in marks]
    return [
        Span(m.lane, m.batch, step, at[index], at[index + 1])
        for m, at in zip(marks, times, strict=True)
        for index, step in enumerate(STEPS)
    ]


def _lane(device: Device, number: int) -> Lane:
    """A lane whose input is laid, another one than any other lane's."""
    from headrace.backends.staging import Lane

    lane = Lane(device, [NBYTES], [NBYTES])
    lane.lay(0, [memoryview(_input(number).tobytes())], NBYTES)
    return lane


def _input(number: int) -> Array:
    from gpu_check.small_models import floats

    return floats(ROWS, WIDTH, seed=number)


def _computation(lane: Lane, context: Context) -> Callable[[], None]:
    """A perceptron on the lane's stream and memory, by ONNX Runtime."""
    import numpy as np
    import onnxruntime

    from gpu_check.sessions import EXACT, opened
    from gpu_check.small_models import perceptron

    session = opened(perceptron(WIDTH), context, user_compute_stream=str(lane.stream.handle), **EXACT)
    binding, options = session.io_binding(), onnxruntime.RunOptions()
    shape = (ROWS, WIDTH)
    binding.bind_input("x", "cuda", context.device, np.float32, shape, lane.inputs[0].pointer)
    binding.bind_output("y", "cuda", context.device, np.float32, shape, lane.outputs[0].pointer)
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return lambda: session.run_with_iobinding(binding, options)
