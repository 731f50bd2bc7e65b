"""The checks. Each module registers its own; gpu_check/registry.py says how."""

MODULES = ("environment", "speed", "overlap", "latency", "accuracy", "kernels", "device", "ort", "backends", "fallback")
"""In the order in which their checks are made: what docs/gpu.md lists as judged, then what explains it if it fails."""
