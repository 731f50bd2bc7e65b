"""The files that `[tls]` names, read and checked: what new connections are made with."""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import ConfigError
from headrace.transport.tls import x509

if TYPE_CHECKING:
    from headrace.config import TlsSettings

    Stamp = tuple[tuple[int, ...], ...]

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: forward secrecy and AEAD, which leaves nothing that HTTP/2 forbids (RFC 9113, 9.2.2 and appendix A)."""

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
_VERIFY = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL}


@dataclass(frozen=True)
class Credentials:
    """What one reading of the files gave. chain, key, client_ca: PEM. Times in seconds of Unix time."""

    settings: TlsSettings
    chain: bytes
    key: bytes
    client_ca: bytes | None
    not_before: int
    not_after: int
    sha256: str

    def __repr__(self) -> str:
        return f"<Credentials {self.settings.certificate} sha256={self.sha256} until {date(self.not_after)}>"

    def context(self, *protocols: str) -> ssl.SSLContext:
        """For a port on which these protocols are offered (ALPN). Reads the files again. Raises ConfigError."""
        settings = self.settings
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS[settings.minimum_version]
        context.set_ciphers(CIPHERS)
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(protocols)
        _load_pair(context, settings)
        if settings.client_ca:
            context.verify_mode = _VERIFY[settings.client_certificates]
            try:
                context.load_verify_locations(settings.client_ca)
            except ssl.SSLError as error:
                raise _wrong("client_ca", settings.client_ca, "expected PEM certificates of authorities") from error
            except OSError as error:
                raise _unreadable("client_ca", settings.client_ca, error) from error
        return context


def load(settings: TlsSettings) -> Credentials:
    """Reads the files. Raises ConfigError, which names the setting, the file and what is wrong."""
    chain = _read("certificate", settings.certificate)
    key_setting, key_path = _key(settings)
    key = _read(key_setting, key_path)
    client_ca = _read("client_ca", settings.client_ca) if settings.client_ca else None
    first = _CERTIFICATE.search(chain)
    try:
        if first is None:
            raise ValueError("no certificate")
        der = ssl.PEM_cert_to_DER_cert(first[0].decode("ascii"))
        not_before, not_after = x509.validity(der)
    except ValueError as error:
        raise _wrong("certificate", settings.certificate, "expected a PEM certificate, its chain behind it") from error
    if b"PRIVATE KEY-----" not in key:
        raise _wrong(key_setting, key_path, "expected a PEM private key")
    return Credentials(settings, chain, key, client_ca, not_before, not_after, hashlib.sha256(der).hexdigest())


def stamp(settings: TlsSettings) -> Stamp:
    """What changes when a file does, and also when a link to it is turned to another, as Kubernetes does."""
    names = (settings.certificate, settings.key, settings.key_password_file, settings.client_ca)
    return tuple(_stat(name) for name in names if name)


def date(seconds: int) -> str:
    """A time as people read it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _stat(name: str) -> tuple[int, ...]:
    try:
        found = os.stat(name)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _key(settings: TlsSettings) -> tuple[str, str]:
    """The setting that names the file of the private key, and the file."""
    return ("key", settings.key) if settings.key else ("certificate", settings.certificate)


def _load_pair(context: ssl.SSLContext, settings: TlsSettings) -> None:
    key_setting, key_path = _key(settings)
    asked = False

    def password() -> bytes:  # without it, OpenSSL would ask on the terminal
        nonlocal asked
        asked = True
        if not settings.key_password_file:
            raise _wrong(key_setting, key_path, "it is encrypted: expected tls.key_password_file to name a file")
        return _read("key_password_file", settings.key_password_file).partition(b"\n")[0].rstrip(b"\r")

    try:
        context.load_cert_chain(settings.certificate, key_path, password)
    except ssl.SSLError as error:
        if error.reason in _MISMATCHES:
            problem = f"is not the key of the certificate in {settings.certificate}"
            raise _wrong(key_setting, key_path, problem) from error
        if asked:
            raise _wrong("key_password_file", settings.key_password_file, f"does not open {key_path}") from error
        problem = f"OpenSSL takes neither it nor the key in {key_path}: {error.reason or 'not valid PEM'}"
        raise _wrong("certificate", settings.certificate, problem) from error
    except ValueError as error:  # 1024 octets and more
        raise _wrong("key_password_file", settings.key_password_file, str(error)) from error
    except OSError as error:
        raise _unreadable(key_setting, key_path, error) from error


def _read(setting: str, name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise _unreadable(setting, name, error) from error


def _unreadable(setting: str, name: str, error: OSError) -> ConfigError:
    return _wrong(setting, name, f"cannot be read: {error.strerror or error}")


def _wrong(setting: str, name: str, problem: str) -> ConfigError:
    return ConfigError(f'tls.{setting} = "{name}": {problem}')
