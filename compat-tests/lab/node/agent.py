"""What a lab machine does for the tests outside: run a command, take a file, start a daemon, pass a script to a guest.

A request is a line of JSON and then as many bytes as it says; so is the answer. Each request has a connection of its
own, so one that hangs holds up no other.
"""

import json
import os
import signal
import socketserver
import subprocess
import termios
import threading
import time
import tty

PORT = 700
os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DAEMONS = {}


def execute(request, body):
    """Runs a command to its end, or kills it and all it started when its time is over."""
    started = time.monotonic()
    child = subprocess.Popen(
        request["argv"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **request.get("env", {})},
        start_new_session=True,
    )
    late = False
    try:
        out, err = child.communicate(body, request["timeout"])
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(child.pid, signal.SIGKILL)
        out, err = child.communicate(timeout=5)
    head = {"status": child.returncode, "late": late, "seconds": time.monotonic() - started, "err": len(err)}
    return head, err + out


def put(request, body):
    """Writes a file whole or not at all, and makes sure that it outlives a power cut."""
    path = request["path"]
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".new", "wb") as file:
        os.chmod(file.fileno(), request["mode"])
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)
    return {}, b""


def start(request, _):
    """Starts a daemon whose output goes to a file, and answers with its number."""
    with open(request["log"], "ab") as log:
        child = subprocess.Popen(
            request["argv"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **request.get("env", {})},
            start_new_session=True,
        )
    DAEMONS[child.pid] = child
    threading.Thread(target=child.wait, daemon=True).start()
    return {"pid": child.pid}, b""


def daemon(request, _):
    """How a daemon ended that was started here; None while it runs."""
    return {"status": DAEMONS[request["pid"]].returncode}, b""


class Guest:
    """The console of a PV guest, as xenconsoled offers it."""

    lock = threading.Lock()
    by_name = {}
    number = 0

    def __init__(self, path):
        self.file = os.open(path, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self.file, termios.TCSANOW)
        self.answers = {}
        self.changed = threading.Condition()
        self.gone = False
        threading.Thread(target=self.listen, daemon=True).start()

    @classmethod
    def named(cls, name):
        """The console of the domain of this name; another one after the domain was started anew."""
        with cls.lock:
            guest = cls.by_name.get(name)
            if guest is None or guest.gone:
                guest = cls.by_name[name] = cls(console_of(name))
            return guest

    def listen(self):
        rest = b""
        try:
            while data := os.read(self.file, 65536):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    words = line[line.rfind(b"@") + 1 :].split()
                    if b"@" in line and len(words) >= 2:
                        with self.changed:
                            self.answers[words[0]] = words[1:]
                            self.changed.notify_all()
        except OSError:
            pass
        with self.changed:
            self.gone = True
            self.changed.notify_all()

    def script(self, text, seconds):
        with Guest.lock:
            Guest.number += 1
            number = b"%d%06d" % (time.time_ns() % 1000000, Guest.number)
            line = b"%s %s\n" % (number, text)
            while line:
                line = line[os.write(self.file, line[:512]) :]
        with self.changed:
            self.changed.wait_for(lambda: number in self.answers or self.gone, seconds)
            return self.answers.pop(number, None)


def console_of(name):
    """The terminal of the running domain of this name."""
    listed = subprocess.run(
        ["xenstore-ls", "-f", "/local/domain"], stdout=subprocess.PIPE, text=True, timeout=20, check=True
    ).stdout
    values = dict(line.split(" = ", 1) for line in listed.splitlines() if " = " in line)
    for key, value in values.items():
        if key.count("/") == 4 and key.endswith("/name") and value == f'"{name}"':
            path = values.get(key.removesuffix("name") + "console/tty", "").strip('"')
            if path:
                return path
    raise LookupError(f"no domain {name} with a console")


def guest(request, body):
    """Runs a script in a PV guest. `body` is the script in base64, and so is the output in the answer."""
    words = Guest.named(request["guest"]).script(body, request["timeout"])
    if words is None:
        return {"late": True, "status": None}, b""
    return {"late": False, "status": int(words[0])}, b"".join(words[1:])


VERBS = {"execute": execute, "put": put, "start": start, "daemon": daemon, "guest": guest}


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline()
        if not line:
            return
        request = json.loads(line)
        body = self.rfile.read(request.get("size", 0))
        try:
            head, out = VERBS[request["verb"]](request, body)
        except Exception as fault:
            head, out = {"fault": f"{type(fault).__name__}: {fault}"}, b""
        head["size"] = len(out)
        self.wfile.write(json.dumps(head).encode() + b"\n" + out)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    Server(("0.0.0.0", PORT), Handler).serve_forever()
