"""The work of `tidegate verify` and `tidegate prove` around the verification itself: keys, times, files, and words."""

import asyncio
import time
from collections.abc import Sequence
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
from tidegate_cli.reaching import reaching
from tidegate_cli.verify_telling import counted, document, show, shown_time
from tidegate_cli.verifying import Report, Saving, Verification

PROOF_BYTES_MAX = 64 * 1024 * 1024


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
    expired_before: str,
    roots: Sequence[Path],
    keys: Sequence[str],
    directory: Path | None,
    save: Path | None,
    as_json: bool,
) -> int:
    """The exit code. Raises Fault."""
    settings = _settings(config, bool(keys) and directory is not None)
    if directory is not None and save is not None and save.resolve() == directory.resolve():
        raise ConfigFault("--save would overwrite what --dir reads; give another directory")
    from_us, to_us = period(since, until)
    expired_before_us = past("--expired-before", expired_before)
    known = public_keys(settings, keys, directory)
    work = verify(settings, from_us, to_us, roots, known, directory, save, expired_before_us=expired_before_us)
    report = asyncio.run(work)
    if as_json:
        print_document(document(report))
    else:
        show(report, is_copy=directory is not None)
    return 0 if report.verdict == "whole" else 1


async def verify(
    settings: Settings | None,
    from_us: int,
    to_us: int,
    roots: Sequence[Path],
    keys: Sequence[str],
    directory: Path | None,
    save: Path | None,
    *,
    expired_before_us: int = 0,
) -> Report:
    """Over ClickHouse or a directory. What is absent from before `expired_before_us` is excused on the caller's word.
    Raises Fault.
    """
    from tidegate_audit_consumer.roots_file import roots_path

    trust = trusted_audit_keys(keys)
    files = list(roots)

    def verification(source: Source) -> Verification:
        now_us = time.time_ns() // 1000
        return Verification(source, trust, from_us, to_us, now_us, expired_before_us=expired_before_us)

    if directory is not None:
        return await _run(verification(DirectorySource(directory)), keys, files, save)
    if settings is None:
        raise ConfigFault("give --config, or --dir with what --save wrote")
    if not files and roots_path(settings).is_file():
        files.append(roots_path(settings))
    async with reaching(settings) as analytics:
        return await _run(verification(ClickHouseSource(analytics)), keys, files, save)


async def _run(verification: Verification, keys: Sequence[str], files: list[Path], save: Path | None) -> Report:
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
        proven = counted(len(proofs.proofs), "record", "records")
        typer.echo(f"Proof of {proven} in {out}; check it: tidegate verify --proof {out}", err=True)


async def _prove(settings: Settings, call_id: str, trust: Trust) -> Proofs:
    async with reaching(settings) as analytics:
        source = ClickHouseSource(analytics)
        records = await source.of_call(call_id)
        if not records:
            raise CallerFault(f"ClickHouse holds no call {call_id}")
        return Proofs(call_id=call_id, proofs=tuple([await _prove_one(source, *one, trust) for one in records]))


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


def period(since: str, until: str) -> tuple[int, int]:
    """What `--from` and `--to` say. Raises ConfigFault where no record can lie between them."""
    now_us = time.time_ns() // 1000
    from_us, to_us = past("--from", since), moment("--to", until) or now_us
    if from_us > to_us:
        raise ConfigFault("--from lies after --to; exchange them")
    return from_us, to_us


def past(option: str, text: str) -> int:
    """Microseconds since the epoch; 0 of "". Raises ConfigFault of a time to come, too."""
    time_us = moment(option, text)
    if time_us > time.time_ns() // 1000:
        raise ConfigFault(
            f"{option} {text} lies in the future (times without a zone are UTC); give a time that has passed"
        )
    return time_us


def moment(option: str, text: str) -> int:
    """Microseconds since the epoch; 0 of "". Raises ConfigFault."""
    from tidegate_cli.matching import age_us

    try:
        return age_us(text)
    except ConfigFault as fault:
        raise ConfigFault(fault.sentence.replace("--since", option, 1)) from None


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
