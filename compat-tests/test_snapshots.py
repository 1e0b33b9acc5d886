"""Snapshots that are shared, copied, and taken of all volumes of an instance: by the AWS CLI, boto3 and boto 2."""

import pytest
from botocore.exceptions import ClientError

from conftest import boto3_client, remove_volume, wait
from running import until


@pytest.fixture
def stranger_id(stranger):
    return boto3_client(stranger, "sts").get_caller_identity()["Account"]


def permissions(ec2, snapshot):
    told = ec2.describe_snapshot_attribute(SnapshotId=snapshot, Attribute="createVolumePermission")
    assert told["SnapshotId"] == snapshot
    return told["CreateVolumePermissions"]


def seen(ec2, snapshot, **arguments):
    return snapshot in [s["SnapshotId"] for s in ec2.describe_snapshots(**arguments)["Snapshots"]]


def test_boto3_shares_in_both_forms_and_the_other_account_restores(ec2, strangers_ec2, stranger_id, snapshot):
    of_one = [{"UserId": stranger_id}]
    ec2.modify_snapshot_attribute(SnapshotId=snapshot, CreateVolumePermission={"Add": of_one})
    assert permissions(ec2, snapshot) == of_one
    (shared,) = strangers_ec2.describe_snapshots(RestorableByUserIds=["self"], SnapshotIds=[snapshot])["Snapshots"]
    assert shared["State"] == "completed" and "Tags" not in shared
    volume = strangers_ec2.create_volume(AvailabilityZone="us-east-1a", SnapshotId=snapshot)["VolumeId"]
    wait(strangers_ec2, "volume_available", VolumeIds=[volume])
    remove_volume(strangers_ec2, volume)

    legacy = {"SnapshotId": snapshot, "Attribute": "createVolumePermission"}
    ec2.modify_snapshot_attribute(**legacy, OperationType="remove", UserIds=[stranger_id])
    assert permissions(ec2, snapshot) == []
    assert not seen(strangers_ec2, snapshot)
    with pytest.raises(ClientError, match="InvalidSnapshot.NotFound"):
        strangers_ec2.create_volume(AvailabilityZone="us-east-1a", SnapshotId=snapshot)
    ec2.modify_snapshot_attribute(**legacy, OperationType="add", GroupNames=["all"])
    assert permissions(ec2, snapshot) == [{"Group": "all"}]
    assert seen(strangers_ec2, snapshot, RestorableByUserIds=["all"])
    assert not seen(strangers_ec2, snapshot, OwnerIds=["self"])
    for refused in (strangers_ec2.delete_snapshot, strangers_ec2.reset_snapshot_attribute):
        arguments = legacy if refused == strangers_ec2.reset_snapshot_attribute else {"SnapshotId": snapshot}
        with pytest.raises(ClientError, match="InvalidSnapshot.NotFound"):
            refused(**arguments)
    ec2.reset_snapshot_attribute(**legacy)
    assert permissions(ec2, snapshot) == []


def test_the_cli_shares_and_copies(aws, ec2, stranger_id, snapshot):
    permission = ["--attribute", "createVolumePermission", "--snapshot-id", snapshot]
    aws("ec2", "modify-snapshot-attribute", *permission, "--operation-type", "add", "--user-ids", stranger_id)
    told = aws("ec2", "describe-snapshot-attribute", *permission)
    assert told["CreateVolumePermissions"] == [{"UserId": stranger_id}]
    aws("ec2", "reset-snapshot-attribute", *permission)
    assert aws("ec2", "describe-snapshot-attribute", *permission)["CreateVolumePermissions"] == []

    source = ["--source-region", "us-east-1", "--source-snapshot-id", snapshot]
    copy = aws("ec2", "copy-snapshot", *source, "--description", "by the CLI")["SnapshotId"]
    until("the copy", lambda: ec2.describe_snapshots(SnapshotIds=[copy])["Snapshots"][0]["State"] == "completed")
    assert aws("ec2", "wait", "snapshot-completed", "--snapshot-ids", copy) is None
    ec2.delete_snapshot(SnapshotId=copy)


def test_boto3_copies_and_adds_a_presigned_url_that_nobody_fetches(ec2, snapshot):
    tags = [{"ResourceType": "snapshot", "Tags": [{"Key": "of", "Value": snapshot}]}]
    made = ec2.copy_snapshot(SourceRegion="us-east-1", SourceSnapshotId=snapshot, TagSpecifications=tags)
    assert made["Tags"] == tags[0]["Tags"]
    wait(ec2, "snapshot_completed", SnapshotIds=[made["SnapshotId"]])
    (seen_copy,) = ec2.describe_snapshots(SnapshotIds=[made["SnapshotId"]])["Snapshots"]
    assert (seen_copy["VolumeId"], seen_copy["VolumeSize"], seen_copy["Description"]) == ("vol-ffffffff", 1, "")
    ec2.delete_snapshot(SnapshotId=made["SnapshotId"])
    with pytest.raises(ClientError, match="InvalidRegion"):
        ec2.copy_snapshot(SourceRegion="eu-west-1", SourceSnapshotId=snapshot)


def test_boto2_shares_and_copies(boto2, ec2, stranger_id, snapshot):
    assert boto2.modify_snapshot_attribute(snapshot, user_ids=[stranger_id], groups=["all"])
    told = boto2.get_snapshot_attribute(snapshot)
    assert told.attrs == {"user_ids": [stranger_id], "groups": ["all"]}
    assert boto2.modify_snapshot_attribute(snapshot, operation="remove", groups=["all"])
    assert boto2.reset_snapshot_attribute(snapshot)
    assert not boto2.get_snapshot_attribute(snapshot).attrs
    copy = boto2.copy_snapshot("us-east-1", snapshot, "by boto")
    wait(ec2, "snapshot_completed", SnapshotIds=[copy])
    ec2.delete_snapshot(SnapshotId=copy)


@pytest.fixture
def pair(ec2, vbs):
    """Two volumes in the first instance; the tag Name is their device's name."""
    made = []
    for device in ("/dev/sdm", "/dev/sdn"):
        tags = [{"ResourceType": "volume", "Tags": [{"Key": "Name", "Value": device}]}]
        volume = ec2.create_volume(AvailabilityZone="us-east-1a", Size=1, TagSpecifications=tags)["VolumeId"]
        wait(ec2, "volume_available", VolumeIds=[volume])
        ec2.attach_volume(VolumeId=volume, InstanceId=vbs.instances[0], Device=device)
        made.append(volume)
    yield made
    for volume in made:
        remove_volume(ec2, volume)


def test_all_volumes_of_an_instance_by_boto3_and_by_the_cli(ec2, aws, vbs, pair):
    tags = [{"ResourceType": "snapshot", "Tags": [{"Key": "job", "Value": "nightly"}]}]
    instance = {"InstanceId": vbs.instances[0], "ExcludeBootVolume": True}
    made = ec2.create_snapshots(
        InstanceSpecification=instance, Description="a set", CopyTagsFromSource="volume", TagSpecifications=tags
    )["Snapshots"]
    assert {s["VolumeId"] for s in made} == set(pair)
    assert {(s["State"], s["Description"], s["Progress"], s["VolumeSize"]) for s in made} == {
        ("pending", "a set", "", 1)
    }
    for snapshot in made:
        assert {t["Key"]: t["Value"] for t in snapshot["Tags"]}.keys() == {"Name", "job"}
    by_cli = aws(
        "ec2", "create-snapshots",
        "--instance-specification", f"InstanceId={vbs.instances[0]},ExcludeDataVolumeIds={pair[0]}",
    )["Snapshots"]  # fmt: skip
    assert [s["VolumeId"] for s in by_cli] == pair[1:]
    taken = [s["SnapshotId"] for s in made + by_cli]
    wait(ec2, "snapshot_completed", SnapshotIds=taken)
    for snapshot in taken:
        ec2.delete_snapshot(SnapshotId=snapshot)
    with pytest.raises(ClientError, match="DryRunOperation"):
        ec2.create_snapshots(InstanceSpecification=instance, DryRun=True)


def test_a_volume_is_copied_by_boto3_and_by_the_cli(ec2, aws, volume):
    (made,) = ec2.copy_volumes(SourceVolumeId=volume, Size=2, VolumeType="gp3", ClientToken=f"copy-{volume}")["Volumes"]
    (by_cli,) = aws("ec2", "copy-volumes", "--source-volume-id", volume)["Volumes"]
    try:
        assert (made["SourceVolumeId"], made["State"], made["Size"]) == (volume, "creating", 2)
        copies = [made["VolumeId"], by_cli["VolumeId"]]
        wait(ec2, "volume_available", VolumeIds=copies)
        seen = {v["VolumeId"]: v["SourceVolumeId"] for v in ec2.describe_volumes(VolumeIds=copies)["Volumes"]}
        assert seen == dict.fromkeys(copies, volume)
    finally:
        remove_volume(ec2, made["VolumeId"])
        remove_volume(ec2, by_cli["VolumeId"])
