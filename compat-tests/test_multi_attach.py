"""Volumes that several instances have at once: boto3, the AWS CLI, and two real guests."""

import subprocess

import pytest
from botocore.exceptions import ClientError

from conftest import Account, wait
from running import PROGRAM, Dev, aws_environment, directory, until
from test_demo import client_of

SHARED = {"AvailabilityZone": "us-east-1a", "Size": 4, "VolumeType": "io2", "Iops": 100, "MultiAttachEnabled": True}


@pytest.fixture(scope="module")
def dev():
    """Two instances in zone a, one in b and one in c."""
    with directory() as place, Dev(place / "data", "--sim", "--instances", "4") as made:
        yield made


@pytest.fixture(scope="module")
def ec2(dev):
    return client_of(dev.env)


@pytest.fixture(scope="module")
def aws(dev, tmp_path_factory):
    account = Account(dev.endpoint, dev.env["AWS_ACCESS_KEY_ID"], dev.env["AWS_SECRET_ACCESS_KEY"])
    environment = aws_environment(account, tmp_path_factory.mktemp("home"))

    def run(*arguments):
        line = ["aws", "ec2", *arguments]
        return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return run


@pytest.fixture(scope="module")
def instances(ec2):
    """The two of zone a."""
    found = ec2.describe_instances(Filters=[{"Name": "availability-zone", "Values": ["us-east-1a"]}])["Reservations"]
    ids = [reservation["Instances"][0]["InstanceId"] for reservation in found]
    assert len(ids) == 2
    return ids


def attachments(ec2, volume):
    (seen,) = ec2.describe_volumes(VolumeIds=[volume])["Volumes"]
    return {attachment["InstanceId"]: attachment["State"] for attachment in seen["Attachments"]}


def attach_to(ec2, volume, *instances):
    for instance in instances:
        ec2.attach_volume(VolumeId=volume, InstanceId=instance, Device="/dev/sdf")
    until("attached", lambda: set(attachments(ec2, volume).values()) == {"attached"})


def detach_from(ec2, volume, *instances):
    for instance in instances:
        ec2.detach_volume(VolumeId=volume, InstanceId=instance)
    until("detached", lambda: not set(instances) & set(attachments(ec2, volume)))


def remove(ec2, volume):
    wait(ec2, "volume_available", VolumeIds=[volume])
    ec2.delete_volume(VolumeId=volume)
    wait(ec2, "volume_deleted", VolumeIds=[volume])


def refusal(call, **arguments):
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return caught.value.response["Error"]["Code"]


@pytest.mark.parametrize("kind", ["io1", "io2"])
def test_boto3_attaches_a_volume_to_two_instances_and_sees_both_everywhere(ec2, instances, kind):
    made = ec2.create_volume(**SHARED | {"VolumeType": kind})
    volume = made["VolumeId"]
    assert made["MultiAttachEnabled"] is True
    wait(ec2, "volume_available", VolumeIds=[volume])
    attach_to(ec2, volume, *instances)
    assert list(attachments(ec2, volume)) == instances
    (status,) = ec2.describe_volume_status(VolumeIds=[volume])["VolumeStatuses"]
    assert [item["InstanceId"] for item in status["AttachmentStatuses"]] == instances
    for instance in instances:
        filters = [
            {"Name": "attachment.instance-id", "Values": [instance]},
            {"Name": "multi-attach-enabled", "Values": ["true"]},
        ]
        pages = ec2.get_paginator("describe_volumes").paginate(Filters=filters, PaginationConfig={"PageSize": 5})
        assert [item["VolumeId"] for page in pages for item in page["Volumes"]] == [volume]
        (reservation,) = ec2.describe_instances(InstanceIds=[instance])["Reservations"]
        mapped = reservation["Instances"][0]["BlockDeviceMappings"]
        assert [item["Ebs"]["VolumeId"] for item in mapped] == [volume]
    assert refusal(ec2.attach_volume, VolumeId=volume, InstanceId=instances[0], Device="/dev/sdg") == "VolumeInUse"
    assert refusal(ec2.delete_volume, VolumeId=volume) == "VolumeInUse"
    assert refusal(ec2.detach_volume, VolumeId=volume) == "MissingParameter"
    detach_from(ec2, volume, instances[0])
    (seen,) = ec2.describe_volumes(VolumeIds=[volume])["Volumes"]
    assert seen["State"] == "in-use" and attachments(ec2, volume) == {instances[1]: "attached"}
    detach_from(ec2, volume, instances[1])
    remove(ec2, volume)


def test_multi_attach_is_modified_as_its_type_allows(ec2, instances):
    plain = {"AvailabilityZone": "us-east-1a", "Size": 4, "Iops": 100}
    volume = ec2.create_volume(**plain, VolumeType="io2")["VolumeId"]
    fixed = ec2.create_volume(**plain, VolumeType="io1", MultiAttachEnabled=True)["VolumeId"]
    wait(ec2, "volume_available", VolumeIds=[volume, fixed])

    def modify(**change):
        answer = ec2.modify_volume(VolumeId=volume, **change)["VolumeModification"]

        def over():
            (found,) = ec2.describe_volumes_modifications(VolumeIds=[volume])["VolumesModifications"]
            return found["ModificationState"] == "completed"

        until("modified", over)
        return answer["OriginalMultiAttachEnabled"], answer["TargetMultiAttachEnabled"]

    assert modify(MultiAttachEnabled=True) == (False, True)
    attach_to(ec2, volume, *instances)
    assert modify(Size=8, Iops=200) == (True, True)
    assert refusal(ec2.modify_volume, VolumeId=volume, MultiAttachEnabled=False) == "IncorrectState"
    assert refusal(ec2.modify_volume, VolumeId=volume, VolumeType="gp3") == "InvalidParameterCombination"
    assert refusal(ec2.modify_volume, VolumeId=fixed, Size=8) == "InvalidParameterValue"
    detach_from(ec2, volume, instances[0])
    assert modify(MultiAttachEnabled=False) == (True, False)
    assert refusal(ec2.attach_volume, VolumeId=volume, InstanceId=instances[0], Device="/dev/sdf") == "VolumeInUse"
    detach_from(ec2, volume, instances[1])
    for made in (volume, fixed):
        remove(ec2, made)


def test_the_aws_cli_creates_attaches_and_detaches_one(ec2, aws, instances):
    options = ["--availability-zone", "us-east-1a", "--size", "4", "--iops", "100", "--multi-attach-enabled"]
    made = aws("create-volume", "--volume-type", "io2", *options)
    assert made.returncode == 0 and '"MultiAttachEnabled": true' in made.stdout, made.stderr
    (volume,) = [item["VolumeId"] for item in ec2.describe_volumes()["Volumes"]]
    wait(ec2, "volume_available", VolumeIds=[volume])
    for instance in instances:
        done = aws("attach-volume", "--volume-id", volume, "--instance-id", instance, "--device", "/dev/sdf")
        assert done.returncode == 0, done.stderr
    until("attached", lambda: set(attachments(ec2, volume).values()) == {"attached"})
    refused = aws("detach-volume", "--volume-id", volume)
    assert "(MissingParameter)" in refused.stderr and "instanceId" in refused.stderr
    for instance in instances:
        done = aws("detach-volume", "--volume-id", volume, "--instance-id", instance)
        assert done.returncode == 0, done.stderr
    remove(ec2, volume)


def test_two_real_guests_read_what_the_other_wrote_and_one_goes_on_when_the_other_is_detached():
    """Files, tgt and QEMU."""
    with directory() as place, Dev(place / "data", "--instances", "2") as dev:
        ec2 = client_of(dev.env)

        def guest(machine, command):
            line = [PROGRAM, "guest-run", "--data", dev.data, machine, command]
            done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, f"{machine}, {command}: {done.stdout}{done.stderr}"
            return done.stdout.strip()

        volume = ec2.create_volume(**SHARED)["VolumeId"]
        wait(ec2, "volume_available", VolumeIds=[volume])
        attach_to(ec2, volume, *dev.instances)
        machines = ["vm-1", "vm-2"]
        disks = {machine: guest(machine, f"disk {volume.replace('-', '')}") for machine in machines}
        for number, machine in enumerate(machines):
            guest(machine, f"write-numbered {disks[machine]} 50 {50 * number}")
        for machine in machines:
            block = f"dd if={disks[machine]} bs=4096 skip=%d count=1 iflag=direct status=none"
            assert [guest(machine, block % number) for number in (0, 49, 50, 99)] == ["0", "49", "50", "99"]

        # The first one writes on all the while.
        guest("vm-1", f"start-writer {disks['vm-1']}")
        detach_from(ec2, volume, dev.instances[1])
        counted = f"count-numbered {disks['vm-1']}"
        before = int(guest("vm-1", counted))
        until("further", lambda: int(guest("vm-1", counted)) > before)
        guest("vm-1", "stop-writer")
        assert attachments(ec2, volume) == {dev.instances[0]: "attached"}
        written = int(guest("vm-1", counted))

        # Whoever comes back finds what was written meanwhile.
        attach_to(ec2, volume, dev.instances[1])
        again = guest("vm-2", f"disk {volume.replace('-', '')}")
        assert int(guest("vm-2", f"count-numbered {again}")) == written

        # And what is in a snapshot of it is of both.
        snapshot = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
        wait(ec2, "snapshot_completed", SnapshotIds=[snapshot])
        detach_from(ec2, volume, *dev.instances)
        ec2.delete_snapshot(SnapshotId=snapshot)
        remove(ec2, volume)
