"""The RPCs that control the model repository: Triton's model repository extension."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from headrace.errors import InvalidRequest, Unimplemented
from headrace.repository.catalog import State
from headrace.repository.overrides import FILE_PREFIX
from headrace.rpc import inference_pb2 as pb

if TYPE_CHECKING:
    from headrace.engine.control import ModelControl
    from headrace.repository.catalog import Catalog, IndexEntry


class RepositoryAdmin:
    """Lists, loads and unloads models.

    allow_config, allow_files: whether a client may bring a configuration, or the files of a model, along with a load.
    """

    def __init__(
        self, control: ModelControl, catalog: Catalog[Any], *, allow_config: bool = False, allow_files: bool = False
    ) -> None:
        self._control = control
        self._catalog = catalog
        self._allow_config = allow_config
        self._allow_files = allow_files

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
                for entry in map(self._as_it_is, self._catalog.index())
                if entry.state is State.READY or not request.ready
            )
        )

    def _as_it_is(self, entry: IndexEntry) -> IndexEntry:
        """A version that is loaded may be without a usable instance, or run by another backend than it was."""
        if entry.state is not State.READY:
            return entry
        condition = self._catalog.resolve(entry.name, str(entry.version)).condition
        reason = "; ".join(filter(None, (condition.note, entry.reason)))
        return replace(entry, state=State.READY if condition.usable else State.UNAVAILABLE, reason=reason)

    async def load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        """Answers when the model serves. Raises what `ModelControl.load` does, and Unimplemented."""
        _refuse_repository(request.repository_name)
        config = ""
        files: dict[str, bytes] = {}
        for key, value in request.parameters.items():
            if key == "config":
                _refuse_unless(self._allow_config, key, "--allow-config-override")
                config = _text(key, value)
            elif key.startswith(FILE_PREFIX):
                _refuse_unless(self._allow_files, key, "--allow-file-override")
                files[key.removeprefix(FILE_PREFIX)] = value.bytes_param
            else:
                raise InvalidRequest(f"unknown parameter '{key}' of a load, expected 'config' or '{FILE_PREFIX}...'")
        await self._control.load(request.model_name, config, files)
        return pb.RepositoryModelLoadResponse()

    async def unload(self, request: pb.RepositoryModelUnloadRequest) -> pb.RepositoryModelUnloadResponse:
        """Answers when the model takes no more requests; what it has accepted is answered after that."""
        _refuse_repository(request.repository_name)
        dependents = False
        for key, value in request.parameters.items():
            if key != "unload_dependents":
                raise InvalidRequest(f"unknown parameter '{key}' of an unload, expected 'unload_dependents'")
            if value.WhichOneof("parameter_choice") != "bool_param":
                raise InvalidRequest(f"parameter '{key}' of an unload: expected a boolean")
            dependents = value.bool_param
        await self._control.unload(request.model_name, dependents=dependents)
        return pb.RepositoryModelUnloadResponse()


def _text(key: str, value: pb.ModelRepositoryParameter) -> str:
    if value.WhichOneof("parameter_choice") != "string_param" or not value.string_param:
        raise InvalidRequest(f"parameter '{key}' of a load: expected a ModelConfig in JSON, as text")
    return value.string_param


def _refuse_unless(allowed: bool, key: str, flag: str) -> None:
    if not allowed:
        raise Unimplemented(
            f"parameter '{key}' of a load is switched off. Start the server with '{flag} true' to enable."
        )


def _refuse_repository(name: str) -> None:
    if name:
        raise Unimplemented("'repository_name' specification is not supported")
