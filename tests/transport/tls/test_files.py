import os
import ssl
from datetime import UTC, datetime

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from transport.tls.certificates import OTHERS, issue

from headrace.config import TlsSettings
from headrace.errors import ConfigError
from headrace.transport.tls.files import date, load, stamp

BEFORE, AFTER = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)


@pytest.fixture
def pair(tmp_path):
    return issue(tmp_path, "server", not_before=BEFORE, not_after=AFTER)


def use(**settings):
    credentials = load(TlsSettings(**settings))
    return credentials, credentials.context("h2")


def test_a_good_pair(pair):
    credentials, context = use(**pair.settings())
    assert (credentials.not_before, credentials.not_after) == (BEFORE.timestamp(), AFTER.timestamp())
    assert (credentials.chain, credentials.key) == (pair.chain.read_bytes(), pair.key.read_bytes())
    assert credentials.client_ca is None
    assert context.verify_mode is ssl.CERT_NONE
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert repr(credentials).endswith(f"sha256={credentials.sha256} until 2027-01-01T00:00:00Z>")


def test_no_secret_is_shown(pair):
    credentials, _ = use(**pair.settings())
    secret = pair.key.read_text().splitlines()[1]
    assert secret not in repr(credentials)


def test_tls_12_keeps_to_what_http_2_allows(pair):
    """Ephemeral keys and AEAD (RFC 9113, 9.2.2); nothing that compresses or renegotiates."""
    _, context = use(**pair.settings())
    ciphers = [cipher for cipher in context.get_ciphers() if cipher["protocol"] == "TLSv1.2"]
    assert len(ciphers) >= 4
    assert all(cipher["aead"] and cipher["kea"] == "kx-ecdhe" for cipher in ciphers)
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_a_key_in_the_certificates_file(pair, tmp_path):
    both = tmp_path / "both.pem"
    both.write_bytes(pair.key.read_bytes() + pair.chain.read_bytes())
    assert use(certificate=str(both))[0].not_after == AFTER.timestamp()


def test_client_certificates(pair):
    ca = {"client_ca": str(pair.ca)}
    credentials, context = use(**pair.settings(**ca))
    assert credentials.client_ca == pair.ca.read_bytes()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert use(**pair.settings(**ca, client_certificates="optional"))[1].verify_mode is ssl.CERT_OPTIONAL


def test_the_newest_version_alone(pair):
    assert use(**pair.settings(minimum_version="1.3"))[1].minimum_version is ssl.TLSVersion.TLSv1_3


@pytest.fixture
def locked(pair):
    """The pair with its key encrypted."""
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    pair.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"open sesame"),
        )
    )
    return pair


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\nanother line"])
def test_an_encrypted_key(locked, tmp_path, end):
    password = tmp_path / "password"
    password.write_text("open sesame" + end)
    use(**locked.settings(key_password_file=str(password)))


def test_passwords_that_do_not_open_it(locked, tmp_path):
    with pytest.raises(ConfigError, match=r'^tls.key = ".*server-key.pem": it is encrypted: .*tls.key_password_file'):
        use(**locked.settings())
    password = tmp_path / "password"
    for wrong, said in (("guess", "does not open .*server-key.pem"), ("x" * 2000, "longer than")):
        password.write_text(wrong)
        with pytest.raises(ConfigError, match=rf'^tls.key_password_file = "{password}": .*{said}') as caught:
            use(**locked.settings(key_password_file=str(password)))
        assert wrong not in str(caught.value)


@pytest.mark.parametrize("setting", ["certificate", "key", "client_ca", "key_password_file"])
@pytest.mark.parametrize("how", ["missing", "a directory"])
def test_files_that_cannot_be_read(locked, tmp_path, setting, how):
    password = tmp_path / "password"
    password.write_text("open sesame")
    name = tmp_path if how == "a directory" else tmp_path / "none"
    settings = locked.settings(client_ca=str(locked.ca), key_password_file=str(password)) | {setting: str(name)}
    with pytest.raises(ConfigError, match=rf'^tls.{setting} = "{name}": cannot be read: [NI]'):
        use(**settings)


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"])
@pytest.mark.parametrize("setting", ["certificate", "key", "client_ca"])
def test_files_that_hold_something_else(pair, tmp_path, setting, content):
    (tmp_path / "wrong").write_bytes(content)
    settings = pair.settings(client_ca=str(pair.ca)) | {setting: str(tmp_path / "wrong")}
    with pytest.raises(ConfigError, match=rf'^tls.{setting} = ".*wrong": expected (a )?PEM'):
        use(**settings)


def test_a_chain_that_is_cut_short(pair):
    pair.chain.write_bytes(pair.chain.read_bytes() + b"-----BEGIN CERTIFICATE-----\nAAAA\n")
    with pytest.raises(ConfigError, match=r'^tls.certificate = ".*server.pem": OpenSSL takes neither it nor the key'):
        use(**pair.settings())


def test_a_private_key_that_is_none(pair):
    pair.key.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    with pytest.raises(ConfigError, match=r"server-key.pem: "):
        use(**pair.settings())


@pytest.mark.parametrize("kind", ["ECDSA", "RSA"])
def test_a_key_of_another_certificate(pair, tmp_path, kind):
    other = issue(tmp_path, "other", key_type=trustme.KeyType[kind])
    with pytest.raises(ConfigError, match=r'^tls.key = ".*other-key.pem": is not the key of .*server.pem'):
        use(certificate=str(pair.chain), key=str(other.key))


def test_the_stamp_tells_a_change(tmp_path):
    """Of the contents; of the file, even with the same times and size; of the link to it, as Kubernetes makes them."""
    pair = issue(tmp_path, "server")
    settings = TlsSettings(**pair.settings())
    stamps = [stamp(settings)]
    assert stamp(settings) == stamps[0]
    pair.chain.write_bytes(pair.chain.read_bytes() + b"\n")
    stamps.append(stamp(settings))
    copy = tmp_path / "copy"
    copy.write_bytes(pair.chain.read_bytes())
    os.utime(copy, ns=(pair.chain.stat().st_atime_ns, pair.chain.stat().st_mtime_ns))
    copy.rename(pair.chain)
    stamps.append(stamp(settings))
    issue(tmp_path, "next", by=OTHERS)
    pair.chain.unlink()
    stamps.append(stamp(settings))
    pair.chain.symlink_to("next.pem")
    stamps.append(stamp(settings))
    assert len(set(stamps)) == len(stamps)


def test_times_are_readable():
    assert date(0) == "1970-01-01T00:00:00Z"
