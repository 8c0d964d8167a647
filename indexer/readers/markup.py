"""Marked-up text to plain text: a block begins a line, cells are joined by bars, white space is collapsed."""

from __future__ import annotations

import html
import re
from collections import Counter

_SPACE = re.compile(r"[ \t\r\n\f\u200b]+")
_BLOCKS = frozenset(
    """address article aside blockquote body caption center dd details div dl dt fieldset figure figcaption footer form
    header hr html li main nav ol option section summary table tbody tfoot thead title tr ul""".split()  # noqa: SIM905
)
_SPACED = frozenset(("p", "h1", "h2", "h3", "h4", "h5", "h6"))
_DROPPED = frozenset(("script", "style", "head", "template", "noscript", "svg", "iframe", "object"))
_VOID = frozenset(("br", "hr", "img", "input", "meta", "link", "col", "area", "base", "wbr", "source"))
_TAG = re.compile(r"<(/?)([A-Za-z][^\s/>\0]*)")
# A quote opens a value behind "=" alone: any other would take the text behind it along.
_ATTRIBUTES = re.compile(r"""(?:[^>=]+|=\s*+(?:"[^"]*"|'[^']*'|(?!["'])))*+""")
_CLOSE = re.compile(">")
# How what is no tag begins, and how it ends; "<!--" before "<!".
_ENDS = {
    "<!--": re.compile(r"--!?\s*>"),
    "<![CDATA[": re.compile(r"\]\]>"),
    "<!": _CLOSE,
    "<?": _CLOSE,
    "</": _CLOSE,
}
_RAW = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in ("script", "style")}


class Lines:
    """Text as it is laid out, piece by piece."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._breaks = 0
        self._space = False
        self._prefix: list[str] = []
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
        if self._prefix[-1:] != ["- "]:
            self._prefix.append("- ")

    def row(self) -> None:
        """Begin a row of a table, or end the last one."""
        self._cell_begins = False
        self._prefix.clear()
        self._breaks = 1  # whatever the last cell ended with, rows stay together
        self._cells = 0
        self._row_begins = True

    def cell(self) -> None:
        """Begin a cell of the row."""
        if self._cells:
            self._prefix.append(" | ")
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
        prefix = "".join(self._prefix)
        self._parts.append((prefix.lstrip(" ") if self._breaks else prefix) + text)
        self._breaks, self._space = 0, False
        self._prefix.clear()
        self._row_begins = self._cell_begins = False


def html_text(source: str) -> str:
    r"""Return the text of an HTML or XHTML document or fragment, scripts and styles left out.

    >>> html_text("<p>Dose: <b>5&nbsp;mg</b></p><ul><li>oral</li></ul>")
    'Dose: 5\xa0mg\n\n- oral'
    """
    page = _Page(source)
    page.read()
    return page.lines.text()


class _Page:
    """One page, read tag by tag: no depth of nesting exhausts the stack, and no text takes longer than its length.

    The parser of the standard library takes the square of the length for tags that do not end, and fails at "<![x y]>".
    What begins like a tag, a comment or a declaration and does not end is text.
    """

    def __init__(self, source: str) -> None:
        self.lines = Lines()
        self._source = source
        self._missing: set[re.Pattern[str]] = set()  # what does not come any more
        self._quotes = True
        self._dropped: list[str] = []
        self._n_dropped: Counter[str] = Counter()
        self._pre = 0

    def read(self) -> None:
        """Lay the page out."""
        at = 0
        while at < len(self._source):
            begin = self._source.find("<", at)
            if begin < 0:
                begin = len(self._source)
            if begin > at:
                self._data(html.unescape(self._source[at:begin]))
            at = self._markup(begin) if begin < len(self._source) else begin

    def _markup(self, at: int) -> int:
        """Return where what begins with the "<" at ``at`` ends, which may be the "<" alone."""
        tag = _TAG.match(self._source, at)
        if tag is None:
            opened = next((begin for begin in _ENDS if self._source.startswith(begin, at)), None)
            end = None if opened is None else self._after(_ENDS[opened], at + len("<!"))
        else:
            end = self._end_of_tag(tag)
        if end is None:
            self._data("<")
            return at + 1
        if tag is None:
            return end
        name = tag[2].lower()
        if tag[1]:
            self._end(name)
            return end
        self._start(name)
        if self._source.endswith("/", at, end - 1):
            if name not in _VOID:
                self._end(name)
        elif name in _RAW:
            return self._raw_end(name, end)
        return end

    def _end_of_tag(self, tag: re.Match[str]) -> int | None:
        """Return the place behind a tag, ``None`` where it does not end. A value between quotes may hold a ">"."""
        if self._quotes and not tag[1]:
            end = _ATTRIBUTES.match(self._source, tag.end()).end()  # type: ignore[union-attr]  # may be empty
            if self._source.startswith(">", end):
                return end + 1
            self._quotes = False  # what is not closed would be looked for from every tag behind this one
            return None
        return self._after(_CLOSE, tag.end())

    def _after(self, wanted: re.Pattern[str], at: int) -> int | None:
        """Return the place behind the next match, ``None`` where there is none; none is looked for twice."""
        found = None if wanted in self._missing else wanted.search(self._source, at)
        if found is None:
            self._missing.add(wanted)
        return found and found.end()

    def _raw_end(self, name: str, at: int) -> int:
        """Return where the end tag of a script or style begins; without one, that is the end of the page."""
        found = _RAW[name].search(self._source, at)
        return found.start() if found else len(self._source)

    def _start(self, tag: str) -> None:
        if self._dropped:
            # "<head>" may stay open: the body ends it.
            if tag == "body" and self._dropped[0] == "head":
                self._dropped.clear()
                self._n_dropped.clear()
            elif tag in _DROPPED:
                self._drop(tag)
            return
        if tag in _DROPPED:
            self._drop(tag)
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

    def _drop(self, tag: str) -> None:
        self._dropped.append(tag)
        self._n_dropped[tag] += 1

    def _end(self, tag: str) -> None:
        if self._dropped:
            while self._n_dropped[tag]:  # with all that was opened within it
                self._n_dropped[self._dropped.pop()] -= 1
            return
        if tag in ("tr", "table"):
            self.lines.row()
        self._around(tag)
        if tag == "pre":
            self._pre = max(0, self._pre - 1)

    def _data(self, text: str) -> None:
        if not self._dropped:
            self.lines.data(text, as_is=self._pre > 0)

    def _around(self, tag: str) -> None:
        if tag in _SPACED or tag == "pre":
            self.lines.block(2)
        elif tag in _BLOCKS:
            self.lines.block()
