"""The time zone in which a bundle reads the clock: `timezone` of its manifest.json. Pure."""

import re
from datetime import UTC, tzinfo
from functools import lru_cache
from typing import TypeAlias
from zoneinfo import ZoneInfo

import msgspec

from tidegate.errors import BundleFault, Problem
from tidegate.policy.bundle import MANIFEST, Bundle

Zone: TypeAlias = tzinfo
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,31}(?:/[A-Za-z][A-Za-z0-9_+-]{0,31}){0,2}")


class _Zoned(msgspec.Struct, frozen=True):
    timezone: str = "UTC"


def zone_of(bundle: Bundle) -> Zone:
    """Raises BundleFault where the manifest cannot be read or names no zone that is known here."""
    try:
        return named_zone(msgspec.json.decode(bundle.files[MANIFEST], type=_Zoned).timezone)
    except (ValueError, KeyError) as error:  # msgspec's errors are ValueErrors
        raise BundleFault(f"{MANIFEST}: {error}", problems=[Problem(MANIFEST, str(error))]) from error


@lru_cache(maxsize=64)
def named_zone(name: str) -> Zone:
    """Raises ValueError with a sentence."""
    if name == "UTC":
        return UTC
    try:
        if _NAME.fullmatch(name):
            return ZoneInfo(name)
    except (ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError
        pass
    except KeyError:
        pass
    raise ValueError(f"`timezone` '{name[:60]}' is not known; take a name of the IANA database, such as Europe/Berlin")
