"""The commands that ask a running server, by gRPC: `headrace infer` and `headrace models`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
import numpy as np

from headrace import convert_cli, tensor_text
from headrace.rpc import inference_pb2 as pb
from headrace.tensor_text import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from google.protobuf.message import Message

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

R = TypeVar("R", bound="Message")

_INFER_DESCRIPTION = """\
Sends one inference request and prints the outputs and where its time went in the server. An input is given as
NAME=VALUE, where VALUE is a .npy file, a .json file, or JSON itself: numbers, or strings for BYTES, in nested lists.
Values are converted to the input's datatype. The batch dimension may be left out for a single row.
"""

_INFER_EPILOG = """\
examples:
  headrace infer digits --input pixels=digit.npy
  headrace infer digits --input pixels=digits.json --outputs label --json
  headrace infer pair --input 'a=[[1, 2]]' --input 'b=[[0.5]]' --version 3 --timeout-ms 50
"""

_TIMING = "headrace_"
_MAX_MILLISECONDS = 10**9
_REASON = "headrace-reason"


def add_commands(commands: Subparsers) -> None:
    """Adds `infer` and `models` to the subcommands of a parser."""
    infer = commands.add_parser(
        "infer",
        help="send one request and print the outputs and the timing",
        description=_INFER_DESCRIPTION,
        epilog=_INFER_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    infer.add_argument("model", metavar="MODEL", help="name of the model")
    infer.add_argument("--input", metavar="NAME=VALUE", action="append", default=[], help="an input; once for each")
    infer.add_argument("--version", dest="model_version", metavar="N", default="", help="version (default: the newest)")
    infer.add_argument(
        "--parameter", metavar="NAME=VALUE", action="append", default=[],
        help="a parameter of the request, such as sequence_id=7; once for each",
    )  # fmt: skip
    infer.add_argument("--outputs", metavar="A,B", default="", help="outputs to compute (default: all)")
    _add_common(infer)
    infer.set_defaults(command=_infer, parser=infer)
    models = commands.add_parser(
        "models",
        usage="headrace models [--url HOST:PORT] [--timeout-ms N] [--json] | headrace models convert [--write] DIR",
        help="list a server's models, or convert the configuration of Triton's",
        description="Lists every model of a server: version, state (and the reason where it does not serve, or not by "
        "the first backend of its list), backend, largest batch, inputs and outputs. -1 is a dimension of any size; "
        "the first one is the batch.",
        allow_abbrev=False,
    )
    _add_common(models)
    models.set_defaults(command=_models, parser=models)
    convert_cli.add_command(models.add_subparsers(title="commands", metavar="COMMAND", prog="headrace models"))


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", metavar="HOST:PORT", default="127.0.0.1:8001", help="server (default: %(default)s)")
    parser.add_argument(
        "--timeout-ms",
        metavar="N",
        type=_milliseconds,
        default=10_000,
        help="deadline of a call (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    tls = parser.add_argument_group("TLS")
    tls.add_argument("--tls", action="store_true", help="speak TLS; each of the following flags implies it")
    tls.add_argument("--ca", metavar="FILE", help="PEM file of the authorities to trust (default: those of grpcio)")
    tls.add_argument("--certificate", metavar="FILE", help="PEM file of a client certificate and its chain")
    tls.add_argument("--key", metavar="FILE", help="PEM file of its private key (default: the certificate's file)")
    tls.add_argument("--server-name", metavar="NAME", help="name to find in the server's certificate, if not HOST")


def _milliseconds(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_MILLISECONDS:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 to {_MAX_MILLISECONDS}")
    return int(text)


def _channel(arguments: argparse.Namespace) -> grpc.Channel:
    # grpcio would send even loopback addresses to the proxy that http_proxy names.
    options: list[tuple[str, str | int]] = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.enable_http_proxy", 0),
    ]
    ca, certificate, key, name = (getattr(arguments, flag) for flag in ("ca", "certificate", "key", "server_name"))
    if key and not certificate:
        raise UsageError("--key goes with --certificate")
    if not (arguments.tls or ca or certificate or name):
        return grpc.insecure_channel(arguments.url, options)
    if name:
        options.append(("grpc.ssl_target_name_override", name))
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_pem("--ca", ca),
        private_key=_pem("--key", key) or _pem("--certificate", certificate),
        certificate_chain=_pem("--certificate", certificate),
    )
    return grpc.secure_channel(arguments.url, credentials, options)


def _pem(flag: str, name: str | None) -> bytes | None:
    if name is None:
        return None
    try:
        pem = Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"{flag} {name}: cannot be read: {error.strerror or error}") from error
    if b"-----BEGIN " not in pem:
        raise UsageError(f"{flag} {name}: expected a PEM file")
    return pem


class _Server:
    """A channel to a server, and the calls made on it, each with the same deadline."""

    def __init__(self, channel: grpc.Channel, timeout_ms: int) -> None:
        self._channel = channel
        self._timeout = timeout_ms / 1000

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, method: str, request: Message, response: type[R]) -> R:
        """One unary call. Raises grpc.RpcError."""
        invoke = self._channel.unary_unary(
            f"/inference.GRPCInferenceService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        return cast("R", invoke(request, timeout=self._timeout))


def _asks(command: Callable[[argparse.Namespace, _Server], None]) -> Callable[[argparse.Namespace], int]:
    """A command with a server to ask: what the server refuses is one line on standard error and status 1."""

    def run(arguments: argparse.Namespace) -> int:
        try:
            with _Server(_channel(arguments), arguments.timeout_ms) as server:
                command(arguments, server)
        except grpc.RpcError as error:
            call = cast("grpc.Call", error)
            reason = "".join(
                f" ({value})"
                for key, value in call.trailing_metadata() or ()
                if key == _REASON and isinstance(value, str)
            )
            details = " ".join(str(call.details()).split())
            print(f"headrace: {call.code().name}: {details}{reason}", file=sys.stderr)
            return 1
        return 0

    return run


@_asks
def _infer(arguments: argparse.Namespace, server: _Server) -> None:
    values = _read_inputs(arguments.input)
    metadata = server.call(
        "ModelMetadata",
        pb.ModelMetadataRequest(name=arguments.model, version=arguments.model_version),
        pb.ModelMetadataResponse,
    )
    request = pb.ModelInferRequest(model_name=arguments.model, model_version=arguments.model_version)
    request.parameters["headrace_timing"].bool_param = True
    declared = {tensor.name: tensor for tensor in metadata.inputs}
    for name, value in values.items():
        if name not in declared:
            raise UsageError(f"model {arguments.model!r} has no input {name!r}; it has {', '.join(declared)}")
        tensor = declared[name]
        array = tensor_text.convert(name, value, tensor.datatype, tuple(tensor.shape))
        request.inputs.add(name=name, datatype=tensor.datatype, shape=array.shape)
        request.raw_input_contents.append(tensor_text.to_wire(array, tensor.datatype))
    for name, parameter in _read_parameters(arguments.parameter).items():
        request.parameters[name].CopyFrom(parameter)
    for name in filter(None, arguments.outputs.split(",")):
        request.outputs.add(name=name.strip())
    response = server.call("ModelInfer", request, pb.ModelInferResponse)
    outputs = [
        (output, tensor_text.from_wire(raw, output.datatype, tuple(output.shape)))
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    ]
    timing = {
        key.removeprefix(_TIMING): getattr(value, value.WhichOneof("parameter_choice"))
        for key, value in response.parameters.items()
        if key.startswith(_TIMING)
    }
    (_print_reply_json if arguments.json else _print_reply)(response, outputs, timing)


def _read_parameters(parameters: Sequence[str]) -> dict[str, pb.InferParameter]:
    """Numbers, true and false are read as JSON, anything else is text."""
    fields = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    read = {}
    for name, value in _named("--parameter", parameters).items():
        try:
            found = json.loads(value)
        except ValueError:
            found = value
        try:
            read[name] = pb.InferParameter(**{fields[type(found)]: found})
        except (KeyError, ValueError):
            raise UsageError(
                f"--parameter {name}={value}: expected an integer of 64 bits, a number, true, false or text"
            ) from None
    return read


def _read_inputs(inputs: Sequence[str]) -> dict[str, object]:
    if not inputs:
        raise UsageError("no input given; use --input NAME=VALUE")
    return {name: tensor_text.read(name, value) for name, value in _named("--input", inputs).items()}


def _named(flag: str, texts: Sequence[str]) -> dict[str, str]:
    """What a flag that may be repeated has been given. Raises UsageError."""
    values: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not (name and separator):
            raise UsageError(f"{flag} {text}: expected NAME=VALUE")
        if name in values:
            raise UsageError(f"{flag} {name} is given twice")
        values[name] = value
    return values


def _print_reply(response: Any, outputs: Iterable[tuple[Any, Any]], timing: dict[str, Any]) -> None:  # noqa: ANN401
    print(f"{response.model_name}, version {response.model_version}")
    for output, array in outputs:
        print(f"\n{output.name}  {output.datatype}{list(output.shape)}")
        print(np.array2string(tensor_text.readable(array), threshold=200, precision=6, suppress_small=True))
    if timing:
        print("\ntiming")
        spent = {key.removesuffix("_us"): value for key, value in timing.items() if key.endswith("_us")}
        for phase in tensor_text.in_phase_order(spent):
            print(f"  {phase:<8} {spent[phase]:>9} us")
        others = {key: value for key, value in sorted(timing.items()) if not key.endswith("_us")}
        print("  " + ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in others.items()))


def _print_reply_json(response: Any, outputs: Iterable[tuple[Any, Any]], timing: dict[str, Any]) -> None:  # noqa: ANN401
    reply = {
        "model_name": response.model_name,
        "model_version": response.model_version,
        "outputs": [
            {
                "name": output.name,
                "datatype": output.datatype,
                "shape": list(output.shape),
                "data": tensor_text.readable(array).tolist(),
            }
            for output, array in outputs
        ],
        "timing": timing,
    }
    print(json.dumps(reply))


@_asks
def _models(arguments: argparse.Namespace, server: _Server) -> None:
    index = server.call("RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse)
    models = [_model(server, entry) for entry in index.models]
    if arguments.json:
        print(json.dumps(models))
        return
    headings = ("MODEL", "VERSION", "STATE", "BACKEND", "MAX BATCH", "INPUTS", "OUTPUTS", "REASON")
    rows = [
        (
            model["name"],
            model["version"] or "-",
            model["state"],
            model.get("backend") or "-",
            str(model.get("max_batch", "-")),
            ", ".join(_tensor_text(tensor) for tensor in model.get("inputs", ())) or "-",
            ", ".join(_tensor_text(tensor) for tensor in model.get("outputs", ())) or "-",
            " ".join(model["reason"].split()),
        )
        for model in models
    ]
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _model(server: _Server, entry: Any) -> dict[str, Any]:  # noqa: ANN401
    """What is known of one line of the repository index; of a version that serves, its tensors and batch too."""
    model: dict[str, Any] = {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}
    if entry.state != "READY":
        return model
    metadata = server.call(
        "ModelMetadata", pb.ModelMetadataRequest(name=entry.name, version=entry.version), pb.ModelMetadataResponse
    )
    config = server.call(
        "ModelConfig", pb.ModelConfigRequest(name=entry.name, version=entry.version), pb.ModelConfigResponse
    )
    model["backend"] = config.config.backend
    model["max_batch"] = config.config.max_batch_size
    for kind in ("inputs", "outputs"):
        model[kind] = [
            {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
            for tensor in getattr(metadata, kind)
        ]
    return model


def _tensor_text(tensor: dict[str, Any]) -> str:
    return f"{tensor['name']} {tensor['datatype']}[{','.join(map(str, tensor['shape']))}]"
