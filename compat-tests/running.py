"""Runs the vbs program for the tests, and makes sure that nothing of it stays behind.

A test run may be beside others on one machine, so a process is only ever ended by the number of one that was started
here, and "nothing stays behind" is asked of the processes that name this run's data directory.
"""

import json
import os
import shlex
import signal
import socket
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
PROGRAM = Path(os.environ.get("VBS_BIN", TARGET / "debug" / "vbs"))


def until(what, condition, seconds=30):
    """Waits until `condition()` is true and returns what it returned."""
    end = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < end, f"waited {seconds} s in vain for {what}"
        time.sleep(0.05)


def free_port():
    """A port of the loopback address that was free a moment ago, for programs that cannot choose one themselves."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def processes_of(directory):
    """The processes whose command line or environment names `directory`, but for this one."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(directory) in words:
            found[int(entry.name)] = words.split(b"\0")[0].decode(errors="replace")
    return found


@contextmanager
def directory():
    """A directory for data, that a Postgres of another user can reach; gone in the end, with all that runs on it."""
    made = Path(tempfile.mkdtemp(prefix="vbs-compat-"))
    made.chmod(0o711)
    try:
        yield made
    finally:
        for _, pid, _ in filter(runs, children_of(made / "data")):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(made)


class Process:
    """A child with its output in a file."""

    def __init__(self, name, arguments, log_dir):
        self.name = name
        self.log = Path(log_dir) / f"{name}.log"
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [PROGRAM, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def assert_runs(self):
        assert self.child.poll() is None, f"{self.name} ended with {self.child.returncode}:\n{self.tail()}"
        return True

    def tail(self):
        return self.log.read_text(errors="replace")[-4000:]

    def says(self, text):
        self.assert_runs()
        return text in self.log.read_text(errors="replace")

    def stop(self, seconds=60, by=signal.SIGTERM):
        """Asks it to end, and expects it to end well."""
        self.assert_runs()
        self.child.send_signal(by)
        try:
            status = self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} has not ended {seconds} s after {by.name}:\n{self.tail()}") from None
        assert status == 0, f"{self.name} ended with {status}:\n{self.tail()}"

    def kill(self):
        """Ends it at once, if it still runs."""
        self.child.kill()
        self.child.wait()


class Dev:
    """`vbs dev` on a directory."""

    def __init__(self, data, *options):
        self.data = Path(data)
        self.data.mkdir(parents=True, exist_ok=True)
        self.env_file = self.data / "env"
        self.env_file.unlink(missing_ok=True)
        arguments = ["dev", "--data", self.data, "--listen", "127.0.0.1:0", *options]
        self.process = Process("vbs-dev", arguments, self.data.parent)
        try:
            until("vbs dev", self._serves, 240)
        except BaseException:
            self.process.kill()
            raise
        self.env = read_env(self.env_file)

    def _serves(self):
        return self.process.assert_runs() and self.env_file.exists()

    @property
    def endpoint(self):
        return self.env["AWS_ENDPOINT_URL"]

    @property
    def instances(self):
        return self.env["VBS_INSTANCES"].split(",")

    def operator(self, *arguments):
        """Runs an operator's command on this directory's database and returns what it prints."""
        command = [PROGRAM, *arguments, "--config", self.data / "vbs.toml"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout.strip()

    def stop(self, by=signal.SIGTERM):
        """Ends it; nothing that it started may be left."""
        children = self.children()
        assert children, "vbs dev has no record of its Postgres"
        self.process.stop(by=by)
        left = [child for child in children if runs(child)]
        assert not left and not processes_of(self.data), f"vbs dev left behind {left}, {processes_of(self.data)}"

    def children(self):
        return children_of(self.data)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        """Ends it as it should be ended, or anyhow when a test has failed with it."""
        if kind is None:
            self.stop()
        else:
            self.process.kill()


def children_of(data):
    """The processes that a `vbs dev` has recorded as its own: their names, numbers and start times."""
    records = {path.stem: json.loads(path.read_text())["process"] for path in Path(data).glob("run/*.json")}
    return [(name, process["pid"], process["start_time"]) for name, process in records.items() if process]


def runs(child):
    """Whether a process is still the one that was recorded, and not one that got its number."""
    _, pid, start_time = child
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    state, *fields = stat.rpartition(")")[2].split()
    return state != "Z" and int(fields[18]) == start_time


def read_env(path):
    """The variables of a file of `export NAME=VALUE` lines."""
    words = [word for word in shlex.split(Path(path).read_text()) if word != "export"]
    return dict(word.split("=", 1) for word in words)


def aws_environment(account, home):
    """An environment in which the AWS CLI finds this account and nothing of this machine's user."""
    nowhere = str(Path(home) / "none")
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "AWS_CONFIG_FILE": nowhere,
        "AWS_SHARED_CREDENTIALS_FILE": nowhere,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_PAGER": "",
        "AWS_DEFAULT_OUTPUT": "json",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": account.endpoint,
        "AWS_ACCESS_KEY_ID": account.key,
        "AWS_SECRET_ACCESS_KEY": account.secret,
    }


def toml(settings):
    """Settings as the text of a TOML file, all in inline tables and arrays."""
    return "".join(f"{name} = {inline(value)}\n" for name, value in settings.items())


def inline(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {inline(item)}" for name, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return json.dumps(value)
