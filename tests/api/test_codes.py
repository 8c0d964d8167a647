"""Every error has a status and an exit code, the same ones that `indexer/errors.py` draws."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from api.codes import CODES, INTERNAL, code_of, message_of
from api.problems import _HTTP
from api.routes.health import _NOT_READY
from indexer import errors

DOCUMENTED = Path(__file__).parents[2] / "docs" / "http.md"


def kinds(kind: type[errors.ClinragError]) -> list[type[errors.ClinragError]]:
    return [kind, *(lower for child in kind.__subclasses__() for lower in kinds(child))]


PUBLIC = [kind for kind in kinds(errors.ClinragError)[1:] if kind.__module__ == "indexer.errors"]


@pytest.mark.parametrize("kind", PUBLIC)
def test_every_error_has_a_code(kind: type[errors.ClinragError]):
    assert kind in CODES


def test_the_drawn_tree_and_the_table_agree():
    drawn = re.findall(r"(\w+Error)\b[^\n]*?(\d{3}) / exit (\d)", errors.__doc__ or "")
    assert len(drawn) >= 13
    for name, status, exit_code in drawn:
        code = CODES[getattr(errors, name)]
        assert (code.status, code.exit_code) == (int(status), int(exit_code)), name


def test_slugs_are_unique():
    slugs = [code.slug for code in CODES.values()]
    assert len(slugs) == len(set(slugs))


def test_subclasses_fall_back_to_their_parent():
    class Narrow(errors.TooLargeError):
        pass

    assert code_of(Narrow()).status == 413


def test_a_full_disk_is_known_from_the_system_too():
    assert code_of(OSError(errno.ENOSPC, "No space left on device")).status == 507
    assert code_of(OSError(errno.EIO, "I/O error")) is INTERNAL


def test_foreign_messages_are_not_shown():
    try:
        raise RuntimeError("Mrs Miller has pneumonia")
    except RuntimeError as error:
        assert re.fullmatch(r"internal error: RuntimeError in test_codes\.py:\d+", message_of(error))


def test_the_documentation_has_every_code_and_no_other():
    table = re.findall(r"^\| (\d{3}) \| (\d?) *\| `([a-z-]+)` \|", DOCUMENTED.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(table) == len(set(table))
    of_commands = {(str(code.status), str(code.exit_code), code.slug) for code in (*CODES.values(), INTERNAL)}
    of_http = {(str(code.status), "", code.slug) for code in (*_HTTP.values(), _NOT_READY)}
    assert of_commands - set(table) == set()
    assert {(status, slug) for status, _, slug in table} == {(s, slug) for s, _, slug in of_commands | of_http}
