"""Kafka behind TLS: passwords, certificates of clients, and what is said where one of them is wrong. A real broker with
a listener for each way; both clients.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tests.parts.certificates import Authority
from tests.parts.kafka import PASSWORD, USER, Kafka

from tidegate.errors import ConfigFault, LogUnavailable
from tidegate.log.kafka import KafkaAppender, KafkaLog
from tidegate.log.port import Record
from tidegate.settings import Kafka as KafkaSettings
from tidegate.settings import Sasl, Settings, Tls
from tidegate.settings_file import load_settings

pytestmark = pytest.mark.kafka
WRONG = "not-the-password"


def settings_at(bootstrap: str, tls: Tls | None, sasl: Sasl | None = None) -> Settings:
    topics = KafkaSettings(prefix=f"t{uuid4().hex[:8]}.", partitions=1, replication=1, min_insync=1, tls=tls, sasl=sasl)
    return Settings(log=f"kafka://{bootstrap}", kafka=topics)


def trusting(kafka: Kafka, **own: str) -> Tls:
    return Tls(ca_file=str(kafka.authority_file), **own)


def written(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[tuple[KafkaLog, KafkaAppender]]:
    log, appender = KafkaLog(settings, timeout_s=15), KafkaAppender(settings, timeout_s=15)
    try:
        yield log, appender
    finally:
        appender.close()
        await log.close()


async def assert_both_clients_append_and_read(settings: Settings) -> None:
    async with opened(settings) as (log, appender):
        await log.prepare()
        await log.append([Record("control", b"k", b"1")])
        await asyncio.to_thread(appender.append, [Record("control", b"k", b"2")])
        subscription = await log.follow(["control"])
        async with asyncio.timeout(20):
            found: list[bytes | None] = []
            while len(found) < 2:
                found += [each.value for each in await subscription.poll(10, 0.5)]
        assert found == [b"1", b"2"]


async def refusals(settings: Settings) -> tuple[str, str]:
    """What aiokafka's side says, and librdkafka's."""
    log, appender = KafkaLog(settings, timeout_s=5), KafkaAppender(settings, timeout_s=1.5)
    try:
        with pytest.raises(LogUnavailable) as one:
            await log.prepare()
        with pytest.raises(LogUnavailable) as other:
            await asyncio.to_thread(appender.append, [Record("control", b"k", b"3")])
    finally:
        appender.close()
        await log.close()
    return one.value.sentence, other.value.sentence


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_both_clients_sign_in_over_tls_with_a_password_in_a_file(
    kafka: Kafka, tmp_path: Path, mechanism: Any
) -> None:
    file = written(tmp_path / "password", f"{PASSWORD}\n".encode())
    sasl = Sasl(mechanism=mechanism, username=USER, password_file=file)
    await assert_both_clients_append_and_read(settings_at(kafka.secure_bootstrap, trusting(kafka), sasl))


async def test_both_clients_show_a_certificate_whose_key_is_encrypted(kafka: Kafka, tmp_path: Path) -> None:
    one_file = written(tmp_path / "edge.pem", kafka.authority.issue("edge-1", password=b"open sesame"))
    tls = trusting(kafka, cert_file=one_file, key_password="open sesame")
    await assert_both_clients_append_and_read(settings_at(kafka.mutual_bootstrap, tls))


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_a_wrong_password_is_named_and_never_shown(kafka: Kafka, mechanism: Any) -> None:
    sasl = Sasl(mechanism=mechanism, username=USER, password=WRONG)
    settings = settings_at(kafka.secure_bootstrap, trusting(kafka), sasl)
    for sentence in await refusals(settings):
        assert "refuses this user or password; check $.kafka.sasl" in sentence
        assert WRONG not in sentence
    assert WRONG not in repr(settings)


async def test_an_authority_that_did_not_sign_the_broker_is_named(kafka: Kafka, tmp_path: Path) -> None:
    other = written(tmp_path / "other.pem", Authority("another").pem)
    for sentence in await refusals(settings_at(kafka.expired_bootstrap, Tls(ca_file=other))):
        assert "$.kafka.tls.ca_file" in sentence
        assert "not signed by an authority that is trusted here" in sentence


async def test_a_broker_s_certificate_that_has_expired_is_named(kafka: Kafka) -> None:
    one, other = await refusals(settings_at(kafka.expired_bootstrap, trusting(kafka)))
    assert "the broker's certificate has expired; renew it" in one
    assert "it has expired, or" in other  # librdkafka does not tell the two apart


@pytest.mark.parametrize("shown", ["none", "another authority's", "expired"])
async def test_a_client_s_certificate_that_is_not_let_in_is_named(kafka: Kafka, tmp_path: Path, shown: str) -> None:
    own: dict[str, str] = {}
    if shown != "none":
        authority = kafka.authority if shown == "expired" else Authority("another")
        ends = timedelta(hours=-1) if shown == "expired" else timedelta(days=1)
        own["cert_file"] = written(tmp_path / "edge.pem", authority.issue("edge-1", ends=ends))
    for sentence in await refusals(settings_at(kafka.mutual_bootstrap, trusting(kafka, **own))):
        assert "wants a certificate that its own authority has signed" in sentence
        assert "$.kafka.tls.cert_file" in sentence
        assert ("ours has expired on 20" in sentence) is (shown == "expired")


async def said(settings: Settings) -> str:
    log = KafkaLog(settings, timeout_s=5)
    try:
        with pytest.raises(LogUnavailable) as caught:
            await log.prepare()
    finally:
        await log.close()
    return caught.value.sentence


async def test_a_port_for_other_clients_is_told_apart_from_a_broker_that_is_away(kafka: Kafka) -> None:
    sasl = Sasl(mechanism="PLAIN", username=USER, password=PASSWORD)
    assert "perhaps this port is for TLS" in await said(settings_at(kafka.secure_bootstrap, None, sasl))
    assert "or SASL ($.kafka.sasl)" in await said(settings_at(kafka.secure_bootstrap, trusting(kafka)))
    assert "clients without TLS" in await said(settings_at(kafka.bootstrap, trusting(kafka)))
    assert "takes no SASL on this port" in await said(settings_at(kafka.bootstrap, None, sasl))


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"ca_file": "nowhere.pem"}, "$.kafka.tls.ca_file: /nowhere.pem does not exist"),
        ({"ca_file": "EMPTY"}, "holds no certificate that can be read"),
        ({"cert_file": "EMPTY"}, "do not hold a certificate and its key"),
        ({"key_file": "LOCKED"}, "a key goes with a certificate"),
        ({"cert_file": "LOCKED"}, "key_password: is missing: the key is encrypted"),
        ({"cert_file": "LOCKED", "key_password": "wrong"}, "key_password: is wrong"),
        ({"cert_file": "LOCKED", "key_password_file": "EMPTY"}, "the first line of"),
    ],
)
def test_files_that_cannot_be_used_are_named_before_anything_is_sent(
    tmp_path: Path, own: dict[str, str], told: str
) -> None:
    files = {
        "EMPTY": written(tmp_path / "empty", b""),
        "LOCKED": written(tmp_path / "locked.pem", Authority().issue("edge-1", password=b"open sesame")),
        "nowhere.pem": "/nowhere.pem",
    }
    settings = settings_at("127.0.0.1:9", Tls(**{key: files.get(value, value) for key, value in own.items()}))
    with pytest.raises(ConfigFault) as caught:
        KafkaAppender(settings)
    assert told in caught.value.sentence
    assert "wrong" not in repr(settings)


def test_the_configuration_has_the_password_once(tmp_path: Path) -> None:
    issuers = "identity: {local_issuer: true}"
    for given in ("", ", password: a, password_file: b"):
        file = tmp_path / "tidegate.yaml"
        file.write_text(f"log: kafka://k:9092\n{issuers}\nkafka: {{sasl: {{username: u{given}}}}}\n")
        with pytest.raises(ConfigFault, match="exactly one of password and password_file"):
            load_settings(file)
    file.write_text(f"log: kafka://k:9092\n{issuers}\nkafka: {{sasl: {{username: u, password: '${{KAFKA}}'}}}}\n")
    loaded = load_settings(file, {"KAFKA": "from the environment"}).kafka.sasl
    assert loaded is not None
    assert loaded.password == "from the environment"
