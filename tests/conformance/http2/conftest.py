from contextlib import ExitStack

import pytest
from conformance.native import Native


@pytest.fixture
def start():
    """Starts transports of the test's own: `start(**settings)`."""
    with ExitStack() as stack:
        yield lambda *args, **settings: stack.enter_context(Native(*args, **settings))
