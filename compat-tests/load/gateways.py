"""A vbs of several processes: a Postgres, storage nodes, each a simulated one in a process of its own, and gateways."""

import secrets
import subprocess
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from running import PROGRAM, Process, free_port, toml, until


@dataclass(frozen=True)
class Account:
    """Where to send requests and how to sign them."""

    endpoint: str
    key: str
    secret: str


class Site:
    """For as long as the `with` lasts. `zones` are the letters of its zones."""

    def __init__(self, zones="a", **gateway):
        self.zones = [f"us-east-1{letter}" for letter in zones]
        self.server = gateway
        self.nodes = []
        self.started = []

    def __enter__(self):
        self._made = tempfile.TemporaryDirectory(prefix="vbs-load-")
        self.directory = Path(self._made.name)
        with (self.directory / "postgres.log").open("wb") as log:
            pipe = subprocess.PIPE
            self._postgres = subprocess.Popen([PROGRAM, "postgres"], stdin=pipe, stdout=pipe, stderr=log, text=True)
        try:
            self.database = self._postgres.stdout.readline().strip()
            assert self.database, (self.directory / "postgres.log").read_text()
            (self.directory / "key").write_text(secrets.token_hex(32))
            self.operator("migrate")
            self.operator("account", "create", "owner", "--id", "123456789012")
            self.key = self.operator("access-key", "create", "owner").split()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in self.started:
            if process.child.poll() is None:
                process.kill()
        self._postgres.stdin.close()
        self._postgres.wait(60)
        self._postgres.stdout.close()
        self._made.cleanup()

    def configure(self, name, listen="127.0.0.1:0"):
        """The file of a gateway, or of an operator."""
        key = {"file": str(self.directory / "key")}
        nodes = [
            {"name": node, "zone": zone, "delegate": {"remote": {"url": url, "key": key}}}
            for node, zone, url in self.nodes
        ]
        settings = {
            "region": "us-east-1",
            "zones": self.zones,
            "master_key": key,
            "database": {"url": self.database},
            "gateway": {"server": {"listen": listen} | self.server},
            # What is not done in time shall not be given up here.
            "workers": {"step_deadline_s": 3600},
            "volume_node": nodes,
        }
        file = self.directory / f"{name}.toml"
        file.write_text(toml(settings))
        return file

    def operator(self, *arguments):
        """Runs an operator's command and returns what it prints."""
        command = [PROGRAM, *arguments, "--config", self.configure("operator")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout.strip()

    def run(self, name, *arguments):
        """Starts one of the long-running roles and waits until it serves."""
        process = Process(name, arguments, self.directory)
        self.started.append(process)
        until(name, lambda: process.says("serving"), 120)
        return process

    def storage_node(self, name):
        """Starts a simulated storage node and returns its address."""
        settings = {
            "node": name,
            "key": {"file": str(self.directory / "key")},
            "server": {"listen": f"127.0.0.1:{free_port()}"},
            "delegate": {"sim": {}},
        }
        file = self.directory / f"{name}.toml"
        file.write_text(toml(settings))
        self.run(name, "volume-delegate", "--config", file)
        return settings["server"]["listen"]

    def knows(self, name, zone, address):
        """Gateways that start from now on reach a storage node at this address."""
        self.nodes.append((name, f"us-east-1{zone}", f"http://{address}"))

    def gateway(self, name, listen=None):
        """Starts a gateway; when this returns it is ready."""
        listen = listen or f"127.0.0.1:{free_port()}"
        process = self.run(name, "gateway", "--config", self.configure(name, listen))
        process.address = listen
        until(f"{name} ready", lambda: is_ready(listen), 120)
        return process

    def account(self, address):
        """The owner, by this gateway or balancer."""
        return Account(f"http://{address}", *self.key)


def is_ready(address):
    """What a balancer asks."""
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=5) as answer:
            return answer.status == 200
    except OSError:  # also an answer that says no
        return False


def resident_mib(process_id):
    """The memory that a process has resident."""
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024


def host_and_port(address):
    url = urlsplit(f"//{address}")
    return url.hostname, url.port
