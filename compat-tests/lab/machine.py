"""One emulated machine: a QEMU of its own, its disks, and the agent inside that does what a test wants.

A machine is known by the files in its directory, so whoever has the directory can use it, also from another process.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

AGENT_PORT = 700
# Where delegates may listen inside; the machine outside can reach these and nothing else.
SERVICE_PORTS = (8080, 8081, 8082, 8083)


class LabError(Exception):
    """Something in the lab does not do what it should; never a finding about vbs by itself."""


class CommandFailed(LabError):
    """A command inside a machine ended with another status than 0, or not in time."""

    def __init__(self, argv, done):
        what = "was not done in time" if done.late else f"ended with {done.status}"
        super().__init__(f"{argv} {what}: {(done.err or done.out).strip()[-2000:]}")
        self.done = done


@dataclass(frozen=True)
class Done:
    """How a command inside a machine went. `seconds` is as the machine's own clock saw it."""

    status: int | None
    out: str
    err: str
    late: bool
    seconds: float


@dataclass(frozen=True)
class Hardware:
    """What distinguishes one machine from the other."""

    name: str
    memory: int  # MiB
    cache: int  # MiB of translated code
    cpu: str
    link: str  # the other machine, at the far end of the private link
    boot: tuple = field(default=())
    disks: tuple = field(default=())


class Machine:
    """A machine in a directory, which others may share."""

    def __init__(self, hardware, directory):
        self.hardware = hardware
        self.name = hardware.name
        self.directory = Path(directory)
        self.pushed = set()

    def file(self, kind):
        return self.directory / f"{self.name}.{kind}"

    # ---- power

    def power_on(self, incoming=None):
        """Starts it, from nothing or from the state in the file `incoming`."""
        if self.runs():
            raise LabError(f"{self.name} runs already")
        self.file("qmp").unlink(missing_ok=True)
        (self.directory / f"link.{self.name}").unlink(missing_ok=True)
        command = self.command()
        if incoming:
            command += ["-incoming", f"exec:cat {shlex.quote(str(incoming))}"]
        with self.file("log").open("ab") as log:
            child = subprocess.Popen(
                command,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.file("pid").write_text(f"{child.pid} {start_time(child.pid)}\n")
        self._read_ports()
        if incoming:
            wait_for(f"{self.name} to be read", lambda: self.qmp("query-status")["status"] != "inmigrate", 120)
            self.qmp("cont")

    def command(self):
        hardware = self.hardware
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:0-:{port}" for port in (AGENT_PORT, *SERVICE_PORTS))
        command = ["qemu-system-x86_64", "-name", f"vbs-lab-{self.name}", "-M", "q35", "-nodefaults", "-no-user-config"]
        command += ["-vga", "none", "-display", "none", "-no-reboot", "-m", str(hardware.memory), "-smp", "1"]
        command += ["-accel", f"tcg,thread=multi,tb-size={hardware.cache}", "-cpu", hardware.cpu, *hardware.boot]
        command += ["-serial", f"file:{self.name}.console", "-qmp", f"unix:{self.name}.qmp,server=on,wait=off"]
        for number, (name, image_format, cache) in enumerate(hardware.disks):
            drive = f"file={name},format={image_format},if=none,id=d{number},cache={cache},discard=unmap"
            command += ["-drive", drive, "-device", f"virtio-blk-pci,drive=d{number}"]
        last = "01" if self.name < hardware.link else "02"
        command += ["-netdev", f"user,id=n0,restrict=on{forwards}"]
        command += ["-device", f"virtio-net-pci,netdev=n0,mac=52:54:00:00:00:{last},romfile="]
        here, there = f"link.{self.name}", f"link.{hardware.link}"
        command += ["-netdev", f"dgram,id=n1,local.type=unix,local.path={here},remote.type=unix,remote.path={there}"]
        command += ["-device", f"virtio-net-pci,netdev=n1,mac=52:54:00:00:01:{last},romfile="]
        return command

    def runs(self):
        return self._pid() is not None

    def _pid(self):
        """Its process, unless another has got the number since."""
        try:
            pid, started = self.file("pid").read_text().split()
        except (OSError, ValueError):
            return None
        return int(pid) if start_time(pid) == started else None

    def power_cut(self):
        """Takes the current away. What the machine had not written to its disks is lost."""
        pid = self._pid()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            wait_for(f"{self.name} to end", lambda: self._gone(pid), 30)
        self.file("pid").unlink(missing_ok=True)

    def save(self, path):
        """Stops it at an instant, writes that instant to a file, and ends it. Its disks belong to the file then."""
        target = f"exec:cat > {shlex.quote(str(path))}"
        self.qmp("stop", ("migrate-set-parameters", {"max-bandwidth": 1 << 40}), ("migrate", {"uri": target}))

        def saved():
            state = self.qmp("query-migrate")
            if state.get("status") == "failed":
                raise LabError(f"{self.name} cannot be saved: {state}")
            return state.get("status") == "completed"

        wait_for(f"{self.name} to be saved", saved, 120)
        pid = self._pid()
        self.qmp("quit")
        wait_for(f"{self.name} to end", lambda: self._gone(pid), 30)

    def _gone(self, pid):
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass  # Another process started it.
        return self._pid() is None

    # ---- QEMU itself

    def qmp(self, *commands, seconds=120):
        """Runs commands of QEMU's monitor, each a name or (name, arguments), and returns the last one's answer."""
        folder = os.open(self.directory, os.O_PATH)
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(seconds)
                # By the way of /proc, for the path of a socket must be short.
                connection.connect(f"/proc/self/fd/{folder}/{self.name}.qmp")
                stream = connection.makefile("rwb")
                stream.readline()
                answer = None
                for command in ("qmp_capabilities", *commands):
                    name, arguments = command if isinstance(command, tuple) else (command, {})
                    stream.write(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
                    stream.flush()
                    while not {"return", "error"} & (answer := json.loads(stream.readline())).keys():
                        pass
                    if "error" in answer:
                        raise LabError(f"{self.name}: {name}: {answer['error']['desc']}")
                return answer["return"]
        finally:
            os.close(folder)

    def _read_ports(self):
        """Asks QEMU which ports the system gave it, and writes them down."""

        def asked():
            if not self.runs():
                raise LabError(f"QEMU of {self.name} has ended: {self.file('log').read_text()[-2000:]}")
            try:
                return self.qmp(("human-monitor-command", {"command-line": "info usernet"}), seconds=20)
            except (ConnectionRefusedError, FileNotFoundError):
                return None

        text = wait_for(f"the monitor of {self.name}", asked, 30)
        found = re.findall(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)", text)
        self.file("ports").write_text(json.dumps({inside: int(outside) for outside, inside in found}))

    def port(self, inside):
        """The port of 127.0.0.1 that leads to one of the machine's service ports."""
        return json.loads(self.file("ports").read_text())[str(inside)]

    # ---- the agent

    def ask(self, request, body=b"", seconds=60):
        """Sends the agent a request and returns its answer's head and body."""
        with socket.create_connection(("127.0.0.1", self.port(AGENT_PORT)), timeout=seconds) as connection:
            stream = connection.makefile("rwb")
            stream.write(json.dumps({**request, "size": len(body)}).encode() + b"\n" + body)
            stream.flush()
            line = stream.readline()
            if not line:
                raise ConnectionError(f"the agent of {self.name} hung up")
            head = json.loads(line)
            data = stream.read(head["size"])
        if "fault" in head:
            raise LabError(f"{self.name}: {head['fault']}")
        return head, data

    def answers(self):
        """Whether the machine is up as far as obeying."""
        try:
            return self.ask({"verb": "execute", "argv": ["true"], "timeout": 20}, seconds=20)[0]["status"] == 0
        except (OSError, ValueError):
            return False

    def wait_until_up(self, seconds=240):
        def up():
            if not self.runs():
                raise LabError(f"{self.name} has ended:\n{self.file('console').read_text(errors='replace')[-3000:]}")
            return self.answers()

        wait_for(f"{self.name} to come up", up, seconds, 0.3)

    def run(self, *argv, timeout=60, check=True, stdin=b"", env=None):
        """Runs a command inside and says how it went; without `check`, also when it failed."""
        request = {"verb": "execute", "argv": [str(word) for word in argv], "timeout": timeout, "env": env or {}}
        head, data = self.ask(request, stdin, timeout + 30)
        text = [data[: head["err"]].decode(errors="replace"), data[head["err"] :].decode(errors="replace")]
        done = Done(head["status"], text[1], text[0], head["late"], head["seconds"])
        if check and (done.late or done.status != 0):
            raise CommandFailed(request["argv"], done)
        return done

    def sh(self, script, **options):
        """Runs a script of the shell inside and returns what it printed."""
        return self.run("sh", "-euc", script, **options).out

    def push(self, source, path):
        """Puts a file, or bytes, into the machine."""
        if isinstance(source, bytes):
            data, mode = source, 0o600
        else:
            data, mode = Path(source).read_bytes(), Path(source).stat().st_mode & 0o777
        self.ask({"verb": "put", "path": str(path), "mode": mode}, data, seconds=120)

    def push_once(self, source, path):
        """Puts a file into the machine, unless it has got it from this object before."""
        if (source, path) not in self.pushed:
            self.push(source, path)
            self.pushed.add((source, path))

    def start(self, *argv, log, env=None):
        """Starts a daemon inside and returns its number there."""
        request = {"verb": "start", "argv": [str(word) for word in argv], "log": log, "env": env or {}}
        return self.ask(request)[0]["pid"]

    def set_clock(self):
        """Gives it this machine's time: one that was resumed still has the time at which it was saved."""
        self.run("date", "-s", f"@{time.time():.3f}")


def start_time(pid):
    """When a process started, in ticks since boot, as text; None when there is none or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def wait_for(what, condition, seconds, pause=0.05):
    """Waits until `condition()` is true and returns what it returned."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > end:
            raise LabError(f"waited {seconds} s in vain for {what}")
        time.sleep(pause)
    return result
