"""The elements of a JSON array one after another: such files have gigabytes."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmjax.data import source

CHUNK = 1 << 20  # characters read at a time, at least
MARGIN = 100  # a fault so far before the end of what has been read is none of where that ends
_SPACE = " \t\n\r"
_STOPS = {False: re.compile(r'[][{}"]'), True: re.compile(r'["\\]')}  # outside and in a string


class Bad(ValueError):
    """Stands for an element that is not read, and says why."""


def elements(file: Path) -> Iterator[Any]:
    """The elements of the array that a file holds, one of more than LINE as a `Bad`.

    Raises:
        ValueError: where the file is no such array any more. OSError: if it cannot be read.
    """
    with source.opened(file) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as text:
        window = _Window(text)
        if window.next() != "[":
            raise ValueError("not JSON" if window.ended else "it is no list")
        window.at += 1
        if window.next() == "]":
            return
        while True:
            yield window.value()
            mark = window.next()
            window.at += 1
            if mark == "]":
                return
            if mark != ",":
                raise ValueError("not JSON: a comma or ] is missing")


class _Window:
    """What has been read of a file and is not done with: text from `at` on."""

    def __init__(self, file: io.TextIOBase):
        self._file, self.text, self.at, self.ended = file, "", 0, False

    def more(self) -> bool:
        """Reads on, twice as far; False at the end."""
        kept = self.text[self.at :]
        try:
            read = self._file.read(max(CHUNK, len(kept)))
        except UnicodeDecodeError as error:
            raise ValueError("not UTF-8") from error
        self.text, self.at, self.ended = kept + read, 0, not read
        return not self.ended

    def next(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def value(self) -> Any:
        """The value that begins next.

        Raises:
            ValueError: if there is none.
        """
        if not self.next():
            raise ValueError("not JSON: it ends within the list")
        while True:
            try:
                found, end = json.JSONDecoder().raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self.text) - MARGIN
                if cut and len(self.text) - self.at > source.LINE:
                    return self.skip(_too_long())
                if not cut or not self.more():
                    raise ValueError(f"not JSON: {error.msg}") from error
                continue
            except RecursionError:
                return self.skip("JSON nested too deeply")
            except ValueError as error:  # a number of too many digits
                return self.skip(str(error))
            if len(self.text) - end < 3 and not self.ended:  # a number may go on: -2.5e+3
                self.more()
                continue
            long = end - self.at > source.LINE
            self.at = end
            return Bad(_too_long()) if long else found

    def skip(self, why: str) -> Bad:
        """Goes behind a value without keeping it, which is bad for this reason."""
        depth, quoted = 0, False
        while True:
            found = _STOPS[quoted].search(self.text, self.at)
            self.at = found.end() if found else len(self.text)
            if found is None:
                if not self.more():
                    raise ValueError("not JSON: it ends within a value")
                continue
            mark = found.group()
            if mark == "\\":
                if self.at == len(self.text):
                    self.more()
                self.at += 1
            elif mark == '"':
                quoted = not quoted
            else:
                depth += 1 if mark in "[{" else -1
            if depth < 0:  # a number before the end of the list
                self.at -= 1
            if depth <= 0 and not quoted:
                return Bad(why)


def _too_long() -> str:
    return f"it has more than {source.LINE:,} characters"
