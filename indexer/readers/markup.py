"""Marked-up text to plain text: a block begins a line, cells are joined by bars, white space is collapsed."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_SPACE = re.compile(r"[ \t\r\n\f\u200b]+")
_BLOCKS = frozenset(
    """address article aside blockquote body caption center dd details div dl dt fieldset figure figcaption footer form
    header hr html li main nav ol option section summary table tbody tfoot thead title tr ul""".split()  # noqa: SIM905
)
_SPACED = frozenset(("p", "h1", "h2", "h3", "h4", "h5", "h6"))
_DROPPED = frozenset(("script", "style", "head", "template", "noscript", "svg", "iframe", "object"))
_VOID = frozenset(("br", "hr", "img", "input", "meta", "link", "col", "area", "base", "wbr", "source"))


class Lines:
    """Text as it is laid out, piece by piece."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._breaks = 0
        self._space = False
        self._prefix = ""
        self._cells = 0
        self._row_begins = self._cell_begins = False

    def data(self, text: str, *, as_is: bool = False) -> None:
        """Add running text; ``as_is`` keeps its white space."""
        if as_is:
            if text:
                self._put(text)
            return
        collapsed = _SPACE.sub(" ", text)
        body = collapsed.strip(" ")
        self._space |= collapsed.startswith(" ")
        if body:
            self._put(body)
            self._space = collapsed.endswith(" ")

    def block(self, lines: int = 1) -> None:
        """End the line; ``lines`` of 2 leaves an empty one. Where a cell has just begun there is nothing to end."""
        if not self._cell_begins:
            self._breaks = max(self._breaks, lines)

    def line_break(self) -> None:
        """End the line even where it is empty."""
        if not self._cell_begins:
            self._breaks += 1

    def item(self) -> None:
        """Begin an item of a list."""
        self.block()
        self._prefix = self._prefix.removesuffix("- ") + "- "

    def row(self) -> None:
        """Begin a row of a table, or end the last one."""
        self._cell_begins = False
        self._prefix = ""
        self._breaks = 1  # whatever the last cell ended with, rows stay together
        self._cells = 0
        self._row_begins = True

    def cell(self) -> None:
        """Begin a cell of the row."""
        if self._cells:
            self._prefix += " | "
            self._space = False
            if not self._row_begins:
                self._breaks = 0
        self._cells += 1
        self._cell_begins = True

    def text(self) -> str:
        """Return what was laid out, without outer empty lines."""
        return "".join(self._parts).strip("\n")

    def _put(self, text: str) -> None:
        if self._breaks:
            if self._parts:
                self._parts.append("\n" * min(self._breaks, 3))
        elif self._space and self._parts and not self._prefix:
            self._parts.append(" ")
        prefix = self._prefix.lstrip(" ") if self._breaks else self._prefix
        self._parts.append(prefix + text)
        self._breaks, self._space, self._prefix = 0, False, ""
        self._row_begins = self._cell_begins = False


def html_text(source: str) -> str:
    r"""Return the text of an HTML or XHTML document or fragment, scripts and styles left out.

    >>> html_text("<p>Dose: <b>5&nbsp;mg</b></p><ul><li>oral</li></ul>")
    'Dose: 5\xa0mg\n\n- oral'
    """
    parser = _Html()
    parser.feed(source)
    parser.close()
    return parser.lines.text()


class _Html(HTMLParser):
    # The parser of the standard library calls back tag by tag, so that no depth of nesting can exhaust the stack.
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines = Lines()
        self._dropped: list[str] = []
        self._pre = 0

    def handle_starttag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        if self._dropped:
            # "<head>" may stay open: the body ends it.
            if tag == "body" and self._dropped[0] == "head":
                self._dropped.clear()
            elif tag not in _VOID and tag in _DROPPED:
                self._dropped.append(tag)
            return
        if tag in _DROPPED:
            self._dropped.append(tag)
        elif tag == "br":
            self.lines.line_break()
        elif tag in ("td", "th"):
            self.lines.cell()
        elif tag == "tr":
            self.lines.row()
        elif tag == "li":
            self.lines.item()
        else:
            self._around(tag)
            self._pre += tag == "pre"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._dropped:
            if tag in self._dropped:
                del self._dropped[self._dropped.index(tag) :]
            return
        if tag in ("tr", "table"):
            self.lines.row()
        self._around(tag)
        if tag == "pre":
            self._pre = max(0, self._pre - 1)

    def handle_data(self, data: str) -> None:
        if not self._dropped:
            self.lines.data(data, as_is=self._pre > 0)

    def _around(self, tag: str) -> None:
        if tag in _SPACED or tag == "pre":
            self.lines.block(2)
        elif tag in _BLOCKS:
            self.lines.block()
