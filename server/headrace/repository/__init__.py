"""The model repository: what is on disk, how it is configured, which versions serve."""
