"""Nothing that was answered is lost when everything is killed in the middle of the work, and all of it settles.

Threads live through the lives of volumes of their own, so each knows what must be true of them: what was answered, and not
what was only asked for. In the middle of that vbs is killed, in one round with its Postgres, and started again.
"""

import os
import random
import signal
import threading
import time

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from conftest import Account, boto3_client
from running import Dev, directory, runs, until

THREADS = 8
SETTLED = {"available", "in-use", "completed", "attached"}


class Life:
    """What one thread knows of its volumes and snapshots: id -> the state that it must come to, or None if unknown."""

    def __init__(self, number, instances, seed):
        self.number = number
        self.instances = instances
        self.dice = random.Random(f"{seed}-{number}")
        self.volumes = {}
        self.snapshots = {}
        self.tokens = 0

    def go_on(self, ec2, stop):
        """Does one thing after another until told to stop, or until nobody answers."""
        try:
            while not stop.is_set():
                self.dice.choice([self.create, self.create, self.attach, self.detach, self.snapshot, self.delete])(ec2)
        except ClientError as error:
            raise AssertionError(f"thread {self.number}: {error}") from error
        except BotoCoreError:
            pass  # It was killed.

    def pick(self, state):
        found = [volume for volume, known in self.volumes.items() if known == state]
        return self.dice.choice(found) if found else None

    def change(self, volume, state, call, refusals, **arguments):
        """Asks for a change. Until it is answered nobody knows; a refusal means that an earlier change is under way."""
        before, self.volumes[volume] = self.volumes[volume], None
        try:
            call(VolumeId=volume, **arguments)
        except ClientError as error:
            if error.response["Error"]["Code"] not in refusals:
                raise
            self.volumes[volume] = before
        else:
            self.volumes[volume] = state

    def create(self, ec2):
        if len(self.volumes) < 30:
            made = ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)
            self.volumes[made["VolumeId"]] = "available"

    def attach(self, ec2):
        if volume := self.pick("available"):
            device = f"/dev/xvd{chr(ord('b') + self.number // 3)}{chr(ord('a') + self.dice.randrange(24))}"
            taken = ["IncorrectState", "VolumeInUse", "InvalidParameterValue", "AttachmentLimitExceeded"]
            self.change(volume, "in-use", ec2.attach_volume, taken, InstanceId=self.instances[0], Device=device)

    def detach(self, ec2):
        if volume := self.pick("in-use"):
            self.change(volume, "available", ec2.detach_volume, ["IncorrectState"])

    def snapshot(self, ec2):
        if (volume := self.pick("available")) and len(self.snapshots) < 10:
            try:
                made = ec2.create_snapshot(VolumeId=volume)
                self.snapshots[made["SnapshotId"]] = "completed"
            except ClientError as error:
                if error.response["Error"]["Code"] != "IncorrectState":
                    raise

    def delete(self, ec2):
        if volume := self.pick("available"):
            self.change(volume, "gone", ec2.delete_volume, ["VolumeInUse", "IncorrectState"])


def states(ec2):
    """Every resource's state, an attachment's under the name of its volume and instance."""
    found = {}
    for volume in ec2.describe_volumes()["Volumes"]:
        found[volume["VolumeId"]] = volume["State"]
        for attachment in volume["Attachments"]:
            found[volume["VolumeId"], attachment["InstanceId"]] = attachment["State"]
    for snapshot in ec2.describe_snapshots()["Snapshots"]:
        found[snapshot["SnapshotId"]] = snapshot["State"]
    return found


def client_of(dev):
    return boto3_client(
        Account(dev.endpoint, dev.env["AWS_ACCESS_KEY_ID"], dev.env["AWS_SECRET_ACCESS_KEY"]), connect_timeout=5
    )


def live_until_killed(dev, lives, seconds, power):
    """Lets the lives go on for a while, then kills vbs; with `power`, all that it has started as well."""
    ec2, stop, faults = client_of(dev), threading.Event(), []

    def run(life):
        try:
            life.go_on(ec2, stop)
        except AssertionError as fault:
            faults.append(fault)

    threads = [threading.Thread(target=run, args=[life]) for life in lives]
    for thread in threads:
        thread.start()
    time.sleep(seconds)  # It has to be in the middle of things, and there is no end to wait for.
    children = dev.children() if power else []
    dev.process.kill()
    for _, pid, _ in filter(runs, children):
        os.kill(pid, signal.SIGKILL)
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults, faults


@pytest.mark.parametrize("power", [False, True], ids=["vbs is killed", "the power fails"])
def test_all_that_was_answered_comes_true_after_a_crash(power):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    with directory() as place:
        data = place / "data"
        dev = Dev(data, "--sim", "--instances", "1")
        lives = [Life(number, dev.instances, seed) for number in range(THREADS)]
        for seconds in (1.5, 0.7, 1):
            live_until_killed(dev, lives, seconds, power)
            dev = Dev(data, "--sim")
        with dev:
            ec2 = client_of(dev)
            until("everything to settle", lambda: set(states(ec2).values()) <= SETTLED, 120)
            found = states(ec2)
            known = {}
            for life in lives:
                known |= life.volumes | life.snapshots
            assert len(known) > 10
            wrong = {
                name: (state, found.get(name, "gone"))
                for name, state in known.items()
                if state is not None and found.get(name, "gone") != state
            }
            assert not wrong, f"resource: (known, found): {wrong}"
            until("the workflows to finish", lambda: not dev.operator("workflow", "list"))


def test_ctrl_c_ends_all_that_was_started_too():
    with directory() as made:
        Dev(made / "data", "--sim").stop(by=signal.SIGINT)
