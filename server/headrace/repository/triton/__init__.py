"""Triton's `config.pbtxt`: read, and turned into the settings of `model.toml`."""
