"""Volumes that grow and change their type, their status and their attributes: boto3, the AWS CLI, and a real guest."""

import subprocess
from datetime import datetime, timezone
from xml.etree import ElementTree

import pytest
from botocore.exceptions import ClientError

from conftest import CliError, boto3_client, remove_volume, wait
from running import PROGRAM, Dev, directory, until
from test_demo import attached, client_of

GIB = 1 << 30


@pytest.fixture(scope="module")
def strict(owner):
    """A client that finds out when an answer has an element that botocore's model does not know, or lacks a wanted type."""
    ec2 = boto3_client(owner)
    checked = set()

    def check(operation_model, response_dict, **_):
        if response_dict["status_code"] == 200:
            root = ElementTree.fromstring(response_dict["body"])
            assert_known(operation_model.output_shape, root, beside={"requestId", "return"})
            checked.add(operation_model.name)

    ec2.meta.events.register("before-parse.ec2", check)
    yield ec2
    assert {"ModifyVolume", "DescribeVolumesModifications", "DescribeVolumeStatus"} <= checked


def assert_known(shape, element, beside=frozenset()):
    """Every element below is a member of the shape, of its type."""
    members = {m.serialization.get("name", n): m for n, m in shape.members.items()} if shape else {}
    for child in element:
        name = child.tag.rpartition("}")[2]
        if name in beside:
            continue
        assert name in members, f"{name} is no member of {shape and shape.name}"
        member = members[name]
        if member.type_name == "structure":
            assert_known(member, child)
        elif member.type_name == "list":
            for item in child:
                assert item.tag.rpartition("}")[2] == "item"
                if member.member.type_name == "structure":
                    assert_known(member.member, item)
        elif member.type_name in ("integer", "long"):
            int(child.text)
        elif member.type_name == "boolean":
            assert child.text in ("true", "false")
        elif member.type_name == "timestamp":
            datetime.strptime(child.text, "%Y-%m-%dT%H:%M:%S.%fZ")
        else:
            assert not getattr(member, "enum", None) or child.text in member.enum, f"{name}: {child.text}"


def code(call, **arguments):
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return caught.value.response["Error"]["Code"]


def modification(ec2, volume):
    (found,) = ec2.describe_volumes_modifications(VolumeIds=[volume])["VolumesModifications"]
    return found


def modified(ec2, volume):
    """Waits until a modification is over, as the EBS CSI driver does, and returns it."""

    def over():
        found = modification(ec2, volume)
        return found if found["ModificationState"] in ("optimizing", "completed", "failed") else None

    assert until("the modification", over)["ModificationState"] != "failed"
    until("its end", lambda: modification(ec2, volume)["ModificationState"] == "completed")
    return modification(ec2, volume)


def size(ec2, volume):
    (seen,) = ec2.describe_volumes(VolumeIds=[volume])["Volumes"]
    return seen["Size"]


def test_a_volume_grows_changes_its_type_and_tells_of_it(strict, volume):
    assert code(strict.describe_volumes_modifications, VolumeIds=[volume]) == "InvalidVolumeModification.NotFound"
    answer = strict.modify_volume(VolumeId=volume, Size=10, VolumeType="gp3", Iops=4000, Throughput=500)
    begun = answer["VolumeModification"]
    assert (begun["ModificationState"], begun["Progress"], begun["VolumeId"]) == ("modifying", 0, volume)
    assert "EndTime" not in begun and abs((begun["StartTime"] - datetime.now(timezone.utc)).total_seconds()) < 60
    done = modified(strict, volume)
    assert {key: done[key] for key in done if key.startswith("Target")} == {
        "TargetSize": 10,
        "TargetIops": 4000,
        "TargetVolumeType": "gp3",
        "TargetThroughput": 500,
        "TargetMultiAttachEnabled": False,
    }
    assert (done["OriginalSize"], done["OriginalVolumeType"], done["OriginalIops"]) == (1, "gp2", 100)
    assert "OriginalThroughput" not in done and done["Progress"] == 100 and done["EndTime"] >= done["StartTime"]
    (seen,) = strict.describe_volumes(VolumeIds=[volume])["Volumes"]
    assert [seen[key] for key in ("Size", "VolumeType", "Iops", "Throughput")] == [10, "gp3", 4000, 500]

    assert code(strict.modify_volume, VolumeId=volume, Size=9) == "InvalidParameterValue"
    assert code(strict.modify_volume, VolumeId=volume, MultiAttachEnabled=True) == "InvalidParameterCombination"
    assert code(strict.modify_volume, VolumeId=volume, Size=11, DryRun=True) == "DryRunOperation"
    for target in (10, 11, 11):
        strict.modify_volume(VolumeId=volume, Size=target)
        modified(strict, volume)
    assert code(strict.modify_volume, VolumeId=volume, Size=12) == "VolumeModificationRateExceeded"


def test_modifications_and_status_are_paged_and_filtered(strict, ec2):
    volumes = [ec2.create_volume(AvailabilityZone="us-east-1b", Size=1)["VolumeId"] for _ in range(6)]
    try:
        wait(ec2, "volume_available", VolumeIds=volumes)
        for volume in volumes:
            strict.modify_volume(VolumeId=volume, Size=7, VolumeType="gp3", Iops=3333)
        for volume in volumes:
            modified(strict, volume)
        mine = [{"Name": "target-iops", "Values": ["3333"]}, {"Name": "modification-state", "Values": ["comp*"]}]
        pages = strict.get_paginator("describe_volumes_modifications").paginate(
            Filters=mine, PaginationConfig={"PageSize": 5}
        )
        pages = [[m["VolumeId"] for m in page["VolumesModifications"]] for page in pages]
        assert sorted(sum(pages, [])) == sorted(volumes) and len(pages) == 2

        zone = [{"Name": "availability-zone", "Values": ["us-east-1b"]}]
        pages = strict.get_paginator("describe_volume_status").paginate(
            Filters=[*zone, {"Name": "volume-status.status", "Values": ["ok"]}], PaginationConfig={"PageSize": 5}
        )
        pages = [page["VolumeStatuses"] for page in pages]
        assert {status["VolumeId"] for status in sum(pages, [])} >= set(volumes) and len(pages) >= 2
        (status,) = strict.describe_volume_status(VolumeIds=volumes[:1])["VolumeStatuses"]
        assert status["VolumeStatus"] == {
            "Status": "ok",
            "Details": [
                {"Name": "io-enabled", "Status": "passed"},
                {"Name": "io-performance", "Status": "not-applicable"},
            ],
        }
        assert (status["Actions"], status["Events"], status["AvailabilityZone"]) == ([], [], "us-east-1b")
    finally:
        for volume in volumes:
            remove_volume(ec2, volume)


def test_a_volume_of_a_snapshot_says_that_it_is_initialized(strict, ec2, snapshot):
    copy = ec2.create_volume(AvailabilityZone="us-east-1a", SnapshotId=snapshot)["VolumeId"]
    try:
        wait(ec2, "volume_available", VolumeIds=[copy])
        (status,) = strict.describe_volume_status(VolumeIds=[copy])["VolumeStatuses"]
        assert {"Name": "initialization-state", "Status": "completed"} in status["VolumeStatus"]["Details"]
        assert status["InitializationStatusDetails"] == {"InitializationType": "default", "Progress": 100}
    finally:
        remove_volume(ec2, copy)


def test_attributes_by_boto3(strict, strangers_ec2, volume):
    def shown(attribute):
        answer = strict.describe_volume_attribute(VolumeId=volume, Attribute=attribute)
        return {key: value for key, value in answer.items() if key != "ResponseMetadata"}

    assert shown("autoEnableIO") == {"VolumeId": volume, "AutoEnableIO": {"Value": False}}
    strict.modify_volume_attribute(VolumeId=volume, AutoEnableIO={"Value": True})
    assert shown("autoEnableIO") == {"VolumeId": volume, "AutoEnableIO": {"Value": True}}
    assert shown("productCodes") == {"VolumeId": volume, "ProductCodes": []}
    strict.enable_volume_io(VolumeId=volume)
    for call, arguments in (
        (strangers_ec2.modify_volume, {"Size": 2}),
        (strangers_ec2.enable_volume_io, {}),
        (strangers_ec2.modify_volume_attribute, {"AutoEnableIO": {"Value": False}}),
        (strangers_ec2.describe_volume_attribute, {"Attribute": "autoEnableIO"}),
    ):
        assert code(call, VolumeId=volume, **arguments) == "InvalidVolume.NotFound"


def test_the_cli_modifies_waits_and_reads_attributes(aws, volume):
    begun = aws("ec2", "modify-volume", "--volume-id", volume, "--size", "2")["VolumeModification"]
    assert (begun["OriginalSize"], begun["TargetSize"]) == (1, 2)

    def state():
        (found,) = aws("ec2", "describe-volumes-modifications", "--volume-ids", volume)["VolumesModifications"]
        return found["ModificationState"]

    until("completed", lambda: state() == "completed")
    (seen,) = aws("ec2", "describe-volumes", "--volume-ids", volume)["Volumes"]
    assert seen["Size"] == 2
    (status,) = aws("ec2", "describe-volume-status", "--volume-ids", volume)["VolumeStatuses"]
    assert status["VolumeStatus"]["Status"] == "ok"
    assert aws("ec2", "modify-volume-attribute", "--volume-id", volume, "--auto-enable-io") is None
    attribute = aws("ec2", "describe-volume-attribute", "--volume-id", volume, "--attribute", "autoEnableIO")
    assert attribute["AutoEnableIO"] == {"Value": True}
    assert aws("ec2", "enable-volume-io", "--volume-id", volume) is None
    with pytest.raises(CliError) as caught:
        aws("ec2", "modify-volume", "--volume-id", volume, "--size", "1")
    assert "(InvalidParameterValue)" in caught.value.message
    assert "New size cannot be smaller than existing size" in caught.value.message


def test_a_real_guest_sees_the_new_size():
    """File, tgt and QEMU. tgt tells a size only when a target is made, so the guest sees it when it is attached again; what was
    on the volume is still there, and there is room behind it."""
    with directory() as place, Dev(place / "data", "--instances", "1") as dev:
        ec2 = client_of(dev.env)

        def guest(command):
            line = [PROGRAM, "guest-run", "--data", dev.data, "vm-1", command]
            done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
            return done.stdout.strip()

        def attach():
            ec2.attach_volume(VolumeId=volume, InstanceId=dev.instances[0], Device="/dev/sdf")
            until("attached", lambda: attached(ec2, volume))
            return guest(f"disk {volume.replace('-', '')}")

        volume = ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"]
        wait(ec2, "volume_available", VolumeIds=[volume])
        disk = attach()
        guest(f"write-numbered {disk} 100 50")
        before = guest(f"md5 {disk} {64 << 20}")
        ec2.modify_volume(VolumeId=volume, Size=2)
        done = modified(ec2, volume)
        assert "attached again" in done["StatusMessage"] and size(ec2, volume) == 2
        assert guest(f"blockdev --getsize64 {disk}") == str(GIB)
        guest(f"write-numbered {disk} 100 50")

        ec2.detach_volume(VolumeId=volume)
        wait(ec2, "volume_available", VolumeIds=[volume])
        disk = attach()
        assert guest(f"blockdev --getsize64 {disk}") == str(2 * GIB)
        assert guest(f"md5 {disk} {64 << 20}") == before
        guest(f"dd if=/dev/urandom of={disk} bs=1M seek=2040 count=8 oflag=direct conv=notrunc")
        remove_volume(ec2, volume)
