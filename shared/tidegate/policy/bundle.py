"""A bundle: the files of a policy directory, named by the digest of its canonical bytes.

Canonical bytes: one line of JSON, `{"v":1,"files":{path: text}}`, paths sorted, no spaces, UTF-8. Nothing else enters
them: no times, no modes, no order of reading. Counterparts: `check.py` says what is wrong in one, `release.py` signs
and chunks one.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import msgspec

from tidegate.errors import BundleFault, Problem
from tidegate.limits import BUNDLE_BYTES_MAX
from tidegate.policy.budgets import LIMITS
from tidegate.policy.definition_rules import DEFINITIONS
from tidegate.policy.grants import GRANTS
from tidegate.policy.grants_cedar import COMPILED, Compiled, compile_grants

MANIFEST = "manifest.json"
SCHEMA = "schema.cedarschema"
ENTITIES = "entities.json"
INSPECTION = "inspection.yaml"
CASES = "cases.yaml"
POLICY_PATH = re.compile(r"policies/[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.cedar")
KNOWN_FILES = frozenset({MANIFEST, GRANTS, LIMITS, DEFINITIONS, SCHEMA, ENTITIES, INSPECTION, CASES})
UNREAD_FILES = frozenset({"README.md"})
FILES_MAX = 1_000


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`manifest.json`: what the bundle is called, for people, and the time zone of `context.time`. Its identity is the
    digest.
    """

    v: Literal[1]
    name: str
    version: str = ""
    description: str = ""
    timezone: str = "UTC"


class _Canonical(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: Literal[1]
    files: dict[str, str]


@dataclass(frozen=True)
class Bundle:
    """Files by path, their canonical bytes and the digest (SHA-256, hex) of those. Made by the functions below only."""

    files: Mapping[str, bytes] = field(repr=False)
    canonical: bytes = field(repr=False)
    digest: str

    def text(self, path: str) -> str:
        """A file as text; "" where it is absent."""
        return self.files.get(path, b"").decode()

    @property
    def policies(self) -> dict[str, str]:
        """The Cedar texts by path, sorted; what grants.yaml compiles to is one of them, first, as COMPILED.

        Raises BundleFault where grants.yaml has problems.
        """
        if problems := self.grants.problems:
            raise BundleFault(str(problems[0]), problems=problems)
        made = {COMPILED: self.grants.cedar} if self.grants.cedar else {}
        return {**made, **self.written}

    @property
    def written(self) -> dict[str, str]:
        """The Cedar texts of policies/ by path, sorted."""
        return {path: self.files[path].decode() for path in sorted(self.files) if POLICY_PATH.fullmatch(path)}

    @cached_property
    def grants(self) -> Compiled:
        """grants.yaml and what it compiles to; empty where there is none."""
        return compile_grants(self.text(GRANTS)) if GRANTS in self.files else Compiled("", (), {}, ())

    @staticmethod
    def from_bytes(canonical: bytes) -> "Bundle":
        """The bundle in its canonical bytes. Raises BundleFault where they are not canonical."""
        if len(canonical) > BUNDLE_BYTES_MAX:
            raise BundleFault(f"the bundle has {len(canonical)} bytes; at most {BUNDLE_BYTES_MAX} are accepted")
        try:
            body = msgspec.json.decode(canonical, type=_Canonical)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BundleFault(f'the bundle is not {{"v":1,"files":{{path: text}}}}: {error}') from error
        bundle = bundle_of({path: text.encode() for path, text in body.files.items()})
        if bundle.canonical != canonical:
            raise BundleFault("the bundle's bytes are not in canonical form; seal it with `tidegate bundle publish`")
        return bundle


def bundle_of(files: Mapping[str, bytes]) -> Bundle:
    """A bundle of these files. Raises BundleFault on an unknown path, text that is not UTF-8, or too many bytes."""
    problems = [Problem(path, sentence) for path, sentence in _unfit(files)]
    if problems:
        raise BundleFault(str(problems[0]), problems=problems)
    texts = {path: files[path].decode() for path in sorted(files)}
    canonical = msgspec.json.encode(_Canonical(v=1, files=texts))
    if len(canonical) > BUNDLE_BYTES_MAX:
        raise BundleFault(f"the bundle has {len(canonical)} bytes; at most {BUNDLE_BYTES_MAX} are accepted")
    frozen = MappingProxyType({path: bytes(files[path]) for path in texts})
    return Bundle(files=frozen, canonical=canonical, digest=hashlib.sha256(canonical).hexdigest())


def load_bundle(directory: str | Path) -> Bundle:
    """The bundle in a directory. Hidden files and README.md are left out; another unknown file is refused as a slip."""
    root = Path(directory)
    if not root.is_dir():
        raise BundleFault(
            f"{root} is not a directory; a bundle is a directory with {MANIFEST} and {GRANTS} or policies/*.cedar"
        )
    files: dict[str, bytes] = {}
    bytes_left = BUNDLE_BYTES_MAX
    for path in _readable(root):
        name = path.relative_to(root).as_posix()
        bytes_left -= path.stat().st_size
        if bytes_left < 0 or len(files) >= FILES_MAX:
            raise BundleFault(
                f"{root}: more than {BUNDLE_BYTES_MAX} bytes or {FILES_MAX} files; this is too large for a bundle"
            )
        files[name] = path.read_bytes()
    return bundle_of(files)


def _readable(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if path.is_dir() or any(part.startswith(".") for part in parts) or parts[-1] in UNREAD_FILES:
            continue
        if not path.resolve().is_relative_to(root.resolve()):
            raise BundleFault(f"{path} leads out of the bundle; copy the file into it")
        yield path


def _unfit(files: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    if MANIFEST not in files:
        yield MANIFEST, 'is missing; it needs at least {"v": 1, "name": "…"}'
    if GRANTS not in files and not any(POLICY_PATH.fullmatch(path) for path in files):
        yield "policies/", f"there is neither {GRANTS} nor policies/*.cedar; without a policy every call is denied"
    for path, content in files.items():
        if path not in KNOWN_FILES and not POLICY_PATH.fullmatch(path):
            yield path, f"is not a file of a bundle; known are {', '.join(sorted(KNOWN_FILES))} and policies/NAME.cedar"
        try:
            content.decode()
        except UnicodeDecodeError as error:
            yield path, f"is not UTF-8 text (byte {error.start})"
