"""Why a cluster does not let us in, in a sentence that names the setting to look at.

Both clients say it in their own words: aiokafka tells its log and raises something general, so that one connection is
made again to hear it; librdkafka's words are at hand. Counterpart: `kafka_connection.py`.
"""

import asyncio
import re
import ssl
from datetime import UTC, datetime
from typing import Final

from aiokafka.conn import create_conn
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.protocol.metadata import MetadataRequest
from cryptography import x509

from tidegate.log.kafka_connection import for_aiokafka
from tidegate.settings import Settings, host_port

_HEARD_MAX: Final = 400  # characters of a client's own words
_WITHIN_S: Final = 3.0
_HOSTS_MAX: Final = 3

_CA = (
    "the broker's certificate is not signed by an authority that is trusted here; "
    "give that authority's certificate as $.kafka.tls.ca_file"
)
_UNVERIFIED = (
    "the broker's certificate cannot be verified: it has expired, or is not signed by an authority that is trusted "
    "here; that authority's certificate belongs into $.kafka.tls.ca_file"
)
_EXPIRED = "the broker's certificate has expired; renew it on the broker"
_NAMES = "the broker's certificate is made out to other hosts; name the broker in $.log as its certificate does"
_USER = "the broker refuses this user or password; check $.kafka.sasl.username and the password"
_MECHANISM = "the broker does not offer this mechanism on this port; check $.kafka.sasl.mechanism"
_NO_SASL = "the broker takes no SASL on this port; remove $.kafka.sasl, or name the port that does in $.log"
_NO_TLS = "the broker speaks no TLS on this port; remove $.kafka.tls, or name the port that does in $.log"
_CLIENT = (
    "the broker wants a certificate that its own authority has signed; "
    "give one as $.kafka.tls.cert_file, with its key as $.kafka.tls.key_file"
)
_CLOSED = "the broker ends every connection; perhaps this port is for {wanted}"

_SENTENCES: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), sentence)
    for pattern, sentence in (
        (r"certificate has expired|certificate is not yet valid", _EXPIRED),
        (r"hostname mismatch|ip address mismatch|doesn't match|not valid for", _NAMES),
        (r"wrong.version.number|plaintext broker listener|record layer failure|packet length too long", _NO_TLS),
        (r"alert (bad certificate|certificate unknown|certificate required|certificate expired|unknown ca)", _CLIENT),
        (r"alert_(bad_certificate|certificate_|unknown_ca)|tlsv13_alert_certificate_required", _CLIENT),
        (r"broker certificate could not be verified", _UNVERIFIED),
        (r"certificate.verify.failed|unable to get local issuer|self.signed", _CA),
        (r"illegal ?sasl ?state|not valid in current sasl state", _NO_SASL),
        (r"unsupported ?sasl ?mechanism|unsupported.*mechanism|mechanism handshake failed", _MECHANISM),
        (r"authentication ?failed|sasl authentication error|invalid credentials|invalid username or password", _USER),
    )
)


def told(settings: Settings, heard: str) -> str:
    """A sentence on what a client says of a cluster; its own words where nothing better is known."""
    words = heard[:_HEARD_MAX]
    for pattern, sentence in _SENTENCES:
        if pattern.search(words):
            return f"{sentence}{_own_certificate(settings) if sentence is _CLIENT else ''} ({words})"
    return words


async def why(settings: Settings, error: BaseException) -> str:
    """What a client's error says, in our words; where it could not connect, what the brokers answer to us now."""
    if isinstance(error, KafkaConnectionError) and (found := await diagnosis(settings)):
        return found
    return str(error) or type(error).__name__


async def diagnosis(settings: Settings) -> str:
    """Why the brokers of `log` let nobody in, or "" where one does: a connection to each, as aiokafka makes it."""
    reasons: list[str] = []
    for address in settings.kafka_bootstrap.split(",")[:_HOSTS_MAX]:
        reason = await _heard(settings, address)
        if not reason:
            return ""
        if reason not in reasons:
            reasons.append(reason)
    return "; ".join(reasons)


async def _heard(settings: Settings, address: str) -> str:
    host, port = host_port(address)
    options = for_aiokafka(settings)
    options.pop("bootstrap_servers")
    try:
        async with asyncio.timeout(_WITHIN_S):
            connection = await create_conn(host, port, request_timeout_ms=int(_WITHIN_S * 1000), **options)
            try:
                await connection.send(MetadataRequest([]))
            finally:
                connection.close()
    except (KafkaError, OSError, TimeoutError) as error:
        return _said(settings, error)
    return ""


def _said(settings: Settings, error: BaseException) -> str:
    heard = next((one for one in (error, error.__cause__, error.__context__) if isinstance(one, ssl.SSLError)), error)
    words = str(heard) or type(heard).__name__
    if isinstance(heard, KafkaConnectionError | ConnectionResetError):
        return f"{_CLOSED.format(wanted=_wanted(settings))} ({words})"
    return told(settings, f"{type(heard).__name__}: {words}" if isinstance(heard, KafkaError) else words)


def _wanted(settings: Settings) -> str:
    """What a port may be for that a client with these settings has no use for."""
    tls, sasl = settings.kafka.tls, settings.kafka.sasl
    others = ["TLS ($.kafka.tls)"] if tls is None else ["clients without TLS"]
    others += ["SASL ($.kafka.sasl)"] if sasl is None else []
    others += ["clients with a certificate ($.kafka.tls.cert_file)"] if tls is not None and not tls.cert_file else []
    return f"{' or '.join(others)}{_own_certificate(settings)}"


def _own_certificate(settings: Settings) -> str:
    """What is wrong with our own certificate as far as we can tell: that its time is over."""
    tls = settings.kafka.tls
    if tls is None or not tls.cert_file:
        return ""
    try:
        certificate = x509.load_pem_x509_certificate(settings.path(tls.cert_file).read_bytes())
    except (OSError, ValueError):
        return ""
    ended = certificate.not_valid_after_utc
    return f"; ours has expired on {ended:%Y-%m-%d %H:%M} UTC" if ended < datetime.now(UTC) else ""
