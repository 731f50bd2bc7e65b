"""The server's device layer (headrace.backends.device, .cuda, .staging): copies, events, graphs, staging, errors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from gpu_check.registry import Failed, check

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from gpu_check.context import Context
    from gpu_check.registry import Figures
    from headrace.backends.device import Device, HostMemory, Memory, Stream
    from headrace.backends.staging import Lane

    Array = np.ndarray[Any, Any]

SIZES = (1, 255, 4096, (1 << 20) + 1, 64 << 20)
ROUNDS = 20
LANES = 4
NUMPY = ("numpy",)


@check("device-copies", needs=NUMPY, seconds=6, on_cpu=True)
def device_copies(context: Context) -> Figures:
    """Bytes come back from the device as they went, at any size; the rate of copies from and to page-locked memory."""
    device = context.open_device()
    figures: dict[str, object] = {"device": f"{device.name}, sm_{device.architecture[0]}{device.architecture[1]}"}
    with ExitStack() as stack:
        device.use()
        stream = stack.enter_context(closing(device.stream()))
        for size in SIZES:
            there, on, back = _places(device, size, stack)
            there.array[:] = _octets(size, seed=size)
            back.array[:] = 0
            stream.upload(on, there, size)
            stream.download(back, on, size)
            stream.synchronize()
            _same(back.array, there.array, f"{size} bytes")
        if not context.cpu:
            figures |= _rates(stream, there, on, back)
    return figures


def _rates(stream: Stream, there: HostMemory, on: Memory, back: HostMemory) -> dict[str, float]:
    """GiB/s of the largest copy each way, by the device's own clock."""
    ways: dict[str, Callable[[], None]] = {
        "upload": lambda: stream.upload(on, there, there.nbytes),
        "download": lambda: stream.download(back, on, back.nbytes),
    }
    rates = {}
    for way, copy in ways.items():
        copy()
        with closing(stream.record(timed=True)) as first:
            for _ in range(ROUNDS):
                copy()
            with closing(stream.record(timed=True)) as last:
                last.synchronize()
                seconds = last.milliseconds_since(first) / 1000
        rates[f"{way}_gib_per_second"] = ROUNDS * there.nbytes / 2**30 / seconds
    return rates


@check("device-events", needs=NUMPY, seconds=5, on_cpu=True)
def device_events(context: Context) -> Figures:
    """A stream that waits for an event of another one sees what that one had done before it."""
    device, size = context.open_device(), 8 << 20
    with ExitStack() as stack:
        device.use()
        one, two = (stack.enter_context(closing(device.stream())) for _ in range(2))
        there, on, back = _places(device, size, stack)
        for number in range(ROUNDS):
            there.array[:] = number + 1
            one.upload(on, there, size)
            uploaded = stack.enter_context(closing(one.record()))
            two.wait(uploaded)
            two.download(back, on, size)
            downloaded = stack.enter_context(closing(two.record()))
            downloaded.synchronize()
            _same(back.array, there.array, f"round {number}")
    return {"rounds": ROUNDS}


@check("device-graph", needs=NUMPY, seconds=5, on_cpu=True)
def device_graph(context: Context) -> Figures:
    """Captured copies are done at each launch, on what lies there then; a capture that fails harms nothing."""
    from gpu_check.bare import latency_us
    from headrace.backends.device import DeviceError

    device, size = context.open_device(), 1 << 16
    with ExitStack() as stack:
        device.use()
        stream = stack.enter_context(closing(device.stream()))
        there, on, back = _places(device, size, stack)

        def work() -> None:
            stream.upload(on, there, size)
            stream.download(back, on, size)

        try:
            stream.capture(stream.synchronize).close()
        except DeviceError as error:
            refused = str(error)
        else:
            raise Failed("waiting for the stream was captured, expected DeviceError")
        try:
            stream.capture(work, closed=True).close()
        except DeviceError as error:
            refused += f"; {error}"
        else:
            raise Failed("copies of the host's memory are in a closed graph, expected DeviceError")
        graph = stack.enter_context(closing(stream.capture(work)))
        for number in range(ROUNDS):
            there.array[:], back.array[:] = number + 1, 0
            graph.launch(stream)
            stream.synchronize()
            _same(back.array, there.array, f"launch {number}")

        def launched() -> None:
            graph.launch(stream)
            stream.synchronize()

        def separately() -> None:
            work()
            stream.synchronize()

        seconds = min(context.seconds, 1) / 2
        return {
            "refused": refused,
            **{f"graph_{name}": value for name, value in latency_us(launched, seconds).items()},
            **{f"calls_{name}": value for name, value in latency_us(separately, seconds).items()},
        }


@check("device-staging", needs=NUMPY, seconds=5, on_cpu=True)
def device_staging(context: Context) -> Figures:
    """Lanes on threads of their own lay, pad, upload and download batches; none sees what is another's."""
    device = context.open_device()
    with ThreadPoolExecutor(LANES) as threads:
        list(threads.map(lambda number: _lane(device, number), range(LANES)))
    return {"lanes": LANES, "batches": LANES * ROUNDS}


def _lane(device: Device, number: int) -> None:
    """Batches of rows of one request and of several through a lane whose output lies where its input does."""
    import numpy as np

    from headrace.backends.staging import Lane
    from headrace.messages import TensorSpec

    width, most = 1024, 64
    room = most * width * 4
    rng, spec = np.random.default_rng(number), TensorSpec("y", "FP32", (width,))
    with closing(Lane(device, [room], [room])) as lane:
        lane.outputs[0] = lane.inputs[0]
        for batch in range(ROUNDS):
            sizes = rng.integers(1, most // 4, 4)
            parts = [np.full((rows, width), number * 1000 + batch + row / 7, np.float32)
                     for row, rows in enumerate(sizes)]  # fmt: skip
            rows = int(sizes.sum())
            _through(lane, [b"\xa5" * room], room, room)  # what must not be seen of a batch before
            _through(lane, [part.tobytes() for part in parts], rows * width * 4, room)
            want = np.zeros((most, width), np.float32)
            want[:rows] = np.concatenate(parts)
            _same(lane.result(0, spec, (most, width)), want, f"lane {number}, batch {batch}")


def _through(lane: Lane, parts: list[bytes], nbytes: int, room: int) -> None:
    """A batch to the device and back, padded."""
    lane.lay(0, parts, nbytes, padded=room)
    lane.upload(0, room)
    lane.download(0, room)
    lane.stream.synchronize()


@check("device-memory", needs=NUMPY, seconds=5, on_cpu=True)
def device_memory(context: Context) -> Figures:
    """More memory than there is raises DeviceOutOfMemory, the device goes on, and what was freed is free again."""
    from headrace.backends.device import DeviceOutOfMemory

    device = context.open_device()
    before, total = device.memory_info()
    try:
        device.allocate(2 * total).close()
    except DeviceOutOfMemory as error:
        refused = str(error)
    else:
        raise Failed(f"{2 * total} bytes were allocated of {total}, expected DeviceOutOfMemory")
    with ExitStack() as stack:
        half = stack.enter_context(closing(device.allocate(before // 2)))
        held, _ = device.memory_info()
    after, _ = device.memory_info()
    figures = {"total": total, "free": before, "free_with_half_taken": held, "free_after": after, "refused": refused}
    # Others may take memory meanwhile, and the driver gives it in blocks: hence a tenth of what was taken.
    if not (before - held >= 0.9 * half.nbytes and before - after <= 0.1 * half.nbytes):
        raise Failed(f"{half.nbytes} bytes were taken and freed: {before}, {held}, {after} bytes were free", figures)
    return figures


@check("device-lost", needs=("numpy", "cuda.bindings"), seconds=5)
def device_lost(context: Context) -> Figures:
    """After a kernel has faulted, in this process alone, whatever is asked of the device raises DeviceLost."""
    from gpu_check.faulting import fault

    device = context.open_device()
    device.use()
    return lost_after(device, fault)


def lost_after(device: Device, fault: Callable[[Stream], None]) -> Figures:
    """What the device says after `fault`. Raises Failed unless that is DeviceLost, each time."""
    from headrace.backends.device import DeviceLost

    memory, stream = device.allocate(1024), device.stream()
    fault(stream)
    figures = {}
    asked: dict[str, Callable[[], object]] = {
        "synchronize": stream.synchronize,
        "allocate": lambda: device.allocate(1024),
        "record": stream.record,
    }
    for what, ask in asked.items():
        try:
            ask()
        except DeviceLost as error:
            figures[what] = str(error)
        except Exception as error:
            raise Failed(f"{what} raised {error!r}, expected DeviceLost", figures) from error
        else:
            raise Failed(f"{what} raised nothing, expected DeviceLost", figures)
    memory.close()  # which must not raise
    return figures


def _places(device: Device, size: int, stack: ExitStack) -> tuple[HostMemory, Memory, HostMemory]:
    """Page-locked memory, memory of the device, and page-locked memory again."""
    there, back = (stack.enter_context(closing(device.pin(size))) for _ in range(2))
    return there, stack.enter_context(closing(device.allocate(size))), back


def _octets(size: int, seed: int) -> Array:
    import numpy as np

    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def _same(got: Array, want: Array, what: str) -> None:
    import numpy as np

    if not np.array_equal(got, want):
        wrong = int((got != want).sum())
        raise Failed(f"{what}: {wrong} of {want.size} elements differ from what was sent")
