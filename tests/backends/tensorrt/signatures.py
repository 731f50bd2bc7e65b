"""Holds `headrace.backends.tensorrt.bindings` to a real module of TensorRT: names, and signatures from its docstrings.

    signatures.py MODULE     prints a line for each difference

Run in a process of its own for each version; the modules of two versions cannot be loaded into one.
"""

import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module

from headrace.backends.tensorrt import api, bindings

AT_RUN_TIME = {"Callable": Callable, "Iterator": Iterator, "Sequence": Sequence, "b": bindings}
PROTOCOLS = {
    name: protocol
    for name, protocol in vars(bindings).items()
    if inspect.isclass(protocol) and protocol.__module__ == bindings.__name__
}
TAKEN = {
    int: {"typing.SupportsInt", "int"},
    str: {"str"},
    bool: {"bool"},
    bytes: {"typing_extensions.Buffer"},
    Sequence[int]: {"Dims"},  # made of any sequence of numbers, as the tests of the builder show
    tuple[int, ...]: {"tuple"},
    bindings.ILogger: {"ILogger", "typing_extensions.CapsuleType"},
}
GIVEN = {
    type(None): {"None"},
    int: {"int"},
    bool: {"bool"},
    str: {"str"},
    list[str]: {"list[str]"},
    Sequence[bindings.Dims]: {"list[Dims]"},
}


def members(protocol):
    """Names of a protocol -> its function, or None for an attribute. Of special methods, the language's own, none."""
    found = dict.fromkeys(inspect.get_annotations(protocol))
    for name, value in vars(protocol).items():
        if not name.startswith("_"):
            found[name] = value if inspect.isfunction(value) else None
    found.pop("__version__", None)
    return found


def differences(trt):
    """What the protocols say and the module does not."""
    yield from _of_class("", api.Module, trt)
    for name, protocol in PROTOCOLS.items():
        real = trt.ILogger.Severity if name == "Severity" else getattr(trt, name, None)
        if real is None:
            yield f"{name} is missing"
        else:
            yield from _of_class(f"{name}.", protocol, real)


def _of_class(prefix, protocol, real):
    for name, function in members(protocol).items():
        if not hasattr(real, name):
            yield f"{prefix}{name} is missing"
        elif function is not None:
            hints = typing.get_type_hints(function, localns=AT_RUN_TIME)
            given = hints.pop("return")
            yield from _of_call(prefix + name, list(hints.values()), given, getattr(real, name), not prefix)
    if protocol is api.Module:
        for name, hint in typing.get_type_hints(protocol, localns=AT_RUN_TIME).items():
            if typing.get_origin(hint) is Callable and hasattr(real, name):
                arguments, made = typing.get_args(hint)
                if made.__name__ != name:
                    yield f"{name} is said to make {made.__name__}"
                yield from _of_call(f"{name}.__init__", arguments, type(None), getattr(real, name).__init__, False)


def _of_call(name, arguments, given, real, is_function):
    """Nothing, if one of the signatures in a docstring can be called so."""
    signatures = list(_signatures(real, is_function))
    if not signatures:
        yield f"{name}: its docstring has no signature"
    elif not any(_fits(arguments, given, *signature) for signature in signatures):
        wanted = ", ".join(map(_words, arguments))
        yield f"{name}({wanted}) -> {_words(given)}: it has {signatures}"


def _fits(arguments, given, parameters, returned):
    required = sum("=" not in parameter for parameter in parameters)
    if not required <= len(arguments) <= len(parameters):
        return False
    kinds = [re.sub(r"^\*?\w+:\s*|\s*=.*$", "", parameter) for parameter in parameters]
    return all(_matches(a, kind, TAKEN) for a, kind in zip(arguments, kinds, strict=False)) and _matches(
        given, returned, GIVEN
    )


def _matches(ours, theirs, known):
    if isinstance(ours, types.UnionType) or typing.get_origin(ours) is typing.Union:  # theirs do not write `or None`
        (ours,) = [part for part in typing.get_args(ours) if part is not type(None)]
    if ours in known:
        return theirs in known[ours]
    name = "ILogger.Severity" if ours is bindings.Severity else getattr(ours, "__name__", "")
    return ours is object or theirs == name or "accessor<" in theirs


def _signatures(real, is_function):
    for parameters, returned in re.findall(r"^(?:\d+\. )?\w+\((.*)\) -> (.+)$", real.__doc__ or "", re.MULTILINE):
        short = re.sub(r"tensorrt(_rtx)?_bindings\.tensorrt(_rtx)?\.", "", parameters)
        parts = [part.strip() for part in re.split(r",\s*(?![^\[<]*[\]>])", short) if part.strip()]
        yield parts if is_function else parts[1:], re.sub(r"[\w.]*\.(?=Dims|I[A-Z]|[A-Z]\w+)", "", returned.strip())


def _words(hint):
    return getattr(hint, "__name__", str(hint))


if __name__ == "__main__":
    module = import_module(sys.argv[1])
    print(module.__version__)
    for line in differences(module):
        print(line)
