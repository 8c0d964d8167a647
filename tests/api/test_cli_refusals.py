"""What a user can get wrong on the command line: a message with the mend, exit code 2, and nothing changed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest

from indexer.encoders.encoder import HashingEncoder
from indexer.library import Library
from indexer.records import EncoderSpec
from tests.api.conftest import NOTES, Clinrag, one_json


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "fever", "-c", "nope"], "no collection 'nope'"),
        (["ask", "fever?", "-c", "nope"], "no collection 'nope'"),
        (["collections", "info", "nope"], "no collection 'nope'"),
        (["collections", "delete", "nope", "--yes"], "no collection 'nope'"),
        (["collections", "create", "ward"], "there already"),
        (["collections", "create", "../x"], "letters, digits"),
        (["notes", "show", "nope", "-c", "ward"], "nope"),
        (["notes", "show", "letter/1", "--version", "7", "-c", "ward"], "version"),
        (["search", "", "-c", "ward"], "empty"),
        (["search", "  \n", "-c", "ward"], "empty"),
        (["ask", "", "-c", "ward"], "empty"),
        (["search", "x" * 100_000, "-c", "ward"], "characters"),
        (["ask", "x" * 100_000, "-c", "ward"], "characters"),
        (["search", "fever " * 600, "-c", "ward"], "shorten it"),
        (["ask", "fever " * 600, "-c", "ward"], "shorten it"),
        (["search", "fever", "-c", "ward", "-k", "0"], "1<=x<=100"),
        (["search", "fever", "-c", "ward", "-k", "101"], "1<=x<=100"),
        (["search", "fever", "-c", "ward", "--mode", "magic"], "hybrid"),
        (["search", "fever", "-c", "ward", "--patient", ""], "patient_id is empty"),
        (["search", "fever", "-c", "ward", "--from", "yesterday"], "from is not an ISO 8601 date"),
        (["search", "fever", "-c", "ward", "--as-of", "2024-02-30"], "as_of"),
        (["search", "fever", "-c", "ward", "--meta", "novalue"], "KEY=TEXT"),
        (["search", "fever", "-c", "ward", "--meta", "a:=[1]"], "JSON"),
        (["search", "fe\udcffver", "-c", "ward"], "UTF-8"),
        (["search", "fever"], "--collection"),
        (["ask", "fever?", "-c", "ward", "--generator", "magic"], "extractive"),
        (["index", "NOTES", "-c", "ward", "--encoder", "no-such-encoder"], "no encoder 'no-such-encoder'"),
        (["index", "NOTES", "-c", "ward", "--encoder", "multiclinicalbert"], "clinrag encoders fetch"),
        (["index", "NOTES", "-c", "ward", "--map", "text"], "text=note_text"),
        (["index", "NOTES", "-c", "ward", "--format", "magic"], "one of jsonl"),
        (["index", "missing.jsonl", "-c", "ward"], "missing.jsonl"),
        (["index", "NOTES", "-c", "bad name"], "letters, digits"),
        (["embed", "--encoder", "hashing", "--input", "missing.txt", "--output", "v.npy"], "missing.txt"),
        (["search", "fever", "-c", "ward", "--meta", "a:=NaN"], "JSON"),
        (["collections", "backup", "ward", "/no/such/folder/file"], "make it first"),
        (["notes", "show", "lab-2", "--version", str(2**63), "-c", "ward"], "its newest is 1"),
        (["receipts", "verify", "/"], "/ cannot be read"),
        (["keys", "add", "bad name", "--scope", "read"], "name"),
        (["keys", "add", "viewer"], "--scope"),
        (["serve", "--port", "70000"], "port"),
        (["--home", "", "collections", "list"], "is empty"),
        (["notes", "erase", "--patient", "", "-c", "ward", "--yes"], "is empty"),
        (["notes", "erase", "", "-c", "ward", "--yes"], "is empty"),
        (["notes", "hold", "--patient", " ", "--reason", "case 12", "-c", "ward"], "is empty"),
        (["notes", "hold", "--patient", "4711", "--reason", "", "-c", "ward"], "is empty"),
        (["collections", "scan", "ward", "--for", "SHORT"], "fewer than 24 bytes"),
        (["collections", "scan", "ward", "--ids", "EMPTY"], "holds no id"),
        (["collections", "scan", "ward", "--ids", "BINARY"], "not UTF-8"),
        (["collections", "delete", "ward"], "--yes does it"),
        (["notes", "erase", "--patient", "4711", "-c", "ward"], "--yes does it"),
    ],
)  # fmt: skip
def test_mistakes_are_named_and_change_nothing(
    indexed: Clinrag, notes_file: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(notes_file.parent)
    files = {"NOTES": notes_file}
    for name, content in (("SHORT", b"Jane Doe, Elm Street 5\n"), ("EMPTY", b"\n\r\n"), ("BINARY", b"a\xff\n")):
        files[name] = notes_file.parent / name
        files[name].write_bytes(content)
    before = one_json(indexed("collections", "list", "--json").stdout)
    result = indexed(*(str(files.get(word, word)) for word in arguments))
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert result.stdout == "" or "[y/N]" in result.stdout
    assert "Traceback" not in result.stderr
    assert "xxxxxxxxxx" not in result.stderr
    assert one_json(indexed("collections", "list", "--json").stdout) == before


def test_another_encoder_than_the_collections_is_refused(
    indexed: Clinrag, notes_file: Path, monkeypatch: pytest.MonkeyPatch
):
    class Other(HashingEncoder):
        @property
        def spec(self) -> EncoderSpec:
            return replace(super().spec, model_id="other-model")

    monkeypatch.setattr("indexer.encoders.catalog.load_encoder", lambda name: Other())
    for encoder in (["--encoder", "other"], []):  # named by the user, or changed on the machine under the same name
        result = indexed("index", notes_file, "-c", "ward", *encoder)
        assert result.exit_code == 2
        assert "was embedded with hashing" in result.stderr
        assert "other-model" in result.stderr
        assert "use --encoder hashing" in result.stderr
    answer = one_json(indexed("search", "apixaban", "-c", "ward", "--json").stdout)
    assert answer["degraded"] == ["dense"]
    assert answer["hits"]
    assert "dense retrieval did not take part" in indexed("search", "apixaban", "-c", "ward").stdout


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.jsonl", b"\x89PNG\r\n\x1a\n" + bytes(64)),
        ("notes.parquet", b"PAR1 and then something else"),
        ("notes.csv.gz", b"\x1f\x8b\x08\x00 truncated"),
        ("bundle.json", b'{"resourceType": "Bundle", "entry": ['),
    ],
)
def test_a_file_that_is_not_what_it_says(indexed: Clinrag, tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    result = indexed("index", tmp_path / name, "-c", "ward", "--strict")
    assert result.exit_code in (1, 2)
    assert name in result.stderr
    assert "Traceback" not in result.output
    assert one_json(indexed("collections", "info", "ward", "--json").stdout)["notes"] == 4


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.txt", "picture.jsonl", "folder"])
def test_nothing_that_was_named_can_be_read(clinrag: Clinrag, tmp_path: Path, name: str):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "empty.jsonl", tmp_path / "empty.txt", tmp_path / "folder" / "empty.txt"):
        path.touch()
    (tmp_path / "picture.jsonl").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    report = tmp_path / "skipped.jsonl"
    result = clinrag("index", tmp_path / name, tmp_path / "empty.txt", "-c", "ward", "--json", "--skipped", report)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert name in result.stderr
    assert "(and 1 more)" in result.stderr
    assert len(report.read_text().splitlines()) == 2
    assert clinrag("collections", "info", "ward").exit_code == 2, "no collection was made"


def test_one_file_that_can_be_read_is_enough(clinrag: Clinrag, tmp_path: Path, notes_file: Path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "bad.jsonl").write_text('{"id": "a"}\n')
    counts = one_json(clinrag("index", tmp_path / "empty.txt", notes_file, "-c", "ward", "--json").stdout)
    assert (counts["stored"], counts["rejected"]) == (4, 1)
    result = clinrag("index", tmp_path / "empty.txt", tmp_path / "bad.jsonl", "-c", "ward", "--json")
    assert result.exit_code == 0, "a bad record is a failure with --strict alone"
    assert one_json(result.stdout)["rejected"] == 2


def test_the_folders_of_the_collections_are_no_source(indexed: Clinrag, home: Path, tmp_path: Path):
    counts = one_json(indexed("index", tmp_path, "-c", "ward", "--json").stdout)
    assert (counts["skipped"], counts["rejected"]) == (4, 0)
    for inside in (home / "collections", next(home.glob("collections/*/truth.sqlite"))):
        result = indexed("index", inside, "-c", "ward")
        assert result.exit_code == 2
        assert "keeps for itself" in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everywhere")
def test_folders_without_permission(clinrag: Clinrag, notes_file: Path, home: Path, tmp_path: Path):
    sealed = tmp_path / "sealed"
    sealed.mkdir()
    (sealed / "a.txt").write_text("fever")
    sealed.chmod(0o000)
    home.mkdir()
    home.chmod(0o500)
    try:
        result = clinrag("index", sealed, "-c", "ward")
        assert result.exit_code == 2
        assert "sealed" in result.stderr
        result = clinrag("index", notes_file, "-c", "ward")
        assert result.exit_code == 1
        assert "Permission denied" in result.stderr
    finally:
        sealed.chmod(0o700)
        home.chmod(0o700)


def test_a_report_that_cannot_be_written_is_known_before_the_work(indexed: Clinrag, tmp_path: Path):
    source = tmp_path / "fresh.jsonl"
    source.write_text('{"id": "fresh", "text": "fever"}\n')
    result = indexed("index", source, "-c", "ward", "--skipped", tmp_path / "nowhere" / "skipped.jsonl")
    assert result.exit_code == 2
    assert "nowhere" in result.stderr
    assert one_json(indexed("collections", "info", "ward", "--json").stdout)["notes"] == 4


@pytest.mark.parametrize("named", ["in/notes.jsonl", "in/new.jsonl", "linked.jsonl"])
def test_a_report_is_never_written_over_a_source(clinrag: Clinrag, notes_file: Path, tmp_path: Path, named: str):
    (tmp_path / "in").mkdir()
    source = shutil.copy(notes_file, tmp_path / "in" / "notes.jsonl")
    (tmp_path / "linked.jsonl").symlink_to(source)
    for inputs in ([tmp_path / "in"], [notes_file, source, tmp_path / "in"]):
        result = clinrag("index", *inputs, "-c", "ward", "--encoder", "hashing", "--skipped", tmp_path / named)
        assert result.exit_code == 2
        assert "choose another place" in result.stderr
        assert source.read_bytes() == notes_file.read_bytes()
    assert not (tmp_path / "in" / "new.jsonl").exists()


def test_ctrl_c_at_a_question_changes_nothing(indexed: Clinrag, monkeypatch: pytest.MonkeyPatch):
    def pressed(*_: object, **__: object) -> bool:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise click.Abort from None  # as click does it

    monkeypatch.setattr(click, "confirm", pressed)
    result = indexed("collections", "delete", "ward")
    assert (result.exit_code, result.stderr.split()[:2]) == (130, ["Error:", "interrupted;"])
    assert indexed("collections", "info", "ward").exit_code == 0


def test_ids_to_scan_for_are_lines_and_nothing_else_ends_them(indexed: Clinrag, tmp_path: Path):
    one = tmp_path / "odd.jsonl"
    one.write_text(json.dumps({"id": "odd\u2028identifier", "text": "Afebrile."}) + "\n", encoding="utf-8")
    assert indexed("index", one, "-c", "other", "--encoder", "hashing").exit_code == 0
    wanted = tmp_path / "ids.txt"
    wanted.write_bytes("\ufeffodd\u2028identifier\r\nlab-2\n".encode())
    done = indexed("collections", "scan", "ward", "--ids", wanted, "--json")
    # The two halves of the first id would be two short ones more.
    assert (done.exit_code, one_json(done.stdout)["short_ids"]) == (0, 1)


def test_what_is_no_file_is_neither_read_nor_replaced(indexed: Clinrag, tmp_path: Path):
    lines = tmp_path / "lines.txt"
    lines.write_text("fever\n")
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for source, target in ((lines, pipe), (lines, folder), (pipe, tmp_path / "v.npy"), (folder, tmp_path / "v.npy")):
        result = indexed("embed", "--encoder", "hashing", "--input", source, "--output", target)
        assert result.exit_code == 2, result.output
        assert str(source if target.name == "v.npy" else target) in result.stderr
    assert pipe.is_fifo()
    assert sorted(tmp_path.glob("*.partial*")) == []
    assert not (tmp_path / "v.npy").exists()


def test_vectors_are_never_written_over_their_texts(clinrag: Clinrag, tmp_path: Path):
    source = tmp_path / "texts.txt"
    source.write_text("fever\n")
    result = clinrag("embed", "--encoder", "hashing", "--input", source, "--output", tmp_path / "." / "texts.txt")
    assert result.exit_code == 2
    assert source.read_text() == "fever\n"


@pytest.mark.parametrize(
    "command",
    [
        ("--home", "", "collections", "list"),
        ("index", "", "-c", "ward"),
        ("index", "notes.jsonl", "-c", "ward", "--encoder", ""),
        ("index", "notes.jsonl", "-c", "ward", "--skipped", ""),
        ("encoders", "info", ""),
        ("embed", "--encoder", "hashing", "--input", "notes.jsonl", "--output", ""),
        ("ask", "INR?", "-c", "ward", "--generator", ""),
        ("train", "compact", "--out", "", "--data", "."),
        ("eval", "run", "smoke", "--systems", "bm25", "--out", ""),
        ("eval", "run", "smoke", "--systems", ""),
        ("collections", "restore", "", "again"),
        ("receipts", "verify", ""),
    ],
)
def test_a_variable_that_was_not_set_is_never_the_folder_of_the_moment_or_a_default(
    indexed: Clinrag, notes_file: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
):
    monkeypatch.chdir(notes_file.parent)
    before = sorted(notes_file.parent.iterdir())
    result = indexed(*command)
    assert result.exit_code == 2, result.output
    assert result.stderr.endswith(": is empty\n")
    assert sorted(notes_file.parent.iterdir()) == before
    assert one_json(indexed("collections", "info", "ward", "--json").stdout)["notes"] == 4


def test_a_folder_without_notes_is_said(indexed: Clinrag, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    result = indexed("index", tmp_path / "empty", "-c", "ward")
    assert result.exit_code == 0
    assert result.stderr == "  no file was found there (hidden ones are passed over)\n"
    (tmp_path / "empty" / "header.csv").write_text("id,text\n")
    assert "no notes were found" in indexed("index", tmp_path / "empty", "-c", "ward").stderr


def test_files_of_other_fhir_resources_are_named(indexed: Clinrag, notes_file: Path, tmp_path: Path):
    folder = tmp_path / "export"
    folder.mkdir()
    patient = {"resourceType": "Patient", "id": "p"}
    for n in range(7):
        (folder / f"{n}.ndjson").write_text(
            "".join(json.dumps({"resourceType": kind, "id": "p"}) + "\n" for kind in ("Observation", "Observatoin"))
        )
    (folder / "odd.json").write_text(json.dumps(patient | {"resourceType": "Zyrkonabin was stopped\x1b[2J"}))
    alone = indexed("index", folder, "-c", "ward")
    assert alone.exit_code == 0
    said = alone.stderr.removeprefix(f"  no notes in {folder / '0.ndjson'}, ")
    assert said.endswith(" and 3 more: FHIR resources of other types (Observation 7, Observatoin 7, unknown type 1)\n")
    assert "no notes" not in said

    letter = {"resourceType": "DocumentReference", "id": "d", "status": "current"}
    letter["content"] = [{"attachment": {"contentType": "text/plain", "data": "QWZlYnJpbGUu"}}]
    both = tmp_path / "both.json"
    both.write_text(json.dumps({"resourceType": "Bundle", "entry": [{"resource": patient}, {"resource": letter}]}))
    beside = indexed("index", notes_file, both, folder / "odd.json", "-c", "ward")
    assert "stored 1 note " in beside.stdout
    assert beside.stderr == f"  no notes in {folder / 'odd.json'}: FHIR resources of other types (unknown type 1)\n"
    assert indexed("index", both, "-c", "ward").stderr == ""


def test_the_home_is_a_file(clinrag: Clinrag, notes_file: Path, home: Path):
    home.write_text("not a folder")
    for command in (("index", notes_file, "-c", "ward"), ("collections", "list"), ("keys", "list")):
        result = clinrag(*command)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert f"{home} is not a folder" in result.stderr


@pytest.fixture
def small_disk(home: Path) -> Iterator[Path]:
    """Two megabytes at the place of the home folder."""
    home.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("mounting a small disk needs root")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(home)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("this machine does not let root mount a tmpfs")
    yield home
    subprocess.run(["umount", "--lazy", str(home)], check=True)


def test_a_full_disk_keeps_what_was_stored_and_indexing_goes_on_once_there_is_room(
    clinrag: Clinrag, small_disk: Path, notes_file: Path, tmp_path: Path
):
    assert clinrag("index", notes_file, "-c", "ward", "--encoder", "hashing").exit_code == 0
    ballast = small_disk / "ballast"
    room = os.statvfs(small_disk)
    ballast.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - 150_000)))
    many = tmp_path / "many.jsonl"
    with many.open("w") as file:
        for number in range(600):
            record = {"id": f"m{number}", "text": f"Note {number} about fever, cough and {'pain ' * 50}."}
            file.write(json.dumps(record) + "\n")
    result = clinrag("index", many, "-c", "ward")
    assert result.exit_code == 1, result.output
    assert "disk is full" in result.stderr
    assert "Traceback" not in result.output
    kept = one_json(clinrag("search", "apixaban", "-c", "ward", "--json").stdout)
    assert kept["hits"]
    left = os.statvfs(small_disk)
    with contextlib.suppress(OSError), (small_disk / "rest").open("wb", buffering=0) as rest:
        rest.write(bytes(left.f_bavail * left.f_frsize + 1))
    unread = clinrag("search", "apixaban", "-c", "ward")
    assert unread.exit_code == 1
    assert "takes 32 KiB to be read; nothing is lost" in unread.stderr
    ballast.unlink()
    stored = one_json(clinrag("collections", "info", "ward", "--json").stdout)["notes"]
    assert stored >= len(NOTES)
    assert clinrag("collections", "verify", "ward").exit_code == 0


def test_a_writer_that_stays_is_named(indexed: Clinrag, notes_file: Path, home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CLINRAG_WRITER_TIMEOUT_S", "0")
    notes_file.write_text('{"id": "fresh", "text": "fever"}\n')
    collection = Library(home).open("ward")
    with collection.writer():
        result = indexed("index", notes_file, "-c", "ward")
        assert result.exit_code == 1
        assert f"process {os.getpid()}" in result.stderr
        assert indexed("search", "fever", "-c", "ward").exit_code == 0  # readers do not wait
    collection.close()
    assert one_json(indexed("index", notes_file, "-c", "ward", "--json").stdout)["stored"] == 1


def test_a_note_entered_in_error_is_kept_and_not_shown(indexed: Clinrag, tmp_path: Path):
    marked = tmp_path / "marked.jsonl"
    marked.write_text('{"id": "lab-2", "status": "entered-in-error", "text": ""}\n', encoding="utf-8")
    assert indexed("index", marked, "-c", "ward", "--quiet").exit_code == 0
    for version in ([], ["--version", "1"]):
        result = indexed("notes", "show", "lab-2", "-c", "ward", *version)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "was entered in error: it is kept, but not shown" in result.stderr
    again = tmp_path / "again.jsonl"
    again.write_text('{"id": "lab-2", "text": "Creatinine 2.4."}\n', encoding="utf-8")
    assert indexed("index", again, "-c", "ward", "--quiet").exit_code == 0
    assert indexed("notes", "show", "lab-2", "-c", "ward").exit_code == 0
    assert indexed("notes", "show", "lab-2", "-c", "ward", "--version", "2").exit_code == 2


@pytest.mark.parametrize("what", ["header", "pages"])
def test_verify_of_a_damaged_database_names_the_mend_and_not_itself(indexed: Clinrag, home: Path, what: str):
    (truth,) = home.rglob("truth.sqlite")
    content = bytearray(truth.read_bytes())
    for at in [0] if what == "header" else range(4 * 4096, len(content), 4096):
        content[at : at + 600] = b"\xff" * 600
    for beside in truth.parent.glob(truth.name + "-*"):
        beside.unlink()
    truth.write_bytes(content)
    result = indexed("collections", "verify", "ward")
    assert result.exit_code == 1
    assert "collections repair" in result.output
    assert "collections verify" not in result.output


def test_a_collection_with_a_legal_hold_is_not_deleted(indexed: Clinrag):
    hold = ("notes", "hold", "--patient", "4711", "--reason", "case 12", "-c", "ward")
    assert indexed(*hold).exit_code == 0
    result = indexed("collections", "delete", "ward", "--yes")
    assert result.exit_code == 2
    assert "under legal hold (1)" in result.stderr
    assert one_json(indexed("collections", "info", "ward", "--json").stdout)["notes"] == 4
    assert indexed("notes", "release", "--patient", "4711", "-c", "ward").exit_code == 0
    assert indexed("collections", "delete", "ward", "--yes").exit_code == 0


def test_a_collection_that_cannot_be_read_can_be_deleted_to_make_room_for_its_backup(
    indexed: Clinrag, home: Path, tmp_path: Path
):
    assert indexed("collections", "backup", "ward", tmp_path / "ward.backup").exit_code == 0
    (home / "collections" / "ward" / "truth.sqlite").write_bytes(b"nothing that a database begins with" * 1000)
    assert indexed("search", "fever", "-c", "ward").exit_code == 1
    assert indexed("collections", "delete", "ward", input="n\n").exit_code == 1
    assert "unread" in indexed("collections", "delete", "ward", input="n\n").output
    assert indexed("collections", "delete", "ward", "--yes").exit_code == 0
    assert indexed("collections", "restore", tmp_path / "ward.backup", "ward").exit_code == 0
    assert one_json(indexed("collections", "info", "ward", "--json").stdout)["notes"] == 4


@pytest.mark.parametrize("data", [(), ("--data", ".")])
def test_a_recipe_that_there_is_not_is_told_with_those_there_are(
    clinrag: Clinrag, tmp_path: Path, data: tuple[str, ...]
):
    result = clinrag("train", "no-such-recipe", "--out", tmp_path / "run", *data)
    assert result.exit_code == 2
    assert "no recipe no-such-recipe; the package has compact," in result.output
    assert not (tmp_path / "run").exists()
