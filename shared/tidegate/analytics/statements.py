"""What may stand in one request to the embedded engine: one statement, and of a reader one that reads.

The engine runs all statements that it is given, so they are counted before. Every pattern is linear in the text:
repetitions are possessive, for a reader's text is a stranger's. Pure. Counterpart: `chdb_http.py`.
"""

import re

_COMMENT = r"--[^\n]*+(?:\n|\Z)|\#[ !][^\n]*+(?:\n|\Z)|/\*(?:[^*]|\*(?!/))*+\*/"
# How a reader's statement may begin: `readonly = 1` alone lets KILL QUERY pass, and checks some others too late.
READING = re.compile(
    rf"(?:\s|{_COMMENT}|\()*+(SELECT|WITH|SHOW|EXPLAIN|EXISTS|DESC|DESCRIBE|USE)\b(.*)", re.IGNORECASE | re.DOTALL
)
PIECE = re.compile(
    rf"({_COMMENT}|'(?:[^'\\]|\\.)*+'|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)|\"(?:[^\"\\]|\\.)*+\"|`(?:[^`\\]|\\.)*+`",
    re.DOTALL,
)
NAME = re.compile(r"\"(?:[^\"\\]|\\.)*+\"|`(?:[^`\\]|\\.)*+`")
PYTHON = re.compile(r"\bpython[`\"]?\s*\(", re.IGNORECASE)  # chDB's table function for objects of this very process


def code_of(sql: str) -> str:
    """Without comments and texts; quoted names stay."""
    return PIECE.sub(lambda piece: " " if piece[1] is not None else piece[0], sql)


def is_single(sql: str) -> bool:
    """Whether nothing but comments follows the first ';'."""
    rest = NAME.sub(" ", code_of(sql)).partition(";")[2]
    return not rest.strip(" \t\r\n;")


def fault_of_reading(sql: str) -> str:
    """Why a reader may not send it; "" where it may. Strict where reading SQL right would take a parser: what a text
    holds can be bound instead.
    """
    reading = READING.match(sql)
    if reading is None:
        return "a reader's statement begins with SELECT, WITH, SHOW, EXPLAIN, EXISTS, DESCRIBE or USE"
    if ";" in sql.rstrip().removesuffix(";"):
        return "it holds ';' before its end; send one statement, and bind texts as parameters"
    if "outfile" in sql.casefold():
        return "it mentions OUTFILE; bind texts as parameters"
    if reading[1][:4].upper() == "DESC" and "(" in reading[2]:
        return "only tables can be described"  # the engine would open the file or the URL to describe it
    if PYTHON.search(code_of(sql)):
        return "it reads objects of a process"
    return ""
