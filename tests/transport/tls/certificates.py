"""Certificates of the tests' own authorities."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme

OURS = trustme.CA()
OTHERS = trustme.CA()


@dataclass
class Files:
    """A certificate with its key, as files: chain, key; ca: of who signed it."""

    chain: Path
    key: Path
    ca: Path

    def flags(self, prefix="--tls-certificate", key="--tls-key"):
        return [prefix, str(self.chain), key, str(self.key)]

    def settings(self, **more):
        return {"certificate": str(self.chain), "key": str(self.key), **more}


def issue(directory, name, *identities, by=OURS, **options):
    """Writes NAME.pem, NAME-key.pem and NAME-ca.pem into the directory; identities: localhost if none is given."""
    made = by.issue_cert(*(identities or ("localhost", "127.0.0.1")), **options)
    files = Files(directory / f"{name}.pem", directory / f"{name}-key.pem", directory / f"{name}-ca.pem")
    files.chain.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    files.key.write_bytes(made.private_key_pem.bytes())
    files.ca.write_bytes(by.cert_pem.bytes())
    return files


def client_context(certificate=None, *, trusts=OURS, alpn=("h2",)):
    """What a client makes connections with; certificate: the Files that it shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusts.configure_trust(context)
    if alpn:
        context.set_alpn_protocols(alpn)
    if certificate is not None:
        context.load_cert_chain(certificate.chain, certificate.key)
    return context
