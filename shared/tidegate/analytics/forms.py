"""Statements that come as a form: clients send parameters so where they are too long for an address.

Counterpart: `chdb_http.py`, for which the fields of a form are the parameters of a request. Pure.
"""

import re
from email.message import Message
from typing import Final

from tidegate.analytics.bodies import BodyFault

FIELDS_MAX: Final = 1_000
_NAME: Final = re.compile(rb'content-disposition:[^\r\n]*;\s*name="([^"\r\n]+)"', re.IGNORECASE)


def is_form(content_type: str) -> bool:
    return content_type.lower().startswith("multipart/form-data")


def fields_of(content_type: str, body: bytes) -> dict[str, str]:
    """The fields of a multipart form (RFC 7578), each name once. Raises BodyFault."""
    head = Message()
    head["Content-Type"] = content_type
    boundary = head.get_boundary("").encode()
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary)
    if not boundary or len(parts) < 2 or parts[0] or not parts[-1].startswith(b"--"):
        raise BodyFault("the form cannot be read: it does not begin and end with its boundary")
    if len(parts) > FIELDS_MAX + 2:
        raise BodyFault(f"the form has more than {FIELDS_MAX} fields", too_large=True)
    fields: dict[str, str] = {}
    for part in parts[1:-1]:
        headers, gap, value = part.partition(b"\r\n\r\n")
        named = _NAME.search(headers)
        if not gap or named is None:
            raise BodyFault("the form cannot be read: a field has no name")
        try:
            name, text = named[1].decode(), value.decode()
        except UnicodeDecodeError:
            raise BodyFault("the form cannot be read: a field is not UTF-8") from None
        if name in fields:
            raise BodyFault(f"the form has the field '{name}' twice")
        fields[name] = text
    return fields
