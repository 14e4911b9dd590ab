"""The accounts of `migrations/server`, on the embedded engine: it has no accounts by SQL, but obeys a file of them.

`accounts_file` writes what the statements say (roles, grants, row policies) as that file, and makes one of the accounts
the one that asks. An engine reads its file once, so each account asks in a process of its own: `ask`. What cannot be
said so: custom settings; `getSetting('SQL_tenant')` becomes the tenant's name.
"""

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from xml.sax.saxutils import escape

from tidegate_audit_consumer.migrate import migrations

TIMEOUT_S: Final = 120
TENANT: Final = "getSetting('SQL_tenant')"
_GRANT: Final = re.compile(r"(GRANT|REVOKE) (.+) (?:TO|FROM) (\w+)", re.DOTALL)
_POLICY: Final = re.compile(r"CREATE ROW POLICY IF NOT EXISTS \w+ ON tidegate\.(\w+) USING (.+) TO (\w+)", re.DOTALL)
_MADE: Final = re.compile(r"CREATE (ROLE|USER) IF NOT EXISTS (\w+)")


class Policy(NamedTuple):
    table: str
    condition: str
    role: str


class Accounts(NamedTuple):
    """What the statements say."""

    roles: list[str]
    users: list[str]
    grants: dict[str, list[str]]
    policies: list[Policy]


def accounts() -> Accounts:
    said = Accounts([], [], defaultdict(list), [])
    for statement in (one for migration in migrations("migrations/server") for one in migration.statements):
        text = re.sub(r"--[^\n]*\n", "", statement).strip()
        if made := _MADE.match(text):
            (said.roles if made[1] == "ROLE" else said.users).append(made[2])
        elif policy := _POLICY.fullmatch(text):
            said.policies.append(Policy(*policy.groups()))
        elif grant := _GRANT.fullmatch(text):
            said.grants[grant[3]].append(f"{grant[1]} {grant[2]}")
    return said


def accounts_file(folder: Path, *, role: str = "", tenant: str = "") -> Path:
    """The engine's configuration: who asks has this role and, with a tenant, its row policies; without a role,
    everything.
    """
    said = accounts()
    own = f"<grants><query>GRANT {role}</query></grants>" if role else "<access_management>1</access_management>"
    policies = "".join(
        f"<{one.table}><filter>{escape(one.condition.replace(TENANT, repr(tenant)))}</filter></{one.table}>"
        for one in said.policies
        if tenant
    )
    asking = f"{own}<databases><tidegate>{policies}</tidegate></databases>" if policies else own
    users = "".join(_account(name, _queries(said, name)) for name in said.users)
    roles = "".join(f"<{name}>{_queries(said, name)}</{name}>" for name in said.roles)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "users.xml").write_text(
        "<clickhouse><profiles><default></default></profiles><quotas><default></default></quotas>"
        f"<roles>{roles}</roles><users>{_account('default', asking)}{users}</users></clickhouse>"
    )
    config = folder / "config.xml"
    config.write_text(f"<clickhouse><users_config>{folder / 'users.xml'}</users_config></clickhouse>")
    return config


def _queries(said: Accounts, name: str) -> str:
    queries = "".join(f"<query>{escape(one)}</query>" for one in said.grants.get(name, ()))
    return f"<grants>{queries}</grants>" if queries else ""


def _account(name: str, own: str) -> str:
    start = "<password></password><networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota>"
    return f"<{name}>{start}{own}</{name}>"


def ask(directory: Path, config: Path, statements: Sequence[str]) -> list[list[list[Any]] | str]:
    """Rows of each statement, or ClickHouse's name for why it was refused."""
    command = [sys.executable, "-m", "tests.parts.accounts", str(directory), str(config)]
    done = subprocess.run(
        command, input=json.dumps(statements), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[list[list[Any]] | str] = json.loads(done.stdout)
    return answers


def _answer(connection: Any, statement: str) -> list[Any] | str:
    try:
        lines = connection.query(statement, "JSONCompactEachRow").bytes() or b""
    except RuntimeError as refusal:
        return str(refusal).rstrip().rpartition("(")[2].rstrip(")")
    return [json.loads(line) for line in bytes(lines).splitlines()]


def main() -> None:
    import chdb  # the engine, in this process alone

    connection = chdb.connect(f"file:{sys.argv[1]}?config-file={sys.argv[2]}")
    print(json.dumps([_answer(connection, statement) for statement in json.load(sys.stdin)]))
    connection.close()


if __name__ == "__main__":
    main()
