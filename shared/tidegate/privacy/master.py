"""The masters that wrap data keys: read from `privacy.key_file`, made in local mode.

One key of 32 bytes in base64 a line; the first wraps, all unwrap, so a new first line is a rotation. Empty lines and
those that begin with # are left out. Every service that opens personal fields has the same file. The policy service
destroys keys without it.
"""

import binascii
import contextlib
import os
import secrets
import stat
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Final

from tidegate.errors import ConfigFault
from tidegate.privacy.keys import KEY_BYTES, Wrapping
from tidegate.secrets import write_private
from tidegate.settings import Settings

_BYTES_MAX: Final = 16 * 1024
_HOW: Final = (
    "a master key is 32 random bytes in base64, one a line; `tidegate secrets privacy-key` makes such a file, the same "
    "for every service"
)


def master_path(settings: Settings) -> Path | None:
    """Where the masters are; None where a cluster has none configured."""
    if settings.privacy.key_file:
        return settings.path(settings.privacy.key_file)
    return settings.data_dir / "keys" / "privacy.key" if settings.is_local else None


def open_wrapping(settings: Settings, *, create: bool = False) -> Wrapping | None:
    """The masters, whether anything is sealed now or not; None where there are none. Raises ConfigFault.

    With `create`, and in local mode alone, they are made where they are missing.
    """
    path = master_path(settings)
    if path is None:
        if settings.privacy.sealing:
            raise ConfigFault(f"$.privacy.key_file: needed where privacy.sealing is on; {_HOW}")
        return None
    if not path.exists() and settings.is_local and not settings.privacy.key_file:
        if not create:
            return None
        create_master(path)
    return Wrapping(_read(path))


def create_master(path: Path) -> None:
    """Make the file with one new key; where another process was faster, its file stands."""
    with contextlib.suppress(FileExistsError):
        write_private(path, b64encode(secrets.token_bytes(KEY_BYTES)) + b"\n")


def add_master(path: Path) -> int:
    """Put a new key in front of the file's, made where it is missing; how many there are then. Raises ConfigFault."""
    if not path.exists():
        create_master(path)
        return 1
    keys = [secrets.token_bytes(KEY_BYTES), *_read(path)]
    Wrapping(keys)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        write_private(draft, b"".join(b64encode(key) + b"\n" for key in keys))
        draft.chmod(stat.S_IMODE(path.stat().st_mode))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return len(keys)


def _read(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigFault(f"$.privacy.key_file: {path} cannot be read ({error.strerror}); {_HOW}") from error
    if mode & 0o007:
        raise ConfigFault(f"$.privacy.key_file: {path} is open to everybody (mode {mode:o}); run `chmod 600 {path}`")
    if len(content) > _BYTES_MAX:
        raise ConfigFault(f"$.privacy.key_file: {path} is larger than {_BYTES_MAX} bytes; {_HOW}")
    lines = enumerate(content.splitlines(), 1)
    keys = [_key(line.strip(), path, number) for number, line in lines if line.strip() and not line.startswith(b"#")]
    try:
        Wrapping(keys)
    except ConfigFault as fault:
        raise ConfigFault(f"$.privacy.key_file: {path}: {fault.sentence}; {_HOW}") from None
    return keys


def _key(line: bytes, path: Path, number: int) -> bytes:
    """Of one line. Raises ConfigFault, which never repeats it."""
    try:
        key = b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigFault(f"$.privacy.key_file: {path}, line {number}: is not 32 bytes in base64; {_HOW}")
    return key
