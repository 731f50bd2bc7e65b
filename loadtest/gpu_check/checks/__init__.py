"""The checks. Each module registers its own; gpu_check/registry.py says how."""

MODULES = ("environment", "device", "ort", "backends", "kernels", "overlap", "fallback", "speed", "accuracy", "latency")
"""In the order in which their checks are made: what others lean on first, then what matters most."""
