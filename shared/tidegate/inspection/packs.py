"""The built-in packs of patterns, with the actions they have unless inspection.yaml overrides them.

Precision first: a fixed prefix, a checksum or an entropy test where there is one. Patterns are Hyperscan's dialect of
PCRE on bytes: no look-around, no anchors.
"""
# ruff: noqa: E501, S105 - patterns are not broken over lines, and a pattern that finds secrets is none

from tidegate.inspection.patterns import Action, Pattern, Severity


def _secret(id: str, description: str, pattern: str, severity: Severity = "high", validator: str = "") -> Pattern:
    return Pattern(
        id=id, description=description, pattern=pattern, severity=severity, validator=validator,
        ignore_case=bool(validator), arguments="alert", result="mask",
    )  # fmt: skip


def _personal(
    id: str, description: str, pattern: str, severity: Severity, result: Action, validator: str = ""
) -> Pattern:
    return Pattern(
        id=id,
        description=description,
        pattern=pattern,
        severity=severity,
        validator=validator,
        arguments="alert",
        result=result,
    )


def _injection(
    id: str, description: str, pattern: str, severity: Severity = "high", result: Action = "alert"
) -> Pattern:
    return Pattern(
        id=id,
        description=description,
        pattern=pattern,
        severity=severity,
        ignore_case=True,
        arguments="alert",
        result=result,
        record="keep",  # the words are the evidence, and no secret
    )


_PEM_END = r"-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----"
_SECRET_WORD = (
    r"(?:password|passwd|pwd|passphrase|secret|api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key"
    r"|(?:auth|access|refresh|api|bearer)[_-]?token|client[_-]?secret)"
)
_DATABASE = r"(?:postgres(?:ql)?|mysql|mariadb|mongodb|rediss?|valkey|amqps?|mssql|oracle|clickhouses?)(?:\+[a-z0-9]+)?"

SECRETS = (
    _secret("aws-access-key", "AWS access key id", r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b", "critical"),
    _secret(
        "aws-secret-key", "AWS secret access key in an assignment",
        r"aws_?secret_?(?:access_?)?key[\"']?\s{0,4}[:=]\s{0,4}[\"']?[a-z0-9/+]{40}", "critical", "entropy",
    ),
    _secret("github-token", "GitHub token (classic, OAuth, app)", r"\bgh[pousr]_[A-Za-z0-9]{36,}\b", "critical"),
    _secret("github-pat", "GitHub fine-grained token", r"\bgithub_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}\b", "critical"),
    _secret("gitlab-token", "GitLab access token", r"\bgl(?:pat|dt|rt|cbt|ptt)-[A-Za-z0-9_-]{20,}\b", "critical"),
    _secret("slack-token", "Slack token", r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}\b", "critical"),
    _secret(
        "slack-webhook", "Slack incoming webhook",
        r"https://hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9]{6,14}/[A-Za-z0-9]{6,14}/[A-Za-z0-9]{16,64}\b",
    ),
    _secret("google-api-key", "Google API key", r"\bAIza[A-Za-z0-9_-]{35}"),
    _secret("stripe-key", "Stripe secret or restricted key", r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}\b", "critical"),
    _secret("anthropic-key", "Anthropic API key", r"\bsk-ant-[a-z0-9]{2,10}-[A-Za-z0-9_-]{40,}\b", "critical"),
    _secret("openai-key", "OpenAI API key", r"\bsk-[A-Za-z0-9_-]{16,}T3BlbkFJ[A-Za-z0-9_-]{16,}\b", "critical"),
    _secret("npm-token", "npm access token", r"\bnpm_[A-Za-z0-9]{36}\b", "critical"),
    _secret("pypi-token", "PyPI upload token", r"\bpypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{50,}\b", "critical"),
    _secret(
        "private-key", "Private key, PEM or OpenPGP; cut-off blocks too",
        r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----"
        rf"(?:[A-Za-z0-9+/=\\\s:,.()-]*{_PEM_END}|[A-Za-z0-9+/=\\\r\n]*[\r\n\\])?", "critical",
    ),
    _secret("jwt", "JSON Web Token", r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}\b"),
    _secret(
        "password-assignment", "A secret assigned to a telling name",
        rf"{_SECRET_WORD}[\"']?\s{{0,4}}(?::=|=>|[:=])\s{{0,4}}[\"']?[A-Za-z0-9+/=_.~!@#%^&*?-]{{8,}}", "high", "entropy",
    ),
    _secret("database-url", "Database URL with a password", rf"\b{_DATABASE}://[^\s:/@\"'<>]{{0,64}}:[^\s@/\"'<>]{{1,128}}@"),
)  # fmt: skip

PERSONAL_DATA = (
    _personal("email", "E-mail address", r"[A-Za-z0-9._%+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,24}\b", "low", "alert"),
    _personal(
        "credit-card", "Payment card number with a valid check digit",
        r"\b(?:4\d{3}|5[1-5]\d{2}|2[2-7]\d{2}|6(?:011|5\d{2}|4[4-9]\d)|35\d{2})[ -]?\d{4}[ -]?\d{4}[ -]?\d{4}(?:\d{3})?\b"
        r"|\b3[47]\d{2}[ -]?\d{6}[ -]?\d{5}\b|\b3(?:0[0-5]|[68]\d)\d[ -]?\d{6}[ -]?\d{4}\b", "high", "mask", "luhn",
    ),
    _personal(
        "iban", "Bank account number with a valid checksum",
        r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", "high", "mask", "iban",
    ),
    _personal(
        "us-ssn", "US social security number",
        r"\b(?:00[1-9]|0[1-9]\d|[1-57-8]\d{2}|6(?:[0-57-9]\d|6[0-57-9]))-(?:0[1-9]|[1-9]\d)-"
        r"(?:000[1-9]|00[1-9]\d|0[1-9]\d{2}|[1-9]\d{3})\b", "high", "mask",
    ),
    _personal(
        "phone", "Telephone number",
        r"\+[1-9]\d{0,2}(?:[ .-]?\(\d{1,4}\))?(?:[ .-]?\d{2,4}){2,5}\b|\(\d{3}\) ?\d{3}[ .-]\d{4}\b|\b\d{3}[.-]\d{3}[.-]\d{4}\b",
        "low", "alert", "phone",
    ),
)  # fmt: skip

INJECTION = (
    _injection(
        "injection-ignore-instructions", "Tells the model to drop its instructions",
        r"\b(?:ignore|disregard|forget|override|bypass)\s+(?:(?:all|any|every|each|the|your|my|our|these|those|of)\s+){0,4}"
        r"(?:previous|prior|above|earlier|preceding|existing|original|system|safety)\s+(?:[a-z]{1,12}\s+){0,2}"
        r"(?:instructions?|prompts?|rules?|directions?|directives?|guidelines?|constraints?|messages?)\b",
    ),
    _injection(
        "injection-hide-from-user", "Tells the model to hide something from its user",
        r"\b(?:do\s+not|don'?t|never)\s+(?:tell|inform|notify|alert|mention\s+(?:this|it|that)\s+to|reveal\s+"
        r"(?:this|it|that)\s+to|show\s+(?:this|it|that)\s+to)\s+(?:the\s+)?(?:user|human|operator)\b",
    ),
    _injection(
        "injection-new-instructions", "Announces new instructions",
        r"\b(?:new|updated|revised|real|actual)\s+(?:system\s+)?(?:instructions?|prompt)\s{0,4}:", "medium",
    ),
    _injection(
        "injection-reveal-prompt", "Asks for the system prompt",
        r"\b(?:reveal|print|repeat|output|show|leak|exfiltrate)\s+(?:me\s+)?(?:your|the)\s+(?:full\s+|entire\s+|hidden\s+)?"
        r"(?:system\s+prompt|system\s+message|initial\s+instructions)\b", "medium",
    ),
    _injection("injection-role-markup", "Chat markup that a model may take for a turn", r"<\|(?:im_start|im_end|system|endoftext|start_header_id)\|>|\[/?INST\]|<</?SYS>>"),
    _injection("injection-important-tag", "The <IMPORTANT> block known from poisoned tools", r"<\s{0,4}important\s{0,4}>[^<]{0,200}\b(?:before|must|tool|file|read)\b"),
    _injection(
        "hidden-unicode-tags", "Text hidden in Unicode tag characters (longer than a flag's)",
        r"(?:\xf3\xa0[\x80\x81][\x80-\xbf]){8,}", "critical", "mask",
    ),
)  # fmt: skip

PACKS: dict[str, tuple[Pattern, ...]] = {"secrets": SECRETS, "personal-data": PERSONAL_DATA, "injection": INJECTION}
"""By the name that `packs:` takes in inspection.yaml."""
