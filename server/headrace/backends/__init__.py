"""Execution backends: what runs a batch."""
