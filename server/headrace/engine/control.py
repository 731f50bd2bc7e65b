"""Which models shall be loaded, by mode: those that are there at the start, or that come and go, or are asked for."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from headrace.errors import ConfigError, LoadFailed, ModelControlDisabled, ModelNotInRepository, let_go
from headrace.repository.catalog import NOT_LOADED
from headrace.repository.configuration import PBTXT_FILE
from headrace.repository.discovery import NAME_RULE, Broken, Found, doubt, is_name, names, scan, scan_model, shown
from headrace.repository.overrides import Staging, stage

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping, Sequence
    from pathlib import Path

    from headrace.engine.lifecycle import Engine

    Mode = Literal["none", "poll", "explicit"]
    Entries = list[Found | Broken]

logger = logging.getLogger(__name__)

_SETTLE_SECONDS = 1.0
"""A change is believed when two looks this far apart agree: a model that is being copied is not whole yet."""


class ModelControl:
    """Has the engine serve what it shall. Loads and unloads of one model follow one another.

    root: the repository. startup: names of the models to load at the start in mode `explicit`; `*` for all.
    """

    def __init__(self, root: Path, mode: Mode, engine: Engine, startup: Sequence[str] = ()) -> None:
        self._root = root
        self._mode = mode
        self._engine = engine
        self._startup = startup
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._acted_on: dict[str, Entries] = {}
        self._at_work: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<ModelControl {self._mode}, {len(self._acted_on)} models>"

    async def start(self) -> None:
        """Loads what is served from the start. Raises ConfigError when the repository cannot be read."""
        if self._startup and self._mode != "explicit":
            logger.warning("load_models has no effect: model_control_mode is '%s', expected 'explicit'", self._mode)
        everything = self._mode != "explicit" or "*" in self._startup
        if everything:
            self._acted_on = _by_name(await self._engine.load_all(self._root))
        else:
            await self.index()
        with suppress(OSError):
            if said := await asyncio.to_thread(doubt, self._root):
                logger.warning("%s", said)
        for name in () if everything else self._startup:
            try:
                await self.load(name)
            except (ModelNotInRepository, LoadFailed) as error:
                logger.error("%s", error)

    async def load(self, name: str, config: str = "", files: Mapping[str, bytes] | None = None) -> None:
        """Loads a model as the repository has it now, or loads it again, and returns when it serves.

        What served before does so until then, and if the load fails. Cancelled, it goes on by itself. config, files:
        see `repository.overrides`; they hold for this load. Raises ModelControlDisabled, ModelNotInRepository,
        LoadFailed, InvalidRequest.
        """
        self._check_mode()
        try:
            if config or files:
                await self._to_its_end(self._load_overridden(name, config, files or {}))
            else:
                await self._to_its_end(self._load(name))
        except Exception as error:
            let_go(error)
            raise

    async def _load_overridden(self, name: str, config: str, files: Mapping[str, bytes]) -> None:
        if not is_name(name):
            raise _not_there(name)
        staging = Staging()
        try:
            await asyncio.to_thread(stage, self._root, name, config, files, staging.path)
            await self._load(name, staging=staging)
        except LoadFailed as error:
            raise LoadFailed(_without_paths(str(error), staging.path / name)) from error
        finally:
            if not self._engine.needs(staging):
                staging.close()

    async def _to_its_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Awaits work that goes on when whoever asked for it has gone away."""
        task = asyncio.create_task(work)
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)
        await asyncio.shield(task)

    async def _load(self, name: str, users: tuple[str, ...] = (), staging: Staging | None = None) -> None:
        """Loads a model and, if it is an ensemble, first those of its models that do not serve. users: for whom.

        staging: where it is found, if not in the repository.
        """
        entries = await asyncio.to_thread(scan_model, staging.path if staging else self._root, name)
        if not entries:
            raise _not_there(name)
        if staging is not None:
            entries = [
                replace(entry, reason=_without_paths(entry.reason, staging.path / name))
                if isinstance(entry, Broken)
                else replace(entry, keeps=staging)
                for entry in entries
            ]
        for step in _steps(entries):
            if step not in users and not self._engine.serving(step) and step != name:
                with suppress(ModelNotInRepository, LoadFailed):  # the ensemble will say what it misses
                    await self._load(step, (*users, name))
        async with self._locks[name]:
            failures = await self._serve(name, entries, again=True)
        if failures:
            raise LoadFailed(f"load failed for model '{name}': " + " ".join(failures))

    async def unload(self, name: str, *, dependents: bool = False) -> None:
        """Takes no more requests for a model; returns at once. One that is not loaded is none the worse for it.

        dependents: and none for those that an ensemble's requests run through. Raises ModelControlDisabled.
        """
        self._check_mode()
        await self._to_its_end(self._unload(name, dependents))

    async def _unload(self, name: str, dependents: bool) -> None:
        if name not in self._engine.catalog.names():  # any client may name any number of those
            return
        async with self._locks[name]:
            serving = self._engine.serving(name)
            for version in serving:
                self._engine.unload(name, version)
            self._engine.give_up(name)
            self._engine.catalog.forget_failed(name)
        if dependents:
            for step in _steps(serving.values()):
                if step != name:
                    await self._unload(step, dependents)

    async def index(self) -> None:
        """In mode `explicit`, has the catalog know the models that could be loaded."""
        if self._mode != "explicit":
            return
        known = set(self._engine.catalog.names())
        found = [shown(name) for name in await asyncio.to_thread(names, self._root)]
        for name in found:
            if name not in known:
                self._engine.catalog.failed(name, None, NOT_LOADED)
        for name in known.difference(found):
            if self._engine.catalog.state(name, None) is not None:
                self._engine.catalog.forget(name, None)

    async def watch(self, seconds: float) -> None:
        """In mode `poll`, follows the changes of the repository, for ever. seconds: between two looks."""
        said = ""
        while self._mode == "poll":
            await asyncio.sleep(seconds)
            try:
                await self.poll()
                said = ""
            except ConfigError as error:
                if said != str(error):  # once, however often it is seen
                    logger.error("the repository is not looked at: %s", error)
                said = str(error)
            except Exception:  # whatever it was, what changes next is followed
                logger.exception("the repository was not followed")

    async def poll(self) -> None:
        """Acts on what has changed since the last time, once it has settled. Raises ConfigError."""
        seen = await self._look()
        while changed := self._changed(seen):
            await asyncio.sleep(_SETTLE_SECONDS)
            before, seen = seen, await self._look()
            for name in changed:
                if seen.get(name) == before.get(name):
                    await self._follow(name, seen.get(name, []))

    async def _look(self) -> dict[str, Entries]:
        return _by_name(await asyncio.to_thread(scan, self._root))

    def _changed(self, seen: dict[str, Entries]) -> list[str]:
        return sorted(name for name in {*seen, *self._acted_on} if seen.get(name) != self._acted_on.get(name))

    async def _follow(self, name: str, entries: Entries) -> None:
        async with self._locks[name]:
            if entries:
                self._acted_on[name] = entries
                await self._serve(name, entries, again=False)
                return
            del self._acted_on[name]
            for version in self._engine.serving(name):
                self._engine.unload(name, version)
            self._engine.give_up(name)
            self._engine.catalog.forget_failed(name)

    async def _serve(self, name: str, entries: Entries, *, again: bool) -> list[str]:
        """Has the versions serve that were found, and no others once all of them do. Returns what went wrong.

        again: loads also what serves already, unchanged: somebody has asked for it, now. Else it may come later.
        """
        engine = self._engine
        served = bool(engine.serving(name))
        failures = []
        for entry in entries:
            if isinstance(entry, Broken):
                engine.broken(entry)
                failures.append(_failure(entry.version, entry.reason))
        wanted = {entry.version: entry for entry in entries if isinstance(entry, Found)}
        for version, found in sorted(wanted.items(), reverse=True):  # whoever asks for none finds the newest at once
            if again or engine.serving(name).get(version) != found:
                reason = await engine.load(found, waits=not again)
                if reason:
                    failures.append(_failure(version, reason))
            else:
                engine.confirm(name, version)
        if wanted and not (served and failures):
            labels = next(iter(wanted.values())).config.version_labels
            engine.catalog.label(name, labels)
            for label in sorted(label for label, version in labels.items() if version not in wanted):
                logger.warning("model %s: label %s is of version %d, which is not served", name, label, labels[label])
        if not failures:
            for version in engine.serving(name).keys() - wanted.keys():
                engine.unload(name, version)
            engine.catalog.forget_failed(name, wanted)
        return failures

    def _check_mode(self) -> None:
        if self._mode == "poll":
            raise ModelControlDisabled("explicit model load / unload is not allowed if polling is enabled")
        if self._mode != "explicit":
            raise ModelControlDisabled(
                "explicit model load / unload is not allowed: "
                f"model_control_mode is '{self._mode}', expected 'explicit'"
            )


def _steps(entries: Iterable[Found | Broken]) -> list[str]:
    """The models that ensembles consist of."""
    steps = [step for entry in entries if isinstance(entry, Found) for step in entry.config.ensemble.steps]
    return list(dict.fromkeys(step.model for step in steps))


def _by_name(entries: Entries) -> dict[str, Entries]:
    models: dict[str, Entries] = {}
    for entry in entries:
        models.setdefault(entry.name, []).append(entry)
    return models


def _not_there(name: str) -> ModelNotInRepository:
    rule = "" if is_name(name) else f": {NAME_RULE}"
    return ModelNotInRepository(f"failed to load '{name}', failed to poll from model repository{rule}")


def _without_paths(text: str, directory: Path) -> str:
    """What is said of a model that was laid out for one load, in the client's terms."""
    return text.replace(str(directory / PBTXT_FILE), "parameter 'config'").replace(str(directory), directory.name)


def _failure(version: int | None, reason: str) -> str:
    where = "" if version is None else f"version {version} is at UNAVAILABLE state: "
    return f"{where}{reason};"
