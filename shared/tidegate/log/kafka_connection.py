"""How both Kafka clients reach the cluster: addresses, TLS and SASL from the settings, in each library's own words.

Files are read when a client is made, so that a renewed certificate or password is used by the next one. Counterpart:
`kafka_diagnosis.py` says why a cluster lets nobody in.
"""

import ssl
from pathlib import Path
from typing import Any, Final

from tidegate.errors import ConfigFault
from tidegate.limits import SECRETS_BYTES_MAX
from tidegate.settings import Settings, Tls

_FILES: Final = {"ca": "ca_file", "certificate": "cert_file", "key": "key_file"}


def for_aiokafka(settings: Settings) -> dict[str, Any]:
    """Keyword arguments of aiokafka's clients. Raises ConfigFault where a file of `tls` or `sasl` cannot be used."""
    tls, sasl = settings.kafka.tls, settings.kafka.sasl
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap,
        "security_protocol": _protocol(settings),
        "client_id": "tidegate",
    }
    if tls is not None:
        options["ssl_context"] = _context(settings, tls)
    if sasl is not None:
        options["sasl_mechanism"] = sasl.mechanism
        options["sasl_plain_username"] = sasl.username
        options["sasl_plain_password"] = _password(settings)
    return options


def for_librdkafka(settings: Settings) -> dict[str, Any]:
    """Configuration properties of librdkafka's clients. Raises ConfigFault as `for_aiokafka` does."""
    tls, sasl = settings.kafka.tls, settings.kafka.sasl
    options: dict[str, Any] = {
        "bootstrap.servers": settings.kafka_bootstrap,
        "security.protocol": _protocol(settings),
        "client.id": "tidegate",
    }
    if tls is not None:
        _context(settings, tls)  # librdkafka would say less of a file that it cannot use, and later
        for name, key in _FILES.items():
            if file := _file(settings, tls, key):
                options[f"ssl.{name}.location"] = str(file)
        if password := _key_password(settings, tls):
            options["ssl.key.password"] = password
    if sasl is not None:
        options["sasl.mechanism"], options["sasl.username"] = sasl.mechanism, sasl.username
        options["sasl.password"] = _password(settings)
    return options


def secret(settings: Settings, given: str, file: str, where: str) -> str:
    """A secret that stands in the configuration, or in the first line of a file. Raises ConfigFault: neither, both, or
    a file that cannot be read.
    """
    if bool(given) == bool(file):
        raise ConfigFault(f"$.{where}: give exactly one of {where.rpartition('.')[2]} and its _file")
    if not file:
        return given
    path = settings.path(file)
    try:
        with path.open("rb") as opened:
            line = opened.read(SECRETS_BYTES_MAX).decode().partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigFault(f"$.{where}_file: {path} cannot be read ({error}); it holds one line") from error
    if not line:
        raise ConfigFault(f"$.{where}_file: the first line of {path} is empty")
    return line


def _password(settings: Settings) -> str:
    sasl = settings.kafka.sasl
    assert sasl is not None
    return secret(settings, sasl.password, sasl.password_file, "kafka.sasl.password")


def _key_password(settings: Settings, tls: Tls) -> str:
    if not (tls.key_password or tls.key_password_file):
        return ""
    return secret(settings, tls.key_password, tls.key_password_file, "kafka.tls.key_password")


def _protocol(settings: Settings) -> str:
    plain = "PLAINTEXT" if settings.kafka.tls is None else "SSL"
    return plain if settings.kafka.sasl is None else f"SASL_{plain}"


def _file(settings: Settings, tls: Tls, key: str) -> Path | None:
    """A file of the section; a certificate without a key of its own holds it."""
    given = getattr(tls, key) or (tls.cert_file if key == "key_file" else "")
    return settings.path(given) if given else None


def _context(settings: Settings, tls: Tls) -> ssl.SSLContext:
    ca, certificate, key = [_file(settings, tls, name) for name in _FILES.values()]
    password = _key_password(settings, tls)
    for name, file in zip(_FILES.values(), (ca, certificate, key), strict=True):
        if file is not None and not file.is_file():
            raise ConfigFault(f"$.kafka.tls.{name}: {file} does not exist")
    if key is not None and certificate is None:
        raise ConfigFault("$.kafka.tls.key_file: a key goes with a certificate; give cert_file, too")
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigFault(f"$.kafka.tls.ca_file: {ca} holds no certificate that can be read (PEM): {error}") from error
    if certificate is not None:
        _load_own(context, certificate, key, password)
    return context


def _load_own(context: ssl.SSLContext, certificate: Path, key: Path | None, password: str) -> None:
    asked: list[bool] = []

    def give() -> str:  # without it the key's password would be asked for at the terminal
        asked.append(True)
        return password

    try:
        context.load_cert_chain(str(certificate), str(key) if key else None, give)
    except (OSError, ssl.SSLError, ValueError) as error:
        if asked:
            wrong = "is wrong" if password else "is missing: the key is encrypted"
            raise ConfigFault(f"$.kafka.tls.key_password: {wrong} ({key})") from None
        raise ConfigFault(
            f"$.kafka.tls.cert_file, key_file: {certificate} and {key} do not hold a certificate and its key (PEM): "
            f"{error}"
        ) from error
