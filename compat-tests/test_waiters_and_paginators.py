"""Every waiter and every paginator that boto3 and the AWS CLI have for the actions of vbs, from botocore's own lists of them."""

import re

import pytest
from botocore.exceptions import WaiterError

from conftest import boto3_client
from test_conformance import supported, world  # noqa: F401

# What each waiter is to find. A machine cannot be stopped by the API here, so those two wait in vain.
WAITERS = {
    "instance_exists": ("InstanceIds", "instance"),
    "instance_running": ("InstanceIds", "instance"),
    "instance_status_ok": ("InstanceIds", "instance"),
    "system_status_ok": ("InstanceIds", "instance"),
    "instance_stopped": ("InstanceIds", "instance"),
    "instance_terminated": ("InstanceIds", "instance"),
    "snapshot_completed": ("SnapshotIds", "snapshot"),
    "volume_available": ("VolumeIds", "free"),
    "volume_in_use": ("VolumeIds", "attached"),
    "volume_deleted": ("VolumeIds", "gone"),
}
IN_VAIN = {"instance_stopped", "instance_terminated"}


def snake(name):
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def test_every_waiter_of_boto3_and_of_the_cli_ends_as_it_should(ec2, aws, supported, world):  # noqa: F811
    things = world | {"gone": "vol-0fedcba9876543210"}
    waiters = [name for name in ec2.waiter_names if ec2.get_waiter(name).config.operation in supported]
    assert set(waiters) == set(WAITERS)
    for name in waiters:
        option, thing = WAITERS[name]
        wanted = {option: [things[thing]], "WaiterConfig": {"Delay": 0.05, "MaxAttempts": 3}}
        if name in IN_VAIN:
            with pytest.raises(WaiterError, match="Max attempts exceeded"):
                ec2.get_waiter(name).wait(**wanted)
            continue
        ec2.get_waiter(name).wait(**wanted)
        option = snake(option).replace("_", "-")
        assert aws("ec2", "wait", name.replace("_", "-"), f"--{option}", things[thing]) is None


def test_every_paginator_of_boto3_and_of_the_cli_joins_its_pages_to_the_whole(owner, aws, supported, world):  # noqa: F811
    ec2 = boto3_client(owner)
    tags = [{"Key": f"page-{number}", "Value": "x"} for number in range(7)]
    ec2.create_tags(Resources=[world["free"]], Tags=tags)
    seen = set()
    for action in supported:
        if not ec2.can_paginate(snake(action)):
            continue
        paginator = ec2.get_paginator(snake(action))
        (key,) = [expression.expression for expression in paginator.result_keys]
        whole = getattr(ec2, snake(action))()[key]
        pages = [page[key] for page in paginator.paginate(PaginationConfig={"PageSize": 5})]
        assert all(len(page) <= 5 for page in pages), action
        assert sorted(sum(pages, []), key=str) == sorted(whole, key=str), action
        first = paginator.paginate(PaginationConfig={"PageSize": 5, "MaxItems": 1}).build_full_result()[key]
        assert len(first) == min(1, len(whole)), action
        command = ["ec2", snake(action).replace("_", "-"), "--page-size", "5"]
        assert len(aws(*command)[key]) == len(whole), action
        seen.add(action)
    ec2.delete_tags(Resources=[world["free"]], Tags=tags)
    assert {"DescribeVolumes", "DescribeSnapshots", "DescribeTags", "DescribeInstances", "DescribeVolumeStatus"} <= seen
