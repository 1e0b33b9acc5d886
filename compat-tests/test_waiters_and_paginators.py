"""Every waiter and every paginator that boto3 and the AWS CLI have for the actions of vbs, from botocore's own lists of them."""

import re
import subprocess

import pytest
from botocore.exceptions import WaiterError

from conftest import Account, aws_cli, boto3_client, remove_volume, wait
from running import PROGRAM, Dev, directory, until
from test_conformance import supported, world  # noqa: F401

# What each waiter is to find.
WAITERS = {
    "instance_exists": ("InstanceIds", "instance"),
    "instance_running": ("InstanceIds", "instance"),
    "instance_status_ok": ("InstanceIds", "instance"),
    "system_status_ok": ("InstanceIds", "instance"),
    "snapshot_completed": ("SnapshotIds", "snapshot"),
    "volume_available": ("VolumeIds", "free"),
    "volume_in_use": ("VolumeIds", "attached"),
    "volume_deleted": ("VolumeIds", "gone"),
}
# Those of machines that are stopped and gone.
OF_ENDS = ["instance_stopped", "instance_terminated"]
# Of which there are too few for a second page; `test_many_instances_come_in_pages` has more, all of one type.
ONE_PAGE = {"DescribeInstances", "DescribeInstanceStatus", "DescribeInstanceTypes"}


def owner_of(dev):
    return Account(dev.endpoint, dev.env["AWS_ACCESS_KEY_ID"], dev.env["AWS_SECRET_ACCESS_KEY"])


def snake(name):
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def test_many_instances_come_in_pages(tmp_path):
    with directory() as place, Dev(place / "data", "--sim", "--instances", "12") as dev:
        ec2, aws = boto3_client(owner_of(dev)), aws_cli(owner_of(dev), tmp_path)
        for operation, key in (("describe_instances", "Reservations"), ("describe_instance_status", "InstanceStatuses")):
            pages = [page[key] for page in ec2.get_paginator(operation).paginate(PaginationConfig={"PageSize": 5})]
            assert [len(page) for page in pages] == [5, 5, 2], operation
            found = [instance.get("InstanceId") or instance["Instances"][0]["InstanceId"] for instance in sum(pages, [])]
            assert sorted(found) == sorted(dev.instances), operation
            assert len(aws("ec2", operation.replace("_", "-"), "--page-size", "5")[key]) == 12


def test_a_machine_that_powers_itself_off_and_goes_is_waited_for(tmp_path):
    """With a real guest."""
    with directory() as place, Dev(place / "data", "--instances", "1") as dev:
        ec2, aws = boto3_client(owner_of(dev)), aws_cli(owner_of(dev), tmp_path)
        (instance,) = dev.instances

        def wait_by_both(waiter):
            wait(ec2, waiter, InstanceIds=[instance])
            assert aws("ec2", "wait", waiter.replace("_", "-"), "--instance-ids", instance) is None

        for waiter in OF_ENDS:
            with pytest.raises(WaiterError, match="Max attempts exceeded"):
                ec2.get_waiter(waiter).wait(InstanceIds=[instance], WaiterConfig={"Delay": 0.05, "MaxAttempts": 3})
        # The line breaks off with the machine.
        line = [PROGRAM, "guest-run", "--data", dev.data, "vm-1", "poweroff -f"]
        cut_off = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
        assert "the guest's serial line" in cut_off.stderr, cut_off
        wait_by_both("instance_stopped")
        dev.operator("instance", "terminate", instance)
        wait_by_both("instance_terminated")


def test_every_waiter_of_boto3_and_of_the_cli_ends_as_it_should(ec2, aws, supported, world):  # noqa: F811
    things = world | {"gone": "vol-0fedcba9876543210"}
    waiters = [name for name in ec2.waiter_names if ec2.get_waiter(name).config.operation in supported]
    assert sorted(waiters) == sorted([*WAITERS, *OF_ENDS])
    for name, (option, thing) in WAITERS.items():
        wanted = {option: [things[thing]], "WaiterConfig": {"Delay": 0.05, "MaxAttempts": 3}}
        ec2.get_waiter(name).wait(**wanted)
        option = snake(option).replace("_", "-")
        assert aws("ec2", "wait", name.replace("_", "-"), f"--{option}", things[thing]) is None


def test_every_paginator_of_boto3_and_of_the_cli_joins_its_pages_to_the_whole(owner, aws, supported, world):  # noqa: F811
    ec2 = boto3_client(owner)
    tags = [{"Key": f"page-{number}", "Value": "x"} for number in range(7)]
    ec2.create_tags(Resources=[world["free"]], Tags=tags)
    volumes = [ec2.create_volume(AvailabilityZone="us-east-1b", Size=1)["VolumeId"] for _ in range(6)]
    wait(ec2, "volume_available", VolumeIds=volumes)
    snapshots = [ec2.create_snapshot(VolumeId=volume)["SnapshotId"] for volume in volumes]
    wait(ec2, "snapshot_completed", SnapshotIds=snapshots)
    for volume in volumes:
        ec2.modify_volume(VolumeId=volume, Size=2)

    def modified():
        found = ec2.describe_volumes_modifications(VolumeIds=volumes)["VolumesModifications"]
        return {change["ModificationState"] for change in found} == {"completed"}

    until("modified", modified)
    seen = set()
    for action in supported:
        if not ec2.can_paginate(snake(action)):
            continue
        paginator = ec2.get_paginator(snake(action))
        (key,) = [expression.expression for expression in paginator.result_keys]
        whole = getattr(ec2, snake(action))()[key]
        pages = [page[key] for page in paginator.paginate(PaginationConfig={"PageSize": 5})]
        assert all(len(page) <= 5 for page in pages) and (len(pages) > 1 or action in ONE_PAGE), action
        assert sorted(sum(pages, []), key=str) == sorted(whole, key=str), action
        first = paginator.paginate(PaginationConfig={"PageSize": 5, "MaxItems": 1}).build_full_result()[key]
        assert len(first) == min(1, len(whole)), action
        command = ["ec2", snake(action).replace("_", "-"), "--page-size", "5"]
        assert len(aws(*command)[key]) == len(whole), action
        seen.add(action)
    ec2.delete_tags(Resources=[world["free"]], Tags=tags)
    for snapshot in snapshots:
        ec2.delete_snapshot(SnapshotId=snapshot)
    for volume in volumes:
        remove_volume(ec2, volume)
    assert {"DescribeVolumes", "DescribeSnapshots", "DescribeTags", "DescribeInstances", "DescribeVolumeStatus"} <= seen
