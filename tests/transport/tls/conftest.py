import pytest
from transport.tls.bench import Buffered, Plain, benches


@pytest.fixture
def bench(tmp_path):
    with benches(tmp_path) as made:
        yield made


@pytest.fixture(params=[Plain, Buffered])
def app(request):
    return request.param()
