"""Faults, by whose they are. A refusal is a value (see `decisions`); an exception here is a fault with a stable code."""


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


class ConfigFault(Fault):
    """A setting is wrong; the sentence carries the key's path, what was expected and a suggestion."""

    code = "bad-config"


class BundleFault(Fault):
    """A bundle is malformed, unsigned, foreign, too large or fails its own cases; the ruling one stays."""

    code = "bad-bundle"
