"""Listens in between a client and vbs, so that what the client really sends is what gets noted, whatever it is written in.

Bytes go through untouched: the signature covers the host that the client names, and vbs takes any.
"""

import re
import socket
import threading
from contextlib import contextmanager
from dataclasses import replace

# A parameter of a form, in a target or in a body, from its first byte to its last.
ACTION = re.compile(rb"(?:^|[&?\r\n])Action=([A-Za-z]+)(?=[& \r\n]|$)")


@contextmanager
def tap(account, note):
    """The account at another endpoint; `note(action)` is called for each request that goes by."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=(listener, account.address, note), daemon=True)
        thread.start()
        yield replace(account, endpoint=f"http://127.0.0.1:{listener.getsockname()[1]}")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def accept(listener, address, note):
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        server = socket.create_connection(address)
        for source, target, see in ((client, server, note), (server, client, None)):
            threading.Thread(target=relay, args=(source, target, see), daemon=True).start()


def relay(source, target, note):
    """Passes on what comes from one side until it ends. A request may come in several pieces: a body is often apart."""
    request = b""
    try:
        while piece := source.recv(1 << 16):
            if note:
                request = observe(request + piece, note)
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        # Either side may hang up when it likes.
        for side in (source, target):
            side.close()


def observe(data, note):
    """Notes what whole requests there are, and returns the rest."""
    while True:
        head, blank, rest = data.partition(b"\r\n\r\n")
        if not blank:
            return data
        length = re.search(rb"(?mi)^content-length: *(\d+)\r?$", head)
        size = int(length[1]) if length else 0
        if len(rest) < size:
            return data
        target = head.partition(b"\r\n")[0]
        for found in ACTION.finditer(target + b"\r\n" + rest[:size]):
            note(found[1].decode())
        data = rest[size:]
