"""How both Kafka clients reach the cluster: addresses, TLS and SASL from the settings, in each library's own words."""

import ssl
from typing import Any

from tidegate.errors import ConfigFault
from tidegate.settings import Settings


def for_aiokafka(settings: Settings) -> dict[str, Any]:
    """Keyword arguments of aiokafka's clients. Raises ConfigFault where a TLS file cannot be used."""
    tls, sasl = settings.kafka.tls, settings.kafka.sasl
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap,
        "security_protocol": _protocol(settings),
        "client_id": "tidegate",
    }
    if tls is not None:
        options["ssl_context"] = _context(settings)
    if sasl is not None:
        options["sasl_mechanism"] = sasl.mechanism
        options["sasl_plain_username"] = sasl.username
        options["sasl_plain_password"] = sasl.password
    return options


def for_librdkafka(settings: Settings) -> dict[str, Any]:
    """Configuration properties of librdkafka's clients."""
    tls, sasl = settings.kafka.tls, settings.kafka.sasl
    options: dict[str, Any] = {
        "bootstrap.servers": settings.kafka_bootstrap,
        "security.protocol": _protocol(settings),
        "client.id": "tidegate",
    }
    if tls is not None:
        files = {"ca": tls.ca_file, "certificate": tls.cert_file, "key": tls.key_file}
        options |= {f"ssl.{name}.location": str(settings.path(file)) for name, file in files.items() if file}
    if sasl is not None:
        options |= {"sasl.mechanism": sasl.mechanism, "sasl.username": sasl.username, "sasl.password": sasl.password}
    return options


def _protocol(settings: Settings) -> str:
    plain = "PLAINTEXT" if settings.kafka.tls is None else "SSL"
    return plain if settings.kafka.sasl is None else f"SASL_{plain}"


def _context(settings: Settings) -> ssl.SSLContext:
    tls = settings.kafka.tls
    assert tls is not None
    try:
        context = ssl.create_default_context(cafile=str(settings.path(tls.ca_file)) if tls.ca_file else None)
        if tls.cert_file:
            key = str(settings.path(tls.key_file)) if tls.key_file else None
            context.load_cert_chain(str(settings.path(tls.cert_file)), key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigFault(
            f"$.kafka.tls: a file cannot be used ({error}); ca_file, cert_file and key_file are PEM files"
        ) from error
    return context
