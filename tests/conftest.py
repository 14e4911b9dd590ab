"""Session fixtures: the real servers, started at first use and stopped at the end of the run."""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from tests.parts.kafka import Kafka, running_kafka
from tests.parts.valkey import running_valkey

settings.register_profile("unhurried", settings(), deadline=None)  # a machine that is busy is no fault of the code
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    """A shared broker: use a topic prefix of your own, and never stop it (start your own for that)."""
    with running_kafka() as broker:
        yield broker


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """A shared server: use keys of your own, and never flush it."""
    with running_valkey() as url:
        yield url
