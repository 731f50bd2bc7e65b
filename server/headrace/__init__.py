"""Headrace: a real-time inference server that speaks the Open Inference Protocol."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("headrace")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+unknown"
