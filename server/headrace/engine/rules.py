"""The rules of model.toml and schema.toml in the terms of the pipeline, checked against the model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.datatypes import DATATYPES
from headrace.errors import ConfigError, ModelLoadError
from headrace.pipeline.padding import number
from headrace.pipeline.rules import NumberRules, Rules, SizeRules, TextRules, exactly, image_layout, span
from headrace.pipeline.text_screen import matcher
from headrace.repository.model_config import CONFIG_FILE
from headrace.repository.processing_config import ImageConfig
from headrace.repository.schema_config import RULE_KEYS, SCHEMA_FILE, InputRules, read_schema

if TYPE_CHECKING:
    from headrace.messages import Signature, TensorSpec
    from headrace.pipeline.rules import Policy, RuleName
    from headrace.repository.discovery import Found
    from headrace.repository.model_config import ModelConfig
    from headrace.repository.schema_config import Schema

    Numbers = np.ndarray[Any, np.dtype[Any]]

_GREATEST_BF16 = float(np.uint32(0x7F7F0000).view(np.float32))
_OF_NUMBERS = ("finite", "min", "max", "max_missing", "fill", "names")
_OF_FLOATS = ("finite", "max_missing")
_OF_TEXTS = ("min_length", "max_length", "pattern")
_OF_IMAGES = RULE_KEYS["size"]


def version_rules(found: Found, signature: Signature) -> dict[str, Rules]:
    """The rules for a version. signature: as clients see it. Raises ModelLoadError, which names the file. Blocks."""
    try:
        schema = read_schema(found.path)
    except ConfigError as error:
        raise ModelLoadError(str(error)) from error
    return input_rules(found.config, signature, schema, (found.config_file, str(found.path / SCHEMA_FILE)))


def input_rules(
    config: ModelConfig,
    signature: Signature,
    schema: Schema | None = None,
    files: tuple[str, str] = (CONFIG_FILE, SCHEMA_FILE),
) -> dict[str, Rules]:
    """The rules for inputs, by name. A rule that the configuration has comes before the schema's of that name.

    files: of both, for messages. Raises ModelLoadError where a rule has no meaning for its input, or contradicts
    another.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    said = {} if schema is None else dict(schema.inputs)
    unknown = [name for name in said if name not in specs]
    if unknown:
        raise ModelLoadError(f"{files[1]}: rules for {unknown}, but the inputs of the model are {list(specs)}")
    found = {}
    for name, spec in specs.items():
        own, inferred = config.inputs.get(name), said.get(name)
        if own is None and inferred is None:
            continue
        try:
            given = own.over(inferred or InputRules()) if own is not None else inferred
            assert given is not None
            layout = (own.format if own is not None else None) or image_layout(spec.shape)
            if isinstance(config.preprocess.get(name), ImageConfig):
                layout = "NHWC"  # `format` is of the model's own tensor
            rules = _rules(given, spec, layout, _strict(own) if own is not None else frozenset())
        except (ValueError, OverflowError) as error:  # the latter of an integer that is beyond FP64
            by_own = own is not None and bool(own.model_fields_set & InputRules.model_fields.keys())
            places = (file for file, says in zip(files, (by_own, inferred is not None), strict=True) if says)
            raise ModelLoadError(f"{' and '.join(places)}: inputs.{name}: {error}") from error
        if rules is not None:
            found[name] = rules
    return found


def _strict(own: InputRules) -> frozenset[RuleName]:
    """See `NumberRules.strict`: the rules that refuse NaN by what the configuration says of them alone."""
    if own.max_missing is not None:
        return frozenset()
    rules: tuple[RuleName, ...] = ("finite",) if own.finite else ("range", "values")
    return frozenset(rule for rule in rules if own.policy.get(rule, "reject") == "reject")


def _rules(given: InputRules, spec: TensorSpec, layout: str | None, strict: frozenset[RuleName]) -> Rules | None:
    """None: nothing is asked for. Raises ValueError."""
    _check_kind(given, spec, is_image=layout is not None)
    for rule, policy in given.policy.items():
        if not any(_is_given(given, key) for key in RULE_KEYS[rule]):
            raise ValueError(f'policy.{rule} = "{policy}", but there is no {" or ".join(RULE_KEYS[rule])}')
    numbers = texts = None
    if spec.datatype == "BYTES":
        if given.values is not None or any(_is_given(given, key) for key in _OF_TEXTS):
            texts = _texts(given)
    elif given.values is not None or any(_is_given(given, key) for key in _OF_NUMBERS):
        numbers = _numbers(given, spec, strict)
    size = _size(given, layout == "NCHW") if any(_is_given(given, key) for key in _OF_IMAGES) else None
    if numbers is None and texts is None and size is None:
        return None
    policies: dict[str, Policy] = dict(given.policy.items())
    return Rules(numbers, texts, size, policies, given.names)


def _is_given(given: InputRules, key: str) -> bool:
    value = getattr(given, key)
    return value is not None and value is not False and value != ()  # 0 is given


def _check_kind(given: InputRules, spec: TensorSpec, *, is_image: bool) -> None:
    """Raises ValueError for rules that the input's datatype gives no meaning."""
    text = spec.datatype == "BYTES"
    for key in InputRules.model_fields:
        if not _is_given(given, key) or key == "policy":
            continue
        if key == "values":
            wrong = spec.datatype == "BOOL" or text != isinstance(given.values and given.values[0], str)
            kind = "texts" if text else "numbers"
        elif key in _OF_TEXTS:
            wrong, kind = not text, "BYTES"
        elif key in _OF_IMAGES:
            wrong, kind = not is_image, "images: three dimensions, with format or of 1, 3 or 4 channels, last or first"
        elif key in _OF_FLOATS:
            wrong, kind = not _is_float(spec), "floating point"
        else:
            wrong, kind = text or spec.datatype == "BOOL", "numbers"
        if wrong:
            raise ValueError(f"{key} is for {kind}, the input is {spec.datatype} {list(spec.shape)}")


def _is_float(spec: TensorSpec) -> bool:
    return spec.datatype == "BF16" or DATATYPES[spec.datatype].numpy.kind == "f"


def _texts(given: InputRules) -> TextRules:
    if given.pattern is not None:
        try:
            matcher(given.pattern)
        except ValueError as error:
            raise ValueError(f"pattern = {given.pattern!r}: {error}") from None
    values = None if given.values is None else frozenset(str(value).encode() for value in given.values)
    return TextRules(given.min_length or 0, given.max_length, given.pattern, values)


def _size(given: InputRules, channels_first: bool) -> SizeRules:
    return SizeRules((given.min_height, given.max_height), (given.min_width, given.max_width), channels_first)


def _numbers(given: InputRules, spec: TensorSpec, strict: frozenset[RuleName]) -> NumberRules:
    dtype = np.dtype("<f4") if spec.datatype == "BF16" else DATATYPES[spec.datatype].numpy
    for key in ("min", "max", "fill", "names"):
        value = getattr(given, key)
        if isinstance(value, tuple) and value and (not spec.shape or spec.shape[-1] != len(value)):
            raise ValueError(f"{key} has {len(value)} features, the input has {list(spec.shape)}")
    low, high = _bound("min", given.min, spec, dtype), _bound("max", given.max, spec, dtype)
    low, high = np.broadcast_arrays(low, high)
    if (low > high).any():
        raise ValueError(f"no {spec.datatype} is from min to max")
    fill = None
    if given.fill is not None:
        fill = np.array(_exact("fill", given.fill, spec), dtype)
        if not ((fill >= low) & (fill <= high)).all():
            raise ValueError("fill is outside of min and max")
    _check_clip(given, _is_float(spec))
    values = None
    if given.values is not None:
        values = np.unique(np.array(_exact("values", given.values, spec), dtype))
    ranged = given.min is not None or given.max is not None
    return NumberRules(
        np.ascontiguousarray(low) if low.ndim else low.copy(),
        np.ascontiguousarray(high) if high.ndim else high.copy(),
        ranged,
        given.finite,
        given.max_missing,
        values,
        fill,
        strict,
    )


def _check_clip(given: InputRules, is_float: bool) -> None:
    """Clipping must know what to put in the place of what has no nearest bound, and nothing else has a use for that."""
    if given.fill is not None and given.policy.get("finite") != "clip":
        raise ValueError('fill has no use without policy.finite = "clip"')
    if given.policy.get("finite") == "clip" and given.fill is None:
        raise ValueError('policy.finite = "clip" needs fill: NaN has no nearest bound')
    if is_float and given.policy.get("range") == "clip" and not given.finite and given.max_missing is None:
        raise ValueError('policy.range = "clip" needs finite or max_missing: NaN has no nearest bound')


def _bound(key: str, value: Any, spec: TensorSpec, dtype: np.dtype[Any]) -> Numbers:  # noqa: ANN401
    """A bound in the datatype; of integers, the nearest one within. Raises ValueError for one beyond the datatype.

    A bound of floating point is rounded like the values that clients send: 0.1 as FP32 is not above max = 0.1.
    """
    lower = key == "min"
    is_float = dtype.kind == "f"
    least, most = (-math.inf, math.inf) if is_float else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    if value is None:
        return np.array(least if lower else most, dtype)
    found = []
    for one in value if isinstance(value, tuple) else (value,):
        if not is_float:
            bound = _integer(one, lower, least, most)
            if not math.isinf(one) and not least <= bound <= most:
                raise ValueError(f"{key} = {exactly(one)} is beyond {spec.datatype}, expected {span(least, most)}")
            if bound > most if lower else bound < least:
                raise ValueError(f"{key} = {one:g} is beyond all of {spec.datatype}")
            found.append(min(max(bound, least), most))
        else:
            with np.errstate(over="ignore"):
                rounded = _as_float(float(one), spec.datatype, dtype)
            if math.isinf(rounded) and (rounded > 0) == lower:
                raise ValueError(f"{key} = {one:g} is beyond all of {spec.datatype}")
            if math.isinf(rounded) and not math.isinf(one):  # it bounds, and infinity is beyond it
                rounded = math.copysign(_GREATEST_BF16 if spec.datatype == "BF16" else np.finfo(dtype).max, one)
            found.append(rounded)
    return np.array(found if isinstance(value, tuple) else found[0], dtype)


def _integer(value: float, up: bool, least: float, most: float) -> int:
    """The nearest integer within; an infinity as the next one beyond the datatype."""
    if math.isinf(value):
        return int(most) + 1 if value > 0 else int(least) - 1
    return math.ceil(value) if up else math.floor(value)


def _as_float(value: float, datatype: str, dtype: np.dtype[Any]) -> Any:  # noqa: ANN401
    if datatype != "BF16":
        return dtype.type(value)
    return (np.uint32(number(value, datatype)) << np.uint32(16)).view(np.float32)


def _exact(key: str, value: Any, spec: TensorSpec) -> Any:  # noqa: ANN401
    """Values as elements of the datatype. Raises ValueError for one that it does not have."""

    def one(single: float) -> Any:  # noqa: ANN401
        try:
            found = number(single, spec.datatype)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
        return (np.uint32(found) << np.uint32(16)).view(np.float32) if spec.datatype == "BF16" else found

    return [one(single) for single in value] if isinstance(value, tuple) else one(value)
