"""Official clients of three generations at servers of either era: directly, through the gateway's own door for a
server, and where several servers share a door. The page in the docs says what comes out.
"""

import asyncio
from itertools import product

import pytest
from tests.matrix.cells import CLIENTS, SERVERS, Client, Server
from tests.matrix.running import WAYS, Result, Results, Way, is_met, running_matrix
from tests.matrix.table import PAGE, page

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[Way, Results]:
    """All of it at once: what is slow are the processes, not the exercises."""

    async def run() -> dict[Way, Results]:
        async with running_matrix(tmp_path_factory.mktemp("matrix")) as matrix:
            return {way: await matrix.run(way) for way in WAYS}

    return asyncio.run(run())


def _of_cell(results: Results, client: Client, server: Server) -> dict[str, Result]:
    return {title: one for (key, at, title), one in results.items() if (key, at) == (client.key, server)}


@pytest.mark.parametrize(
    ("way", "client", "server"),
    [
        pytest.param(way, client, server, id=f"{client.key}-at-{server}-{way}")
        for way, client, server in product(WAYS, CLIENTS, SERVERS)
        if is_met(way, client, server)
    ],
)
def test_every_feature_works_or_is_refused_as_the_specification_asks(
    runs: dict[Way, Results], way: Way, client: Client, server: Server
) -> None:
    results = _of_cell(runs[way], client, server)
    assert results
    failed = [f"{title}: {one.why}" for title, one in results.items() if one.words == "failed"]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.key)
def test_a_feature_that_client_and_server_share_is_refused_through_the_gateway_only_where_it_is_directly(
    runs: dict[Way, Results], client: Client
) -> None:
    server: Server = "modern" if client.modern else "legacy"
    direct, through = (_of_cell(runs[way], client, server) for way in ("direct", "door"))
    assert {title: one.words for title, one in through.items()} == {title: one.words for title, one in direct.items()}


def test_several_servers_behind_one_door_change_nothing(runs: dict[Way, Results]) -> None:
    assert runs["shared"] == runs["door"]


def test_the_page_in_the_docs_says_what_a_run_says(runs: dict[Way, Results]) -> None:
    assert page(runs["door"]) == PAGE.read_text(), "write it anew: python -m tests.matrix.table"
