"""What a person is shown and what an answer means; and what an edge believes of approvals that it hears of."""

import asyncio
import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.ids import now_us
from tidegate.policy.approvals import Approval, Decision, state_value
from tidegate.sealing import Sealer, SealingKey
from tidegate_edge import approval_question
from tidegate_edge.approval_book import KIND, PURPOSE, ApprovalBook
from tidegate_edge.approval_question import FORM_CHARS_MAX, PAGE_CHARS_MAX, Question, form, meant, plain, shown, text

ASKED = Question(
    agent="claude-code",
    login="alice@example.com",
    method="tools/call",
    server="payments",
    target="pay",
    arguments=b'{"to":"ACME","amount":812.5}',
    why="Somebody looks at large payments.",
    expires_us=1_795_400_000_000_000,
)


def whole(asked: Question) -> str:
    told = text(asked)
    assert told is not None
    return told


def test_the_question_names_who_what_where_with_which_arguments_why_and_until_when() -> None:
    assert text(ASKED) == (
        "claude-code wants to call the tool pay of the server payments for alice@example.com.\n"
        "\n"
        "Why you are asked: Somebody looks at large payments.\n"
        "\n"
        "Arguments:\n"
        '{\n  "to": "ACME",\n  "amount": 812.5\n}\n'
        "\n"
        "The question stands until 2026-11-23 02:13:20 UTC. If you approve, this one call passes, once."
    )


@pytest.mark.parametrize(
    ("method", "deed"),
    [
        ("prompts/get", "get the prompt pay of the server payments"),
        ("resources/read", "read the resource pay of the server payments"),
        ("resources/subscribe", "hear of changes of the resource pay"),
        ("something/else", "use pay of the server payments"),
    ],
)
def test_other_methods_have_words_of_their_own(method: str, deed: str) -> None:
    assert deed in whole(msgspec.structs.replace(ASKED, method=method))


@pytest.mark.parametrize(
    "hidden",
    [
        "\u202e",
        "\u200b",
        "\u2066",
        "\ue000",
        "\U000e0041",
        "\x07",
        "\u2028",
        "\u00a0",
        "\x0d",
        "\u3164",
        "\ufe0f",
        "\U000e0100",
        "\u034f",
        "\u115f",
        "\uffa0",
        "\u17b4",
        "\u180b",
        "\u2800",
    ],
)
def test_what_cannot_be_seen_is_written_out(hidden: str) -> None:
    asked = msgspec.structs.replace(
        ASKED, agent=f"a{hidden}b", target=f"c{hidden}d", arguments=msgspec.json.encode({f"e{hidden}": f"f{hidden}g"})
    )
    assert hidden not in whole(asked)
    assert f"a\\u{ord(hidden):04x}b" in whole(asked)


def test_a_name_cannot_pass_for_another_line() -> None:
    fake = "nothing.\n\nArguments:\n{}\n\nApprove now"
    told = whole(msgspec.structs.replace(ASKED, target=fake))
    assert told.splitlines()[0].count("\\n") == 5
    assert told.count("\nArguments:\n") == 1
    assert len(plain("x" * 10_000)) <= approval_question.NAME_CHARS_MAX


@pytest.mark.parametrize(
    "arguments",
    [
        {"body": "x" * 5_000},
        {f"filler{number}": "x" * 290 for number in range(14)} | {"zz_command": "rm -rf /"},
        {f"key{number}": number for number in range(1_500)},
        [[[[]]]] * 500,
    ],
)
def test_a_form_shows_everything_or_there_is_none(arguments: Any) -> None:
    asked = msgspec.structs.replace(ASKED, arguments=msgspec.json.encode(arguments))
    assert form(asked) is None
    told = text(asked, PAGE_CHARS_MAX)
    assert told is not None
    begin = told.index("Arguments:\n") + len("Arguments:\n")
    assert json.loads(told[begin : told.rindex("\n\nThe question stands")]) == arguments


def test_filler_hides_no_key_of_a_form() -> None:
    arguments = {f"filler{number}": "x" * 290 for number in range(8)} | {"zz_command": "rm -rf /"}
    assert '"zz_command": "rm -rf /"' in whole(msgspec.structs.replace(ASKED, arguments=msgspec.json.encode(arguments)))


def test_a_long_address_is_shown_whole_or_not_at_all() -> None:
    long = msgspec.structs.replace(ASKED, method="resources/read", target="doc://" + "x" * 900 + "?drop=all")
    assert "x?drop=all of" in whole(long)
    assert form(msgspec.structs.replace(ASKED, target="x" * 1_025)) is None


def test_numbers_are_shown_as_they_are_written() -> None:
    for number in ("0.1000000000000000000000000000000000000001", "123456789012345678902", "1e400", "-0", "1.50"):
        assert shown(f'{{"a": {number}}}'.encode(), 100) == f'{{\n  "a": {number}\n}}'


@pytest.mark.parametrize(
    "arguments",
    [
        b'{"a":[' + b"1.5," * 16_000 + b"1]}",
        b'{"a":' + b"[" * 60 + b"1," * 32_000 + b"1" + b"]" * 60 + b"}",
        msgspec.json.encode({"a": "\u200b\u3164" * 10_000}),
        msgspec.json.encode({f"k{number}": [] for number in range(6_000)}),
    ],
)
def test_no_more_is_looked_at_than_is_shown(arguments: bytes) -> None:
    began = time.process_time()
    assert shown(arguments, FORM_CHARS_MAX) is None
    assert time.process_time() - began < 0.5


@given(st.recursive(st.none() | st.booleans() | st.text(), lambda one: st.lists(one) | st.dictionaries(st.text(), one)))
def test_any_arguments_are_shown_whole(arguments: Any) -> None:
    told = shown(msgspec.json.encode(arguments), PAGE_CHARS_MAX)
    assert told is not None
    assert told.isprintable() or "\n" in told


@given(
    st.recursive(
        st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda one: st.lists(one) | st.dictionaries(st.text(), one),
    ),
    st.booleans(),
    st.sampled_from([None, 1, "\t"]),
)
def test_what_is_shown_whole_is_not_put_off_for_its_length(arguments: Any, ascii_only: bool, indent: Any) -> None:
    raw = json.dumps(arguments, ensure_ascii=ascii_only, indent=indent).replace("/", "\\/").encode()
    told = shown(raw, PAGE_CHARS_MAX)
    assert told is not None
    assert shown(raw, len(told)) == told
    assert shown(raw, len(told) - 1) is None


@given(st.binary(max_size=40), st.integers(0, 50))
def test_bytes_of_any_kind_are_shown_within_the_length_or_not_at_all(raw: bytes, most: int) -> None:
    assert len(shown(raw, most) or "") <= most


@pytest.mark.parametrize(
    ("answer", "form", "page"),
    [
        ({"action": "accept", "content": {"approve": True, "reason": "ok"}}, ("grant", "ok"), ("opened", "")),
        ({"action": "accept", "content": {"approve": False, "reason": "no"}}, ("deny", "no"), ("opened", "")),
        ({"action": "accept", "content": {"approve": "true"}}, ("nothing", ""), ("opened", "")),
        ({"action": "accept", "content": {"approve": 1}}, ("nothing", ""), ("opened", "")),
        ({"action": "accept", "content": [True]}, ("nothing", ""), ("opened", "")),
        ({"action": "accept"}, ("nothing", ""), ("opened", "")),
        ({"action": "decline"}, ("deny", ""), ("deny", "")),
        ({"action": "cancel", "content": {"approve": True}}, ("nothing", ""), ("nothing", "")),
        ({}, ("nothing", ""), ("nothing", "")),
        ([], ("nothing", ""), ("nothing", "")),
        ("accept", ("nothing", ""), ("nothing", "")),
        ({"action": True}, ("nothing", ""), ("nothing", "")),
    ],
)
def test_what_an_answer_means(answer: Any, form: tuple[str, str], page: tuple[str, str]) -> None:
    raw = msgspec.json.encode(answer)
    assert (meant(raw, "form"), meant(raw, "url")) == (form, page)


@given(st.binary(max_size=60))
def test_bytes_of_any_kind_are_no_approval(raw: bytes) -> None:
    assert meant(raw, "form")[0] in ("nothing", "deny")


# what other edges tell


class Line:
    """A bus to nobody: what is said is kept."""

    address = "here"

    def __init__(self) -> None:
        self.said: list[bytes] = []
        self.take: Any = None

    async def post(self, address: str, message: bytes) -> bool:
        return False

    async def tell_all(self, message: bytes) -> None:
        self.said.append(message)

    def on_message(self, kind: str, take: Any) -> None:
        assert kind == KIND
        self.take = take


KEYS = (SealingKey.generate(),)


def book() -> tuple[ApprovalBook, Line]:
    line = Line()
    return ApprovalBook(line, Sealer(KEYS)), line


def approval(**more: Any) -> Approval:
    given: dict[str, Any] = {
        "approval_id": "a",
        "tenant": "acme",
        "binding": "b",
        "subject_id": "alice",
        "agent": "agent",
        "session_id": "s",
        "method": "tools/call",
        "server": "up",
        "target": "pay",
        "call_id": "c",
        "requested_us": now_us(),
        "asked_until_us": now_us() + 60_000_000,
    } | more
    return Approval(**given)


async def told(one: Approval) -> bytes:
    """The message by which an edge tells the others."""
    here, line = book()
    await here.tell(one)
    return line.said[0].partition(b"\n")[2]


GRANT = Decision(1, "bob", "api", "", 2**62)


async def test_what_another_edge_tells_is_known_and_whoever_waits_hears_it() -> None:
    here, line = book()
    line.take(await told(approval()))
    waiting = asyncio.create_task(here.decided(approval(), 20))
    while not here.is_awaited("a"):
        await asyncio.sleep(0)
    line.take(await told(approval(granted=GRANT)))
    await asyncio.wait_for(waiting, 5)
    found = here.of("acme").get("a")
    assert found is not None
    assert found.state == "granted"
    assert not here.is_awaited("a")


async def test_what_was_not_told_by_an_edge_of_the_cluster_or_long_ago_is_not_believed() -> None:
    here, line = book()
    good = await told(approval(granted=GRANT))
    foreign = Sealer((SealingKey.generate(),))
    own = Sealer(KEYS)

    def news(at_s: float, value: bytes) -> bytes:
        return msgspec.json.encode({"at_s": at_s, "approval": msgspec.Raw(value), "v": 1})

    value = state_value(approval(granted=GRANT))
    for message in (
        b"",
        b"\xff" * 100,
        good[:-1],
        good[:20] + b"A" + good[21:] if good[20:21] != b"A" else good[:20] + b"B" + good[21:],
        foreign.seal(PURPOSE, news(time.time(), value), b"").encode(),
        own.seal("request-state", news(time.time(), value), b"").encode(),
        own.seal(PURPOSE, news(time.time() - 3_600, value), b"").encode(),
        own.seal(PURPOSE, news(time.time(), b"{}"), b"").encode(),
        own.seal(PURPOSE, b"[]", b"").encode(),
    ):
        line.take(message)
        assert len(here) == 0
    line.take(good)
    assert len(here) == 1


def test_a_state_record_counts_for_its_own_key_alone() -> None:
    here, _ = book()
    here.restore("acme", "another", state_value(approval()))
    here.restore("other", "a", state_value(approval()))
    here.restore("acme", "a", b"not even json")
    here.restore("acme", "a", state_value(approval(asked_until_us=1)))  # over long ago
    assert len(here) == 0
    here.restore("acme", "a", state_value(approval(granted=GRANT)))
    here.restore("acme", "a", None)
    found = here.of("acme").get("a")
    assert found is not None
    assert found.state == "expired"


async def test_of_calls_that_are_the_same_one_at_a_time_asks() -> None:
    here, _ = book()
    inside = most = 0

    async def turn(binding: str) -> None:
        nonlocal inside, most
        async with here.turn(binding):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*[turn("b") for _ in range(20)])
    assert (most, here._turns) == (1, {})
