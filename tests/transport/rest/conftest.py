"""For tests of connections: a server with one model, whose instance may be held."""

import pytest
from transport.rest.inferences import one_model


@pytest.fixture
def world():
    with one_model() as made:
        yield made


@pytest.fixture
def held(world):
    """The instance of the model, which lets no run end until it is released."""
    world.model.instances[0].hold()
    return world.model.instances[0]
