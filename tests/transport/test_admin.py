from dataclasses import dataclass, field

import pytest

import headrace
from headrace.errors import HeadraceError, InvalidRequest, ModelNotFound, ModelNotReady
from headrace.messages import Signature, TensorSpec
from headrace.repository.catalog import Catalog
from headrace.repository.model_config import BatchingConfig, ModelConfig, QueueConfig
from headrace.rpc import inference_pb2 as pb
from headrace.rpc import model_config_pb2 as mc
from headrace.telemetry.statistics import BatchStatistics, Duration, Statistics
from headrace.testing.condition import FakeCondition
from headrace.transport.admin import Admin

SIGNATURE = Signature(
    inputs=(TensorSpec("pixels", "FP32", (3, -1)), TensorSpec("text", "BYTES", ())),
    outputs=(TensorSpec("label", "INT64", ()), TensorSpec("half", "BF16", (4,))),
    max_batch=8,
)


@dataclass
class FakeEngine:
    live: bool = True
    ready: bool = True


@dataclass
class FakeServed:
    name: str = "digits"
    version: str = "1"
    platform: str = "onnxruntime_onnx"
    signature: Signature = SIGNATURE
    config: ModelConfig = field(default_factory=ModelConfig)
    plan: None = None
    condition: FakeCondition = field(default_factory=FakeCondition)
    recorded: Statistics = field(default_factory=Statistics)
    stated: mc.ModelConfig | None = None

    def statistics(self):
        return self.recorded


def admin_of(*served, engine=None):
    catalog = Catalog()
    for model in served:
        catalog.ready(model.name, int(model.version), model)
    return Admin(engine or FakeEngine(), catalog), catalog


@pytest.mark.parametrize("up", [True, False])
def test_server_health(up):
    admin, _ = admin_of(engine=FakeEngine(live=up, ready=not up))
    assert admin.server_live(pb.ServerLiveRequest()).live is up
    assert admin.server_ready(pb.ServerReadyRequest()).ready is not up


def test_server_metadata_advertises_only_what_there_is():
    admin, _ = admin_of()
    metadata = admin.server_metadata(pb.ServerMetadataRequest())
    assert (metadata.name, metadata.version) == ("headrace", headrace.__version__)
    expected = [
        "classification",
        "sequence",
        "model_repository",
        "model_repository(unload_dependents)",
        "schedule_policy",
        "model_configuration",
        "system_shared_memory",
        "binary_tensor_data",
        "parameters",
        "statistics",
        "trace",
        "logging",
    ]
    assert list(metadata.extensions) == expected
    without = Admin(FakeEngine(), Catalog(), without=["system_shared_memory"])
    expected.remove("system_shared_memory")
    assert list(without.server_metadata(pb.ServerMetadataRequest()).extensions) == expected


def test_model_ready():
    admin, _ = admin_of(FakeServed())
    assert admin.model_ready(pb.ModelReadyRequest(name="digits")).ready is True
    assert admin.model_ready(pb.ModelReadyRequest(name="digits", version="1")).ready is True


def test_a_model_without_a_usable_instance_is_not_ready():
    served = FakeServed(condition=FakeCondition(usable=0, note="2 of 2 instances lost"))
    admin, _ = admin_of(served)
    with pytest.raises(ModelNotReady, match="'digits' version 1 is not at ready state: 2 of 2 instances lost"):
        admin.model_ready(pb.ModelReadyRequest(name="digits"))
    served.condition.usable = 1
    assert admin.model_ready(pb.ModelReadyRequest(name="digits")).ready is True


def test_no_model_is_ready_on_a_server_that_is_not():
    admin, _ = admin_of(FakeServed(), engine=FakeEngine(ready=False))
    with pytest.raises(ModelNotReady, match=r"^Server not ready$"):
        admin.model_ready(pb.ModelReadyRequest(name="digits"))


RESOLVING = [
    ("model_ready", pb.ModelReadyRequest),
    ("model_metadata", pb.ModelMetadataRequest),
    ("model_config", pb.ModelConfigRequest),
]

UNRESOLVED = [
    ("nobody", "", ModelNotFound, "Request for unknown model: 'nobody' is not found"),
    ("digits", "9", ModelNotFound, "Request for unknown model: 'digits' version 9 is not found"),
    ("broken", "", ModelNotFound, "Request for unknown model: 'broken' has no available versions"),
    ("digits", "2", ModelNotReady, "Request for unknown model: 'digits' version 2 is not at ready state"),
    (
        "digits",
        "x",
        InvalidRequest,
        "failed to get model version from specified version string 'x' (details: not an integer), "
        "version should be an integral value > 0",
    ),
]


@pytest.mark.parametrize(("method", "request_class"), RESOLVING)
@pytest.mark.parametrize(("name", "version", "error", "text"), UNRESOLVED)
def test_a_model_that_cannot_be_resolved(method, request_class, name, version, error, text):
    admin, catalog = admin_of(FakeServed())
    catalog.loading("digits", 2)
    catalog.failed("broken", 1, "no such operator")
    with pytest.raises(HeadraceError) as raised:
        getattr(admin, method)(request_class(name=name, version=version))
    assert (type(raised.value), str(raised.value)) == (error, text)


def test_metadata_of_a_batching_model_has_a_leading_free_dimension():
    admin, _ = admin_of(FakeServed())
    metadata = admin.model_metadata(pb.ModelMetadataRequest(name="digits"))
    assert (metadata.name, metadata.platform, list(metadata.versions)) == ("digits", "onnxruntime_onnx", ["1"])
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("pixels", "FP32", [-1, 3, -1]),
        ("text", "BYTES", [-1]),
    ]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [
        ("label", "INT64", [-1]),
        ("half", "BF16", [-1, 4]),
    ]


@pytest.mark.parametrize(("max_batch", "shape"), [(0, [4]), (1, [-1, 4])])
def test_the_free_dimension_comes_with_batching_only(max_batch, shape):
    spec = (TensorSpec("x", "FP32", (4,)),)
    admin, _ = admin_of(FakeServed(signature=Signature(spec, spec, max_batch)))
    assert list(admin.model_metadata(pb.ModelMetadataRequest(name="digits")).inputs[0].shape) == shape


def test_metadata_lists_all_ready_versions_or_the_one_asked_for():
    admin, catalog = admin_of(FakeServed(version="3"), FakeServed(version="10", platform="newest"))
    catalog.loading("digits", 11)
    every = admin.model_metadata(pb.ModelMetadataRequest(name="digits"))
    assert (list(every.versions), every.platform) == (["3", "10"], "newest")
    one = admin.model_metadata(pb.ModelMetadataRequest(name="digits", version="3"))
    assert (list(one.versions), one.platform) == (["3"], "onnxruntime_onnx")


def test_metadata_names_a_version_as_the_server_does():
    admin, _ = admin_of(FakeServed())
    assert list(admin.model_metadata(pb.ModelMetadataRequest(name="digits", version="01")).versions) == ["1"]


def config_of(served):
    admin, _ = admin_of(served)
    return admin.model_config(pb.ModelConfigRequest(name=served.name)).config


def test_config_has_dims_without_the_batch_dimension():
    config = config_of(FakeServed(config=ModelConfig(instances=3)))
    assert (config.name, config.platform, config.backend) == ("digits", "onnxruntime_onnx", "onnxruntime")
    assert (config.max_batch_size, config.default_model_filename) == (8, "model.onnx")
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [
        ("pixels", mc.TYPE_FP32, [3, -1]),
        ("text", mc.TYPE_STRING, []),
    ]
    assert [(o.name, o.data_type, list(o.dims)) for o in config.output] == [
        ("label", mc.TYPE_INT64, []),
        ("half", mc.TYPE_BF16, [4]),
    ]
    assert [(g.name, g.kind, g.count) for g in config.instance_group] == [("digits", mc.ModelInstanceGroup.KIND_CPU, 3)]


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ("latest:2", mc.ModelVersionPolicy(latest=mc.ModelVersionPolicy.Latest(num_versions=2))),
        ("all", mc.ModelVersionPolicy(all=mc.ModelVersionPolicy.All())),
        ((1, 3), mc.ModelVersionPolicy(specific=mc.ModelVersionPolicy.Specific(versions=[1, 3]))),
    ],
)
def test_config_version_policy(versions, expected):
    assert config_of(FakeServed(config=ModelConfig(versions=versions))).version_policy == expected


@pytest.mark.parametrize(("max_batch", "batches"), [(0, False), (1, False), (2, True)])
def test_config_has_dynamic_batching_where_batches_form(max_batch, batches):
    config = config_of(FakeServed(signature=Signature((), (), max_batch)))
    assert config.HasField("dynamic_batching") is batches
    assert config.WhichOneof("scheduling_choice") == ("dynamic_batching" if batches else None)


def test_config_describes_queue_delay_and_priorities_in_tritons_terms():
    batching = config_of(
        FakeServed(
            config=ModelConfig(
                slo_ms=2.5,
                priority_levels=3,
                batching=BatchingConfig(policy="delay", delay_us=400),
                queue=QueueConfig(max_requests=10),
            )
        )
    ).dynamic_batching
    assert (batching.max_queue_delay_microseconds, batching.priority_levels) == (400, 3)
    assert batching.default_priority_level == 3
    policy = batching.default_queue_policy
    assert (policy.default_timeout_microseconds, policy.allow_timeout_override) == (2500, True)
    assert (policy.max_queue_size, policy.timeout_action) == (10, mc.ModelQueuePolicy.REJECT)


def test_config_says_nothing_of_a_delay_that_is_not_waited():
    config = ModelConfig(batching=BatchingConfig(policy="slot", delay_us=400))
    batching = config_of(FakeServed(config=config)).dynamic_batching
    assert (batching.max_queue_delay_microseconds, batching.priority_levels) == (0, 0)


RECORDED = Statistics(
    last_inference_ms=1_700_000_000_123,
    inference_count=12,
    execution_count=3,
    success=Duration(5, 500),
    fail=Duration(2, 0),
    queue=Duration(5, 100),
    compute_input=Duration(5, 10),
    compute_infer=Duration(5, 300),
    compute_output=Duration(5, 20),
    cache_hit=Duration(1, 1),
    cache_miss=Duration(4, 4),
    batches=[BatchStatistics(4, Duration(3, 6), Duration(3, 180), Duration(3, 12))],
)


def test_statistics_carry_every_figure():
    admin, _ = admin_of(FakeServed(recorded=RECORDED))
    (entry,) = admin.model_statistics(pb.ModelStatisticsRequest(name="digits", version="1")).model_stats
    assert (entry.name, entry.version, entry.last_inference) == ("digits", "1", 1_700_000_000_123)
    assert (entry.inference_count, entry.execution_count) == (12, 3)
    stats = entry.inference_stats
    assert {f.name: (getattr(stats, f.name).count, getattr(stats, f.name).ns) for f in stats.DESCRIPTOR.fields} == {
        "success": (5, 500),
        "fail": (2, 0),
        "queue": (5, 100),
        "compute_input": (5, 10),
        "compute_infer": (5, 300),
        "compute_output": (5, 20),
        "cache_hit": (1, 1),
        "cache_miss": (4, 4),
    }
    (batch,) = entry.batch_stats
    assert (batch.batch_size, batch.compute_infer.count) == (4, 3)
    assert (batch.compute_input.ns, batch.compute_infer.ns, batch.compute_output.ns) == (6, 180, 12)


def test_statistics_of_all_models_of_one_and_of_a_version():
    admin, catalog = admin_of(FakeServed(version="1"), FakeServed(version="2"), FakeServed(name="other"))
    catalog.failed("broken", 1, "no such operator")

    def asked(**names):
        reply = admin.model_statistics(pb.ModelStatisticsRequest(**names))
        return [(entry.name, entry.version) for entry in reply.model_stats]

    assert asked() == [("digits", "1"), ("digits", "2"), ("other", "1")]
    assert asked(name="digits") == [("digits", "1"), ("digits", "2")]
    assert asked(name="digits", version="2") == [("digits", "2")]


@pytest.mark.parametrize(
    ("name", "version", "text"),
    [
        ("nobody", "", "requested model 'nobody' is not available"),
        ("nobody", "1", "requested model 'nobody' is not available"),
        ("digits", "9", "requested model version is not available for model 'digits'"),
        ("digits", "x", "failed to get model version from specified version string 'x' .*"),
    ],
)
def test_statistics_of_what_is_not_there_are_an_invalid_request(name, version, text):
    admin, _ = admin_of(FakeServed())
    with pytest.raises(InvalidRequest, match=f"^{text}$"):
        admin.model_statistics(pb.ModelStatisticsRequest(name=name, version=version))
