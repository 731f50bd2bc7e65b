"""Guards: a share of the requests is run again on a version that is trusted, and requests find that if it has to be.

A request that is not sampled costs a comparison for each batch; one that is, a copy. All else is on a guard's thread
(`guard_worker`), but for the decision itself, which is made on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, cast

from headrace.clock import monotonic_ns, wall_ms
from headrace.engine.drifting import in_shared_memory, own_shapes
from headrace.engine.guard_verdict import Verdict, subject_of
from headrace.engine.guard_worker import SKIPS, GuardWorker, Sampled
from headrace.engine.trusted import open_trusted
from headrace.errors import ConfigError, ModelLoadError, Unimplemented
from headrace.guard.report import proof_of, report_of
from headrace.repository.catalog import State as Ready
from headrace.telemetry.logs import of_model
from headrace.telemetry.sampling import HeadSample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.clock import Clock
    from headrace.engine.served import Served
    from headrace.engine.trusted import Trusted
    from headrace.engine.watching import Watcher
    from headrace.engine.worker import OutputRows
    from headrace.guard.evidence import Finding
    from headrace.guard.report import GuardReport, Proof, State
    from headrace.guard.settings import GuardSettings
    from headrace.messages import Batch, Buffer, InferRequest, Signature
    from headrace.pipeline.response_cache import Outputs
    from headrace.repository.catalog import Catalog
    from headrace.repository.discovery import Found
    from headrace.repository.guard_config import GuardConfig

logger = logging.getLogger(__name__)

_STOP_SECONDS = 2.0


class ModelGuard:
    """The guard of one model version. On the event loop.

    settings: of `config`, for this model. decide: told of the first proof. draw: a number in [0, 1), see `HeadSample`.
    proof: of what it has acted upon, None before that. subject: what it is about, see `guard_verdict`.
    """

    def __init__(
        self,
        config: GuardConfig,
        settings: GuardSettings,
        trusted: Trusted,
        signature: Signature,
        subject: str,
        decide: Callable[[ModelGuard, Finding], None],
        clock: Clock,
        cpu_clock: Clock,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.config = config
        self.subject = subject
        self.proof: Proof | None = None
        self._decide = decide
        self._loop: asyncio.AbstractEventLoop | None = None
        self.worker = GuardWorker(
            settings, trusted, signature, config.cpu_budget, self._proved, clock, cpu_clock, random.getrandbits(32)
        )
        self._batched = signature.max_batch > 0
        self._sample = HeadSample(config.share, draw)

    def __repr__(self) -> str:
        return f"<ModelGuard {'watching' if self.proof is None else 'has acted'}, {self.worker!r}>"

    def start(self) -> None:
        """Has the version's requests compared from now on."""
        self._loop = asyncio.get_running_loop()
        self.worker.start()

    def batch(
        self, batch: Batch, inputs: Sequence[Sequence[Buffer]], indices: Sequence[int], outputs: Sequence[OutputRows]
    ) -> None:
        """See `watching.Watcher`."""
        taken = self._sample.take(len(batch.requests))
        if taken:
            self._offer(taken, batch.requests, inputs, indices, outputs)

    def cached(self, request: InferRequest, parts: Sequence[Buffer], outputs: Outputs) -> None:
        """See `watching.Watcher`: a reply that is given again was compared, or not, when the model gave it."""

    def _offer(
        self,
        taken: Sequence[int],
        requests: Sequence[InferRequest],
        inputs: Sequence[Sequence[Buffer]],
        indices: Sequence[int],
        outputs: Sequence[OutputRows],
    ) -> None:
        worker = self.worker
        if worker.output not in indices:
            worker.skipped["output"] += len(taken)
            return
        output = outputs[indices.index(worker.output)]
        for at in taken:
            parts = [of_one[at] for of_one in inputs]
            if any(map(in_shared_memory, parts)):
                worker.skipped["shared_memory"] += 1
                continue
            rows = requests[at].template.rows if self._batched else 1
            start = sum(request.template.rows for request in requests[:at]) if self._batched else 0
            answered = output.cut(start, start + rows)
            nbytes = sum(map(len, parts)) + len(answered)
            if worker.room(nbytes):
                template = requests[at].template
                copies = tuple(map(bytes, parts))  # they may be views of what is much larger
                shapes = own_shapes(requests[at])
                worker.offer(Sampled(template, rows, copies, shapes, bytes(answered), output.dims, nbytes))

    def _proved(self, finding: Finding) -> None:
        """On the worker's thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._decide, self, finding)
        except RuntimeError:  # the loop is closed: nobody is served any more
            logger.debug("a guard has come to a decision when the server was gone")

    def close(self) -> None:
        """See `watching.Watcher`."""
        self.worker.stop()


class Guards:
    """All guards of a server.

    catalog: where requests are moved from a version to its reference. clock, cpu_clock: see `GuardWorker`; wall: in
    milliseconds since the epoch.
    """

    def __init__(
        self,
        catalog: Catalog[Served],
        clock: Clock = monotonic_ns,
        cpu_clock: Clock = time.thread_time_ns,
        wall: Clock = wall_ms,
    ) -> None:
        self.models: dict[tuple[str, str], ModelGuard] = {}
        self._verdicts: dict[tuple[str, str], Verdict] = {}
        self._catalog = catalog
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._wall = wall

    def __repr__(self) -> str:
        return f"<Guards of {len(self.models)} model versions>"

    def open(self, found: Found, signature: Signature) -> ModelGuard | None:
        """See `watching.Watching`: the guard of a version whose model.toml names another as its reference."""
        config = found.config.guard
        if config is None or config.reference == found.version:
            return None
        try:
            settings = config.settings(signature)
        except ConfigError as error:
            raise ModelLoadError(str(error)) from error
        subject = subject_of(found, config.reference, settings)
        trusted = open_trusted(found, config.reference, signature)
        return ModelGuard(config, settings, trusted, signature, subject, self._act, self._clock, self._cpu_clock)

    def add(self, name: str, version: str, watcher: Watcher | None) -> None:
        """See `watching.Watching`: it begins with no evidence, but what was proved of the same files stands."""
        self.forget(name, version)
        if watcher is None:
            return
        guard = self.models[name, version] = cast("ModelGuard", watcher)
        guard.start()
        verdict = self._verdicts.get((name, version))
        if verdict is None:
            return
        if verdict.subject != guard.subject:
            del self._verdicts[name, version]
            said = "model %s version %s is not what it was when its guard acted: it begins anew"
            logger.info(said, name, version, extra=of_model(name, version))
            return
        guard.proof = verdict.proof
        logger.warning(
            "model %s version %s is loaded again and is what it was when its guard acted: that stands until it is "
            "reset or a file changes; %s",
            name,
            version,
            self._carry_out(name, version, guard),
            extra=of_model(name, version),
        )

    def forget(self, name: str, version: str) -> None:
        """See `watching.Watching`."""
        guard = self.models.pop((name, version), None)
        if guard is not None:
            guard.close()
            self._catalog.stand_in(name, int(version), None)

    def state(self, name: str, guard: ModelGuard) -> State:
        """See `guard.report.State`. name: of its model."""
        if guard.proof is None:
            return "blind" if guard.worker.blind else "watching"
        moves = guard.config.action == "fall_back"
        ready = self._catalog.state(name, guard.config.reference) is Ready.READY
        return "fallen_back" if moves and ready else "reported"

    def report(self, name: str, version: str = "") -> GuardReport:
        """What is known of a guarded version; with no version, of the newest.

        Raises as `Catalog.resolve`, and Unimplemented for one that is not guarded.
        """
        version, guard = self._find(name, version)
        worker = guard.worker
        return report_of(
            worker.settings,
            worker.snapshot,
            model=name,
            version=version,
            reference=str(guard.config.reference),
            state=self.state(name, guard),
            action=guard.config.action,
            share=guard.config.share,
            skipped={reason: worker.skipped[reason] for reason in SKIPS},
            failed=worker.failed,
            proof=guard.proof,
            cpu_ns=worker.cpu_ns,
        )

    def reset(self, name: str, version: str = "") -> GuardReport:
        """Has a guard begin anew, with no evidence, and requests find its version again. Raises as `report`."""
        version, guard = self._find(name, version)
        guard.proof = None
        self._verdicts.pop((name, version), None)
        guard.worker.begin_anew()
        self._catalog.stand_in(name, int(version), None)
        said = "the guard of model %s version %s begins anew, as was asked for"
        logger.warning(said, name, version, extra=of_model(name, version))
        return self.report(name, version)

    async def close(self) -> None:
        """Ends all threads."""
        guards = list(self.models.values())
        self.models.clear()
        for guard in guards:
            guard.close()
        for guard in guards:
            await asyncio.to_thread(guard.worker.join, _STOP_SECONDS)

    def _find(self, name: str, version: str) -> tuple[str, ModelGuard]:
        guarded = sorted((int(number) for model, number in self.models if model == name), reverse=True)
        if not version and guarded:
            return str(guarded[0]), self.models[name, str(guarded[0])]
        served = self._catalog.resolve(name, version)
        guard = self.models.get((name, served.version))
        if guard is None:
            what = f"version {served.version} of model '{name}'" if guarded else f"model '{name}'"
            raise Unimplemented(f"{what} is not guarded: see [guard] of model.toml")
        return served.version, guard

    def _act(self, guard: ModelGuard, finding: Finding) -> None:
        """A guard has its first proof."""
        key = next((key for key, one in self.models.items() if one is guard), None)
        if key is None or guard.worker.snapshot.finding is not finding:  # it has left, or begun anew, meanwhile
            return
        if guard.proof is not None:  # of the same files, before they were loaded again
            return
        name, version = key
        guard.proof = proof_of(finding, guard.worker.snapshot.overall.requests, self._wall())
        self._verdicts[key] = Verdict(guard.subject, guard.proof)
        logger.error(
            "model %s version %s does not answer as version %d does, by output '%s': %s; %s",
            name,
            version,
            guard.config.reference,
            guard.worker.settings.output,
            finding,
            self._carry_out(name, version, guard),
            extra=of_model(name, version),
        )

    def _carry_out(self, name: str, version: str, guard: ModelGuard) -> str:
        """Does what is to be done about a version. Returns that, for the log."""
        reference = guard.config.reference
        if guard.config.action == "report":
            return "nothing is done about it: guard.action is report"
        self._catalog.stand_in(name, int(version), reference)
        if self.state(name, guard) != "fallen_back":
            return f"version {reference} is not ready: requests find this one until it is"
        return f"requests that do not ask for it by its number find version {reference} from now on"
