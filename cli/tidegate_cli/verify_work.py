"""The work of `tidegate verify` and `tidegate prove` around the verification itself: keys, times, files, and words."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import typer

from tidegate.audit.proofs import Proof, check_proof, prove
from tidegate.audit.roots import RootFault, Trust, open_root, trusted_audit_keys
from tidegate.chain import open_head
from tidegate.errors import AnalyticsUnavailable, CallerFault, ConfigFault
from tidegate.events import RootSealed
from tidegate.settings import Settings
from tidegate_cli.held_sources import KEY_FILE, ClickHouseSource, DirectorySource, Source, read_roots_of
from tidegate_cli.options import live_settings
from tidegate_cli.output import plain, print_document, say
from tidegate_cli.verifying import Report, Saving, Verification

PROOF_BYTES_MAX = 64 * 1024 * 1024
SHOWN_MAX = 20


class Proofs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `tidegate prove` writes: a proof for each of a call's records."""

    v: int = 1
    call_id: str
    proofs: tuple[Proof, ...]


def show_verification(
    config: Path,
    *,
    since: str,
    until: str,
    roots: Sequence[Path],
    keys: Sequence[str],
    directory: Path | None,
    save: Path | None,
    as_json: bool,
) -> int:
    """The exit code. Raises Fault."""
    settings = _settings(config, bool(keys) and directory is not None)
    from_us, to_us = moment("--from", since) or 0, moment("--to", until) or time.time_ns() // 1000
    if from_us > to_us:
        raise ConfigFault("--from lies after --to; exchange them")
    known = public_keys(settings, keys, directory)
    work = verify(settings, from_us, to_us, roots, known, directory, save)
    report = asyncio.run(work)
    if as_json:
        print_document(document(report))
    else:
        _show(report)
    return 0 if report.verdict == "whole" else 1


async def verify(
    settings: Settings | None,
    from_us: int,
    to_us: int,
    roots: Sequence[Path],
    keys: Sequence[str],
    directory: Path | None,
    save: Path | None,
) -> Report:
    """Over ClickHouse or a directory. Raises Fault."""
    from tidegate.analytics.clickhouse import open_reader
    from tidegate_audit_consumer.roots_file import roots_path

    trust = trusted_audit_keys(keys)
    files = list(roots)
    if directory is not None:
        return await _verify(DirectorySource(directory), trust, keys, from_us, to_us, files, save)
    if settings is None:
        raise ConfigFault("give --config, or --dir with what --save wrote")
    if not files and roots_path(settings).is_file():
        files.append(roots_path(settings))
    analytics = open_reader(settings)
    try:
        return await _verify(ClickHouseSource(analytics), trust, keys, from_us, to_us, files, save)
    finally:
        await analytics.close()


async def _verify(
    source: Source, trust: Trust, keys: Sequence[str], from_us: int, to_us: int, files: list[Path], save: Path | None
) -> Report:
    verification = Verification(source, trust, from_us, to_us, time.time_ns() // 1000)
    published: list[RootSealed] = [event for file in files for event in read_roots_of(file)]
    roots = await verification.roots(published)
    if save is None:
        return await verification.run(roots)
    verification.saving = Saving(save, roots, keys)
    try:
        return await verification.run(roots)
    finally:
        verification.saving.close()


def write_proof(call_id: str, out: Path | None, config: Path, keys: Sequence[str]) -> None:
    """Raises CallerFault where ClickHouse has no such call, or it is not sealed yet."""
    settings = live_settings(config)
    proofs = asyncio.run(_prove(settings, call_id, trusted_audit_keys(public_keys(settings, keys, None))))
    content = msgspec.json.format(msgspec.json.encode(proofs), indent=1)
    if out is None:
        typer.echo(content.decode())
    else:
        out.write_bytes(content + b"\n")
        typer.echo(f"Proof of {len(proofs.proofs)} records in {out}; check it: tidegate verify --proof {out}", err=True)


async def _prove(settings: Settings, call_id: str, trust: Trust) -> Proofs:
    from tidegate.analytics.clickhouse import open_reader

    analytics = open_reader(settings)
    try:
        source = ClickHouseSource(analytics)
        records = await source.of_call(call_id)
        if not records:
            raise CallerFault(f"ClickHouse holds no call {call_id}")
        return Proofs(call_id=call_id, proofs=tuple([await _prove_one(source, *one, trust) for one in records]))
    finally:
        await analytics.close()


async def _prove_one(source: ClickHouseSource, writer: str, seq: int, value: bytes, trust: Trust) -> Proof:
    sealed = await source.root_over(writer, seq)
    if sealed is None:
        raise CallerFault(f"record {seq} of {writer} is under no root yet; try again after the next is sealed")
    leaves = open_root(sealed, trust).leaves
    leaf = next((one for one in leaves if one.writer == writer and one.first <= seq <= one.last), None)
    if leaf is None:
        raise RootFault(f"root {sealed.number} does not have record {seq} of {writer}", code="proof-impossible")
    found = await source.records([leaf])
    return prove(value, [one.held.hash for one in found], leaf, sealed)


def show_proof_check(file: Path, config: Path, keys: Sequence[str], as_json: bool) -> int:
    """The exit code. Raises ConfigFault where the file is no proof."""
    try:
        if file.stat().st_size > PROOF_BYTES_MAX:
            raise ConfigFault(f"{file}: larger than {PROOF_BYTES_MAX} bytes; it is no proof")
        proofs = msgspec.json.decode(file.read_bytes(), type=Proofs)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigFault(f"{file}: cannot be read as a proof ({error})") from error
    settings = _settings(config, bool(keys))
    trust = trusted_audit_keys(public_keys(settings, keys, None))
    try:
        told = [_told_proof(proof, trust, proofs.call_id) for proof in proofs.proofs]
    except RootFault as fault:
        told, why = [], fault.sentence
    else:
        why = "" if told else "it holds no record"
    if as_json:
        print_document({"verdict": "broken" if why else "proven", "problem": why, "records": told})
    elif why:
        say(f"[bold red]Not proven[/]: {plain(why)}")
    else:
        for one in told:
            say(
                f"[green]Proven[/]: {one['type']} {one['id']}, record {one['seq']} of {plain(one['writer'])}, "
                f"under root {one['root']} of '{plain(one['sealer'])}', sealed {one['sealed_at']}"
            )
    return 1 if why else 0


def _told_proof(proof: Proof, trust: Trust, call_id: str) -> dict[str, Any]:
    root = check_proof(proof, trust)
    fields = msgspec.json.decode(proof.record.encode())
    if fields.get("call_id") != call_id:
        raise RootFault(f"the record is not about call {call_id}", code="proof-wrong")
    head = open_head(proof.record.encode())
    return {
        "type": head.type,
        "id": head.id,
        "writer": head.writer,
        "seq": head.seq,
        "sealer": root.sealer,
        "root": root.number,
        "sealed_at": shown_time(root.sealed_us),
        "decision": fields.get("decision", ""),
    }


def public_keys(settings: Settings | None, given: Sequence[str], directory: Path | None) -> list[str]:
    """Of the audit key: as given, else `trust.audit_keys`, else those published beside the roots of local mode."""
    from tidegate_audit_consumer.roots_file import roots_path

    if given:
        return [key for one in given for key in _keys_in(one)]
    if settings is not None and settings.trust.audit_keys:
        return list(settings.trust.audit_keys)
    if settings is not None and settings.is_local and (beside := roots_path(settings).with_suffix(".pub")).is_file():
        return beside.read_text().split()
    where = f", for example {directory / KEY_FILE} if you trust that copy" if directory is not None else ""
    raise ConfigFault(f"no audit key is trusted: set trust.audit_keys, or give --key its public half{where}")


def moment(option: str, text: str) -> int:
    """Microseconds since the epoch; 0 of "". Raises ConfigFault."""
    from tidegate_cli.matching import age_us

    try:
        return age_us(text)
    except ConfigFault as fault:
        raise ConfigFault(fault.sentence.replace("--since", option, 1)) from None


def shown_time(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def document(report: Report) -> dict[str, Any]:
    """As `--json` prints it."""
    first = report.first_wrong
    return {
        "verdict": report.verdict,
        "from": shown_time(report.from_us),
        "to": shown_time(report.to_us),
        "roots": report.roots,
        "latest": report.latest,
        "sealed_at": shown_time(report.sealed_us) if report.sealed_us else None,
        "records": report.records,
        "unproven": report.unproven,
        "pending": report.pending,
        "overdue": report.overdue,
        "expired": report.expired,
        "expired_before": shown_time(report.expired_before_us) if report.expired_before_us else None,
        "expired_why": report.expired_why,
        "first_wrong": None if first is None else first._asdict(),
        "wrong": [one._asdict() for one in report.wrong],
        "rows": [one._asdict() for one in report.rows],
        "losses": [msgspec.to_builtins(one) for one in report.losses],
        "problems": [one._asdict() for one in report.problems],
    }


def _keys_in(given: str) -> list[str]:
    file = Path(given)
    try:
        return file.read_text().split() if file.is_file() else [given]
    except OSError as error:
        raise ConfigFault(f"--key {given}: cannot be read ({error.strerror})") from error


def _settings(config: Path, is_optional: bool) -> Settings | None:
    """Keys that are given make the configuration dispensable: auditors have none."""
    try:
        return live_settings(config)
    except (ConfigFault, AnalyticsUnavailable):
        if is_optional:
            return None
        raise


def _show(report: Report) -> None:
    series = ", ".join(f"{plain(sealer)} up to {number}" for sealer, number in report.latest.items())
    if report.verdict == "whole":
        say(
            f"[green]Whole[/]: {report.records:,} records are what was sealed, under {report.roots:,} roots ({series})."
        )
    elif report.verdict == "unproven":
        say(
            f"[yellow]Unproven[/]: {report.overdue:,} records are older than ten minutes and under no root; "
            "give the published file with --roots, or see why nothing is sealed."
        )
    else:
        count = len(report.wrong) + len(report.rows) + len(report.problems)
        say(f"[bold red]Broken[/]: {count:,} things are wrong; the first:")
    for loss in report.losses[:SHOWN_MAX]:
        say(f"  [yellow]lost[/] on the disk of edge {plain(loss.edge)}: {plain(loss.message)}")
    for problem in report.problems[:SHOWN_MAX]:
        say(f"  root {problem.number} of {plain(problem.sealer)}: {plain(problem.sentence)}")
    for wrong in report.wrong[:SHOWN_MAX]:
        say(f"  {wrong.kind} · {plain(wrong.writer)} · record {wrong.seq}: {plain(wrong.sentence)}")
    for row in report.rows[:SHOWN_MAX]:
        say(f"  {row.kind} · {plain(row.sentence)}")
    if report.verdict == "broken":
        say(
            f"{report.records:,} records are what was sealed and {report.unproven:,} cannot be proven to be, "
            f"under {report.roots:,} roots ({series})."
        )
    if report.expired:
        say(
            f"{report.expired:,} records from before {shown_time(report.expired_before_us)} are no longer there: "
            f"{plain(report.expired_why)}. Their roots prove that they were."
        )
    if report.pending and report.verdict != "unproven":
        say(f"{report.pending:,} records are younger than the last root ({shown_time(report.sealed_us)}).")
