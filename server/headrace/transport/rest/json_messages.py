"""Messages of the service as JSON, in the form of Triton's HTTP front end.

Unlike protobuf's own JSON (which `json_format` makes): 64-bit integers are numbers, names are those of the fields, and
what has its default value is there all the same. Messages and members of a oneof that are not set are left out.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import FieldDescriptor as Field

from headrace.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.message import Message

_WHOLE = frozenset(
    {
        Field.TYPE_INT32, Field.TYPE_INT64, Field.TYPE_UINT32, Field.TYPE_UINT64, Field.TYPE_SINT32, Field.TYPE_SINT64,
        Field.TYPE_FIXED32, Field.TYPE_FIXED64, Field.TYPE_SFIXED32, Field.TYPE_SFIXED64,
    }
)  # fmt: skip


def to_json(message: Message) -> dict[str, Any]:
    """The object of a message."""
    fields: Iterable[Any] = message.DESCRIPTOR.fields  # of either of protobuf's two kinds
    return {field.name: _member(message, field) for field in fields if _present(message, field)}


def set_member(message: Message, name: str, value: object) -> None:
    """Sets a field that holds one string, boolean or whole number. Raises InvalidRequest."""
    field = message.DESCRIPTOR.fields_by_name[name]
    if field.type == Field.TYPE_BOOL:
        wanted, fits = "true or false", isinstance(value, bool)
    elif field.type in _WHOLE:
        wanted, fits = "a whole number", isinstance(value, int) and not isinstance(value, bool)
    else:
        wanted, fits = "a string", isinstance(value, str)
    try:
        if fits:
            setattr(message, name, value)
            return
    except ValueError:  # out of range, or half of a surrogate pair
        wanted += " that the field can hold"
    raise InvalidRequest(f"Unable to parse '{name}': got {str(value)[:80]!r}, expected {wanted}")


def is_map(field: Field) -> bool:
    """Whether a field is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _present(message: Message, field: Field) -> bool:
    if field.is_repeated or not field.has_presence:
        return True
    return message.HasField(field.name)


def _member(message: Message, field: Any) -> Any:  # noqa: ANN401
    value = getattr(message, field.name)
    if is_map(field):
        of_values: Any = field.message_type.fields_by_name["value"]
        return {str(key): _value(value[key], of_values) for key in sorted(value)}
    if field.is_repeated:
        return [_value(one, field) for one in value]
    return _value(value, field)


def _value(value: Any, field: Field) -> Any:  # noqa: ANN401
    if field.message_type is not None:
        return to_json(value)
    if field.enum_type is not None:
        found = field.enum_type.values_by_number.get(value)
        return value if found is None else found.name
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value
