"""What uvicorn is given: a socket, connections and their ends."""

from __future__ import annotations

import asyncio
import resource
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from api import app as app_module
from api.server import listen
from api.settings import Settings
from indexer.encoders.encoder import HashingEncoder
from indexer.library import Library
from tests.api.conftest import NOTES, serving
from tests.api.test_processes import server_process


def deleted_files_open(under: Path) -> list[str]:
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(descriptor.readlink()))
    return [name for name in found if name.startswith(str(under)) and name.endswith("(deleted)")]


async def test_an_answer_does_not_wait_for_the_client_to_acknowledge_its_head():
    listening = listen("127.0.0.1", 0)
    delays = asyncio.get_running_loop().create_future()

    class Connected(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            connection = transport.get_extra_info("socket")
            delays.set_result(not connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    server = await asyncio.get_running_loop().create_server(Connected, sock=listening)
    async with server:
        _, writer = await asyncio.open_connection(*listening.getsockname())
        assert not await delays
        writer.close()
        await writer.wait_closed()


def test_a_collection_that_another_process_deleted_gives_its_room_back_without_being_asked_for(
    home: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(app_module, "TIDY_S", 0.01)
    with serving(Settings(home=home, encoder="hashing")) as client:
        for name in ("kept", "gone"):
            assert client.post("/v1/collections", json={"name": name}).status_code == 201
            assert client.post(f"/v1/collections/{name}/notes", json={"notes": NOTES}).json()["stored"] == len(NOTES)
            assert client.post("/v1/search", json={"query": "creatinine", "collection": name}).status_code == 200
        Library(home).delete("gone")
        pause = threading.Event()
        for _ in range(1_000):
            if not deleted_files_open(home):
                break
            pause.wait(0.01)
        assert deleted_files_open(home) == []
        assert client.post("/v1/search", json={"query": "creatinine", "collection": "kept"}).json()["hits"]


def test_more_collections_can_be_open_than_the_soft_limit_of_files_lets(home: Path):
    library, encoder = Library(home), HashingEncoder()
    names = [f"c{number}" for number in range(16)]
    for name in names:
        library.create(name, "hashing", encoder.spec).close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        try:
            _, client = stack.enter_context(server_process(home))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        listed = client.get("/v1/collections").json()
        assert ([row["name"] for row in listed["collections"]], listed["damaged"]) == (sorted(names), [])


@pytest.mark.parametrize("at", ["api.server.serve_evenly", "api.server.set_up", "uvicorn.Server.run"])
def test_a_stop_that_is_asked_for_while_the_server_starts_is_heard(home: Path, at: str):
    code = (
        "import signal, sys\nfrom pathlib import Path\nfrom unittest.mock import patch\n"
        "from api.server import run\nfrom api.settings import Settings\n"
        "def stop(*_, **__): signal.raise_signal(signal.SIGTERM); print('went on')\n"
        f"with patch({at!r}, stop): run(Settings(home=Path(sys.argv[1]), port=0))"
    )
    done = subprocess.run([sys.executable, "-c", code, home], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "")
