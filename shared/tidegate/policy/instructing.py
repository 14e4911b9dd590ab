"""Text that speaks to a model behind a person's back: orders, secrecy, ways to secrets, characters that nobody sees.

Pure; patterns are linear in the text. They miss what is worded cleverly and may take an honest warning for an order:
what they find decides who looks, not who is guilty. Counterparts: `definitions.py` scans what a definition adds, the
inspection of results has patterns of its own (`tidegate.inspection.packs`).
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import msgspec

SHOWN_CHARS_MAX: Final = 120
TEXT_CHARS_MAX: Final = 1024 * 1024
SPEAKING_CHARS_MIN: Final = 6  # nothing below says anything
SHORT_CHARS_MAX: Final = 200
SHORT_KEPT_MAX: Final = 8_192
ENCODED_CHARS_MIN: Final = 80

_NEGATED: Final = r"(?:do not|don'?t|never|must not|mustn'?t|should not|shouldn'?t|avoid|refrain from|without)"
_TELL: Final = r"(?:tell|mention|inform|notify|reveal|disclos|explain|alert|report|show|say|warn)\w{0,3}"
_SOMEBODY: Final = r"(?:users?|humans?|persons?|people|operators?|anyone|anybody)"
_EARLIER: Final = r"(?:previous|prior|earlier|above|preceding|foregoing|existing|original|other|system|safety|all)"
_ORDERS: Final = r"(?:instruction|prompt|rule|direction|directive|guideline|guardrail|command|polic)\w{0,3}"
_MOVE: Final = (
    r"(?:send|forward|post|upload|transmit|exfiltrate|e?mail|bcc|cc|copy|leak|append|include|pass|put|attach)"
)
_READ: Final = r"(?:read|open|cat|load|get|fetch|print|include|pass|provide|send|copy|upload|attach|contents?|put|find)"
_INTIMATE: Final = (
    r"(?:conversation|chat history|chat log|message history|previous messages|system prompt|credentials?|secrets?|"
    r"passwords?|api[ _-]?keys?|access tokens?|private keys?|ssh keys?|environment variables|env vars|entire context|"
    r"full context)"
)
_GAP: Final = r"[^.!?\n]"
_HIDDEN: Final = (  # blank or nothing, whatever stands beside them
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164\ufeff"
    "\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_CONTROLS: Final = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
_FLAG: Final = re.compile("\U0001f3f4(?:\U000e0067\U000e0062)[\U000e0061-\U000e007a]{3}\U000e007f")
_UNSEEN: Final = re.compile(
    f"[{_HIDDEN}{_CONTROLS}]"
    "|(?<![^\x00-\u02ff])[\u200c\u200d]"  # joiners that join nothing: scripts and emoji that need them are not Latin
    "|[\ufe00-\ufe0f]{2,}|(?<![^A-Za-z\\s])[\ufe00-\ufe0f]"  # how a sign looks, where there is no such sign
)
_INVISIBLE: Final = re.compile(f"[{_HIDDEN}{_CONTROLS}\u2028\u2029\u200c\u200d\ufe00-\ufe0f]")
_STRIPPED: Final = re.compile(f"[{_HIDDEN}\u200c\u200d\ufe00-\ufe0f]")
_SPACES: Final = re.compile(r"\s+")
_PADDING: Final = re.compile(r"[ \t\u00a0\u2000-\u200a\u3000]{60}|(?:[ \t]*\n){15}")
_BASE64: Final = re.compile(r"(?<![A-Za-z0-9+/=_.-])[A-Za-z0-9+/_-]{80,}={0,2}(?![A-Za-z0-9+/=])")  # ENCODED_CHARS_MIN
_SIGNS_MIN: Final = 20  # different ones in an encoded passage; a ruler of dashes has one

_PATTERNS: Final[tuple[tuple[str, str, tuple[str, ...], re.Pattern[str]], ...]] = tuple(
    (name, what, tuple(hints.split("|")), re.compile(pattern))
    for name, what, hints, pattern in (  # a text without any of the hints cannot match
        (
            "ignore-instructions",
            "tells a model to set other instructions aside",
            "ignore|disregard|forget|override|bypass|instruction|from now on|you are now",
            rf"\b(?:ignore|disregard|forget|override|bypass)\b {_GAP}{{0,30}}?\b{_EARLIER} {_GAP}{{0,30}}?\b{_ORDERS}"
            r"|\bnew (?:system )?instructions?:|\bfrom now on,? (?:you|always|never|ignore|every)\b|\byou are now\b",
        ),
        (
            "secrecy",
            "wants something kept from the user",
            "user|human|person|people|operator|anyone|anybody",
            rf"\b{_NEGATED} (?:\w+ ){{0,2}}{_TELL} {_GAP}{{0,60}}?\b{_SOMEBODY}\b"
            rf"|\bwithout (?:the )?{_SOMEBODY}(?:'s)? (?:knowledge|knowing|consent|approval|confirmation|permission)\b"
            rf"|\bwithout (?:asking|informing|notifying) (?:the )?{_SOMEBODY}\b"
            rf"|\b(?:hide|conceal) (?:it|this|that|these)? ?from (?:the )?{_SOMEBODY}\b",
        ),
        (
            "markup",
            "is marked up as if it came from the system",
            "<|[inst]|[/inst]",
            r"<\s*/?\s*(?:important|system|secret|instructions?|hidden|critical|assistant)\b[^<>]{0,40}>"
            r"|<\|(?:im_start|im_end|system|endoftext|start_header_id)\|>|\[/?inst\]|<</?sys>>",
        ),
        (
            "order",
            "orders when tools are to be called",
            "this tool|this function|before |after |when",
            r"\b(?:call|use|invoke|run|execute) this (?:tool|function) "
            r"(?:first|before|always|instead of (?:any|all|every|other)|prior to|whenever|every time)\b"
            r"|\b(?:always|must|should) (?:first )?(?:call|use|invoke|run) this (?:tool|function)\b"
            r"|\bthis (?:tool|function) (?:must|should|has to|needs to) (?:always )?be "
            r"(?:called|used|invoked|run) (?:first|before|prior)\b"
            r"|\b(?:before|after|when(?:ever)?) (?:you )?(?:using|use|calling|call|invoking|invoke|running) "
            r"(?:any|all|every|another|other)\b",
        ),
        (
            "secret-files",
            "names files in which secrets are kept",
            ".ssh|.aws|.gnupg|.kube|.netrc|.npmrc|.pgpass|id_|mcp.json|claude_desktop_config|/etc/",
            rf"\b{_READ}\b{_GAP}{{0,80}}?(?:~|\$home|/root|/home/[\w-]+|%userprofile%)?[/\\]?"
            r"(?:\.ssh\b|\.aws\b|\.gnupg\b|\.kube\b|\.netrc\b|\.npmrc\b|\.pgpass\b|\bid_(?:rsa|ed25519|ecdsa)\b"
            r"|\.cursor/mcp\.json|\bmcp\.json\b|\bclaude_desktop_config\b|/etc/(?:passwd|shadow)\b)",
        ),
        (
            "send-away",
            "wants what is private sent somewhere",
            "@|conversation|chat |history|messages|prompt|credential|secret|password|api|token|key|environment|env "
            "|context|instructions above",
            rf"\b{_MOVE}\b {_GAP}{{0,60}}?\b{_INTIMATE}\b{_GAP}{{0,60}}?\b(?:to|as|in|into|via|with|using)\b"
            rf"|\b(?:send|forward|bcc|cc|copy|upload|e?mail)\b {_GAP}{{0,60}}?\bto\b {_GAP}{{0,40}}?"
            r"[\w.+-]{1,64}@(?!example\.)[\w-]{1,63}\.\w{2,}"
            r"|\b(?:reveal|repeat|print|output|recite) (?:\w+ ){0,3}(?:system prompt|instructions above)\b",
        ),
        (
            "pipe-to-shell",
            "has a command that runs what it downloads",
            "curl|wget",
            r"\b(?:curl|wget)\b[^|\n]{1,200}\|\s{0,4}(?:sudo )?(?:ba|z|da)?sh\b",
        ),
    )
)


class Told(msgspec.Struct, frozen=True):
    """One thing found. `name` is kebab case, `what` completes "the text …", `words` are those found, made visible."""

    name: str
    what: str
    words: str


def instructions_in(text: str) -> tuple[Told, ...]:
    """What in a text speaks to a model, at most one of each name. Total: any text, in linear time."""
    if len(text) < SPEAKING_CHARS_MIN and text.isascii() and text.isprintable():
        return ()
    return _in_short(text) if len(text) <= SHORT_CHARS_MAX else tuple(_found(text[:TEXT_CHARS_MAX]))


@lru_cache(SHORT_KEPT_MAX)
def _in_short(text: str) -> tuple[Told, ...]:
    """Names, types and short descriptions are the same in many definitions."""
    return tuple(_found(text))


def _found(text: str) -> Iterator[Told]:
    plain = text if text.isascii() else _FLAG.sub("", text)
    if (unseen := _UNSEEN.search(plain)) is not None:
        start = max(0, unseen.start() - 20)
        yield Told("hidden-characters", "has characters that nobody sees", visible(plain[start : unseen.end() + 60]))
    spaced = "    " in plain or "\n" in plain or not plain.isascii() or "\t" in plain
    if spaced and (padding := _PADDING.search(plain)) is not None and plain[padding.end() :].strip():
        yield Told("padding", "is pushed out of sight by empty space", visible(plain[padding.end() :].strip()))
    for found in _BASE64.finditer(plain) if len(plain) >= ENCODED_CHARS_MIN else ():
        if _is_encoded(found[0]):
            yield Told("encoded", "has a passage that only a program can read", visible(found[0]))
            break
    folded = _folded(plain)
    for name, what, hints, pattern in _PATTERNS:
        if any(hint in folded for hint in hints) and (match := pattern.search(folded)) is not None:
            yield Told(name, what, visible(match[0]))


def visible(text: str, chars_max: int = SHOWN_CHARS_MAX) -> str:
    """On one line, bounded, with the characters that nobody sees as ‹U+200B›."""
    cut = text[: chars_max + 1]
    if not cut.isprintable() or not cut.isascii():
        cut = made_visible(_SPACES.sub(" ", cut))
    return cut if len(cut) <= chars_max else f"{cut[: chars_max - 1]}…"


def made_visible(text: str) -> str:
    """The whole text with the characters that nobody sees, and spaces of other kinds, as ‹U+200B›; lines stay lines."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_seen, text))


def _seen(sign: str) -> str:
    if sign == "\n" or (sign.isprintable() and not _INVISIBLE.match(sign)):
        return sign
    return f"‹U+{ord(sign):04X}›"


def _folded(text: str) -> str:
    """As a reader takes it: letters of one width, lower case, single spaces, straight quotes, nothing invisible."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _STRIPPED.sub("", text)).replace("\u2019", "'")
    return _SPACES.sub(" ", text.replace("\n\n", " . ").replace("\r", " ").lower())


def _is_encoded(text: str) -> bool:
    """Not a long word, a path or a ruler: many different signs, upper and lower case and digits."""
    kinds = (str.isupper, str.islower, str.isdigit)
    return len(set(text)) >= _SIGNS_MIN and all(any(kind(sign) for sign in text) for kind in kinds)
