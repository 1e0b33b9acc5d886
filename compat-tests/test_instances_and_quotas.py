"""Instances as boto3, boto 2 and the AWS CLI see them, what is refused by name, and how much an account may have and ask."""

import gzip
import json
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.resources import files

import pytest
from boto.exception import EC2ResponseError
from botocore.exceptions import ClientError

from conftest import Account, CliError, boto3_client, remove_volume, wait
from raw import call
from running import Process, free_port, toml, until


def refusal(call, *arguments, **named):
    with pytest.raises(ClientError) as caught:
        call(*arguments, **named)
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"], response["Error"]["Message"]


@pytest.fixture
def attached(ec2, vbs, volume):
    """A volume that is attached to the first instance as /dev/sdm."""
    ec2.attach_volume(VolumeId=volume, InstanceId=vbs.instances[0], Device="/dev/sdm")
    wait(ec2, "volume_in_use", VolumeIds=[volume])
    return volume


def goes_with_its_instance(ec2, volume):
    (seen,) = ec2.describe_volumes(VolumeIds=[volume])["Volumes"]
    return seen["Attachments"][0]["DeleteOnTermination"]


def test_every_client_sets_whether_a_volume_goes_with_its_instance(ec2, boto2, aws, vbs, attached):
    instance = vbs.instances[0]
    assert goes_with_its_instance(ec2, attached) is False
    mapping = {"DeviceName": "/dev/sdm", "Ebs": {"DeleteOnTermination": True}}
    ec2.modify_instance_attribute(InstanceId=instance, BlockDeviceMappings=[mapping])
    assert goes_with_its_instance(ec2, attached) is True
    assert boto2.modify_instance_attribute(instance, "blockDeviceMapping", ["/dev/sdm=false"])
    assert goes_with_its_instance(ec2, attached) is False
    mapping = '[{"DeviceName": "/dev/sdm", "Ebs": {"DeleteOnTermination": true}}]'
    aws("ec2", "modify-instance-attribute", "--instance-id", instance, "--block-device-mappings", mapping)
    for described in (
        ec2.describe_instance_attribute(InstanceId=instance, Attribute="blockDeviceMapping"),
        ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0],
        aws("ec2", "describe-instance-attribute", "--instance-id", instance, "--attribute", "blockDeviceMapping"),
    ):
        (mine,) = [m for m in described["BlockDeviceMappings"] if m["DeviceName"] == "/dev/sdm"]
        assert (mine["Ebs"]["VolumeId"], mine["Ebs"]["DeleteOnTermination"]) == (attached, True)
    assert boto2.get_instance_attribute(instance, "rootDeviceName")["rootDeviceName"] == "/dev/sda1"
    assert refusal(ec2.modify_instance_attribute, InstanceId=instance, InstanceType={"Value": "m5.large"})[1:] == (
        "UnsupportedOperation",
        "The instance attribute instanceType is not supported here.",
    )
    with pytest.raises(EC2ResponseError) as caught:
        boto2.modify_instance_attribute(instance, "blockDeviceMapping", ["/dev/sdz=true"])
    assert caught.value.error_code == "InvalidInstanceAttributeValue"


def test_status_types_and_account_attributes_parse_as_the_model_has_them(ec2, boto2, aws, vbs):
    instance = vbs.instances[0]
    (status,) = ec2.describe_instance_status(InstanceIds=[instance])["InstanceStatuses"]
    assert status["InstanceState"] == {"Code": 16, "Name": "running"} and status["Events"] == []
    assert status["InstanceStatus"] == {"Status": "ok", "Details": [{"Name": "reachability", "Status": "passed"}]}
    assert {s.id for s in boto2.get_all_instance_status()} == set(vbs.instances)
    pages = ec2.get_paginator("describe_instance_status").paginate(PaginationConfig={"PageSize": 5})
    assert {s["InstanceId"] for page in pages for s in page["InstanceStatuses"]} == set(vbs.instances)
    wait(ec2, "instance_status_ok", InstanceIds=vbs.instances)
    wait(ec2, "system_status_ok", InstanceIds=vbs.instances)
    assert aws("ec2", "wait", "instance-running", "--instance-ids", instance) is None

    (found,) = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"]
    (shape,) = ec2.describe_instance_types(InstanceTypes=[found["InstanceType"]])["InstanceTypes"]
    assert shape["VCpuInfo"]["DefaultVCpus"] == found["CpuOptions"]["CoreCount"]
    assert shape["EbsInfo"]["MaximumEbsAttachments"] == 26 and shape["EbsInfo"]["EbsCards"] == [{"EbsCardIndex": 0}]
    kinds = aws("ec2", "describe-instance-types", "--filters", "Name=hypervisor,Values=xen")["InstanceTypes"]
    assert found["InstanceType"] in [kind["InstanceType"] for kind in kinds]

    attributes = ec2.describe_account_attributes(AttributeNames=["default-vpc"])["AccountAttributes"]
    assert attributes == [{"AttributeName": "default-vpc", "AttributeValues": [{"AttributeValue": "none"}]}]
    (platforms,) = boto2.describe_account_attributes(["supported-platforms"])
    assert platforms.attribute_values == ["EC2"]
    everything = aws("ec2", "describe-account-attributes")["AccountAttributes"]
    assert len(everything) == 6


def test_every_action_of_the_model_is_done_or_refused_by_name(owner):
    """All 830 of them, with no parameters: none is unknown, and nothing is a fault of ours."""
    model = json.loads(gzip.decompress((files("botocore") / "data/ec2/2016-11-15/service-2.json.gz").read_bytes()))
    refused = set()
    for action in model["operations"]:
        answer = call(owner, Action=action)
        if answer.status == 200:
            continue
        assert answer.status == 400 and answer.code != "InvalidAction", (action, answer)
        if answer.error() == ("UnsupportedOperation", f"The action {action} is not supported here."):
            refused.add(action)
    assert {"EnableEbsEncryptionByDefault", "LockSnapshot", "ListSnapshotsInRecycleBin", "RunInstances"} <= refused
    assert not {"CreateVolume", "DescribeInstanceTypes", "ModifyInstanceAttribute"} & refused


def test_the_ebs_direct_apis_are_refused_by_name(owner):
    ebs = boto3_client(owner, "ebs")
    assert refusal(ebs.start_snapshot, VolumeSize=1) == (
        400,
        "UnsupportedOperation",
        "The operation StartSnapshot is not supported here.",
    )
    listed = refusal(ebs.list_snapshot_blocks, SnapshotId="snap-0123456789abcdef0")
    assert listed[1:] == ("UnsupportedOperation", "The operation ListSnapshotBlocks is not supported here.")
    stranger = boto3_client(replace(owner, secret="x" * 40), "ebs")
    assert refusal(stranger.start_snapshot, VolumeSize=1)[1] == "AuthFailure"


@pytest.fixture(scope="module")
def tenant(vbs):
    """An account with quotas of its own."""
    vbs.operator("account", "create", "tenant")
    return Account(vbs.endpoint, *vbs.operator("access-key", "create", "tenant").split())


def test_an_operator_sets_the_quotas_of_an_account_and_creates_at_once_hold_them(vbs, tenant):
    assert vbs.operator("account", "quota", "tenant").splitlines()[0] == "volumes\t0\tdefault"
    said = vbs.operator("account", "quota", "tenant", "--volumes", "10", "--snapshots", "1", "--gib", "none")
    assert said.splitlines() == ["volumes\t0\t10", "gib\t0\tnone", "iops\t0\tdefault", "snapshots\t0\t1"]
    ec2 = boto3_client(tenant)

    def create(_):
        try:
            return ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"]
        except ClientError as error:
            assert error.response["Error"]["Code"] == "VolumeLimitExceeded"
            return None

    with ThreadPoolExecutor(30) as pool:
        made = [volume for volume in pool.map(create, range(60)) if volume]
    try:
        assert len(made) == len(set(made)) == 10
        wait(ec2, "volume_available", VolumeIds=made)
        snapshot = ec2.create_snapshot(VolumeId=made[0])["SnapshotId"]
        assert refusal(ec2.create_snapshot, VolumeId=made[0])[1:] == (
            "SnapshotLimitExceeded",
            "Maximum number of active snapshots, '1', exceeded.",
        )
        wait(ec2, "snapshot_completed", SnapshotIds=[snapshot])
        ec2.delete_snapshot(SnapshotId=snapshot)
        vbs.operator("account", "quota", "tenant", "--volumes", "default")
        made.append(create(0))
        assert made[-1]
    finally:
        for volume in filter(None, made):
            remove_volume(ec2, volume)
    until("all to be counted off", lambda: "volumes\t0\t" in vbs.operator("account", "quota", "tenant"))


@pytest.fixture(scope="module")
def strict(vbs, owner):
    """A gateway on the same database that lets few requests through."""
    settings = tomllib.loads((vbs.data / "vbs.toml").read_text())
    listen = f"127.0.0.1:{free_port()}"
    actions = {"DescribeVolumes": {"burst": 4, "per_second": 0.001}, "DescribeTags": {"burst": 4, "per_second": 4}}
    settings["gateway"] = {"server": {"listen": listen}, "throttle": {"actions": actions}}
    settings["workers"] = {"concurrency": 0}
    file = vbs.data / "strict.toml"
    file.write_text(toml(settings))
    process = Process("strict", ["gateway", "--config", file], vbs.data.parent)
    until("strict", lambda: process.says("serving"))
    yield replace(owner, endpoint=f"http://{listen}")
    process.stop()


def test_who_asks_too_often_is_told_in_the_words_that_clients_back_off_at(strict):
    ec2 = boto3_client(strict)
    for _ in range(4):
        ec2.describe_volumes()
    assert refusal(ec2.describe_volumes) == (503, "RequestLimitExceeded", "Request limit exceeded.")
    ec2.describe_snapshots(OwnerIds=["self"])
    # boto3 takes it for what it is: with retries allowed it waits, and comes through.
    patient = boto3_client(strict, retries={"total_max_attempts": 8, "mode": "standard"})
    for _ in range(10):
        patient.describe_tags()


def test_the_cli_reads_a_refusal_by_name(aws):
    with pytest.raises(CliError) as caught:
        aws("ec2", "lock-snapshot", "--snapshot-id", "snap-0123456789abcdef0", "--lock-mode", "governance")
    assert "(UnsupportedOperation)" in caught.value.message
    assert "The action LockSnapshot is not supported here." in caught.value.message
