"""What uvicorn is given: a socket, connections and their ends."""

from __future__ import annotations

import asyncio
import socket

from api.server import listen


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
