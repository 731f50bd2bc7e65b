"""What can go wrong with drift monitoring. For the operator: no request fails of it."""


class DriftError(Exception):
    """Data, a reference or a record of windows cannot be used. Says what was wrong and what was expected."""


class MissingPackage(DriftError):
    """An optional package is not installed. Names the extra that brings it."""
