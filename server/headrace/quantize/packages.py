"""The optional packages that quantizing needs, and the quiet that theirs lack."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING

from headrace.quantize.errors import MissingPackage

if TYPE_CHECKING:
    from collections.abc import Iterator

_WARNING, _FATAL = 2, 4
"""ONNX Runtime's severities, of which the first is its default."""
NEEDED = ("onnx", "onnx_ir")


def require() -> None:
    """Raises MissingPackage where one is not installed."""
    missing = [name.replace("_", "-") for name in NEEDED if find_spec(name) is None]
    if missing:
        raise MissingPackage(
            f"quantizing needs the package{'s' if len(missing) > 1 else ''} {', '.join(missing)}: "
            "pip install 'headrace[quantize]'"
        )


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """What ONNX Runtime's tools print, log and warn of goes nowhere: what matters of it is in the report."""
    import onnxruntime as ort  # here, so that what is missing can be told first

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    ort.set_default_logger_severity(_FATAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        ort.set_default_logger_severity(_WARNING)
