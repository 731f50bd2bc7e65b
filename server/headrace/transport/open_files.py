"""How many connections the two ports may have, of the files that the process may open."""

from __future__ import annotations

import logging

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

SPARE_FILES = 200
"""Of those that the process may open, for models and their libraries, and connections that are told to go away."""


def most_connections(grpc: int, http: int) -> tuple[int, int]:
    """As many connections as are wanted of the gRPC and of the HTTP port, or their shares of what is possible.

    Asks the system for as many files as it takes, up to the limit that it cannot be asked beyond (getrlimit(2)): many
    shells begin with a low one for the sake of programs that use select(2), which this one does not.
    """
    if resource is None:
        return grpc, http
    wanted = grpc + http + SPARE_FILES
    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < wanted:
        files = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    if files == resource.RLIM_INFINITY or files >= wanted:
        return grpc, http
    left = max(files - SPARE_FILES, 2)
    less_http = max(1, left * http // (grpc + http))
    less_grpc = max(1, left - less_http)
    logger.warning(
        "connections are limited to %d of %d (http2.max_connections) and %d of %d (http.max_connections): the process "
        "may open %d files (ulimit -Hn)",
        *(less_grpc, grpc, less_http, http, files),
    )
    return less_grpc, less_http
