"""The RPCs that control the model repository: Triton's model repository extension."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.errors import Unimplemented
from headrace.repository.catalog import State
from headrace.rpc import inference_pb2 as pb

if TYPE_CHECKING:
    from headrace.engine.control import ModelControl
    from headrace.repository.catalog import Catalog


class RepositoryAdmin:
    """Lists, loads and unloads models."""

    def __init__(self, control: ModelControl, catalog: Catalog[Any]) -> None:
        self._control = control
        self._catalog = catalog

    async def index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        """Every version that there is with its state, or only what is ready."""
        _refuse_repository(request.repository_name)
        await self._control.index()
        return pb.RepositoryIndexResponse(
            models=(
                pb.RepositoryIndexResponse.ModelIndex(
                    name=entry.name,
                    version="" if entry.version is None else str(entry.version),
                    state=entry.state,
                    reason=entry.reason,
                )
                for entry in self._catalog.index()
                if entry.state is State.READY or not request.ready
            )
        )

    async def load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        """Answers when the model serves. Raises ModelControlDisabled, ModelNotInRepository, LoadFailed."""
        _refuse_repository(request.repository_name)
        if request.parameters:
            raise Unimplemented(
                f"load of '{request.model_name}' with the parameters {sorted(request.parameters)}: a configuration or "
                "files from a client are not taken"
            )
        await self._control.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def unload(self, request: pb.RepositoryModelUnloadRequest) -> pb.RepositoryModelUnloadResponse:
        """Answers when the model takes no more requests; what it has accepted is answered after that."""
        _refuse_repository(request.repository_name)
        dependents = request.parameters["unload_dependents"].bool_param
        await self._control.unload(request.model_name, dependents=dependents)
        return pb.RepositoryModelUnloadResponse()


def _refuse_repository(name: str) -> None:
    if name:
        raise Unimplemented("'repository_name' specification is not supported")
