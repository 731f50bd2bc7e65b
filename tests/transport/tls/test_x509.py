import ssl
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given
from hypothesis import strategies as st
from transport.tls.certificates import OURS

from headrace.transport.tls.x509 import validity

DER = ssl.PEM_cert_to_DER_cert(OURS.cert_pem.bytes().decode())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("2026-03-01T12:00:00", "2027-03-01T11:59:59"),
        ("1951-01-01T00:00:00", "2049-12-31T23:59:59"),  # the ends of years of two digits
        ("2050-01-01T00:00:00", "9999-12-31T23:59:59"),
    ],
)
def test_dates(before, after):
    times = [datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (before, after)]
    assert validity(certificate(*times)) == tuple(int(time.timestamp()) for time in times)


def certificate(before, after):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x" * 60)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1 << 100, before, after)
    return builder.sign(key, hashes.SHA256()).public_bytes(encoding=serialization.Encoding.DER)


@given(st.binary(max_size=64) | st.integers(0, len(DER) - 1).map(lambda size: DER[:size]))
@example(b"")
@example(b"\x30\x84")
@example(b"\x30\x02\x30\x00")
@example(b"\x02\x03\x30\x01\x00")
def test_what_is_no_certificate(der):
    with pytest.raises(ValueError, match=r".+"):
        validity(der)
