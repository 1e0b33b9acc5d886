"""boto3: the actions of the main job, their waiters and their paginators."""

import re
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError

from conftest import boto3_client, remove_volume, wait
from running import until

ZONES = ["us-east-1a", "us-east-1b", "us-east-1c"]


def matching(**values):
    """`Filters`, from names with `_` for `-`; one value or a list of them."""
    return [
        {"Name": name.replace("_", "-"), "Values": value if isinstance(value, list) else [value]}
        for name, value in values.items()
    ]


def tag(name):
    return [{"Name": "tag:Name", "Values": [name]}]


@pytest.fixture
def name():
    """A value for a tag that no other test uses."""
    return f"n-{uuid4().hex}"


@pytest.fixture
def seven(ec2, name):
    """Seven volumes with the tag Name=`name`."""

    def create(size):
        tags = [{"Key": "Name", "Value": name}]
        made = ec2.create_volume(
            AvailabilityZone=ZONES[size % 3],
            Size=size,
            TagSpecifications=[{"ResourceType": "volume", "Tags": tags}],
        )
        return made["VolumeId"]

    volumes = [create(size) for size in range(1, 8)]
    wait(ec2, "volume_available", VolumeIds=volumes)
    yield volumes
    for volume in volumes:
        remove_volume(ec2, volume)


def test_a_volume_is_created_with_the_fields_and_defaults_of_ec2(ec2, name):
    tags = [{"Key": "Name", "Value": name}, {"Key": "empty", "Value": ""}]
    made = ec2.create_volume(
        AvailabilityZone="us-east-1b", Size=2, TagSpecifications=[{"ResourceType": "volume", "Tags": tags}]
    )
    try:
        assert re.fullmatch("vol-[0-9a-f]{17}", made["VolumeId"])
        shown = {key: made[key] for key in ("Size", "SnapshotId", "AvailabilityZone", "State", "VolumeType", "Encrypted")}
        assert shown == {
            "Size": 2,
            "SnapshotId": "",
            "AvailabilityZone": "us-east-1b",
            "State": "creating",
            "VolumeType": "gp2",
            "Encrypted": False,
        }
        assert made["Iops"] == 100 and made["MultiAttachEnabled"] is False
        assert sorted(made["Tags"], key=str) == sorted(tags, key=str)
        assert made["ResponseMetadata"]["HTTPHeaders"]["x-amzn-requestid"] == made["ResponseMetadata"]["RequestId"]

        (seen,) = ec2.describe_volumes(VolumeIds=[made["VolumeId"]])["Volumes"]
        assert seen["State"] in ("creating", "available"), "what was answered is seen at once"
        assert abs((seen["CreateTime"] - made["CreateTime"]).total_seconds()) < 1
        assert sorted(seen["Tags"], key=str) == sorted(tags, key=str)
    finally:
        remove_volume(ec2, made["VolumeId"])


def test_gp3_shows_its_iops_and_throughput_and_a_plain_disk_has_neither(ec2):
    fast = ec2.create_volume(AvailabilityZone="us-east-1a", Size=100, VolumeType="gp3", Iops=4000, Throughput=500)
    plain = ec2.create_volume(AvailabilityZone="us-east-1a", Size=1, VolumeType="standard")
    try:
        ids = [fast["VolumeId"], plain["VolumeId"]]
        seen = {v["VolumeId"]: v for v in ec2.describe_volumes(VolumeIds=ids)["Volumes"]}
        assert (seen[ids[0]]["Iops"], seen[ids[0]]["Throughput"]) == (4000, 500)
        assert "Iops" not in seen[ids[1]] and "Throughput" not in seen[ids[1]] and "Tags" not in seen[ids[1]]
    finally:
        remove_volume(ec2, fast["VolumeId"])
        remove_volume(ec2, plain["VolumeId"])


def test_a_volume_is_attached_seen_everywhere_and_detached(ec2, vbs, volume):
    instance = vbs.instances[0]
    answer = ec2.attach_volume(VolumeId=volume, InstanceId=instance, Device="/dev/sdf")
    assert (answer["State"], answer["Device"], answer["InstanceId"]) == ("attaching", "/dev/sdf", instance)
    (seen,) = ec2.describe_volumes(VolumeIds=[volume])["Volumes"]
    assert seen["State"] == "in-use" and seen["Attachments"][0]["State"] in ("attaching", "attached")
    wait(ec2, "volume_in_use", VolumeIds=[volume])

    def attachment_state():
        (seen,) = ec2.describe_volumes(VolumeIds=[volume])["Volumes"]
        return [a["State"] for a in seen["Attachments"]]

    until("attached", lambda: attachment_state() == ["attached"])
    (reservation,) = ec2.describe_instances(InstanceIds=[instance])["Reservations"]
    (mapping,) = [
        m for m in reservation["Instances"][0]["BlockDeviceMappings"] if m["Ebs"]["VolumeId"] == volume
    ]
    assert (mapping["DeviceName"], mapping["Ebs"]["Status"]) == ("/dev/sdf", "attached")
    assert mapping["Ebs"]["DeleteOnTermination"] is False
    for filters in (
        [{"Name": "attachment.instance-id", "Values": [instance]}],
        [{"Name": "attachment.device", "Values": ["/dev/sd?"]}],
        [{"Name": "attachment.status", "Values": ["attached"]}],
    ):
        assert volume in [v["VolumeId"] for v in ec2.describe_volumes(Filters=filters)["Volumes"]], filters

    answer = ec2.detach_volume(VolumeId=volume)
    assert answer["State"] == "detaching"
    wait(ec2, "volume_available", VolumeIds=[volume])
    assert attachment_state() == []


def test_a_snapshot_is_made_completes_and_becomes_a_volume(ec2, volume, name):
    made = ec2.create_snapshot(
        VolumeId=volume,
        Description=f"of {volume}",
        TagSpecifications=[{"ResourceType": "snapshot", "Tags": [{"Key": "Name", "Value": name}]}],
    )
    assert re.fullmatch("snap-[0-9a-f]{17}", made["SnapshotId"])
    assert (made["State"], made["VolumeId"], made["VolumeSize"]) == ("pending", volume, 1)
    snapshot = made["SnapshotId"]
    wait(ec2, "snapshot_completed", SnapshotIds=[snapshot])
    (seen,) = ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"]
    assert (seen["State"], seen["Progress"], seen["Description"]) == ("completed", "100%", f"of {volume}")
    assert seen["Tags"] == [{"Key": "Name", "Value": name}]
    assert re.fullmatch("[0-9]{12}", seen["OwnerId"])
    for arguments in (
        {"OwnerIds": ["self"], "Filters": tag(name)},
        {"OwnerIds": [seen["OwnerId"]], "Filters": matching(volume_id=volume)},
        {"Filters": matching(status="completed", description="of vol-*", volume_size="1")},
    ):
        assert snapshot in [s["SnapshotId"] for s in ec2.describe_snapshots(**arguments)["Snapshots"]], arguments
    assert ec2.describe_snapshots(OwnerIds=["amazon"])["Snapshots"] == []

    copy = ec2.create_volume(AvailabilityZone="us-east-1a", SnapshotId=snapshot)["VolumeId"]
    wait(ec2, "volume_available", VolumeIds=[copy])
    (seen,) = ec2.describe_volumes(Filters=matching(snapshot_id=snapshot))["Volumes"]
    assert (seen["VolumeId"], seen["SnapshotId"], seen["Size"]) == (copy, snapshot, 1)
    remove_volume(ec2, volume)
    ec2.delete_snapshot(SnapshotId=snapshot)
    with pytest.raises(ClientError, match="InvalidSnapshot.NotFound.*The snapshot '.*' does not exist"):
        ec2.describe_snapshots(SnapshotIds=[snapshot])
    wait(ec2, "volume_available", VolumeIds=[copy])
    remove_volume(ec2, copy)


def test_a_deleted_volume_is_gone_and_its_waiter_knows(ec2):
    made = ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"]
    ec2.delete_volume(VolumeId=made)
    wait(ec2, "volume_deleted", VolumeIds=[made])
    with pytest.raises(ClientError, match="InvalidVolume.NotFound"):
        ec2.delete_volume(VolumeId=made)


def test_tags_are_set_overwritten_listed_and_taken_away(ec2, volume, snapshot, name):
    both = [volume, snapshot]
    ec2.create_tags(Resources=both, Tags=[{"Key": "Name", "Value": name}, {"Key": "a", "Value": "1"}])
    ec2.create_tags(Resources=[volume], Tags=[{"Key": "a", "Value": "2"}, {"Key": "null", "Value": ""}])
    tags = ec2.describe_tags(Filters=matching(resource_id=both))["Tags"]
    seen = {(t["ResourceId"], t["ResourceType"], t["Key"], t["Value"]) for t in tags}
    assert seen == {
        (volume, "volume", "Name", name),
        (volume, "volume", "a", "2"),
        (volume, "volume", "null", ""),
        (snapshot, "snapshot", "Name", name),
        (snapshot, "snapshot", "a", "1"),
    }
    only = ec2.describe_tags(Filters=matching(resource_type="snapshot", key="Na*", value=name))["Tags"]
    assert [t["ResourceId"] for t in only] == [snapshot]

    ec2.delete_tags(Resources=[volume], Tags=[{"Key": "a", "Value": "another"}])
    ec2.delete_tags(Resources=[volume], Tags=[{"Key": "null", "Value": ""}])
    assert [t["Key"] for t in ec2.describe_tags(Filters=matching(resource_id=volume))["Tags"]] == ["Name", "a"]
    ec2.delete_tags(Resources=[volume], Tags=[{"Key": "a"}])
    ec2.delete_tags(Resources=[snapshot])
    tags = ec2.describe_tags(Filters=matching(resource_id=both))["Tags"]
    assert [(t["ResourceId"], t["Key"]) for t in tags] == [(volume, "Name")]


def test_filters_join_by_and_their_values_by_or_with_wildcards(ec2, seven, name):
    def sizes(**values):
        found = ec2.describe_volumes(Filters=tag(name) + matching(**values))["Volumes"]
        return sorted(v["Size"] for v in found)

    assert sizes() == [1, 2, 3, 4, 5, 6, 7]
    assert sizes(size=["2", "3"]) == [2, 3]
    assert sizes(size=["2", "3"], availability_zone="us-east-1a") == [3]
    assert sizes(availability_zone="*-1?", status=["avail*"]) == [1, 2, 3, 4, 5, 6, 7]
    assert sizes(availability_zone="us-east-1") == [], "without a wildcard the whole value counts"
    assert sizes(volume_id=[v[:6] + "*" + v[-4:] for v in seven[:2]]) == [1, 2]
    assert sizes(status="AVAILABLE") == [], "values are case-sensitive"
    assert sizes(volume_type="gp2", encrypted="false", tag_key="Nam?") == [1, 2, 3, 4, 5, 6, 7]
    assert sizes(size=[]) == []
    assert sizes(volume_id="vol-00000000000000000") == []
    assert sizes(create_time="2*") == [1, 2, 3, 4, 5, 6, 7]


def test_a_backslash_takes_the_magic_from_a_wildcard(ec2, volume):
    ec2.create_tags(Resources=[volume], Tags=[{"Key": "odd", "Value": r"*a?b\%_"}])

    def found(value):
        return bool(ec2.describe_volumes(Filters=[{"Name": "tag:odd", "Values": [value]}])["Volumes"])

    assert found(r"\*a\?b\\%_") and found("*") and found(r"\*a?b*")
    assert not found(r"\*a\?b\\__") and not found("a?b") and not found(r"\*")


def test_pages_hold_every_volume_once(ec2, seven, name):
    pages = list(
        ec2.get_paginator("describe_volumes").paginate(Filters=tag(name), PaginationConfig={"PageSize": 5})
    )
    ids = [v["VolumeId"] for page in pages for v in page["Volumes"]]
    assert sorted(ids) == sorted(seven) and len(pages) >= 2
    first = ec2.describe_volumes(Filters=tag(name), MaxResults=5)
    twice = [ec2.describe_volumes(Filters=tag(name), MaxResults=5, NextToken=first["NextToken"]) for _ in range(2)]
    assert twice[0]["Volumes"] == twice[1]["Volumes"] and "NextToken" not in twice[0]
    assert "NextToken" not in ec2.describe_volumes(Filters=tag(name), MaxResults=1000)


def test_pages_of_snapshots_tags_and_instances(ec2, vbs, volume, name):
    made = [ec2.create_snapshot(VolumeId=volume)["SnapshotId"] for _ in range(6)]
    try:
        wait(ec2, "snapshot_completed", SnapshotIds=made)
        ec2.create_tags(Resources=made, Tags=[{"Key": "Name", "Value": name}])
        size = {"PageSize": 5}
        pages = list(ec2.get_paginator("describe_snapshots").paginate(Filters=tag(name), PaginationConfig=size))
        assert sorted(s["SnapshotId"] for p in pages for s in p["Snapshots"]) == sorted(made) and len(pages) >= 2
        pages = list(ec2.get_paginator("describe_tags").paginate(Filters=matching(value=name), PaginationConfig=size))
        assert sorted(t["ResourceId"] for p in pages for t in p["Tags"]) == sorted(made) and len(pages) >= 2
        pages = ec2.get_paginator("describe_instances").paginate(PaginationConfig=size)
        found = [i["InstanceId"] for p in pages for r in p["Reservations"] for i in r["Instances"]]
        assert sorted(found) == sorted(vbs.instances)
    finally:
        for snapshot in made:
            ec2.delete_snapshot(SnapshotId=snapshot)


def test_instances_show_what_clients_need_of_them(ec2, vbs):
    (reservation,) = ec2.describe_instances(InstanceIds=vbs.instances[:1])["Reservations"]
    (instance,) = reservation["Instances"]
    assert instance["State"] == {"Code": 16, "Name": "running"}
    assert instance["Placement"]["AvailabilityZone"] == "us-east-1a"
    assert instance["InstanceType"] and instance["RootDeviceName"] and instance["LaunchTime"]
    filters = [{"Name": "instance-state-name", "Values": ["running"]}, {"Name": "availability-zone", "Values": ["*b"]}]
    (reservation,) = ec2.describe_instances(Filters=filters)["Reservations"]
    assert [i["InstanceId"] for i in reservation["Instances"]] == vbs.instances[1:2]


def test_zones_and_regions(ec2):
    zones = ec2.describe_availability_zones()["AvailabilityZones"]
    assert [(z["ZoneName"], z["State"], z["RegionName"]) for z in zones] == [
        (zone, "available", "us-east-1") for zone in ZONES
    ]
    one = ec2.describe_availability_zones(ZoneNames=["us-east-1b"], Filters=matching(state="available"))
    assert [z["ZoneName"] for z in one["AvailabilityZones"]] == ["us-east-1b"]
    zone_id = one["AvailabilityZones"][0]["ZoneId"]
    made = ec2.create_volume(AvailabilityZoneId=zone_id, Size=1)
    assert made["AvailabilityZone"] == "us-east-1b"
    remove_volume(ec2, made["VolumeId"])
    assert [r["RegionName"] for r in ec2.describe_regions()["Regions"]] == ["us-east-1"]


def test_caller_identity(owner, ec2, volume):
    who = boto3_client(owner, "sts").get_caller_identity()
    assert re.fullmatch("[0-9]{12}", who["Account"]) and who["Account"] in who["Arn"]
    (seen,) = ec2.describe_volumes(VolumeIds=[volume])["Volumes"]
    assert seen["State"] == "available"


def test_fifty_tries_at_once_with_one_token_make_one_volume(ec2):
    token = uuid4().hex

    def create(_):
        return ec2.create_volume(AvailabilityZone="us-east-1a", Size=1, ClientToken=token)["VolumeId"]

    with ThreadPoolExecutor(50) as threads:
        made = set(threads.map(create, range(50)))
    (volume,) = made
    with pytest.raises(ClientError, match="IdempotentParameterMismatch"):
        ec2.create_volume(AvailabilityZone="us-east-1a", Size=2, ClientToken=token)
    wait(ec2, "volume_available", VolumeIds=[volume])
    again = ec2.create_volume(AvailabilityZone="us-east-1a", Size=1, ClientToken=token)
    assert (again["VolumeId"], again["State"]) == (volume, "available")
    remove_volume(ec2, volume)
    with pytest.raises(ClientError, match="associated with a resource that is already deleted"):
        ec2.create_volume(AvailabilityZone="us-east-1a", Size=1, ClientToken=token)


def test_fifty_at_once_of_different_parameters_and_one_token_agree_on_one(ec2):
    token = uuid4().hex

    def create(number):
        try:
            return ec2.create_volume(AvailabilityZone="us-east-1a", Size=1 + number % 2, ClientToken=token)["VolumeId"]
        except ClientError as error:
            return error.response["Error"]["Code"]

    with ThreadPoolExecutor(50) as threads:
        answers = set(threads.map(create, range(50)))
    (volume,) = answers - {"IdempotentParameterMismatch"}
    assert len(answers) == 2
    remove_volume(ec2, volume)


def test_fifty_who_attach_one_volume_at_once_have_one_winner(ec2, vbs, volume):
    def attach(number):
        try:
            ec2.attach_volume(VolumeId=volume, InstanceId=vbs.instances[0], Device=f"/dev/xvdb{chr(97 + number % 26)}")
            return "won"
        except ClientError as error:
            return error.response["Error"]["Code"]

    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(attach, range(50)))
    assert sorted(answers) == ["VolumeInUse"] * 49 + ["won"]


def test_dry_runs_change_nothing(ec2, vbs, volume, snapshot):
    def volumes():
        return [(v["VolumeId"], v["State"], v.get("Tags")) for v in ec2.describe_volumes()["Volumes"]]

    before = volumes()
    tags = [{"Key": "a", "Value": "b"}]
    for action, arguments in {
        "create_volume": {"AvailabilityZone": "us-east-1a", "Size": 1},
        "delete_volume": {"VolumeId": volume},
        "attach_volume": {"VolumeId": volume, "InstanceId": vbs.instances[0], "Device": "/dev/sdf"},
        "create_snapshot": {"VolumeId": volume},
        "delete_snapshot": {"SnapshotId": snapshot},
        "create_tags": {"Resources": [volume], "Tags": tags},
        "delete_tags": {"Resources": [volume], "Tags": tags},
        "describe_volumes": {},
        "describe_snapshots": {},
        "describe_tags": {},
        "describe_instances": {},
        "describe_availability_zones": {},
        "describe_regions": {},
    }.items():
        with pytest.raises(ClientError) as caught:
            getattr(ec2, action)(DryRun=True, **arguments)
        error = caught.value.response
        assert error["Error"]["Code"] == "DryRunOperation", action
        assert error["Error"]["Message"] == "Request would have succeeded, but DryRun flag is set."
        assert error["ResponseMetadata"]["HTTPStatusCode"] == 412
    assert volumes() == before
