"""The checks. Each module registers its own; gpu_check/registry.py says how."""

MODULES = ("environment", "ort", "accuracy", "trt", "backends", "speed", "overlap")
"""In the order in which their checks are made: what others lean on first."""
