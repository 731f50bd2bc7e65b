"""From a directory of models to schedulers that serve: load, warm, publish; and back."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from headrace.clock import no_rest, rest_ns
from headrace.engine.background import in_background
from headrace.engine.cached import CachedModel
from headrace.engine.ensemble import Ensemble
from headrace.engine.opening import open_version
from headrace.engine.presented import check_described
from headrace.engine.rules import version_rules
from headrace.engine.scheduler import Scheduler
from headrace.engine.sequence import SequenceScheduler
from headrace.errors import HeadraceError, ModelLoadError, Unimplemented
from headrace.pipeline.ensemble import BadGraph, build_graph, circle
from headrace.repository.catalog import NOT_BUILT, UNLOADED, State
from headrace.repository.discovery import Broken, Found, scan
from headrace.telemetry.diary import Diary
from headrace.telemetry.logs import of_model
from headrace.telemetry.recorder import no_resources
from headrace.telemetry.recording import SETTINGS, to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from headrace.clock import Clock, Rest
    from headrace.drift.report import DriftReport
    from headrace.engine.drifting import DriftMonitoring
    from headrace.engine.guarding import Guards
    from headrace.engine.opening import Opened
    from headrace.engine.served import Served
    from headrace.engine.turn import Turn
    from headrace.engine.watching import Watcher, Watching
    from headrace.pipeline.ensemble import Graph
    from headrace.pipeline.response_cache import ResponseCache
    from headrace.repository.catalog import Catalog
    from headrace.repository.discovery import Kept
    from headrace.telemetry.metrics import Metrics
    from headrace.telemetry.observer import Observer
    from headrace.telemetry.recorder import Resources

logger = logging.getLogger(__name__)

_LEAVING = "the server is leaving"


class Engine:
    """Loads the repository and owns what serves it.

    catalog: what `resolve` answers from. observer: guarded against its own failures. metrics: statistics are read from.
    turn: when batches are formed. leave_seconds: for what a version has accepted when it is replaced or unloaded.
    cache: of replies, None for none. diary_requests: of which each version keeps how they came and went, 0 for none.
    drift, guards: of those that ask for it.
    """

    def __init__(
        self,
        catalog: Catalog[Served],
        observer: Observer,
        metrics: Metrics,
        clock: Clock,
        turn: Turn,
        inline_below_ns: int,
        leave_seconds: float = 30.0,
        cache: ResponseCache | None = None,
        diary_requests: int = 0,
        drift: DriftMonitoring | None = None,
        guards: Guards | None = None,
    ) -> None:
        self.catalog = catalog
        self._observer = observer
        self._metrics = metrics
        self._clock = clock
        self._turn = turn
        self._inline_below_ns = inline_below_ns
        self._leave_seconds = leave_seconds
        self._cache = cache
        self._diary_requests = diary_requests
        self._drift = drift
        self._watching: Sequence[Watching] = [one for one in (drift, guards) if one is not None]
        self._diaries: dict[tuple[str, int], Diary] = {}
        self._schedulers: dict[tuple[str, int], Served] = {}
        self._loaded: dict[tuple[str, int], Found] = {}
        self._notes: dict[tuple[str, int], str] = {}  # of what serves, for the index
        self._ensembles: dict[tuple[str, int], Found] = {}  # that are wanted, whether they serve or not
        self._postponed: dict[tuple[str, int], Found] = {}  # that take the place of what serves once they can
        self._leaving: dict[Served, asyncio.Task[None]] = {}
        self._keeping: dict[Served, Kept] = {}
        self._one_at_a_time = asyncio.Lock()
        self._ends = False  # it drains, or is closed: nothing is loaded any more

    def __repr__(self) -> str:
        leaving = f", {len(self._leaving)} leave" if self._leaving else ""
        return f"<Engine {len(self._schedulers)} versions serve{leaving}>"

    @property
    def schedulers(self) -> Sequence[Served]:
        """All that serve."""
        return list(self._schedulers.values())

    def serving(self, name: str) -> dict[int, Found]:
        """The versions of a model that serve, as they were found when they were loaded."""
        return {version: found for (model, version), found in self._loaded.items() if model == name}

    def recording(self, name: str, version: str = "") -> Callable[[], bytes]:
        """What writes out the last requests of a model version, for `telemetry.recording`, on whichever thread.

        Of an ensemble none are kept. Raises as `Catalog.resolve`, and Unimplemented.
        """
        served = self.catalog.resolve(name, version)
        diary = self._diaries.get((served.name, int(served.version)))
        if diary is None:
            raise Unimplemented(
                f"no requests of model '{name}' are kept: it is an ensemble, or the server's record_requests is 0"
            )
        settings = served.config.model_copy(update={"max_batch": served.signature.max_batch}).model_dump(mode="json")
        kept = {key: settings[key] for key in SETTINGS}
        until_now, inline_below_us = diary.copy(), self._inline_below_ns // 1000
        return lambda: to_bytes(served.name, served.version, kept, inline_below_us, until_now.columns())

    async def drift(self, name: str, version: str = "") -> DriftReport:
        """What is known of the drift of a model version. Raises as `Catalog.resolve`, and Unimplemented."""
        served = self.catalog.resolve(name, version)
        if self._drift is None:
            raise Unimplemented("this server watches no drift")
        return await self._drift.report(served.name, served.version)

    async def load_all(self, root: Path) -> list[Found | Broken]:
        """Loads every model that the repository holds. A broken one is reported and leaves the others serving.

        Returns what was found. Raises ConfigError when the repository cannot be read.
        """
        found = await asyncio.to_thread(scan, root)
        for entry in found:
            if isinstance(entry, Broken):
                self.broken(entry)
            else:
                self.catalog.loading(entry.name, entry.version)
        for entry in sorted((entry for entry in found if isinstance(entry, Found)), key=_is_ensemble):
            self.catalog.label(entry.name, entry.config.version_labels)
            await self.load(entry)
        return found

    def broken(self, entry: Broken) -> None:
        """Reports what cannot be loaded. A version that serves goes on doing so."""
        if entry.version is not None:
            self._failed(entry.name, entry.version, entry.reason)
            return
        serving = self.serving(entry.name)
        for version in serving:
            self._failed(entry.name, version, entry.reason)
        if not serving:
            if entry.expected:
                logger.info("model %s is not served: %s", entry.name, entry.reason, extra={"model": entry.name})
            else:
                logger.error("model %s cannot be served: %s", entry.name, entry.reason, extra={"model": entry.name})
            self.catalog.failed(entry.name, None, NOT_BUILT if entry.expected else entry.reason)

    def needs(self, keeps: Kept) -> bool:
        """Whether what serves, leaves, or is to serve once other models do, was found with this: see `Found.keeps`."""
        wanted = [found.keeps for found in (*self._ensembles.values(), *self._postponed.values())]
        return any(each is keeps for each in (*self._keeping.values(), *wanted))

    def confirm(self, name: str, version: int) -> None:
        """What the repository holds is what serves: the reason why a load has failed is past."""
        key = name, version
        self._postponed.pop(key, None)
        self.catalog.ready(*key, self._schedulers[key], self._notes.get(key, ""))

    async def load(self, found: Found, *, waits: bool = False) -> str:
        """Loads and warms one version, then publishes it; one that serves does so until the new one is ready.

        waits: an ensemble that cannot take the place of what serves yet does so once its models are there. Returns the
        reason why it could not be loaded, empty if it could. Never raises: a failure is in the catalog and in the log
        too.
        """
        key = found.name, found.version
        if self._ends:
            return self._failed(*key, _LEAVING)
        if _is_ensemble(found):
            self._postponed.pop(key, None)
            if self.catalog.state(*key) is State.READY and (reason := self._why_not(found)):
                if waits:
                    self._postponed[key] = found
                return self._failed(*key, reason)
            self._ensembles[key] = found
            return self._review(key)
        if key not in self._schedulers:
            self.catalog.loading(*key)
        began = self._clock()
        for warning in found.configuration.warnings if found.configuration else ():
            logger.warning("model %s version %d: %s", *key, warning, extra=of_model(*key))
        # others serve meanwhile: warming leaves them half of the processor that it would take
        rest = rest_ns if self._schedulers else no_rest
        try:
            async with self._one_at_a_time:
                opened, watchers = await in_background(lambda: self._open(found, rest))
        except ModelLoadError as error:
            return self._failed(*key, str(error))
        except Exception as error:
            return self._failed(*key, "loading failed unexpectedly; the server's log says more", error)
        if self._ends:
            for instance in opened.instances:
                instance.close()
            for watcher in filter(None, watchers):
                watcher.close()
            return self._failed(*key, _LEAVING)
        self._publish(found, opened, watchers, began)
        return ""

    def _open(self, found: Found, rest: Rest) -> tuple[Opened, Sequence[Watcher | None]]:
        """The version, and what each of `_watching` has for it. On a thread. Raises ModelLoadError."""
        opened = open_version(found, self._clock, self._inline_below_ns, rest)
        watchers: list[Watcher | None] = []
        with ExitStack() as unless_all_succeed:
            for instance in opened.instances:
                unless_all_succeed.callback(instance.close)
            for watching in self._watching:
                watcher = watching.open(found, opened.model.signature)
                if watcher is not None:
                    unless_all_succeed.callback(watcher.close)
                watchers.append(watcher)
            unless_all_succeed.pop_all()
        return opened, watchers

    def _publish(self, found: Found, opened: Opened, watchers: Sequence[Watcher | None], began: int) -> None:
        version, model, instances, cost = str(found.version), opened.model, opened.instances, opened.cost
        scheduler = Scheduler(
            found.name,
            version,
            model,
            found.config,
            instances,
            cost,
            self._clock,
            self._turn,
            supply=opened.supply,
            rules=opened.rules,
        )
        if self._diary_requests:
            self._diaries[found.name, found.version] = Diary(self._diary_requests)
        scheduler.watchers = [one for one in watchers if one is not None]
        for watching, watcher in zip(self._watching, watchers, strict=True):
            watching.add(found.name, version, watcher)
        seconds = (self._clock() - began) / 1e9
        served: Served = self._cached(found, scheduler)
        if opened.plan is not None:
            served = SequenceScheduler(scheduler, opened.plan, self._clock, self._turn)
        self._drop_ensemble((found.name, found.version))  # which it may have been
        self._serve(found, served, seconds, opened.note, opened.supply.resources)
        for (backend, rejection), following in zip(opened.passed_over.items(), found.config.chain[1:], strict=False):
            served.observer.fell_back(backend, following, rejection.reason)
        self._review()
        logger.info(
            "model %s version %s serves: %s by %s, max batch %d, %d instances, loaded in %.2f s, 1 row takes %d us",
            found.name,
            version,
            model.platform,
            opened.supply.backends[0],
            model.signature.max_batch,
            len(instances),
            seconds,
            cost.mean(1) // 1000,
            extra=of_model(found.name, found.version),
        )

    def _cached(self, found: Found, scheduler: Scheduler) -> Served:
        """The scheduler, or the response cache before it, if the model asks for that."""
        if not found.config.response_cache:
            return scheduler
        if self._cache is None:
            logger.warning(
                "model %s: response_cache is without effect, response_cache_bytes is 0",
                found.name,
                extra=of_model(found.name, found.version),
            )
            return scheduler
        return CachedModel(scheduler, self._cache, int(found.config.cache_ttl_s * 1e9), self._clock)

    def _failed(self, name: str, version: int, reason: str, error: Exception | None = None) -> str:
        """Puts the reason into the log and the catalog; what serves goes on doing so. error: that nobody foresaw."""
        scheduler = self._schedulers.get((name, version))
        if scheduler is None:
            said = "model %s version %d cannot be served: %s"
            logger.error(said, name, version, reason, exc_info=error, extra=of_model(name, version))
            self.catalog.failed(name, version, reason)
        else:
            now = f"loading it again failed: {reason}"
            said = "model %s version %d serves as before, %s"
            logger.error(said, name, version, now, exc_info=error, extra=of_model(name, version))
            self.catalog.ready(name, version, scheduler, now)
        return reason

    def unload(self, name: str, version: int) -> None:
        """Takes no more requests for a version, and frees it when those that it has accepted are answered."""
        key = name, version
        self._drop_ensemble(key)
        scheduler = self._schedulers.pop(key)
        del self._loaded[key]
        self.catalog.unloading(*key)
        logger.info("model %s version %d is being unloaded", *key, extra=of_model(*key))
        self._leave(scheduler)
        self._review()

    def give_up(self, name: str) -> None:
        """Forgets an ensemble that waits for its models."""
        for key in [key for key in (*self._ensembles, *self._postponed) if key[0] == name]:
            self._drop_ensemble(key)

    def _serve(
        self, found: Found, served: Served, seconds: float, note: str = "", resources: Resources = no_resources
    ) -> None:
        """Publishes a version in the place of one that may have served before.

        seconds: that loading took. note: what the index says of it.
        """
        key = found.name, found.version
        served.stated = found.configuration.stated if found.configuration else None
        served.observer = self._observer.model(found.name, served.version, served.depth)
        recorder = self._metrics.recorder(found.name, served.version)
        assert recorder is not None
        served.statistics = recorder.statistics
        if isinstance(served, CachedModel):
            served.lookups = recorder
        recorder.sequences = served.counts if isinstance(served, SequenceScheduler) else None
        recorder.wait_ns = served.wait_ns
        recorder.instances = served.condition.count
        recorder.diary = self._diaries.get(key)
        recorder.loaded(seconds, resources)
        before = self._schedulers.get(key)
        self._schedulers[key] = served
        self._loaded[key] = found
        if found.keeps is not None:
            self._keeping[served] = found.keeps
        self._notes[key] = note
        self.catalog.ready(*key, served, note)
        if before is not None:
            self._leave(before)

    # --- ensembles ----------------------------------------------------------------------------------------------------

    def _review(self, key: tuple[str, int] | None = None) -> str:
        """Has ensembles serve whose models do, and no others. Returns why that of `key` does not, empty if it does."""
        reasons: dict[tuple[str, int], str] = {}
        generation = -1
        while generation != self.catalog.generation:  # an ensemble may be a model of another
            generation = self.catalog.generation
            for each in [each for each, found in self._postponed.items() if not self._why_not(found)]:
                self._ensembles[each] = self._postponed.pop(each)
            reasons = {each: self._review_one(found) for each, found in self._ensembles.items()}
        return reasons.get(key, "") if key else ""

    def _review_one(self, found: Found) -> str:
        key = found.name, found.version
        before = self._schedulers.get(key)
        try:
            drawn = self._draw(found)
            served = before if isinstance(before, Ensemble) and self._loaded[key] == found else None
            if served is not None and (served.drawn, served.level) == drawn:
                if self.catalog.state(*key) is not State.READY:
                    self.catalog.ready(*key, served)
                return ""
            ensemble = self._ensemble(found, *drawn)
        except ModelLoadError as error:
            reason = str(error)
            if self.catalog.state(*key) is not State.UNAVAILABLE:
                logger.error("model %s version %d cannot be served: %s", *key, reason, extra=of_model(*key))
            self.catalog.failed(*key, reason)
            return reason
        self._serve(found, ensemble, 0.0)
        names = [step.model for step in ensemble.graph.steps]
        logger.info("model %s version %d serves: an ensemble of %s", *key, names, extra=of_model(*key))
        return ""

    def _draw(self, found: Found) -> tuple[Graph, int]:
        """What an ensemble is by the models that serve now, and its level. Raises ModelLoadError."""
        steps = found.config.ensemble.steps
        if way := circle(found.name, {**self._members(), found.name: [step.model for step in steps]}):
            raise ModelLoadError(f"its steps lead back to itself: {' -> '.join(way)}")
        try:
            models = [self.catalog.resolve(step.model, str(step.version) if step.version else "") for step in steps]
            graph = build_graph(
                steps, [model.signature for model in models], found.config.ensemble.outputs, found.config.max_batch
            )
        except HeadraceError as error:
            raise ModelLoadError(f"a model of its steps does not serve: {error}") from error
        except BadGraph as error:
            raise ModelLoadError(str(error)) from error
        return graph, 1 + max(model.level for model in models)

    def _ensemble(self, found: Found, drawn: Graph, level: int) -> Ensemble:
        """The ensemble as its files describe it: they are not read again while it serves. Raises ModelLoadError."""
        graph = replace(drawn, signature=check_described(drawn.signature, found.config, found.path.parent))
        rules = version_rules(found, graph.signature)
        version, resolve = str(found.version), self.catalog.resolve
        ensemble = Ensemble(found.name, version, found.config, graph, level, resolve, self._clock, rules)
        ensemble.drawn = drawn
        return ensemble

    def _why_not(self, found: Found) -> str:
        """Why an ensemble could not serve now; empty if it could."""
        try:
            self._ensemble(found, *self._draw(found))
        except ModelLoadError as error:
            return str(error)
        return ""

    def _members(self) -> dict[str, list[str]]:
        """The models that each ensemble runs, by its name."""
        return {each.name: [step.model for step in each.config.ensemble.steps] for each in self._ensembles.values()}

    def _drop_ensemble(self, key: tuple[str, int]) -> None:
        """It is not wanted any more, as it serves or as it was to."""
        self._ensembles.pop(key, None)
        self._postponed.pop(key, None)

    def _users(self, served: Served) -> list[Ensemble]:
        """The ensembles whose requests may run through a model."""
        everything = [*self._schedulers.values(), *self._leaving]
        return [
            one
            for one in everything
            if isinstance(one, Ensemble) and any(step.model == served.name for step in one.graph.steps)
        ]

    # --- the end of a version -----------------------------------------------------------------------------------------

    def _leave(self, scheduler: Served) -> None:
        self._leaving[scheduler] = asyncio.get_running_loop().create_task(self._let_leave(scheduler))

    async def _let_leave(self, scheduler: Served) -> None:
        await asyncio.gather(*(ensemble.settle(self._leave_seconds) for ensemble in self._users(scheduler)))
        await scheduler.drain(self._leave_seconds)
        self._gone(scheduler)

    def _gone(self, scheduler: Served) -> None:
        """Frees a version that has left, unless another has taken its place."""
        self._leaving.pop(scheduler, None)
        scheduler.close()
        keeps = self._keeping.pop(scheduler, None)
        if keeps is not None and not self.needs(keeps):
            keeps.close()
        name, version = scheduler.name, int(scheduler.version)
        if (name, version) not in self._schedulers:
            self._observer.forget(name, scheduler.version)
            self._diaries.pop((name, version), None)
            for watching in self._watching:
                watching.forget(name, str(version))
            if self.catalog.state(name, version) is State.UNLOADING:
                self.catalog.failed(name, version, UNLOADED)

    async def drain(self, seconds: float) -> bool:
        """Lets everything that serves finish what it has accepted; False if some could not within `seconds`.

        Ensembles first: what they have accepted is still to run through others.
        """
        self._ends = True  # what would be loaded now takes requests, which nobody waits for
        served = [*self._schedulers.values(), *self._leaving]
        end = self._clock() + int(seconds * 1e9)
        drained = True
        for level in sorted({one.level for one in served}, reverse=True):
            left = max(end - self._clock(), 0) / 1e9
            drained &= all(await asyncio.gather(*(one.drain(left) for one in served if one.level == level)))
        return drained

    def close(self) -> None:
        """Fails what is left and frees the models."""
        self._ends = True
        for scheduler, task in list(self._leaving.items()):
            task.cancel()
            self._gone(scheduler)
        for (name, version), scheduler in self._schedulers.items():
            scheduler.close()
            self._observer.forget(name, str(version))
        for keeps in self._keeping.values():
            keeps.close()
        for each in (self._schedulers, self._loaded, self._keeping):
            each.clear()


def _is_ensemble(found: Found) -> bool:
    return bool(found.config.ensemble.steps)
