"""A home folder, a few notes in several languages, the command line in this process, and a server on a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from click.testing import CliRunner, Result

from api.app import create_app
from api.cli.main import cli
from api.server import configured, listen
from api.settings import Settings

NOTES: list[dict[str, object]] = [
    {
        "id": "letter/1",
        "patient_id": "4711",
        "note_type": "letter",
        "language": "es",
        "authored_at": "2023-04-05",
        "text": "Antecedentes: fibrilación auricular.\n\nTratamiento: apixabán 5 mg cada 12 horas. Creatinina 1,2.",
        "ward": 3,
    },
    {
        "id": "lab-2",
        "patient_id": "4711",
        "language": "en",
        "authored_at": "2023-05",
        "text": "Lab comment: creatinine rose to 2.4 mg/dl after contrast. Apixaban was stopped.\n",
    },
    {
        "id": "退院-3",
        "patient_id": "4712",
        "language": "ja",
        "authored_at": "2022",
        "text": "既往歴：高血圧。\n現病歴：造影剤使用後に腎機能が悪化した。クレアチニン 2.1 mg/dL。\n",
    },
    {"id": "note-4", "patient_id": "4713", "language": "ru", "text": "Анамнез: гипертония. Жалобы на боль в груди.\n"},
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def notes_file(tmp_path: Path) -> Path:
    path = tmp_path / "notes.jsonl"
    path.write_text("".join(json.dumps(note, ensure_ascii=False) + "\n" for note in NOTES), encoding="utf-8")
    return path


Clinrag = Callable[..., Result]


@pytest.fixture
def clinrag(home: Path, monkeypatch: pytest.MonkeyPatch) -> Clinrag:
    """Run a command line in this process, over the test's own home folder."""
    monkeypatch.setenv("CLINRAG_HOME", str(home))
    for name in ("CLINRAG_ENCODER", "CLINRAG_DEBUG", "CLINRAG_API_KEY", "CLINRAG_HOST", "CLINRAG_GENERATORS"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object, input: str | None = None) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=input)

    return run


@pytest.fixture
def indexed(clinrag: Clinrag, notes_file: Path) -> Clinrag:
    """The same, with the notes in the collection ``ward``."""
    result = clinrag("index", notes_file, "--collection", "ward", "--encoder", "hashing", "--quiet")
    assert result.exit_code == 0, result.output
    return clinrag


@contextmanager
def serving(settings: Settings, headers: dict[str, str] | None = None) -> Iterator[httpx.Client]:
    """Run the application under uvicorn on a free port of loopback, and give a client for it."""
    app = create_app(settings)
    sock = listen("127.0.0.1", 0)
    server = uvicorn.Server(configured(app))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    base = f"http://127.0.0.1:{sock.getsockname()[1]}"
    try:
        with httpx.Client(base_url=base, headers=headers, timeout=60, trust_env=False) as client:
            wait_ready(client)
            yield client
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        sock.close()
        assert not thread.is_alive()


def wait_ready(client: httpx.Client) -> None:
    pause = threading.Event()
    for _ in range(600):
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        pause.wait(0.05)
    raise AssertionError("the server is not ready")


@pytest.fixture(scope="module")
def served_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def server(served_home: Path) -> Iterator[httpx.Client]:
    with serving(Settings(home=served_home, encoder="hashing", max_body_bytes=200_000, max_notes=50)) as client:
        yield client


@pytest.fixture
def client(server: httpx.Client) -> httpx.Client:
    """A client of a server without keys and without collections."""
    for row in server.get("/v1/collections").json()["collections"]:
        assert server.delete(f"/v1/collections/{row['name']}").status_code == 204
    return server


@pytest.fixture
def ward(client: httpx.Client) -> httpx.Client:
    """The same, with the notes in the collection ``ward``."""
    assert client.post("/v1/collections", json={"name": "ward", "encoder": "hashing"}).status_code == 201
    posted = client.post("/v1/collections/ward/notes", json={"notes": NOTES})
    assert posted.json() == {"stored": 4, "skipped": 0, "rejected": []}
    return client


def one_json(text: str) -> dict[str, object]:
    """Return the object that is all there is in a command's output."""
    assert len(text.strip().splitlines()) == 1
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def ids(hits: Sequence[dict[str, object]]) -> list[object]:
    return [hit["note_id"] for hit in hits]
