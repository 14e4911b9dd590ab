"""Certificates for 127.0.0.1, made for one run: an authority of its own, what it issues to servers and clients, and a
certificate that signs itself.
"""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

_PEM = serialization.Encoding.PEM
_HOUR = timedelta(hours=1)
_HOSTS = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost")])


class Authority:
    """A certificate authority. `pem` is what its clients trust."""

    def __init__(self, name: str = "tidegate test authority") -> None:
        self._name = _named(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = _signed(self._name, self._name, self._key, self._key, is_authority=True)
        self.pem = self._certificate.public_bytes(_PEM)

    def issue(self, name: str, *, ends: timedelta = timedelta(days=1), password: bytes = b"") -> bytes:
        """PEM: the private key (PKCS #8), then the certificate, good for 127.0.0.1 until `ends` from now."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)  # Kafka reads no other key in PKCS #8 PEM
        certificate = _signed(_named(name), self._name, key, self._key, is_authority=False, ends=ends)
        return _private(key, password) + certificate.public_bytes(_PEM)


def self_signed() -> bytes:
    """PEM: the private key (PKCS #8), then the certificate; valid for a day."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = _named("tidegate test")
    return _private(key) + _signed(name, name, key, key, is_authority=True).public_bytes(_PEM)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _private(key: rsa.RSAPrivateKey, password: bytes = b"") -> bytes:
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, how)


def _signed(
    subject: x509.Name,
    issuer: x509.Name,
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    by: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    *,
    is_authority: bool,
    ends: timedelta = timedelta(days=1),
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + ends) - _HOUR)
        .not_valid_after(now + ends)
        .add_extension(_HOSTS, critical=False)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )
    return builder.sign(by, hashes.SHA256())
