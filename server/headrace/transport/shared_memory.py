"""The RPCs that register shared memory: Triton's system and CUDA shared memory extensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.engine.shared_memory import Registered, disabled
from headrace.errors import RegionNotFound, Unimplemented
from headrace.rpc import inference_pb2 as pb

if TYPE_CHECKING:
    from headrace.engine.shared_memory import SharedMemoryRegions


class SharedMemoryAdmin:
    """Registers, lists and forgets regions. regions: None where shared memory is switched off; all is refused then."""

    def __init__(self, regions: SharedMemoryRegions | None) -> None:
        self._regions = regions

    def status(self, request: pb.SystemSharedMemoryStatusRequest) -> pb.SystemSharedMemoryStatusResponse:
        """One region, or all. Raises RegionNotFound."""
        return pb.SystemSharedMemoryStatusResponse(
            regions={
                region.name: pb.SystemSharedMemoryStatusResponse.RegionStatus(
                    name=region.name, key=region.key, offset=region.offset, byte_size=region.byte_size
                )
                for region in self._enabled().status(request.name)
            }
        )

    def register(self, request: pb.SystemSharedMemoryRegisterRequest) -> pb.SystemSharedMemoryRegisterResponse:
        """Maps a region. Raises RegionExists, InvalidRequest."""
        self._enabled().register(Registered(request.name, request.key, request.offset, request.byte_size))
        return pb.SystemSharedMemoryRegisterResponse()

    def unregister(self, request: pb.SystemSharedMemoryUnregisterRequest) -> pb.SystemSharedMemoryUnregisterResponse:
        """Forgets one region, or all."""
        self._enabled().unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    def cuda_status(self, request: pb.CudaSharedMemoryStatusRequest) -> pb.CudaSharedMemoryStatusResponse:
        """There is none. Raises RegionNotFound if one is asked for by name."""
        self._enabled()
        if request.name:
            raise RegionNotFound(f"Unable to find cuda shared memory region: '{request.name}'")
        return pb.CudaSharedMemoryStatusResponse()

    def cuda_register(self, request: pb.CudaSharedMemoryRegisterRequest) -> pb.CudaSharedMemoryRegisterResponse:
        """Raises Unimplemented."""
        self._enabled()
        raise Unimplemented(
            f"failed to register CUDA shared memory region: '{request.name}', GPUs not supported: "
            "no backend of this server runs on one"
        )

    def cuda_unregister(self, request: pb.CudaSharedMemoryUnregisterRequest) -> pb.CudaSharedMemoryUnregisterResponse:
        """Does nothing: clients do so as a precaution."""
        self._enabled()
        return pb.CudaSharedMemoryUnregisterResponse()

    def _enabled(self) -> SharedMemoryRegions:
        if self._regions is None:
            raise disabled()
        return self._regions
