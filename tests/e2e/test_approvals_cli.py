"""`tidegate approvals` against a real `up` of the approval example: what is listed, shown, watched and decided."""

import json
import os
import pty
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.e2e.first_example import TIDEGATE, House, serving_example

ALICE = ("--user", "alice@example.com", "--groups", "clerks")
BOB = ("--user", "bob@example.com", "--groups", "finance-leads")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with serving_example(tmp_path_factory.mktemp("house"), "04-approval") as running:
        yield running


def pay(house: House, amount: float, memo: str = "") -> Any:
    """The whole result of Alice's agent's call."""
    arguments = json.dumps({"to": "supplier-ink", "amount": amount, "memo": memo})
    return json.loads(house.run("call", "payments__pay", "--args", arguments, *ALICE, "--json").stdout)


def asked(house: House, amount: float, memo: str = "") -> str:
    """The approval's id, as the refusal tells it, once the policy service knows of it."""
    decision = pay(house, amount, memo)["_meta"]["tidegate/decision"]
    approval_id = str(decision["approval"]["id"])
    until(lambda: approval_id in house.run("approvals", "list", "--ids").stdout.split())
    return approval_id


def until(fact: Callable[[], bool], deadline_s: float = 40.0) -> None:
    late = time.monotonic() + deadline_s
    while not fact():
        assert time.monotonic() < late
        time.sleep(0.05)


def told(text: str) -> str:
    return " ".join(text.split())


def test_the_list_tells_who_wants_what_since_when_and_for_how_long_still(house: House) -> None:
    approval_id = asked(house, 601)
    shown = told(house.run("approvals", "list").stdout)
    for word in (approval_id, "waits", "s ago", "29m", "alice@example.com with", "payments__pay", "finance-leads"):
        assert word in shown
    (one,) = [
        one
        for one in json.loads(house.run("approvals", "list", "--json", *BOB).stdout)
        if one["approval_id"] == approval_id
    ]
    assert (one["login"], one["may_decide"], one["shut"]) == ("alice@example.com", True, "")
    assert "for a person: tidegate approvals list" in told(house.run("status").stdout)
    stranger = ("--user", "eve@example.com", "--groups", "sales")
    assert house.run("approvals", "list", "--ids", *stranger).stdout == ""
    assert (
        told(house.run("approvals", "list", *stranger).stdout)
        == "No call waits that eve@example.com (groups sales) may decide."
    )
    hidden = house.run("approvals", "show", approval_id, *stranger)
    assert (hidden.returncode, "no approval with this id waits" in told(hidden.stderr)) == (1, True)


def test_show_opens_what_is_to_be_judged_and_makes_what_cannot_be_seen_visible(house: House) -> None:
    approval_id = asked(house, 602.5, "ink\u202eknil\u200b [red]not markup[/]")
    shown = house.run("approvals", "show", approval_id, *BOB).stdout
    assert '"amount": 602.5' in shown
    assert "ink\ufffdknil\ufffd [red]not markup[/]" in shown
    assert "\u202e" not in shown
    assert "a member of 'finance-leads' or an administrator, who is not the requester" in told(shown)
    document = json.loads(house.run("approvals", "show", approval_id, "--json").stdout)
    assert document["arguments"]["amount"] == 602.5
    call_id = document["call_id"]
    assert "large-payments" in house.run("why", call_id).stdout


def test_what_is_approved_passes_once_and_tells_by_whom(house: House) -> None:
    approval_id = asked(house, 603)
    done = house.run("approvals", "approve", approval_id, "--reason", "order 7", "--yes", *BOB)
    assert done.returncode == 0, done.stderr
    assert "approved payments__pay: once" in told(done.stdout)
    assert "Paid 603.00" in str(pay(house, 603)["content"])
    until(lambda: "used" in house.run("approvals", "show", approval_id).stdout)
    assert "order 7" in house.run("approvals", "show", approval_id).stdout
    assert "that is an approval" in house.run("why", approval_id).stderr
    late = house.run("approvals", "deny", approval_id, "--yes")
    assert (late.returncode, "used it" in late.stderr) == (1, True)
    tail = told(house.run("log", "tail", "--no-follow", "--last", "200").stdout)
    for word in (f"approval granted {approval_id}", f"approval consumed {approval_id}", "approval requested alice"):
        assert word in tail


def test_the_requester_is_refused_and_a_slip_decides_nothing(house: House) -> None:
    approval_id = asked(house, 604)
    for words, code, sentence in (
        (("approve", approval_id, "--yes", *ALICE), 1, "somebody else has to decide"),
        (("approve", approval_id, *BOB), 2, "nobody can be asked here: give --yes"),
        (("deny", approval_id, "--yes", "--groups", "finance-leads"), 2, "--groups are those of --user"),
        (("approve", approval_id, "--yes", "--reason", "x" * 501), 1, "at most 500 characters"),
    ):
        done = house.run("approvals", *words)
        assert (done.returncode, sentence in told(done.stderr)) == (code, True), done.stderr
    assert json.loads(house.run("approvals", "show", approval_id, "--json").stdout)["state"] == "pending"


@pytest.mark.parametrize(("typed", "state"), [(b"order 8\ny\n", "granted"), (b"\nn\n", "pending")])
def test_a_person_at_a_terminal_is_shown_the_call_and_asked(house: House, typed: bytes, state: str) -> None:
    approval_id = asked(house, 605 + len(typed))
    ours, theirs = pty.openpty()
    try:
        os.write(ours, typed)
        done = house.run_apart("approvals", "approve", approval_id, *BOB, stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert f'"amount": {605 + len(typed)}' in done.stdout
    assert "Let this one call pass?" in done.stderr
    assert done.returncode == (0 if state == "granted" else 1)
    assert json.loads(house.run("approvals", "show", approval_id, "--json").stdout)["state"] == state


def test_watching_tells_each_change_as_it_comes(house: House) -> None:
    lines: list[str] = []
    watcher = subprocess.Popen(
        [str(TIDEGATE), "approvals", "list", "--watch", "--state", "all"],
        cwd=house.root,
        env={**os.environ, **house.environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert watcher.stdout is not None
    reader = threading.Thread(target=lines.extend, args=(iter(watcher.stdout.readline, ""),), daemon=True)
    reader.start()
    try:
        approval_id = asked(house, 620)

        def said(word: str) -> bool:
            return any(approval_id in line and word in line for line in list(lines))

        until(lambda: said("waits"))
        house.run("approvals", "deny", approval_id, "--yes", "--reason", "no", *BOB)
        until(lambda: said("denied"))
        assert sum(approval_id in line for line in lines) == 2, "a change is told once"
    finally:
        watcher.terminate()
        watcher.wait(10)
        reader.join(10)


def test_a_member_of_a_group_within_the_named_one_approves(house: House) -> None:
    policy = house.root / house.example / "policy"
    nested = [
        {"uid": {"type": "Group", "id": "emea"}, "attrs": {}, "parents": [{"type": "Group", "id": "finance-leads"}]}
    ]
    (policy / "entities.json").write_text(json.dumps(nested))
    published = house.run("bundle", "publish", str(policy))
    assert published.returncode == 0, published.stdout
    digest = json.loads(house.run("bundle", "list", "--json").stdout)[0]["digest"]
    approval_id, amount = "", 700

    def asked_by_it() -> bool:
        nonlocal approval_id, amount
        amount += 1
        approval_id = asked(house, amount)
        return bool(json.loads(house.run("approvals", "show", approval_id, "--json").stdout)["bundle"] == digest)

    until(asked_by_it)
    refused = house.run("approvals", "approve", approval_id, "--yes", *ALICE[:2], "--groups", "emea")
    assert (refused.returncode, "somebody else has to decide" in told(refused.stderr)) == (1, True)
    carol = ("--user", "carol@example.com", "--groups", "emea")
    assert approval_id in house.run("approvals", "list", "--ids", *carol).stdout.split()
    done = house.run("approvals", "approve", approval_id, "--yes", *carol)
    assert done.returncode == 0, done.stderr
    assert f"Paid {amount}.00" in str(pay(house, amount)["content"])
