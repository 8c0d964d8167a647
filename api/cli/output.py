"""What people read: hits, answers and citations, in colour on a terminal and plain otherwise."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from api.cli.terminal import counted, printable

if TYPE_CHECKING:
    from api.schemas import AnswerResponse, ExpansionModel, SearchResponse
    from indexer.records import Coverage
    from rag.cite import Citation
    from rag.search import Hit

_SNIPPET = 320
_FORMS = 8  # Other forms of a term that are named.
_WORD = re.compile(r"\w+")
_WITHOUT = {
    "dense": "dense retrieval did not take part (its encoder is not on this machine, or is another one)",
    "lexical": "lexical retrieval did not take part",
    "draft": "sentences of the model are left out: they cite nothing, or say what is in no sentence that they cite",
}


def console() -> Console:
    """Return the console of stdout; text of notes is never read as markup, and long lines are not cut when piped."""
    out = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    if out.width < 1:  # COLUMNS=0, as some terminals and schedulers say it, would leave nothing of any line
        out.width = 80
    return out


def snippet(text: str, query: str, width: int = _SNIPPET) -> str:
    """Return the part of a passage that holds most of the query's words, on one line, with marks where it was cut."""
    line = " ".join(text.split())
    if len(line) <= width:
        return line
    words = {word.casefold() for word in _WORD.findall(query) if len(word) > 2 or ord(word[0]) > 0x2E80}
    folded = line.casefold()
    places = sorted(at for word in words for at in _places(folded, word)) if len(folded) == len(line) else []
    start = max(places, key=lambda at: sum(at <= other < at + width for other in places), default=0)
    start = max(0, min(start - width // 8, len(line) - width))
    end = start + width
    return ("… " if start else "") + line[start:end].strip() + (" …" if end < len(line) else "")


def _places(text: str, word: str) -> Iterable[int]:
    at = text.find(word)
    while at >= 0:
        yield at
        at = text.find(word, at + 1)


def print_search(result: SearchResponse, out: Console | None = None) -> None:
    """Print the hits of a search with what was searched."""
    out = out or console()
    for hit in result.hits:
        out.print(_heading(hit))
        out.print(_body(printable(snippet(hit.text, result.query)), result.query, out))
    if not result.hits:
        out.print(Text(f"nothing found in {_coverage(result.coverage)}"))
    if not result.coverage.notes_searched:
        out.print(Text(_no_note(result.collection), style="yellow"))
    _without(result.degraded, out)
    for expansion in result.expansions:
        out.print(Text(_also(expansion), style="dim"))
    if result.hits:
        out.print(Text(f"searched {_coverage(result.coverage)}; {result.plan}, {result.took_ms:,.0f} ms", style="dim"))


def _also(expansion: ExpansionModel) -> str:
    shown = ", ".join(expansion.forms[:_FORMS])
    more = len(expansion.forms) - _FORMS
    return f"{printable(expansion.term)}: looked for {shown}{f' and {more} more' if more > 0 else ''}, too"


def print_answer(result: AnswerResponse, out: Console | None = None) -> None:
    """Print an answer, its numbered citations with their quotes, and what was searched."""
    out = out or console()
    answered = result.status == "answered"
    out.print(Text(printable(result.answer), style="bold" if answered else "yellow"))
    for citation in result.citations:
        heading = Text()
        heading.append(f"  [{citation.n}] ", style="cyan")
        heading.append(printable(citation.note_id), style="bold")
        heading.append(f" v{citation.version}")
        heading.append(" · " + " · ".join(_facts(citation)))
        heading.append(f" · characters {citation.start}-{citation.end}", style="dim")
        out.print(heading)
        quote = "“" + printable(" ".join(citation.quote.split())) + "”"  # CR LF is a line end, not a character to show
        out.print(Text(_wrapped(quote, "      ", out), style="italic"))
    _without(result.degraded, out)
    out.print(Text(f"  searched {_coverage(result.coverage)}", style="dim"))
    if not result.coverage.notes_searched:
        out.print(Text(f"  {_no_note(result.collection)}", style="yellow"))


def _no_note(collection: str) -> str:
    return f'no note is in scope; "clinrag collections facets {collection}" names the values that there are'


def _heading(hit: Hit) -> Text:
    line = Text()
    line.append(f"{hit.rank}. ", style="cyan")
    line.append(printable(hit.note_id), style="bold")
    line.append(f" v{hit.version} · " + " · ".join(_facts(hit)))
    scores = [
        f"{name} {value:.3f}"
        for name, value in (("dense", hit.scores.dense), ("lexical", hit.scores.lexical))
        if value is not None
    ]
    line.append(f" · score {hit.score:.4f}" + (f" ({', '.join(scores)})" if scores else ""), style="dim")
    if hit.copies > 1:
        line.append(f" · {hit.copies} copies{_seen(hit)}", style="dim")
    return line


def _seen(hit: Hit) -> str:
    """Return when the notes that say the same were authored, where they are dated."""
    if hit.first_seen is None or hit.last_seen is None:
        return ""
    return f", {hit.first_seen}" + (f" to {hit.last_seen}" if hit.last_seen != hit.first_seen else "")


def _facts(hit: Hit | Citation) -> list[str]:
    section = hit.section or ""
    if hit.section_title:
        section = f"{section} ({hit.section_title.strip()})" if section else hit.section_title.strip()
    facts = [
        hit.authored_at[:10] if hit.authored_at else "undated",
        hit.language or "language unknown",
        hit.note_type or "",
        section,
        f"patient {hit.patient_id}" if hit.patient_id else "",
    ]
    return [printable(fact) for fact in facts if fact]


def _body(text: str, query: str, out: Console) -> Text:
    body = Text(_wrapped(text, "   ", out))
    words = [re.escape(word) for word in _WORD.findall(query) if len(word) > 3 or ord(word[0]) > 0x2E80]
    if words:
        body.highlight_regex(re.compile(r"(?i)" + "|".join(words)), "bold")
    return body


def _wrapped(text: str, indent: str, out: Console) -> str:
    if not out.is_terminal:
        return indent + text
    width = max(40, min(out.width, 110))
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _coverage(coverage: Coverage) -> str:
    parts = [counted(coverage.notes_searched, "note")]
    if coverage.first is not None:
        parts.append(f"{coverage.first} to {coverage.last}")
    if coverage.undated:
        parts.append(f"{coverage.undated:,} undated")
    if coverage.languages:
        parts.append(" ".join(language or "unknown" for language in coverage.languages))
    return ", ".join(parts)


def _without(degraded: Iterable[str], out: Console) -> None:
    for arm in degraded:
        out.print(Text(f"note: {_WITHOUT.get(arm, arm + ' did not take part')}", style="yellow"))
