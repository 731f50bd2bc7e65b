"""Models that checks without a GPU share."""

import pytest


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")
