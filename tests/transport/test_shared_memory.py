import pytest

from headrace.engine.shared_memory import SharedMemoryRegions
from headrace.errors import InvalidRequest, RegionExists, RegionNotFound, Unimplemented
from headrace.rpc import inference_pb2 as pb
from headrace.transport.shared_memory import SharedMemoryAdmin


@pytest.fixture
def admin(tmp_path):
    (tmp_path / "key").write_bytes(bytes(100))
    return SharedMemoryAdmin(SharedMemoryRegions(tmp_path))


def register(admin, name="r", key="/key", offset=10, byte_size=20):
    return admin.register(pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=byte_size))


def status(admin, name=""):
    regions = admin.status(pb.SystemSharedMemoryStatusRequest(name=name)).regions
    return {key: (region.name, region.key, region.offset, region.byte_size) for key, region in regions.items()}


def test_register_status_unregister(admin):
    assert status(admin) == {}
    assert register(admin) == pb.SystemSharedMemoryRegisterResponse()
    register(admin, "s", offset=0)
    assert status(admin, "r") == {"r": ("r", "/key", 10, 20)}
    assert sorted(status(admin)) == ["r", "s"]
    with pytest.raises(RegionExists):
        register(admin)
    with pytest.raises(InvalidRequest):
        register(admin, "t", byte_size=101)
    admin.unregister(pb.SystemSharedMemoryUnregisterRequest(name="r"))
    with pytest.raises(RegionNotFound):
        status(admin, "r")
    admin.unregister(pb.SystemSharedMemoryUnregisterRequest())
    assert status(admin) == {}


def test_cuda_has_its_named_error(admin):
    assert not admin.cuda_status(pb.CudaSharedMemoryStatusRequest()).regions
    with pytest.raises(RegionNotFound, match="Unable to find cuda shared memory region: 'c'"):
        admin.cuda_status(pb.CudaSharedMemoryStatusRequest(name="c"))
    with pytest.raises(Unimplemented, match="failed to register CUDA shared memory region: 'c', GPUs not supported"):
        admin.cuda_register(pb.CudaSharedMemoryRegisterRequest(name="c", raw_handle=b"x", byte_size=1))
    assert admin.cuda_unregister(pb.CudaSharedMemoryUnregisterRequest()) == pb.CudaSharedMemoryUnregisterResponse()


@pytest.mark.parametrize(
    "method", ["status", "register", "unregister", "cuda_status", "cuda_register", "cuda_unregister"]
)
def test_switched_off(method):
    with pytest.raises(Unimplemented, match=r"^Client shared memory is disabled. Start the server with"):
        getattr(SharedMemoryAdmin(None), method)(None)
