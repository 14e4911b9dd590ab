"""Log lines of a service: one line each, whatever words of strangers stand in them."""

import logging

from tidegate_cli.serving import OneLine

FORMAT = "%(levelname)s %(message)s"


def line(message: str) -> str:
    record = logging.LogRecord("tidegate", logging.WARNING, "", 0, "server said: %s", (message,), None)
    return OneLine(FORMAT).format(record)


def test_a_stranger_s_words_begin_no_line_of_their_own_and_steer_no_terminal() -> None:
    told = line("bad\n2026-11-22 INFO all is well\x1b[2J\u2028next\x9b0m")
    assert told == "WARNING server said: bad\\n2026-11-22 INFO all is well\\x1b[2J\\u2028next\\x9b0m"


def test_other_languages_stay_readable() -> None:
    assert line("Größe 尺寸") == "WARNING server said: Größe 尺寸"
