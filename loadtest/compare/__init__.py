"""Compares Headrace with NVIDIA Triton on one machine, in one run: `python -m compare --help`."""
