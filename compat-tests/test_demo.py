"""The demo, and its flow on a gateway and two delegates that are processes of their own.

These take what a killed `vbs dev` left running, its Postgres, its tgtd and its guest, serves them by three processes
that share nothing but a key, and gives all back to a `vbs dev` in the end. So both must agree on everything that is kept.
"""

import os
import re
import secrets
import signal
import subprocess
import sys
import tomllib
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import Account, boto3_client, remove_volume, wait
from running import PROGRAM, REPOSITORY, Dev, Process, directory, free_port, processes_of, toml, until


@pytest.fixture(scope="module")
def place():
    with directory() as made:
        yield made


def flow(data, env):
    """Runs the flow of the demo; it fails by itself when a byte or a state is wrong."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(data.parent),
        "VBS_BIN": str(PROGRAM),
        **env,
    }
    command = [REPOSITORY / "scripts" / "demo-flow", data]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


class Separate:
    """A gateway and two delegates on what a `vbs dev` in `data` has left."""

    def __init__(self, data, env):
        self.processes = []
        try:
            self.start_all(data, env)
        except BaseException:
            self.__exit__(BaseException)
            raise

    def start_all(self, data, env):
        made_by_dev = tomllib.loads((data / "vbs.toml").read_text())
        key = {"file": str(data / "node.key")}
        (data / "node.key").write_text(secrets.token_hex(32))
        (data / "node.key").chmod(0o600)
        for kind, role in (("volume_node", "volume-delegate"), ("vmm_node", "vmm-delegate")):
            (node,) = made_by_dev[kind]
            address = f"127.0.0.1:{free_port()}"
            file = data / f"{role}.toml"
            settings = {"node": node["name"], "server": {"listen": address}, "key": key, "delegate": node["delegate"]}
            file.write_text(toml(settings))
            self.start(role, file, "serving")
            node["delegate"] = {"remote": {"url": f"http://{address}", "key": key}}
        address = f"127.0.0.1:{free_port()}"
        made_by_dev["gateway"]["server"]["listen"] = address
        file = data / "gateway.toml"
        file.write_text(toml(made_by_dev))
        self.start("gateway", file, "serving")
        self.env = env | {"AWS_ENDPOINT_URL": f"http://{address}"}

    def start(self, role, file, sign):
        process = Process(role, [role, "--config", file], file.parent.parent)
        self.processes.append(process)
        until(role, lambda: process.says(sign))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        for process in reversed(self.processes):
            process.stop() if kind is None else process.kill()


def client_of(env):
    return boto3_client(Account(env["AWS_ENDPOINT_URL"], env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"]))


def test_from_one_process_to_several_and_back_again(place):
    data = place / "data"
    dev = Dev(data, "--instances", "1")
    try:
        ec2 = client_of(dev.env)
        kept = ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"]
        wait(ec2, "volume_available", VolumeIds=[kept])
        children = dev.children()
    finally:
        dev.process.kill()

    with Separate(data, dev.env) as separate:
        assert get(separate.env, "/healthz") == 200 and get(separate.env, "/readyz") == 200
        flow(data, separate.env)
        ec2 = client_of(separate.env)
        ec2.attach_volume(VolumeId=kept, InstanceId=dev.instances[0], Device="/dev/sdf")
        until("attached", lambda: attached(ec2, kept))

    with Dev(data) as again:
        assert again.instances == dev.instances and sorted(again.children()) == sorted(children)
        ec2 = client_of(again.env)
        assert attached(ec2, kept), "what one process attached the next one keeps"
        remove_volume(ec2, kept)


@contextmanager
def demo(place, *options):
    """`scripts/demo` with a program that is built, as from a terminal: it is the first of a process group and heeds Ctrl-C, also when
    who runs the tests does not, as in the background. Ended in the end."""

    def heed():
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    environment = {**os.environ, "VBS_BIN": str(PROGRAM), "TMPDIR": str(place)}
    command = [REPOSITORY / "scripts" / "demo", *options]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    child = subprocess.Popen(command, env=environment, text=True, process_group=0, preexec_fn=heed, **both)
    with child:
        try:
            yield child
        finally:
            if child.poll() is None:
                child.terminate()


def test_the_command_of_the_readme_leaves_nothing(place):
    with demo(place) as child:
        said, _ = child.communicate(timeout=300)
    assert child.returncode == 0, said
    assert not list(place.glob("vbs-demo.*")) and not processes_of(place / "vbs-demo.")


def test_ctrl_c_in_the_middle_leaves_nothing(place):
    with demo(place) as child:
        said = ""
        while "takes a snapshot" not in said:
            line = child.stdout.readline()
            assert line, said
            said += line
        (work,) = place.glob("vbs-demo.*")
        assert processes_of(work)
        os.killpg(child.pid, signal.SIGINT)
        said += child.communicate(timeout=120)[0]
    assert child.returncode == 130, said
    assert not work.exists() and not processes_of(work)


def test_the_command_of_the_readme_and_what_it_says_about_going_on(place):
    """`scripts/demo --keep` with a program that is built: what it prints is done as it says."""
    with demo(place, "--keep") as child:
        said, _ = child.communicate(timeout=600)
    assert child.returncode == 0, said
    to_use, _, to_stop = said.partition("To stop it")
    exports = "\n".join(re.findall(r"^ +(export .*)$", to_use, flags=re.MULTILINE))
    (stop,) = re.findall(r"^ +(kill .*)$", to_stop, flags=re.MULTILINE)
    (work,) = place.glob("vbs-demo.*")
    try:
        aws = Path(sys.executable).with_name("aws")
        seen = shell(f"{exports}\n{aws} ec2 describe-instances --query 'length(Reservations)'")
        assert seen.strip() == "1"
    finally:
        shell(stop)
    assert not work.exists() and not processes_of(work)


def shell(text):
    return subprocess.run(["bash", "-ec", text], capture_output=True, text=True, timeout=120, check=True).stdout


def attached(ec2, volume):
    (seen,) = ec2.describe_volumes(VolumeIds=[volume])["Volumes"]
    return [attachment["State"] for attachment in seen["Attachments"]] == ["attached"]


def get(env, path):
    with urllib.request.urlopen(env["AWS_ENDPOINT_URL"] + path, timeout=30) as answer:
        return answer.status
