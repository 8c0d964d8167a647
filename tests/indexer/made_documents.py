"""Small documents for the tests of the readers, made byte by byte, and one way to read them."""

import base64
from pathlib import Path

from indexer.readers import read_sources
from indexer.records import Note, RowError

CANARY = "Zyrkonabin"
"""A word that stands in note text alone: it must never turn up in an error."""

SENTENCES = {
    "en": f"{CANARY} 5 mg was stopped; no chest pain since 2023-04-05.",
    "es": f"Se suspendió {CANARY} 5 mg; niega dolor torácico.",
    "zh": f"患者服用{CANARY} 5毫克，无胸痛。",
    "ja": f"{CANARY}５ｍｇを中止、胸痛なし。",
    "ru": f"Отменён {CANARY} 5 мг, болей в груди нет.",
    "ro": f"S-a oprit {CANARY} 5 mg; fără durere toracică, însoțit.",
}


def read(*paths: Path, **options) -> tuple[list[Note], list[RowError]]:
    """Return the notes and the errors of a run; no error holds the canary."""
    found = list(read_sources(paths, **options))
    errors = [item for item in found if isinstance(item, RowError)]
    assert not [error for error in errors if CANARY in f"{error.field} {error.reason}"]
    return [item for item in found if isinstance(item, Note)], errors


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def pdf(*pages: str) -> bytes:
    """Return a PDF with one line of text a page, in any script of the basic plane (a ToUnicode map tells which)."""
    codes = sorted({char.encode("utf-16-be").hex().encode() for char in "".join(pages)})
    cmap = (
        b"/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def "
        b"1 begincodespacerange <0000> <FFFF> endcodespacerange "
        b"%d beginbfchar %s endbfchar endcmap end end"
        % (len(codes), b" ".join(b"<%s> <%s>" % (code, code) for code in codes))
    )
    kids = " ".join(f"{6 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type0 /BaseFont /F /Encoding /Identity-H "
        b"/DescendantFonts [4 0 R] /ToUnicode 5 0 R >>",
        b"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /F /DW 1000 "
        b"/CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(cmap), cmap),
    ]
    for n, text in enumerate(pages):
        content = b"BT /F 12 Tf 72 700 Td <%s> Tj ET" % text.encode("utf-16-be").hex().encode() if text else b""
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] "
            b"/Resources << /Font << /F 3 0 R >> >> /Contents %d 0 R >>" % (7 + 2 * n)
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    out, places = b"%PDF-1.7\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return out + b"xref\n0 %d\n0000000000 65535 f \n%strailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (
        len(objects) + 1,
        table,
        len(objects) + 1,
        len(out),
    )


def rtf(text: str) -> bytes:
    units = memoryview(text.encode("utf-16-le")).cast("h")  # RTF writes UTF-16 units as signed numbers
    body = "".join(chr(unit) if 0 <= unit < 128 else f"\\u{unit}?" for unit in units)
    return (
        b"{\\rtf1\\ansi\\ansicpg1252\\deff0{\\fonttbl{\\f0 Arial;}}\\f0 "
        + body.replace("\n", "\\par\n").encode()
        + b"}"
    )


def ccda(body: str, head: str = "", *, note_id: str = '<id root="1.2.3" extension="doc1"/>') -> bytes:
    """Return a C-CDA document around the content of its structuredBody."""
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<ClinicalDocument xmlns="urn:hl7-org:v3" xmlns:sdtc="urn:hl7-org:sdtc">
  {note_id}
  <code code="18842-5" displayName="Discharge summary"/>
  <title>Discharge letter</title>
  {head}
  <component><structuredBody>{body}</structuredBody></component>
</ClinicalDocument>""".encode()


def ccda_section(title: str, text: str, inner: str = "") -> str:
    return f"<component><section><title>{title}</title><text>{text}</text>{inner}</section></component>"
