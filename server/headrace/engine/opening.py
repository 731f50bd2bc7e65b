"""From the files of a version to instances that run: by the first backend of its chain that works."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from headrace.backends import registry
from headrace.backends.base import InstanceLost, TakesForms, memory_of, nodes_of
from headrace.clock import no_rest, rest_ns
from headrace.engine.background import in_background
from headrace.engine.policies import cost_model, make_buckets
from headrace.engine.presented import present
from headrace.engine.probe import Rejected, check_alike, make_probe
from headrace.engine.processed import process, ragged_inputs
from headrace.engine.rules import version_rules
from headrace.engine.sequence_plan import plan_sequences
from headrace.engine.warm_buckets import warm_buckets
from headrace.engine.warmup import RUNS, WARM_BYTES, WARM_SECONDS, read_samples, run_samples, zeros
from headrace.errors import ModelLoadError
from headrace.telemetry.logs import of_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from headrace.backends.base import Instance, LoadedModel
    from headrace.clock import Clock, Rest
    from headrace.engine.probe import Probe
    from headrace.engine.sequence_plan import SequencePlan
    from headrace.engine.warmup import Sample
    from headrace.messages import Signature
    from headrace.pipeline.cost import CostModel
    from headrace.pipeline.rules import Rules
    from headrace.repository.discovery import Found
    from headrace.repository.model_config import ModelConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """A version that can serve.

    supply: of further instances. passed_over: backends that do not work, as errors. plan: of a stateful model. rules:
    for inputs, by name.
    """

    model: LoadedModel
    instances: list[Instance]
    cost: CostModel
    supply: ModelSupply
    passed_over: dict[str, Rejected]
    plan: SequencePlan | None
    rules: Mapping[str, Rules]

    @property
    def note(self) -> str:
        """Which backends were passed over, and why; empty if none was."""
        whys = "; ".join(f"{backend}: {error}" for backend, error in self.passed_over.items())
        return f"falls back to {self.supply.backends[0]}; {whys}" if whys else ""


def open_version(found: Found, clock: Clock, inline_below_ns: int, rest: Rest = no_rest) -> Opened:
    """Opens a version by the first backend of its chain that works. Blocks, so it runs on a thread.

    Raises ModelLoadError with the reasons of all if none does. rest: see `open_model`.
    """
    chain = found.config.chain
    for backend in chain:
        registry.check_name(backend)
    passed_over: dict[str, Rejected] = {}
    for at, backend in enumerate(chain):
        try:
            opened = _open_with(backend, found, clock, inline_below_ns, rest)
        except Exception as error:
            passed_over[backend] = rejection = _rejection(error)
            unforeseen = not isinstance(error, ModelLoadError | InstanceLost)
            if len(chain) == 1:
                raise (error if unforeseen else rejection) from error
            logger.warning(
                "model %s version %d: backend %s does not work (%s): %s",
                found.name,
                found.version,
                backend,
                rejection.reason,
                rejection,
                exc_info=error if unforeseen else None,
                extra=of_model(found.name, found.version),
            )
            continue
        model, instances, cost, probe = opened
        plan, rules = _planned(found, model, instances)
        backends = chain[at:] if found.config.fallback.at_run_time else chain[at : at + 1]
        supply = ModelSupply(found, model, backends, probe, clock, inline_below_ns)
        return Opened(model, instances, cost, supply, passed_over, plan, rules)
    whys = "; ".join(f"{backend}: {error}" for backend, error in passed_over.items())
    raise ModelLoadError(f"no backend of the chain works: {whys}")


def open_model(
    found: Found, clock: Clock, inline_below_ns: int, rest: Rest = no_rest, backend: str = ""
) -> tuple[LoadedModel, list[Instance], CostModel]:
    """Opens a version and its instances, and warms them. Blocks, so it runs on a thread. Raises ModelLoadError.

    rest: between the runs, for as long as they take. backend: the first of the chain by default.
    """
    config = found.config
    model = load_model(found, backend or config.chain[0], config.max_batch)
    warming = _Warming(found, model, clock, rest)
    cost = cost_model(config, model.signature, inline_below_ns if model.inline else 0)
    instances: list[Instance] = []
    with ExitStack() as unless_all_succeed:
        for index in range(config.instances * model.executors_per_instance):
            instances.append(model.make_instance(index))
            unless_all_succeed.callback(instances[-1].close)
        for instance in instances:
            warming.run(instance, cost)
        unless_all_succeed.pop_all()
    return model, instances, cost


class ModelSupply:
    """See `instances.Supply`. Blocking work is done on threads of its own.

    backends: that which serves `model`, and those that may stand in for it. probe: what a new instance has to pass.
    """

    def __init__(
        self,
        found: Found,
        model: LoadedModel,
        backends: Sequence[str],
        probe: Probe | None,
        clock: Clock,
        inline_below_ns: int,
    ) -> None:
        fallback = found.config.fallback
        self.backends = backends
        self.first_ns = round(fallback.rebuild_first_s * 1e9)
        self.max_ns = round(fallback.rebuild_max_s * 1e9)
        self._found = found
        self._signature = model.signature
        self._models: dict[str, LoadedModel] = {backends[0]: model}
        self._inline: dict[str, bool] = {}
        self._executors: dict[str, int] = {}
        self._probe = probe
        self._clock = clock
        self._inline_below_ns = inline_below_ns
        # of each backend one at a time: what the first has loaded serves the others; but no stand-in waits for a device
        self._locks = {backend: Lock() for backend in backends}

    def __repr__(self) -> str:
        return f"<ModelSupply of {self._found.name}/{self._found.version} by {', '.join(self.backends)}>"

    async def make(self, backend: str, index: int, *, hurry: bool) -> Instance:
        """See `instances.Supply`; raises ModelLoadError, or whatever the backend does."""
        return await in_background(lambda: self._make(backend, index, no_rest if hurry else rest_ns))

    def total(self, backend: str) -> int:
        """See `instances.Supply`."""
        return self._found.config.instances * self._executors[backend]

    def cost_model(self, backend: str) -> CostModel:
        """See `instances.Supply`."""
        inline_below_ns = self._inline_below_ns if self._inline[backend] else 0
        return cost_model(self._found.config, self._signature, inline_below_ns)

    def forget(self, backend: str) -> None:
        """See `instances.Supply`."""
        self._models.pop(backend, None)

    def resources(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """See `telemetry.recorder.Resources`: of the first backend that has loaded the model."""
        model = next(filter(None, map(self._models.get, self.backends)), None)
        return ({}, {}) if model is None else (memory_of(model), nodes_of(model))

    def _make(self, backend: str, index: int, rest: Rest) -> Instance:
        with self._locks[backend], ExitStack() as unless_it_works:
            # the model may be lost with its instances: if this comes to nothing, the next attempt loads it anew
            unless_it_works.callback(self.forget, backend)
            model = self._models.get(backend) or self._load(backend)
            self._inline[backend], self._executors[backend] = model.inline, model.executors_per_instance
            instance = model.make_instance(index)
            unless_it_works.callback(instance.close)
            if backend == self.backends[0]:  # requests wait for a stand-in: it warms up on them
                _Warming(self._found, model, self._clock, rest).run(instance, self.cost_model(backend))
            if self._probe is not None:
                self._probe.check(instance)
            self._models[backend] = model
            unless_it_works.pop_all()
        return instance

    def _load(self, backend: str) -> LoadedModel:
        model = load_model(self._found, backend, self._signature.max_batch)
        check_alike(self._signature, model.signature, backend)
        return model


def _open_with(
    backend: str, found: Found, clock: Clock, inline_below_ns: int, rest: Rest
) -> tuple[LoadedModel, list[Instance], CostModel, Probe | None]:
    """The version by one backend, which has passed the probe if there is to be one."""
    config = found.config
    model, instances, cost = open_model(found, clock, inline_below_ns, rest, backend)
    if not config.probes:
        return model, instances, cost, None
    try:
        samples = read_samples(config, model.signature, found.path.parent)
        buckets = make_buckets(config, model.signature, ragged_inputs(model))
        probe = make_probe(found, backend, model.signature, samples, buckets)
        for instance in instances:
            probe.check(instance)
    except BaseException:
        for instance in instances:
            instance.close()
        raise
    return model, instances, cost, probe


def _planned(
    found: Found, model: LoadedModel, instances: Sequence[Instance]
) -> tuple[SequencePlan | None, Mapping[str, Rules]]:
    """The plan of a stateful model, and the rules for inputs."""
    sequence = found.config.sequence
    try:
        with _said_in(found):
            plan = None
            if sequence is not None:
                plan = plan_sequences(sequence, model.signature, len(instances), found.path.parent)
        return plan, version_rules(found, model.signature)
    except ModelLoadError:
        for instance in instances:
            instance.close()
        raise


def load_model(
    found: Found, backend: str, max_batch: int | None, options: Mapping[str, Any] | None = None
) -> LoadedModel:
    """The version as the configuration shows it, by a backend. Raises ModelLoadError.

    options: of the backend, if not those of the configuration.
    """
    config = found.config
    try:
        opener = registry.get(backend)
    except ModelLoadError as error:
        raise Rejected("unavailable", str(error)) from error
    options = config.options_of(backend) if options is None else options
    model = opener.load(found.path, max_batch=max_batch, threads=config.threads, options=options)
    with _said_in(found):
        shown = present(model, config, found.path.parent)
        processed = process(shown, config)
        if isinstance(model, TakesForms) and isinstance(shown, TakesForms) and not config.preprocess:
            # inputs are the model's own, whatever is made of its outputs, of which buckets speak as clients see them
            buckets = make_buckets(config, processed.signature)
            if buckets is not None and buckets.certain:
                shown.take_forms([form for _, form in buckets.all()])
        return processed


@contextmanager
def _said_in(found: Found) -> Iterator[None]:
    """Names the file in what is wrong with a configuration for this model."""
    try:
        yield
    except ModelLoadError as error:
        raise ModelLoadError(f"{found.config_file}: {error}" if found.config_file else str(error)) from error


def _rejection(error: Exception) -> Rejected:
    """Why a backend is passed over; not the error itself, whose traceback would keep its model in a device's memory."""
    if isinstance(error, Rejected):
        return Rejected(error.reason, str(error))
    if isinstance(error, ModelLoadError | InstanceLost):
        return Rejected("load", str(error) or type(error).__name__)
    return Rejected("load", f"it failed unexpectedly: {error!r}")


class _Warming:
    """What each instance of a model runs before it serves."""

    def __init__(self, found: Found, model: LoadedModel, clock: Clock, rest: Rest) -> None:
        self._found = found
        self._signature = model.signature
        with _said_in(found):
            self._buckets = make_buckets(found.config, model.signature, ragged_inputs(model))
            self._samples = read_samples(found.config, model.signature, found.path.parent)
            self._sizes = warm_sizes(found.config, model.signature.max_batch)
        self._clock = clock
        self._rest = rest

    def run(self, instance: Instance, cost: CostModel) -> None:
        """Warms one. cost: learns from it. Raises ModelLoadError."""
        found, signature, samples, sizes = self._found, self._signature, self._samples, self._sizes
        run_samples(samples, signature, self._buckets, instance, found.name)
        if self._buckets is not None:
            warm_buckets(found.name, signature, self._buckets, instance, sizes, cost, self._clock, self._rest)
        else:
            row = samples[0] if samples else zeros(signature)
            _warm(found, signature, instance, sizes, row, cost, self._clock, self._rest)


def warm_sizes(config: ModelConfig, max_batch: int) -> list[int]:
    """The batch sizes to run before serving: powers of two and the largest first, then all the others.

    Raises ModelLoadError for one that cannot occur.
    """
    if config.warmup is False:
        return []
    if config.warmup is not True:
        largest, most = max(config.warmup), max(max_batch, 1)
        if largest > most:
            raise ModelLoadError(f"warmup has {largest} rows, a batch of the model at most {most}")
        return list(config.warmup)
    if not max_batch:
        return [1]
    first = [1 << power for power in range(max_batch.bit_length()) if 1 << power < max_batch]
    return [*first, max_batch, *(rows for rows in range(3, max_batch) if rows & (rows - 1))]


def _warm(
    found: Found,
    signature: Signature,
    instance: Instance,
    sizes: Sequence[int],
    row: Sample,
    cost: CostModel,
    clock: Clock,
    rest: Rest,
) -> None:
    """Runs each size on so many copies of a row. Sizes that would take very much memory are left out."""
    row_limit = max(WARM_BYTES // max(row.row_bytes, 1), 1)
    parts = row.repeated(min(max(sizes, default=0), row_limit))
    end = clock() + int(WARM_SECONDS * 1e9)
    for rows in (size for size in sizes if size <= row_limit):
        shapes = row.shapes(signature, rows)
        elapsed = 0
        for _ in range(RUNS):
            began = clock()
            try:
                instance.run([part[:rows] for part in parts], shapes, range(len(signature.outputs)))
            except Exception as error:
                if row.certain:
                    failure = f"a first run on {row.name}, batch size {rows}, failed: {error}"
                    raise ModelLoadError(failure + _way_out(found.config, signature)) from error
                said = "model %s is not warmed: %s of %s failed: %s"
                fields = of_model(found.name, found.version)
                logger.warning(said, found.name, row.name, shapes, error, extra=fields)
                return
            elapsed = clock() - began
            rest(elapsed)
        cost.observe(rows, max(elapsed, 1))
        if clock() > end:
            return


def _way_out(config: ModelConfig, signature: Signature) -> str:
    """What a configuration can say where nothing is wrong with a model that fails to run zeros; empty if it has."""
    if config.warmup_data:
        return ""
    guessed = signature.max_batch and config.max_batch is None
    no_batch = ", and max_batch = 0 if its first dimensions are none of a batch" if guessed else ""
    return f"; a model that cannot run zeros needs a warm-up request, or warmup = false{no_batch}"
