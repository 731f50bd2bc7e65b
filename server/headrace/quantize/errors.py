"""What can go wrong while a model is quantized. For whoever runs the command: no request meets it."""


class QuantizeError(Exception):
    """A model, its data or what was made of it cannot be used. Says what was wrong and what was expected."""


class MissingPackage(QuantizeError):
    """An optional package is not installed. Names the extra that brings it."""


class VersionTaken(QuantizeError):
    """Somebody else has written the version meanwhile."""
