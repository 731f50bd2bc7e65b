"""TLS and mutual TLS with the newest tritonclient and with KServe's clients."""

import pytest
from e2e.onnx_models import scale, write
from e2e.server_process import Server
from interop.peers import CLIENTS, PYTHON, needs, report
from transport.tls.certificates import client_context, issue

pytestmark = needs(PYTHON)


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mutual"])
def test_infer(transport, tmp_path, mutual):
    models = tmp_path / "models"
    write(models, "one", scale(2, "N", 4))
    files, shown = issue(tmp_path, "server"), issue(tmp_path, "client", "client@example.org")
    flags = [*files.flags(), *(["--tls-client-ca", files.ca] if mutual else [])]
    context = client_context(shown if mutual else None, alpn=())
    with Server(models, "--transport", transport, *flags, context=context) as server:
        http = server.http.removeprefix("https://")
        arguments = server.address, http, files.ca, *((shown.chain, shown.key) if mutual else "--")
        for client in ("triton_tls_client.py", "kserve_tls_client.py"):
            assert report(PYTHON, CLIENTS / client, *arguments) == {"grpc": [[2, 4, 6, 8]], "http": [[2, 4, 6, 8]]}
        assert server.stop() == 0
