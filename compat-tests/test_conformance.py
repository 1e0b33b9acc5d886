"""vbs against botocore's model of EC2: every action, every documented parameter, every element of every answer.

What vbs supports is found out by asking: an action that it does not have says so by name, whatever the parameters.
"""

import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import model
from conftest import boto3_client, remove_volume, wait
from raw import call
from running import REPOSITORY, until

NONSENSE = "~"

# Texts that may be any: each is shown again, found again, or compared, and a test elsewhere sees to that.
FREE = {
    ("CopySnapshot", "Description"),
    ("CreateSnapshot", "Description"),
    ("CreateSnapshots", "Description"),
    ("CopyVolumes", "ClientToken"),
    ("CreateVolume", "ClientToken"),
}
FREE_ANYWHERE = re.compile(r"(TagSpecification\.1\.)?Tag\.1\.(Key|Value)|Filter\.1\.Value\.1")
# SDKs add it by themselves, for AWS's region of origin; there is nothing behind it to fetch.
PASSED_OVER = {("CopySnapshot", "PresignedUrl")}

# What a refusal may say instead of the parameter's name or value.
MEANT = {
    "OutpostArn": "Outposts",
    "DestinationOutpostArn": "Outposts",
    "DestinationAvailabilityZone": "Local Zones",
    "Location": "local snapshots",
    "Operator.Principal": "managed resources",
    "NextToken": "pagination token",
    "GroupId.1": "groupSet",
    "SourceSnapshotId": "snapshotId",
    # The whole answer of AWS to an attribute that no snapshot has.
    "Attribute": "The request received was invalid.",
}


def is_supported(account, action):
    answer = call(account, Action=action, DryRun="true")
    return answer.status == 200 or answer.code != "UnsupportedOperation"


@pytest.fixture(scope="module")
def supported(owner):
    """The actions of the model that vbs has."""
    with ThreadPoolExecutor(4) as pool:
        names = model.service().operation_names
        found = pool.map(lambda action: is_supported(owner, action), names)
        return sorted(name for name, is_there in zip(names, found) if is_there)


@pytest.fixture(scope="module")
def world(ec2, vbs):
    """A volume that is attached, one that is not, and a snapshot, all with tags."""

    def create(zone):
        tags = [{"Key": "Name", "Value": "conformance"}, {"Key": "empty", "Value": ""}]
        specifications = [{"ResourceType": "volume", "Tags": tags}]
        return ec2.create_volume(AvailabilityZone=zone, Size=4, VolumeType="gp3", TagSpecifications=specifications)

    attached, free = (create("us-east-1a")["VolumeId"] for _ in range(2))
    wait(ec2, "volume_available", VolumeIds=[attached, free])
    instance = vbs.instances[0]
    ec2.attach_volume(VolumeId=attached, InstanceId=instance, Device="/dev/sdg")
    until("attached", lambda: volume(ec2, attached)["Attachments"][0]["State"] == "attached")
    tags = [{"ResourceType": "snapshot", "Tags": [{"Key": "Name", "Value": "conformance"}]}]
    snapshot = ec2.create_snapshot(VolumeId=attached, TagSpecifications=tags)["SnapshotId"]
    wait(ec2, "snapshot_completed", SnapshotIds=[snapshot])
    yield {"attached": attached, "free": free, "snapshot": snapshot, "instance": instance}
    ec2.delete_snapshot(SnapshotId=snapshot)
    for made in (attached, free):
        remove_volume(ec2, made)


def volume(ec2, name):
    (found,) = ec2.describe_volumes(VolumeIds=[name])["Volumes"]
    return found


def good(action, world):
    """Parameters with which the action would go well."""
    volume, snapshot, instance = world["free"], world["snapshot"], world["instance"]
    return {
        "AttachVolume": {"VolumeId": volume, "InstanceId": instance, "Device": "/dev/sdh"},
        "CopySnapshot": {"SourceSnapshotId": snapshot, "SourceRegion": "us-east-1"},
        "CopyVolumes": {"SourceVolumeId": volume},
        "CreateSnapshot": {"VolumeId": volume},
        "CreateSnapshots": {"InstanceSpecification.InstanceId": instance},
        "CreateTags": {"ResourceId.1": volume, "Tag.1.Key": "Name", "Tag.1.Value": "conformance"},
        "CreateVolume": {"AvailabilityZone": "us-east-1a", "Size": "1"},
        "DeleteSnapshot": {"SnapshotId": snapshot},
        "DeleteTags": {"ResourceId.1": volume, "Tag.1.Key": "no such key"},
        "DeleteVolume": {"VolumeId": volume},
        "DescribeInstanceAttribute": {"InstanceId": instance, "Attribute": "blockDeviceMapping"},
        "DescribeSnapshotAttribute": {"SnapshotId": snapshot, "Attribute": "createVolumePermission"},
        "DescribeVolumeAttribute": {"VolumeId": volume, "Attribute": "autoEnableIO"},
        "DetachVolume": {"VolumeId": world["attached"]},
        "EnableVolumeIO": {"VolumeId": volume},
        "ModifyInstanceAttribute": {"InstanceId": instance},
        "ModifySnapshotAttribute": {"SnapshotId": snapshot},
        "ModifyVolume": {"VolumeId": volume},
        "ModifyVolumeAttribute": {"VolumeId": volume},
        "ResetSnapshotAttribute": {"SnapshotId": snapshot, "Attribute": "createVolumePermission"},
    }.get(action, {})


def with_it(action, parameter):
    """What a parameter is nothing without."""
    if action == "ModifySnapshotAttribute" and parameter in ("OperationType", "UserId.1", "UserGroup.1"):
        both = {"Attribute": "createVolumePermission", "OperationType": "add", "UserId.1": "123456789012"}
        return {name: value for name, value in both.items() if parameter != "UserGroup.1" or name != "UserId.1"}
    if action == "ModifyInstanceAttribute":
        if parameter == "Value":
            return {"Attribute": "blockDeviceMapping"}
        if parameter.startswith("BlockDeviceMapping.1."):
            return {"BlockDeviceMapping.1.DeviceName": "/dev/sdg"}
    if parameter == "Filter.1.Value.1":
        return {"Filter.1.Name": "tag:Name"}
    return {}


def cases(supported):
    return [(action, parameter) for action in supported for parameter in model.parameters(action)]


def test_an_action_that_vbs_does_not_have_is_refused_by_name(owner, supported):
    names = model.service().operation_names
    assert len(names) > 700 and {"CreateVolume", "DescribeVolumes"} <= set(supported)

    def refusal(action):
        answer = call(owner, Action=action)
        return action, answer.status, answer.code, answer.message

    with ThreadPoolExecutor(4) as pool:
        for action, status, code, message in pool.map(refusal, sorted(set(names) - set(supported))):
            assert (status, code) == (400, "UnsupportedOperation"), (action, code, message)
            assert f" {action} " in message, message
    for invented in ("CreateVolumes", "createvolume", "DescribeFoo", ""):
        assert call(owner, Action=invented).code in ("InvalidAction", "MissingAction"), invented


def test_every_action_is_in_the_documentation_and_nothing_else_is(supported):
    text = (REPOSITORY / "docs/api.md").read_text()
    table = text.partition("## Actions")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([A-Z][A-Za-z, ()]+?) \|", table, flags=re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"[A-Z][A-Za-z]+[a-z]\b|EnableVolumeIO", row)}
    assert documented == set(supported) | {"GetCallerIdentity"}


def test_every_documented_parameter_is_known(owner, supported, world):
    """Whether it is done or refused: with each value that the model lists, or one of its type."""
    faults = []
    for action, parameter in cases(supported):
        for value in parameter.enum[:10] or [parameter.value]:
            sent = good(action, world) | with_it(action, parameter.name) | {parameter.name: value, "DryRun": "true"}
            answer = call(owner, Action=action, **sent)
            if answer.status not in (400, 401, 403, 412) or answer.code == "UnknownParameter":
                faults.append((action, parameter.name, value, answer.status, answer.error()))
    assert not faults, "\n".join(map(str, faults))


def test_no_documented_parameter_is_passed_over(owner, supported, world):
    """One that is read is refused when it makes no sense, and the refusal says which or what."""
    faults = []
    for action, parameter in cases(supported):
        name = parameter.name
        if (action, name) in FREE | PASSED_OVER or FREE_ANYWHERE.fullmatch(name):
            continue
        answer = call(owner, Action=action, **good(action, world) | with_it(action, name) | {name: NONSENSE})
        if answer.status == 200:
            faults.append((action, name, "is passed over"))
            continue
        last = re.sub(r"(\.Value|\.Enabled|\.\d+)+$", "", name).rpartition(".")[2].lower()
        said = answer.message.lower()
        named = last in said or NONSENSE in said or MEANT.get(name, "no").lower() in said
        if answer.status not in (400, 401, 403) or answer.code == "UnknownParameter" or not named:
            faults.append((action, name, answer.status, answer.error()))
    assert not faults, "\n".join(map(str, faults))


def test_every_documented_filter_is_known(owner, supported):
    count = 0
    for action in supported:
        for name in model.filters(action):
            answer = call(owner, Action=action, **{"Filter.1.Name": name, "Filter.1.Value.1": "no such value"})
            assert answer.status == 200, (action, name, answer)
            count += 1
        if model.filters(action):
            answer = call(owner, Action=action, **{"Filter.1.Name": "colour", "Filter.1.Value.1": "blue"})
            assert answer.error() == ("InvalidParameterValue", "The filter 'colour' is invalid"), (action, answer)
    assert count > 200


def test_a_parameter_that_ec2_does_not_have_is_unknown(owner, supported, world):
    for action in supported:
        for name in ("Colour", "VolumeId.1.Colour", "Filter.1.Colour", "TagSpecification.1.Colour"):
            answer = call(owner, Action=action, **good(action, world) | {name: "blue", "DryRun": "true"})
            assert answer.code == "UnknownParameter", (action, name, answer)
            assert "Colour" in answer.message or name in answer.message, answer.message


def test_every_action_answers_as_the_model_has_it(owner, stranger, supported, world):
    """Each is done once with all there is to show. conftest.py holds these answers, and those of all other tests, to the model."""
    ec2 = boto3_client(owner)
    answered = set()
    ec2.meta.events.register("after-call.ec2", lambda model, **_: answered.add(model.name))
    free, attached, snapshot, instance = (world[name] for name in ("free", "attached", "snapshot", "instance"))
    tags = [{"Key": "Name", "Value": "answers"}]

    def tagged(kind):
        return [{"ResourceType": kind, "Tags": tags}]

    made, snapshots = [], []
    try:
        made.append(
            ec2.create_volume(
                AvailabilityZone="us-east-1a", SnapshotId=snapshot, VolumeType="io2", Iops=100, Size=5,
                TagSpecifications=tagged("volume"), ClientToken=f"answers-{time.time_ns()}",
            )["VolumeId"]
        )  # fmt: skip
        if "CopyVolumes" in supported:
            copies = ec2.copy_volumes(SourceVolumeId=free, TagSpecifications=tagged("volume"))["Volumes"]
            made += [copy["VolumeId"] for copy in copies]
        snapshots.append(
            ec2.create_snapshot(VolumeId=free, Description="answers", TagSpecifications=tagged("snapshot"))["SnapshotId"]
        )
        if "CreateSnapshots" in supported:
            taken = ec2.create_snapshots(
                InstanceSpecification={"InstanceId": instance}, Description="answers", CopyTagsFromSource="volume"
            )
            snapshots += [item["SnapshotId"] for item in taken["Snapshots"]]
        if "CopySnapshot" in supported:
            copy = ec2.copy_snapshot(
                SourceSnapshotId=snapshot, SourceRegion="us-east-1", TagSpecifications=tagged("snapshot")
            )
            snapshots.append(copy["SnapshotId"])
        ec2.describe_snapshots(SnapshotIds=snapshots)
        ec2.describe_volumes(VolumeIds=[*made, free, attached])
        wait(ec2, "volume_available", VolumeIds=made)
        wait(ec2, "snapshot_completed", SnapshotIds=snapshots)
        ec2.describe_snapshots(SnapshotIds=snapshots)

        ec2.create_tags(Resources=[free, snapshot, instance], Tags=tags)
        ec2.describe_tags(MaxResults=5)
        for describe in (ec2.describe_instances, ec2.describe_volumes, ec2.describe_snapshots):
            describe()
            describe(MaxResults=5)
            describe(Filters=[{"Name": "tag:Name", "Values": ["answers"]}])
            describe(Filters=[{"Name": "tag:Name", "Values": ["nothing has this"]}])
        ec2.delete_tags(Resources=[free, snapshot, instance], Tags=tags)
        ec2.attach_volume(VolumeId=free, InstanceId=instance, Device="/dev/sdh")
        ec2.describe_volumes(VolumeIds=[free])
        ec2.describe_instances(InstanceIds=[instance])
        until("attached", lambda: volume(ec2, free)["Attachments"][0]["State"] == "attached")
        ec2.detach_volume(VolumeId=free)
        ec2.describe_volumes(VolumeIds=[free])
        wait(ec2, "volume_available", VolumeIds=[free])
        ec2.describe_availability_zones(AllAvailabilityZones=True)
        ec2.describe_regions(AllRegions=True)

        if "DescribeVolumeStatus" in supported:
            ec2.describe_volume_status(VolumeIds=[free, attached, *made])
            for attribute in ("autoEnableIO", "productCodes"):
                ec2.describe_volume_attribute(VolumeId=free, Attribute=attribute)
            ec2.modify_volume_attribute(VolumeId=free, AutoEnableIO={"Value": True})
            ec2.enable_volume_io(VolumeId=free)
        if "ModifyVolume" in supported:
            ec2.modify_volume(VolumeId=free, Size=10, VolumeType="gp3", Iops=4000, Throughput=200)

            def modification():
                return ec2.describe_volumes_modifications(VolumeIds=[free])["VolumesModifications"][0]

            until("modified", lambda: modification()["ModificationState"] == "completed")
        if "ModifySnapshotAttribute" in supported:
            account = boto3_client(stranger, "sts").get_caller_identity()["Account"]
            permissions = [{"UserId": account}, {"Group": "all"}]
            ec2.modify_snapshot_attribute(SnapshotId=snapshot, CreateVolumePermission={"Add": permissions})
            for attribute in ("createVolumePermission", "productCodes"):
                ec2.describe_snapshot_attribute(SnapshotId=snapshot, Attribute=attribute)
            ec2.reset_snapshot_attribute(SnapshotId=snapshot, Attribute="createVolumePermission")
        if "ModifyInstanceAttribute" in supported:
            mapping = {"DeviceName": "/dev/sdg", "Ebs": {"DeleteOnTermination": False}}
            ec2.modify_instance_attribute(InstanceId=instance, BlockDeviceMappings=[mapping])
            attributes = model.service().shape_for("InstanceAttributeName").enum
            for attribute in sorted(set(attributes) - {"sourceDestCheck"}):
                ec2.describe_instance_attribute(InstanceId=instance, Attribute=attribute)
            ec2.describe_instance_status(IncludeAllInstances=True)
            ec2.describe_instance_types()
            ec2.describe_account_attributes()
        ec2.describe_addresses()
    finally:
        for name in snapshots:
            ec2.delete_snapshot(SnapshotId=name)
        for name in made:
            ec2.delete_volume(VolumeId=name)
    assert boto3_client(owner, "sts").get_caller_identity()["Account"]
    assert answered == set(supported), "each action needs a call here"
