"""boto3's resources: objects that call the API when they are asked something, and collections that turn pages by themselves."""

import pytest
from botocore.exceptions import ClientError

from conftest import boto3_resource, remove_volume
from running import until

ZONE = "us-east-1a"


@pytest.fixture(scope="module")
def cloud(owner):
    return boto3_resource(owner)


@pytest.fixture
def disk(cloud, ec2):
    """A volume with a tag, as an object."""
    tags = [{"ResourceType": "volume", "Tags": [{"Key": "Name", "Value": "by a resource"}]}]
    made = cloud.create_volume(AvailabilityZone=ZONE, Size=2, VolumeType="gp3", TagSpecifications=tags)
    becomes(made, "available")
    yield made
    remove_volume(ec2, made.id)


def becomes(thing, state):
    def there():
        thing.reload()
        return thing.state == state

    until(f"{thing} {state}", there)


def ids(collection):
    return [item.id for item in collection]


def test_a_volume_is_made_read_changed_and_deleted(cloud, ec2):
    made = cloud.create_volume(AvailabilityZone=ZONE, Size=3)
    try:
        assert made.id.startswith("vol-") and (made.size, made.volume_type, made.snapshot_id) == (3, "gp2", "")
        becomes(made, "available")
        # An object made of an id knows nothing until it is asked.
        found = cloud.Volume(made.id)
        assert (found.size, found.availability_zone, found.encrypted, found.iops) == (3, ZONE, False, 100)
        assert found.attachments == [] and found.tags is None and found.create_time == made.create_time
        assert found.multi_attach_enabled is False and found == made
        (status,) = found.describe_status()["VolumeStatuses"]
        assert status["VolumeId"] == made.id
        found.modify_attribute(AutoEnableIO={"Value": True})
        assert found.describe_attribute(Attribute="autoEnableIO")["AutoEnableIO"] == {"Value": True}
        assert found.enable_io()["ResponseMetadata"]["HTTPStatusCode"] == 200
        found.delete()
        until("gone", lambda: not ids(cloud.volumes.filter(Filters=[{"Name": "volume-id", "Values": [made.id]}])))
        with pytest.raises(ClientError, match="InvalidVolume.NotFound") as refused:
            found.reload()
        assert found.id in refused.value.response["Error"]["Message"]
    finally:
        remove_volume(ec2, made.id)


def test_tags_are_put_and_taken_off_through_every_object(cloud, disk):
    (tag,) = disk.create_tags(Tags=[{"Key": "colour", "Value": "blue"}])
    assert (tag.resource_id, tag.key, tag.value) == (disk.id, "colour", "blue")
    cloud.create_tags(Resources=[disk.id], Tags=[{"Key": "kept", "Value": ""}])
    disk.reload()
    expected = {"Name": "by a resource", "colour": "blue", "kept": ""}
    assert {tag["Key"]: tag["Value"] for tag in disk.tags} == expected
    tag.delete()
    disk.reload()
    assert sorted(item["Key"] for item in disk.tags) == ["Name", "kept"]
    instance = next(iter(cloud.instances.all()))
    instance.create_tags(Tags=[{"Key": "rack", "Value": "7"}])
    assert ids(cloud.instances.filter(Filters=[{"Name": "tag:rack", "Values": ["7"]}])) == [instance.id]
    instance.delete_tags(Tags=[{"Key": "rack"}])
    instance.reload()
    assert "rack" not in {item["Key"] for item in instance.tags or []}


def test_a_volume_is_attached_through_itself_and_through_the_instance(cloud, disk, vbs):
    instance = cloud.Instance(vbs.instances[0])
    assert instance.state == {"Code": 16, "Name": "running"} and instance.placement["AvailabilityZone"] == ZONE
    answer = disk.attach_to_instance(InstanceId=instance.id, Device="/dev/sdk")
    assert (answer["VolumeId"], answer["State"], answer["Device"]) == (disk.id, "attaching", "/dev/sdk")

    def attached():
        disk.reload()
        return disk.attachments and disk.attachments[0]["State"] == "attached"

    until("attached", attached)
    assert disk.state == "in-use" and disk.attachments[0]["InstanceId"] == instance.id
    assert disk.id in ids(instance.volumes.all())
    instance.reload()
    devices = {item["DeviceName"]: item["Ebs"]["VolumeId"] for item in instance.block_device_mappings}
    assert devices["/dev/sdk"] == disk.id
    assert instance.describe_attribute(Attribute="blockDeviceMapping")["BlockDeviceMappings"]
    disk.detach_from_instance(InstanceId=instance.id)
    becomes(disk, "available")
    instance.attach_volume(VolumeId=disk.id, Device="/dev/sdl")
    until("attached", attached)
    with pytest.raises(ClientError, match="VolumeInUse"):
        disk.delete()
    instance.detach_volume(VolumeId=disk.id)
    becomes(disk, "available")


def test_a_snapshot_is_taken_waited_for_shared_copied_and_deleted(cloud, disk, ec2):
    taken = disk.create_snapshot(Description="by a resource")
    assert (taken.volume_id, taken.volume_size, taken.description) == (disk.id, 2, "by a resource")
    try:
        taken.wait_until_completed(WaiterConfig={"Delay": 0.1, "MaxAttempts": 300})
        taken.reload()
        assert (taken.state, taken.progress, taken.volume.id) == ("completed", "100%", disk.id)
        assert taken.id in ids(disk.snapshots.all()) and taken.id in ids(cloud.snapshots.filter(OwnerIds=["self"]))
        taken.modify_attribute(CreateVolumePermission={"Add": [{"UserId": "123456789012"}]})
        shared = taken.describe_attribute(Attribute="createVolumePermission")["CreateVolumePermissions"]
        assert shared == [{"UserId": "123456789012"}]
        taken.reset_attribute(Attribute="createVolumePermission")
        assert taken.describe_attribute(Attribute="createVolumePermission")["CreateVolumePermissions"] == []
        copy = cloud.Snapshot(taken.copy(SourceRegion="us-east-1", Description="a copy")["SnapshotId"])
        copy.wait_until_completed(WaiterConfig={"Delay": 0.1, "MaxAttempts": 300})
        assert copy.description == "a copy"
        copy.delete()
        restored = cloud.create_volume(AvailabilityZone=ZONE, SnapshotId=taken.id)
        assert (restored.snapshot_id, restored.size) == (taken.id, 2)
        remove_volume(ec2, restored.id)
    finally:
        taken.delete()
    until("gone", lambda: taken.id not in ids(cloud.snapshots.filter(OwnerIds=["self"])))


def test_collections_are_filtered_limited_and_turned_page_by_page(cloud, ec2):
    tag = [{"ResourceType": "volume", "Tags": [{"Key": "set", "Value": "of twelve"}]}]
    made = [cloud.create_volume(AvailabilityZone=ZONE, Size=1, TagSpecifications=tag) for _ in range(12)]
    try:
        mine = cloud.volumes.filter(Filters=[{"Name": "tag:set", "Values": ["of *"]}])
        assert sorted(ids(mine)) == sorted(ids(made)) == sorted(ids(mine.all()))
        assert len(ids(mine.limit(7))) == 7 and set(ids(mine.limit(7))) < set(ids(made))
        assert [len(page) for page in mine.page_size(5).pages()] == [5, 5, 2]
        assert sorted(ids(mine.page_size(5))) == sorted(ids(made))
        narrow = mine.filter(VolumeIds=[made[0].id])
        assert ids(narrow) == [made[0].id]
        snapshots = [volume.create_snapshot() for volume in made[:6]]
        own = cloud.snapshots.filter(OwnerIds=["self"], Filters=[{"Name": "snapshot-id", "Values": ids(snapshots)}])
        assert [len(page) for page in own.page_size(5).pages()] == [5, 1]
        for snapshot in snapshots:
            snapshot.wait_until_completed(WaiterConfig={"Delay": 0.1, "MaxAttempts": 300})
            snapshot.delete()
    finally:
        for volume in made:
            remove_volume(ec2, volume.id)


def test_instances_are_listed_with_what_hangs_on_them(cloud, vbs):
    found = list(cloud.instances.filter(Filters=[{"Name": "instance-state-name", "Values": ["running"]}]))
    assert sorted(ids(found)) == sorted(vbs.instances)
    for instance in found:
        instance.wait_until_exists()
        instance.wait_until_running()
        assert instance.root_device_type == "instance-store" and instance.instance_type.startswith("vbs.")
        assert list(instance.network_interfaces) == [] and instance.public_ip_address is None
    with pytest.raises(ClientError, match="UnsupportedOperation.*RunInstances"):
        cloud.create_instances(ImageId="ami-12345678", MinCount=1, MaxCount=1)
