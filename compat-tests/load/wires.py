"""What stands between a client and a server here: a wire that is slow or dead, and a balancer."""

import asyncio
import threading
from contextlib import contextmanager

from running import until
from gateways import host_and_port, is_ready


@contextmanager
def serving(handler):
    """A loopback address on which each connection is handled by `handler(reader, writer)`, in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def handle(reader, writer):
        try:
            await handler(reader, writer)
        except asyncio.CancelledError:
            writer.close()  # it is over

    async def listen():
        return await asyncio.start_server(handle, "127.0.0.1", 0, backlog=2048)

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(60)
    host, port = server.sockets[0].getsockname()

    async def end():
        server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    try:
        yield f"{host}:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


async def copy(reader, writer, delay=0):
    """Carries bytes one way until that way ends, each piece so many seconds late."""
    try:
        while data := await reader.read(1 << 16):
            await asyncio.sleep(delay)
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def join(client, server, delay=0):
    """Carries both ways; the answers come so many seconds late."""
    await asyncio.gather(copy(client[0], server[1]), copy(server[0], client[1], delay))


def slow(address, seconds):
    """A wire to `address` by which each answer takes so many seconds longer."""

    async def handler(reader, writer):
        server = await asyncio.open_connection(*host_and_port(address))
        await join((reader, writer), server, seconds)

    return serving(handler)


def silent():
    """An address that takes every connection, and from which never comes a word."""

    async def handler(_reader, writer):
        try:
            await asyncio.sleep(24 * 3600)
        finally:
            writer.close()

    return serving(handler)


class Balancer:
    """Sends each new connection to the next of the gateways that say that they are ready."""

    def __init__(self, addresses, every=0.2):
        self.ready = {address: False for address in addresses}
        self.every = every
        self.turn = 0
        self.given = dict.fromkeys(addresses, 0)
        self.refused = 0
        self.over = threading.Event()

    def __enter__(self):
        self.watches = [threading.Thread(target=self.watch, args=[address], daemon=True) for address in self.ready]
        for watch in self.watches:
            watch.start()
        self.listening = serving(self.handle)
        self.address = self.listening.__enter__()
        until("all gateways", lambda: all(self.ready.values()), 60)
        return self

    def __exit__(self, *_):
        self.over.set()
        self.listening.__exit__(None, None, None)
        for watch in self.watches:
            watch.join(30)

    def watch(self, address):
        while not self.over.wait(self.every):
            self.ready[address] = is_ready(address)

    async def handle(self, reader, writer):
        choice = [address for address, ready in self.ready.items() if ready]
        self.turn += 1
        try:
            address = choice[self.turn % len(choice)]
            server = await asyncio.open_connection(*host_and_port(address))
        except (OSError, ZeroDivisionError):
            self.refused += 1
            writer.close()
            return
        self.given[address] += 1
        await join((reader, writer), server)
