"""The AWS CLI: the main job, its waiters and its paging, from its own process each time."""

import re

import pytest

from conftest import CliError, remove_volume
from running import until


def state(aws, volume):
    (seen,) = aws("ec2", "describe-volumes", "--volume-ids", volume)["Volumes"]
    return seen["State"]


def refusal(aws, *arguments):
    with pytest.raises(CliError) as caught:
        aws(*arguments)
    return caught.value.message


def wait(aws, waiter, option, resource):
    """The CLI's waiter; its pauses are of 15 seconds, so it is called when there is nothing to wait for."""
    assert aws("ec2", "wait", waiter, option, resource) is None


def test_a_volume_is_made_attached_snapshotted_copied_and_deleted(aws, ec2, vbs):
    instance = vbs.instances[0]
    tags = "ResourceType=volume,Tags=[{Key=Name,Value=by the CLI},{Key=odd,Value=a&b}]"
    made = aws(
        "ec2", "create-volume", "--availability-zone", "us-east-1a", "--size", "1", "--volume-type", "gp3",
        "--tag-specifications", tags, "--client-token", "cli-token",
    )  # fmt: skip
    volume = made["VolumeId"]
    try:
        assert (made["State"], made["Iops"], made["Throughput"]) == ("creating", 3000, 125)
        until("available", lambda: state(aws, volume) == "available")
        wait(aws, "volume-available", "--volume-ids", volume)

        answer = aws(
            "ec2", "attach-volume", "--volume-id", volume, "--instance-id", instance, "--device", "/dev/sdf"
        )
        assert answer["State"] == "attaching"
        assert state(aws, volume) == "in-use"
        wait(aws, "volume-in-use", "--volume-ids", volume)
        described = aws("ec2", "describe-instances", "--instance-ids", instance)
        mappings = described["Reservations"][0]["Instances"][0]["BlockDeviceMappings"]
        assert volume in [m["Ebs"]["VolumeId"] for m in mappings]

        snapshot = aws("ec2", "create-snapshot", "--volume-id", volume, "--description", "by the CLI")["SnapshotId"]
        aws("ec2", "create-tags", "--resources", volume, snapshot, "--tags", "Key=job,Value=compat")
        found = aws("ec2", "describe-tags", "--filters", "Name=key,Values=job")["Tags"]
        assert {t["ResourceId"] for t in found} == {volume, snapshot}
        aws("ec2", "delete-tags", "--resources", volume, snapshot, "--tags", "Key=job")

        def completed():
            return aws("ec2", "describe-snapshots", "--snapshot-ids", snapshot)["Snapshots"][0]["Progress"] == "100%"

        until("completed", completed)
        wait(aws, "snapshot-completed", "--snapshot-ids", snapshot)
        assert aws("ec2", "detach-volume", "--volume-id", volume)["State"] == "detaching"
        until("available", lambda: state(aws, volume) == "available")

        copy = aws("ec2", "create-volume", "--availability-zone", "us-east-1a", "--snapshot-id", snapshot)["VolumeId"]
        until("available", lambda: state(aws, copy) == "available")
        owned = aws("ec2", "describe-snapshots", "--owner-ids", "self", "--filters", f"Name=volume-id,Values={volume}")
        assert [s["SnapshotId"] for s in owned["Snapshots"]] == [snapshot]
        assert aws("ec2", "delete-snapshot", "--snapshot-id", snapshot) is None
        aws("ec2", "delete-volume", "--volume-id", copy)
    finally:
        remove_volume(ec2, volume)
    until("gone", lambda: "InvalidVolume.NotFound" in refusal(aws, "ec2", "describe-volumes", "--volume-ids", copy))
    wait(aws, "volume-deleted", "--volume-ids", copy)


def test_the_cli_pages_by_itself_and_when_told(aws, volume):
    every = ["ec2", "describe-volumes", "--query", "Volumes[].VolumeId"]
    assert volume in aws(*every)
    assert volume in aws(*every, "--page-size", "5")
    assert volume in aws(*every, "--filters", "Name=status,Values=avail*,in-us?", "Name=size,Values=1")
    assert aws("ec2", "describe-volumes", "--max-items", "1")["Volumes"]


def test_zones_regions_and_who_one_is(aws):
    zones = aws("ec2", "describe-availability-zones")["AvailabilityZones"]
    assert [z["ZoneName"] for z in zones] == ["us-east-1a", "us-east-1b", "us-east-1c"]
    assert [r["RegionName"] for r in aws("ec2", "describe-regions")["Regions"]] == ["us-east-1"]
    assert re.fullmatch("[0-9]{12}", aws("sts", "get-caller-identity")["Account"])


def test_refusals_read_as_they_do_on_aws(aws, volume):
    gone = "vol-0fedcba9876543210"
    for arguments, text in {
        ("describe-volumes", "--volume-ids", gone): f"(InvalidVolume.NotFound) when calling the DescribeVolumes "
        f"operation: The volume '{gone}' does not exist.",
        ("create-volume", "--availability-zone", "mars", "--size", "1"): "(InvalidZone.NotFound) when calling the "
        "CreateVolume operation: The zone 'mars' does not exist.",
        ("delete-volume", "--volume-id", volume, "--dry-run"): "(DryRunOperation) when calling the DeleteVolume "
        "operation: Request would have succeeded, but DryRun flag is set.",
        ("detach-volume", "--volume-id", volume): "(IncorrectState)",
        ("get-ebs-encryption-by-default",): "(UnsupportedOperation) when calling the GetEbsEncryptionByDefault operation: "
        "The action GetEbsEncryptionByDefault is not supported here.",
    }.items():
        assert text in refusal(aws, "ec2", *arguments)
