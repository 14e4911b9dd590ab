"""The official SDK clients of both eras against a running edge, towards upstreams of every kind: what an agent sees.

Client eras: mcp 2.3 ("auto" settles on 2026-07-28; "legacy"), mcp 1.30. Upstreams: modern HTTP, legacy HTTP with
sessions, stdio.
"""

from collections.abc import Iterator

import pytest
from tests.parts.clients.driving import KINDS, Failed, Kind, SdkClient, sdk_client
from tests.parts.clients.lab_upstream import running_upstream
from tests.parts.cluster import Cluster, running_cluster, telling
from tests.parts.kafka import Kafka
from tests.parts.lab_policy import lab_bundle

pytestmark = pytest.mark.kafka
TIME = {"time/get_current_time": "{ timezone: String }"}
DECISION = "tidegate/decision"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, kafka: Kafka) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("sdk")
    with running_upstream(directory) as modern, running_upstream(directory, "--legacy") as legacy:
        servers = {
            "new": {"url": modern["url"]},
            "old": {"url": legacy["url"]},
            "time": {"command": ["mcp-server-time", "--local-timezone", "Etc/UTC"]},
        }
        bundle = lab_bundle(("new", "old"), more=TIME)
        with running_cluster(directory, kafka.bootstrap, servers=servers, bundle=bundle, edges=1) as cluster:
            yield cluster


@pytest.fixture(autouse=True)
def cluster(running: Cluster) -> Iterator[Cluster]:
    with telling(running):
        yield running


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def client(running: Cluster, kind: Kind) -> Iterator[SdkClient]:
    """Alice of eng, at /mcp."""
    with sdk_client(kind, f"{running.edges[0].base}/mcp", running.token()) as connected:
        yield connected


def text_of(result: dict[str, object]) -> str:
    content = result["content"]
    assert isinstance(content, list)
    return str(content[0]["text"])


def test_an_sdk_client_works_with_every_kind_of_upstream(client: SdkClient, kind: Kind) -> None:
    assert client.about["protocol"] == ("2026-07-28" if kind == "auto" else "2025-11-25")
    assert client.about["server"] == "tidegate"
    assert bool(client.about["session"]) == (kind != "auto")
    assert client.do("list") == ["new__echo", "old__echo", "time__get_current_time"]
    for tool in ("new__echo", "old__echo"):
        result = client.call(tool, text=f"hello {tool}", path="/srv/a", nonce=f"{kind} {tool}")
        assert not result.get("isError"), result
        assert text_of(result).startswith(f"hello {tool}")
    result = client.call("time__get_current_time", timezone="Asia/Tokyo")
    assert not result.get("isError"), result
    assert "Asia/Tokyo" in text_of(result)


@pytest.mark.parametrize("server", ["new", "old"])
def test_a_refusal_by_arguments_is_a_tool_error_with_its_reason_and_rule(client: SdkClient, server: str) -> None:
    result = client.call(f"{server}__echo", text="x", path="/etc/passwd")
    assert result["isError"] is True
    assert "Only paths like /srv/* may be asked for." in text_of(result)
    decision = result["_meta"][DECISION]
    assert (decision["decision"], decision["stage"], decision["rules"]) == ("deny", "policy", ["only-below"])
    assert decision["bundle"]
    assert decision["id"]


def test_a_hidden_tool_is_answered_like_one_that_does_not_exist(client: SdkClient) -> None:
    with pytest.raises(Failed) as hidden:
        client.call("new__note", text="x")
    with pytest.raises(Failed) as missing:
        client.call("new__nota", text="x")
    assert hidden.value.code == missing.value.code == -32602
    assert hidden.value.message.replace("new__note", "new__nota") == missing.value.message


@pytest.mark.parametrize("server", ["new", "old"])
def test_what_the_inspection_found_in_a_result_is_masked(client: SdkClient, server: str) -> None:
    result = client.call(f"{server}__echo", text="his badge is BDG-XY12345678, says the file")
    text = text_of(result)
    assert "BDG-XY12345678" not in text
    assert text.startswith("his badge is ")
    assert ", says the file" in text


def test_a_client_of_one_server_sees_its_tools_under_their_own_names(cluster: Cluster, kind: Kind) -> None:
    token = cluster.token("walt@example.com", "eng", "writers")
    with sdk_client(kind, f"{cluster.edges[0].base}/mcp/old", token) as client:
        assert client.do("list") == ["echo", "note"]
        assert text_of(client.call("note", text="x")) == "Noted."
        with pytest.raises(Failed, match="Unknown tool"):
            client.call("get_current_time", timezone="Etc/UTC")


@pytest.mark.parametrize("legacy", ["legacy", "1.30"])
def test_a_legacy_client_pings_and_is_told_when_its_session_has_ended(cluster: Cluster, legacy: Kind) -> None:
    with sdk_client(legacy, f"{cluster.edges[0].base}/mcp", cluster.token()) as client:
        assert client.do("ping") == {}
        assert client.do("end") == 200
        with pytest.raises(Failed) as told:
            client.call("new__echo", text="x")
        assert abs(told.value.code) == 32600  # mcp 1.30 itself says 32600, without the sign, for any 404
        assert told.value.message.startswith("Session")
