"""Faults, by whose they are. A refusal is a value; an exception here is a fault with a stable code."""

from collections.abc import Sequence
from typing import NamedTuple


class Fault(Exception):
    """Something failed. `code` is stable kebab case, `sentence` says what to do."""

    code = "fault"

    def __init__(self, sentence: str, *, code: str | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        if code is not None:
            self.code = code


class CallerFault(Fault):
    """The caller sent something that cannot be served."""

    code = "bad-request"


class UpstreamFault(Fault):
    """The upstream server failed. `sent` tells whether a byte of the request may have reached it."""

    code = "upstream-failed"

    def __init__(self, sentence: str, *, code: str | None = None, sent: bool = True) -> None:
        super().__init__(sentence, code=code)
        self.sent = sent


class OurFault(Fault):
    """Tidegate itself failed: the call is refused, never forwarded unrecorded."""

    code = "gateway-failed"


class LogUnavailable(OurFault):
    """The log cannot take a record now: what depended on it must not happen."""

    code = "log-unavailable"


class KeyFault(OurFault):
    """A key of a subject, or what it sealed, cannot be read. The sentence never carries either."""

    code = "key-malformed"


class ConfigFault(Fault):
    """A setting is wrong; the sentence carries the key's path, what was expected and a suggestion."""

    code = "bad-config"


class Problem(NamedTuple):
    """One thing wrong in a bundle: where, which rule, and a sentence that says what to do."""

    path: str
    sentence: str
    line: int = 0  # from 1; 0 where unknown
    rule: str = ""
    fatal: bool = True  # False: worth a look, does not stop a release

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else self.path
        return f"{where}: {self.sentence}"


class BundleFault(Fault):
    """A bundle is malformed, unsigned, foreign, too large or fails its own cases; the ruling one stays."""

    code = "bad-bundle"

    def __init__(self, sentence: str, *, code: str | None = None, problems: Sequence[Problem] = ()) -> None:
        super().__init__(sentence, code=code)
        self.problems = tuple(problems)


class AnalyticsUnavailable(OurFault):
    """ClickHouse cannot be reached or cannot take work now; whether an insert was stored is unknown."""

    code = "analytics-unavailable"


class AnalyticsRefused(OurFault):
    """ClickHouse understood a statement and refused it; the sentence carries its error."""

    code = "analytics-refused"
