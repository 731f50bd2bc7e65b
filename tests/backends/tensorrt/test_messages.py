import logging
import threading

import pytest

from headrace.backends.tensorrt.messages import PROGRESS_NS, Messages, Progress, make_log


@pytest.mark.parametrize(
    ("severity", "level"),
    [(0, logging.ERROR), (1, logging.ERROR), (2, logging.WARNING), (3, logging.DEBUG), (4, None), (5, None)],
)
def test_severities(caplog, severity, level):
    caplog.set_level(logging.DEBUG, "headrace.backends.tensorrt")
    Messages().log(severity, "100 % of it")
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == (
        [] if level is None else [(level, "100 % of it")]
    )


def test_errors_are_collected_and_nothing_else():
    messages = Messages()
    messages.log(1, "before")
    with messages.collect() as said:
        for severity in range(5):
            messages.log(severity, f"{severity}\n")
    messages.log(1, "after")
    assert said == ["0", "1"]


def test_each_thread_collects_its_own():
    messages = Messages()
    inside, said, other = threading.Barrier(2), [], []

    def work():
        with messages.collect() as mine:
            inside.wait(30)
            messages.log(1, "theirs")
            inside.wait(30)
            other.extend(mine)

    thread = threading.Thread(target=work)
    thread.start()
    with messages.collect() as mine:
        inside.wait(30)
        messages.log(1, "mine")
        inside.wait(30)
        said.extend(mine)
    thread.join()
    assert (said, other) == (["mine"], ["theirs"])


def test_errors_of_threads_that_do_not_collect_are_everybodys():
    """TensorRT's own threads have errors too."""
    messages = Messages()
    with messages.collect() as said:
        thread = threading.Thread(target=messages.log, args=(1, "of a helper"))
        thread.start()
        thread.join()
    assert said == ["of a helper"]


def test_inside_one_another():
    messages = Messages()
    with messages.collect() as outer:
        messages.log(1, "a")
        with messages.collect() as inner:
            messages.log(1, "b")
        messages.log(1, "c")
    assert (outer, inner) == (["a", "b", "c"], ["b"])


def test_nvidias_logger_is_really_one(rtx):
    log = make_log(rtx.trt)
    assert isinstance(log, rtx.trt.ILogger)
    with log.collect() as said:
        rtx.trt.Runtime(log).deserialize_cuda_engine(b"no plan")
    assert said


def test_progress_is_told_now_and_then(caplog):
    caplog.set_level(logging.INFO, "headrace.backends.tensorrt")
    times = iter([0, 1, PROGRESS_NS - 1, PROGRESS_NS, PROGRESS_NS + 1, 2 * PROGRESS_NS])
    progress = Progress("m", times.__next__)
    progress.phase_start("Build", None, 40)
    progress.phase_start("Tactics", "Build", 7)
    assert all(progress.step_complete("Tactics", step) for step in range(4))
    progress.phase_finish("Tactics")
    assert progress.step_complete("Build", 9)
    assert [record.getMessage() for record in caplog.records] == [
        "m: TensorRT builds: Tactics, step 3 of 7",
        "m: TensorRT builds: Build, step 10 of 40",
    ]
