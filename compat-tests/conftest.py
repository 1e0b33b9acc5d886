"""What the tests share: a simulated vbs, two accounts on it, the clients, and the table of what they sent."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest
from boto.ec2.connection import EC2Connection
from boto.ec2.regioninfo import RegionInfo
from botocore.config import Config

from ledger import Ledger, update
from model import check_answer
from running import PROGRAM, TARGET, Dev, aws_environment, directory, until

LEDGER = Ledger()
# Takes long to build, and is run when it is asked for.
WITH_RUST = "test_rust.py"


@dataclass(frozen=True)
class Account:
    """Where to send requests and how to sign them."""

    endpoint: str
    key: str
    secret: str

    @property
    def address(self):
        url = urlsplit(self.endpoint)
        return url.hostname, url.port


@pytest.fixture(scope="session")
def vbs():
    """`vbs dev --sim` with an instance in zone a and one in zone b."""
    with directory() as made, Dev(made / "data", "--sim", "--instances", "2") as dev:
        yield dev


@pytest.fixture(scope="session")
def owner(vbs):
    """The account that `vbs dev` made."""
    return Account(vbs.endpoint, vbs.env["AWS_ACCESS_KEY_ID"], vbs.env["AWS_SECRET_ACCESS_KEY"])


@pytest.fixture(scope="session")
def stranger(vbs):
    """Another account, made by the operator's commands."""
    vbs.operator("account", "create", "stranger")
    return Account(vbs.endpoint, *vbs.operator("access-key", "create", "stranger").split())


def boto3_client(account, service="ec2", **config):
    """An unmodified boto3 client; what it sends is noted on the way, and what it gets is held to botocore's model."""
    made = boto3.Session().client(service, **boto3_settings(account, config))
    return watched(made, service)


def boto3_resource(account):
    """The same as boto3's resources of EC2."""
    made = boto3.Session().resource("ec2", **boto3_settings(account, {}))
    watched(made.meta.client, "ec2")
    return made


def boto3_settings(account, config):
    return {
        "endpoint_url": account.endpoint,
        "region_name": "us-east-1",
        "aws_access_key_id": account.key,
        "aws_secret_access_key": account.secret,
        "config": Config(**{"retries": {"total_max_attempts": 1}, "max_pool_connections": 50} | config),
    }


def watched(client, service):
    client.meta.events.register(f"before-call.{service}", lambda model, **_: LEDGER.sent("boto3", model.name))
    client.meta.events.register(f"before-parse.{service}", check_answer)
    return client


@pytest.fixture(scope="session")
def ec2(owner):
    return boto3_client(owner)


@pytest.fixture(scope="session")
def strangers_ec2(stranger):
    return boto3_client(stranger)


def boto2_connection(account, path="/", auth=None):
    """A connection by boto 2, which signs by SigV4 unless told to use another of its methods."""

    class Connection(EC2Connection):
        def _required_auth_capability(self):
            return [auth] if auth else super()._required_auth_capability()

        def make_request(self, action, *args, **kwargs):
            LEDGER.sent("boto", action)
            return super().make_request(action, *args, **kwargs)

    host, port = account.address
    return Connection(
        account.key,
        account.secret,
        is_secure=False,
        port=port,
        path=path,
        region=RegionInfo(name="us-east-1", endpoint=host),
    )


@pytest.fixture(scope="session")
def boto2(owner):
    return boto2_connection(owner)


@pytest.fixture(scope="session")
def aws(owner, tmp_path_factory):
    return aws_cli(owner, tmp_path_factory.mktemp("home"))


def aws_cli(account, home):
    """Runs the AWS CLI: `aws("ec2", "describe-volumes")` is what it prints, as JSON."""
    environment = aws_environment(account, home)

    def run(service, command, *arguments):
        line = ["aws", service, command, *arguments]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=False)
        if command != "wait" and "is not supported here" not in done.stderr:
            LEDGER.sent("awscli", camel(command))
        if done.returncode:
            raise CliError(done.returncode, done.stderr.strip())
        return json.loads(done.stdout) if done.stdout.strip() else None

    return run


class CliError(Exception):
    """The AWS CLI failed: its exit status and what it said."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status
        self.message = message


def camel(command):
    """`describe-volumes` is DescribeVolumes on the wire, `enable-volume-io` EnableVolumeIO."""
    return "".join("IO" if word == "io" else word.capitalize() for word in command.split("-"))


@pytest.fixture
def volume(ec2):
    """An available volume in zone a, that is deleted after the test if it still is there."""
    made = ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"]
    wait(ec2, "volume_available", VolumeIds=[made])
    yield made
    remove_volume(ec2, made)


@pytest.fixture
def snapshot(ec2, volume):
    """A completed snapshot of `volume`."""
    made = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    wait(ec2, "snapshot_completed", SnapshotIds=[made])
    yield made
    if ec2.describe_snapshots(Filters=[{"Name": "snapshot-id", "Values": [made]}])["Snapshots"]:
        ec2.delete_snapshot(SnapshotId=made)


def wait(ec2, waiter, **ids):
    """boto3's waiter, in a hurry."""
    ec2.get_waiter(waiter).wait(**ids, WaiterConfig={"Delay": 0.05, "MaxAttempts": 600})


def remove_volume(ec2, volume):
    """Detaches and deletes a volume, whatever state it is in, and waits until it is gone."""

    def found():
        return ec2.describe_volumes(Filters=[{"Name": "volume-id", "Values": [volume]}])["Volumes"]

    for item in found():
        if item["State"] == "in-use":
            if item["Attachments"][0]["State"] != "detaching":
                ec2.detach_volume(VolumeId=volume)
            wait(ec2, "volume_available", VolumeIds=[volume])
        if item["State"] != "deleting":
            ec2.delete_volume(VolumeId=volume)
    until(f"{volume} to go", lambda: not found())


def pytest_addoption(parser):
    parser.addoption("--with-rust", action="store_true", help="also build and run the AWS SDK for Rust (minutes, 7 GB)")


def pytest_ignore_collect(collection_path, config):
    if collection_path.name == WITH_RUST and not config.option.with_rust:
        LEDGER.not_run["aws-sdk-ec2"] = "--with-rust"
        return True
    return None


def pytest_sessionstart():
    if not PROGRAM.exists():
        pytest.exit(f"there is no {PROGRAM}: run cargo build, or set VBS_BIN", returncode=2)


def pytest_runtest_setup(item):
    LEDGER.test = item.nodeid


def pytest_runtest_logreport(report):
    if report.failed:
        LEDGER.failed.add(report.nodeid)


def is_whole(config, items):
    """Whether this run is of all tests but the lab's, and those that need a flag."""
    here = Path(__file__).parent
    narrowed = config.option.keyword or config.option.markexpr or any("::" in argument for argument in config.args)
    wanted = {path.name for path in here.glob("test_*.py")} - (set() if config.option.with_rust else {WITH_RUST})
    return not narrowed and wanted <= {item.path.name for item in items}


def pytest_collection_finish(session):
    LEDGER.whole = is_whole(session.config, session.items)


def pytest_sessionfinish(session):
    """One of several processes that share the tests (pytest-xdist) hands in what it has noted."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["ledger"] = LEDGER.noted()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    # One that crashed has handed in nothing, and what is left is not of a whole run.
    if ledger := getattr(node, "workeroutput", {}).get("ledger"):
        LEDGER.add(ledger)
    else:
        LEDGER.lost = True


def pytest_terminal_summary(terminalreporter, exitstatus):
    if not LEDGER.sent_in:
        return
    terminalreporter.section("actions by client")
    terminalreporter.write(LEDGER.table())
    path = TARGET / "compat-results.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(LEDGER.table())
    terminalreporter.write_line(f"also in {path}")
    # Broken off, it says nothing of the rest.
    if LEDGER.whole and not LEDGER.lost and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        readme = Path(__file__).parent / "README.md"
        try:
            update(readme, LEDGER.results())
        except OSError as error:
            terminalreporter.write_line(f"{readme} is not updated: {error}")
