"""Which checks there are, and what becomes of what a check says."""

import pytest

from gpu_check import child, registry
from gpu_check.__main__ import SECONDS
from gpu_check.checks import MODULES
from gpu_check.context import Context
from gpu_check.registry import Check, Failed, Skip, checks
from gpu_check.results import FAIL, PASS, SKIP


@pytest.fixture
def context(tmp_path):
    return Context(tmp_path, tmp_path / "models", cpu=True)


def check_that(run, needs=(), on_cpu=True):
    return Check("it", "title", needs, 1, on_cpu, run)


def raising(error):
    def run(context):
        raise error

    return run


def outcome(context, run, **more):
    found = child.outcome_of(check_that(run, **more), context)
    return found.status, found.reason, found.figures


def test_every_module_has_checks_with_titles_and_times():
    found = checks()
    assert {check.run.__module__.rpartition(".")[2] for check in found.values()} == set(MODULES)
    assert all(check.title and not check.title.endswith(".") and check.seconds > 0 for check in found.values())
    assert next(iter(found)) == "environment"


def test_all_that_needs_no_tensorrt_fits_the_time():
    """And leaves some of it for unpacking, and for what takes longer than it should."""
    assert sum(check.seconds for check in checks().values() if "tensorrt" not in check.needs) < 0.9 * SECONDS


def test_the_issue_is_covered():
    """What a GPU is needed for, each by a check at least."""
    assert {
        "environment", "kernels", "device-copies", "device-events", "device-graph", "device-staging", "overlap",
        "backend-onnxruntime-cuda", "backend-tensorrt", "fallback", "throughput-resnet50-fp16", "throughput-bert-fp16",
        "accuracy-resnet50", "accuracy-bert", "latency-backend-resnet50-fp16", "latency-backend-bert-fp16",
        "gpu-metrics",
    } <= set(checks())  # fmt: skip


def test_two_checks_of_one_name_are_refused():
    with pytest.raises(ValueError, match="'environment'"):
        checks() and registry.check("environment")(lambda context: {})


def test_what_a_check_returns_is_kept(context):
    assert outcome(context, lambda context: {"rate": 2.0}) == (PASS, "", {"rate": 2.0})


def test_a_check_that_says_skip_is_skipped(context):
    assert outcome(context, raising(Skip("no such backend"))) == (SKIP, "no such backend", {})


def test_a_check_that_fails_keeps_its_figures(context):
    assert outcome(context, raising(Failed("too slow", {"rate": 1.0}))) == (FAIL, "too slow", {"rate": 1.0})


def test_any_other_exception_is_a_failure(context):
    status, reason, _ = outcome(context, raising(RuntimeError("CUDA\nerror")))
    assert (status, reason) == (FAIL, "RuntimeError: CUDA error")


def test_without_what_it_needs_a_check_is_not_made(context):
    """Never a PASS: it would say that something was seen."""
    needs = ("json", "no_such_module", "no_such.module_either")
    expected = (SKIP, "not installed: no_such_module, no_such.module_either", {})
    assert outcome(context, lambda context: {}, needs=needs) == expected


def test_without_a_gpu_a_check_is_not_made(tmp_path, monkeypatch):
    monkeypatch.setattr(child, "gpu_count", lambda: 0)
    context = Context(tmp_path, tmp_path / "models")
    assert outcome(context, lambda context: {}) == (SKIP, "no NVIDIA GPU", {})


def test_on_the_processor_only_those_are_made_that_can_be(context):
    assert outcome(context, lambda context: {}, on_cpu=False) == (SKIP, "only on a GPU", {})


def test_a_context_comes_through_json(context):
    assert Context.loads(context.dumps()) == context
