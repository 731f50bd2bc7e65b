"""A model with what model.toml has done to its inputs and outputs: clients and the pipeline see what is left."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from headrace.backends.base import device_of, memory_of, nodes_of
from headrace.backends.lane_steps import Finished, LaneSteps, Raw, TakesSteps
from headrace.engine.presented import PresentedModel
from headrace.engine.processing import Images, input_step, output_step
from headrace.errors import ModelLoadError
from headrace.messages import Signature

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.backends.base import Instance, LoadedModel
    from headrace.engine.processing import InputStep, OutputStep
    from headrace.messages import Buffer, TensorSpec
    from headrace.pipeline.padding import RaggedRule
    from headrace.repository.model_config import ModelConfig

    Shape = tuple[int, ...]

log = logging.getLogger(__name__)


def process(model: LoadedModel, config: ModelConfig) -> LoadedModel:
    """The model with its pre- and post-processing; `model` itself if there is none. Raises ModelLoadError."""
    if not config.preprocess and not config.postprocess:
        return model
    own = model.signature
    lead = 1 if own.max_batch else 0
    inputs = {spec.name: at for at, spec in enumerate(own.inputs)}
    outputs = {spec.name: at for at, spec in enumerate(own.outputs)}
    for table, kind, said, known in (
        ("preprocess", "input", config.preprocess, inputs),
        ("postprocess", "output", config.postprocess, outputs),
    ):
        for name in said:
            if name not in known:
                raise ModelLoadError(f"{table}.{name}: the {kind}s of the model are {[*known]}")
    return ProcessedModel(
        model,
        {inputs[name]: input_step(own.inputs[inputs[name]], one, lead) for name, one in config.preprocess.items()},
        {outputs[name]: output_step(own.outputs[outputs[name]], one, lead) for name, one in config.postprocess.items()},
    )


def ragged_inputs(model: LoadedModel) -> Mapping[str, RaggedRule]:
    """The inputs whose rows share batches whatever their dimensions are, by name."""
    return model.ragged if isinstance(model, ProcessedModel) else {}


class ProcessedModel:
    """A `LoadedModel` behind steps: of inputs and outputs, by their places in its signature.

    on_device: whether they run on the model's device, or on the processor.
    """

    def __init__(self, model: LoadedModel, inputs: Mapping[int, InputStep], outputs: Mapping[int, OutputStep]) -> None:
        own = model.signature
        self._model = model
        self._inputs = inputs
        self._outputs = outputs
        offered: list[TensorSpec] = []
        self._sources: list[tuple[int, int]] = []  # of each output: the model's, and which of those in its place
        for at, spec in enumerate(own.outputs):
            for which, one in enumerate(outputs[at].offered if at in outputs else (spec,)):
                offered.append(one)
                self._sources.append((at, which))
        names = [spec.name for spec in offered]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ModelLoadError(f"postprocess makes two outputs '{twice[0]}'; `values` and `indices` name them")
        self.signature = Signature(
            tuple(inputs[at].offered if at in inputs else spec for at, spec in enumerate(own.inputs)),
            tuple(offered),
            own.max_batch,
        )
        self.on_device = self._hand_over()
        self.ragged: dict[str, RaggedRule] = {
            step.offered.name: step for step in inputs.values() if isinstance(step, Images)
        }

    def __repr__(self) -> str:
        return f"<ProcessedModel of {self._model!r}, inputs {[*self._inputs]}, outputs {[*self._outputs]}>"

    def _hand_over(self) -> bool:
        """Has the model do all steps on its device, if it has one; what it cannot do is done here."""
        model, why = self._model, ""
        if isinstance(model, PresentedModel):
            why = "" if model.alike else "model.toml shows the model's tensors otherwise than they are"
            model = model.behind
        if not isinstance(model, TakesSteps):
            return False
        inputs = {at: step.on_device() for at, step in self._inputs.items()}
        outputs = {at: step.on_device() for at, step in self._outputs.items()}
        steps = LaneSteps(
            {at: step for at, step in inputs.items() if step is not None},
            {at: step for at, step in outputs.items() if step is not None},
        )
        if (len(steps.inputs), len(steps.outputs)) != (len(inputs), len(outputs)):
            why = "one of them cannot run on a device"
        elif not why:
            why = model.take_steps(steps)
        if why:
            log.warning("pre- and post-processing of %r runs on the processor: %s", self._model, why)
        return not why

    @property
    def platform(self) -> str:
        """See `backends.base.LoadedModel`."""
        return self._model.platform

    @property
    def memory(self) -> Mapping[str, int]:
        """See `backends.base.memory_of`."""
        return memory_of(self._model)

    @property
    def nodes(self) -> Mapping[str, int]:
        """See `backends.base.nodes_of`."""
        return nodes_of(self._model)

    @property
    def executors_per_instance(self) -> int:
        """See `backends.base.LoadedModel`."""
        return self._model.executors_per_instance

    @property
    def inline(self) -> bool:
        """See `backends.base.LoadedModel`. Never with images, whose time their number does not tell."""
        return self._model.inline and not self.ragged

    def make_instance(self, index: int) -> Instance:
        """See `backends.base.LoadedModel`."""
        kind = _DeviceInstance if self.on_device else _ProcessedInstance
        return kind(self._model.make_instance(index), self._inputs, self._outputs, self._sources)


class _ProcessedInstance:
    """An `Instance` whose inputs and outputs go through steps, on the thread that runs it."""

    def __init__(
        self,
        instance: Instance,
        inputs: Mapping[int, InputStep],
        outputs: Mapping[int, OutputStep],
        sources: Sequence[tuple[int, int]],
    ) -> None:
        self.device = device_of(instance)
        self._instance = instance
        self._inputs = inputs
        self._outputs = outputs
        self._sources = sources

    def run(
        self, inputs: Sequence[Sequence[Buffer]], shapes: Sequence[Shape], outputs: Sequence[int]
    ) -> Sequence[np.ndarray[Any, Any]]:
        """See `backends.base.Instance`. Of several outputs in one's place, the model computes that one once."""
        given, made_shapes = list(inputs), list(shapes)
        for at, step in self._inputs.items():
            given[at] = self._input(step, inputs[at], shapes[at])
            made_shapes[at] = step.made(shapes[at])
        sources = [self._sources[index] for index in outputs]
        wanted = [self._index(at) for at in dict.fromkeys(at for at, _ in sources)]
        arrays = self._instance.run(given, made_shapes, wanted)
        made = {
            at: self._output(self._outputs[at], array) if at in self._outputs else [array]
            for at, array in zip(wanted, arrays, strict=True)
        }
        return [made[at][which] for at, which in sources]

    def _input(self, step: InputStep, parts: Sequence[Buffer], shape: Shape) -> Any:  # noqa: ANN401
        return [step.make(parts, shape).reshape(-1).view(np.uint8).data]

    def _index(self, at: int) -> int:
        return at

    def _output(self, step: OutputStep, result: Any) -> Sequence[np.ndarray[Any, Any]]:  # noqa: ANN401
        return step.make(result)

    def close(self) -> None:
        """See `backends.base.Instance`."""
        self._instance.close()


class _DeviceInstance(_ProcessedInstance):
    """The same where the instance's lane does the steps: it is told what is for them, by `backends.lane_steps`."""

    def _input(self, step: InputStep, parts: Sequence[Buffer], shape: Shape) -> Any:  # noqa: ANN401
        return Raw(parts, shape)

    def _index(self, at: int) -> int:
        return Finished(at) if at in self._outputs else at

    def _output(self, step: OutputStep, result: Any) -> Sequence[np.ndarray[Any, Any]]:  # noqa: ANN401
        return cast("Sequence[np.ndarray[Any, Any]]", result)
