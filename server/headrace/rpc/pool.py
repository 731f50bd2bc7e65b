"""The descriptor pool of the generated modules: our own, so that other packages may describe the same messages.

Protobuf's default pool holds one definition of a name in a process. tritonclient puts its own `inference` package
there, so ours lives here, and either can be imported first. Classes are made by protobuf's public factory instead of
protoc's generated code: that code checks the version of the runtime and registers in the default symbol database.
"""

from collections.abc import MutableMapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

POOL = DescriptorPool()


def define(module: MutableMapping[str, Any], serialized: bytes) -> FileDescriptor:
    """Adds a serialised FileDescriptorProto to the pool, and its messages and enums to the namespace `module`."""
    POOL.AddSerializedFile(serialized)
    file = POOL.FindFileByName(f"{module['__name__'].replace('.', '/').removesuffix('_pb2')}.proto")
    for name, enum in file.enum_types_by_name.items():
        module[name] = EnumTypeWrapper(enum)
        module.update((value.name, value.number) for value in enum.values)
    for name, message in file.message_types_by_name.items():
        module[name] = _message_class(message, module["__name__"])
    return file


def _message_class(descriptor: Descriptor, module: str) -> type[Message]:
    """The class of a message and, as its attributes, those of the messages nested in it."""
    message = GetMessageClass(descriptor)
    message.__module__ = module
    for nested in descriptor.nested_types:
        setattr(message, nested.name, _message_class(nested, module))
    return message
