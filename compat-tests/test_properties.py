"""Filters and pages against what they mean, on data and requests that hypothesis makes up.

What is asked of vbs is also worked out here from the whole, by the definition: each filter holds when one of its values matches, all
filters must hold, `*` is any run and `?` any character, and pages joined are the whole.
"""

import re
import threading
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import remove_volume, wait
from running import until

FAST = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
ZONES = ["us-east-1a", "us-east-1b", "us-east-1c"]
NAMES = ["a*b", "ab", "a?b", "ä b", "", "a\\b", "%"]


@pytest.fixture(scope="module")
def volumes(ec2, vbs):
    """Fifteen volumes of all kinds, two of them attached and one made from a snapshot, and the tag that they and no others have."""
    mark = f"p-{uuid4().hex}"
    made = []
    for number in range(14):
        tags = [{"Key": mark, "Value": "x"}, {"Key": "Name", "Value": NAMES[number % 7]}]
        kind = ["gp2", "gp3", "standard"][number % 3]
        volume = ec2.create_volume(
            AvailabilityZone=ZONES[number % 2], Size=number // 2 + 1, VolumeType=kind,
            TagSpecifications=[{"ResourceType": "volume", "Tags": tags[: 1 + (number % 4 > 0)]}],
        )  # fmt: skip
        made.append(volume["VolumeId"])
    wait(ec2, "volume_available", VolumeIds=made)
    snapshot = ec2.create_snapshot(VolumeId=made[1])["SnapshotId"]
    wait(ec2, "snapshot_completed", SnapshotIds=[snapshot])
    copy = ec2.create_volume(
        AvailabilityZone=ZONES[2], SnapshotId=snapshot, VolumeInitializationRate=150,
        TagSpecifications=[{"ResourceType": "volume", "Tags": [{"Key": mark, "Value": "x"}]}],
    )["VolumeId"]  # fmt: skip
    made.append(copy)
    wait(ec2, "volume_available", VolumeIds=[copy])
    for volume, device in ((made[0], "/dev/sdw"), (made[2], "xvdx")):
        ec2.attach_volume(VolumeId=volume, InstanceId=vbs.instances[0], Device=device)
        until("attached", lambda volume=volume: attachments(ec2, volume) == ["attached"])
    yield mark, ec2.describe_volumes(VolumeIds=made)["Volumes"]
    ec2.delete_snapshot(SnapshotId=snapshot)
    for volume in made:
        remove_volume(ec2, volume)


def attachments(ec2, volume):
    (found,) = ec2.describe_volumes(VolumeIds=[volume])["Volumes"]
    return [attachment["State"] for attachment in found["Attachments"]]


@pytest.fixture(scope="module")
def snapshots(ec2, volumes):
    """Twelve snapshots of three volumes, and the tag that they and no others have."""
    mark, everything = volumes
    made = []
    for number in range(12):
        tags = [{"Key": mark, "Value": "x"}, {"Key": "Name", "Value": NAMES[number % 7]}]
        made.append(
            ec2.create_snapshot(
                VolumeId=everything[number % 3]["VolumeId"], Description=["", "a*b", "ab", "1%"][number % 4],
                TagSpecifications=[{"ResourceType": "snapshot", "Tags": tags[: 1 + number % 2]}],
            )["SnapshotId"]
        )  # fmt: skip
        wait(ec2, "snapshot_completed", SnapshotIds=made[-1:])
    yield mark, ec2.describe_snapshots(SnapshotIds=made)["Snapshots"]
    for snapshot in made:
        ec2.delete_snapshot(SnapshotId=snapshot)


@pytest.fixture(scope="module")
def modifications(ec2):
    """Of five volumes, each modified in another way."""
    gp2, io2 = {"VolumeType": "gp2"}, {"VolumeType": "io2", "Iops": 100}
    ways = [(gp2, {"Size": 5}), (gp2, {"VolumeType": "gp3"}), (io2, {"Size": 5, "Iops": 200})]
    ways += [(io2, {"MultiAttachEnabled": True}), (io2, {"Iops": 150})]
    made = []
    for kind, change in ways:
        volume = ec2.create_volume(AvailabilityZone=ZONES[0], Size=4, **kind)["VolumeId"]
        made.append(volume)
        wait(ec2, "volume_available", VolumeIds=[volume])
        ec2.modify_volume(VolumeId=volume, **change)

    def settled():
        found = ec2.describe_volumes_modifications(VolumeIds=made)["VolumesModifications"]
        return {m["ModificationState"] for m in found} == {"completed"} and found

    yield until("modified", settled)
    for volume in made:
        remove_volume(ec2, volume)


@pytest.fixture(scope="module")
def instances(ec2, vbs, volumes):
    """The two that there are, one of them with tags, each with what its reservation tells of it."""
    tags = [{"Key": "Name", "Value": "a*b"}, {"Key": "ab", "Value": "x"}]
    ec2.create_tags(Resources=vbs.instances[:1], Tags=tags)
    found = ec2.describe_instances(InstanceIds=vbs.instances)["Reservations"]
    yield [instance | reservation for reservation in found for instance in reservation["Instances"]]
    ec2.delete_tags(Resources=vbs.instances[:1], Tags=tags)


def instant(time):
    return f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1000:03}Z"


def flag(value):
    return str(value).lower()


def of_attachments(name, text=str):
    return lambda volume: [text(attachment[name]) for attachment in volume["Attachments"]]


TAGGED = {
    "tag:Name": lambda r: [tag["Value"] for tag in r.get("Tags", []) if tag["Key"] == "Name"],
    "tag-key": lambda r: [tag["Key"] for tag in r.get("Tags", [])],
    "tag-value": lambda r: [tag["Value"] for tag in r.get("Tags", [])],
}
VOLUME = TAGGED | {
    "attachment.attach-time": of_attachments("AttachTime", instant),
    "attachment.delete-on-termination": of_attachments("DeleteOnTermination", flag),
    "attachment.device": of_attachments("Device"),
    "attachment.instance-id": of_attachments("InstanceId"),
    "attachment.status": of_attachments("State"),
    "availability-zone": lambda v: [v["AvailabilityZone"]],
    "availability-zone-id": lambda v: [v["AvailabilityZoneId"]],
    "create-time": lambda v: [instant(v["CreateTime"])],
    "encrypted": lambda v: [flag(v["Encrypted"])],
    # There is neither of it, so all are without.
    "fast-restored": lambda v: ["false"],
    "operator.managed": lambda v: ["false"],
    "operator.principal": lambda v: [],
    "multi-attach-enabled": lambda v: [flag(v["MultiAttachEnabled"])],
    "size": lambda v: [str(v["Size"])],
    # That of a blank volume is shown, empty.
    "snapshot-id": lambda v: [v["SnapshotId"]],
    "status": lambda v: [v["State"]],
    "volume-id": lambda v: [v["VolumeId"]],
    "volume-initialization-rate": lambda v: [str(v["VolumeInitializationRate"])] if "VolumeInitializationRate" in v else [],
    "volume-type": lambda v: [v["VolumeType"]],
}
SNAPSHOT = TAGGED | {
    "description": lambda s: [s["Description"]],
    "encrypted": lambda s: [flag(s["Encrypted"])],
    # Ours have no alias, and no copy was to be done in a given time.
    "owner-alias": lambda s: [],
    "transfer-type": lambda s: ["standard"],
    "owner-id": lambda s: [s["OwnerId"]],
    "progress": lambda s: [s["Progress"]],
    "snapshot-id": lambda s: [s["SnapshotId"]],
    "start-time": lambda s: [instant(s["StartTime"])],
    "status": lambda s: [s["State"]],
    "storage-tier": lambda s: [s["StorageTier"]],
    "volume-id": lambda s: [s["VolumeId"]],
    "volume-size": lambda s: [str(s["VolumeSize"])],
}
STATUS = {
    "attachment-status.instance-id": lambda s: [a["InstanceId"] for a in s.get("AttachmentStatuses", [])],
    "attachment-status.io-performance": lambda s: [a["IoPerformance"] for a in s.get("AttachmentStatuses", [])],
    "availability-zone": lambda s: [s["AvailabilityZone"]],
    # Nothing has happened to any.
    "action.code": lambda s: [],
    "event.description": lambda s: [event["Description"] for event in s["Events"]],
    "event.event-id": lambda s: [event["EventId"] for event in s["Events"]],
    "event.event-type": lambda s: [event["EventType"] for event in s["Events"]],
    "event.not-before": lambda s: [instant(event["NotBefore"]) for event in s["Events"]],
    "volume-status.details-name": lambda s: [detail["Name"] for detail in s["VolumeStatus"]["Details"]],
    "volume-status.details-status": lambda s: [detail["Status"] for detail in s["VolumeStatus"]["Details"]],
    "volume-status.status": lambda s: [s["VolumeStatus"]["Status"]],
}
MODIFICATION = {
    "modification-state": lambda m: [m["ModificationState"]],
    "original-iops": lambda m: [str(m["OriginalIops"])] if "OriginalIops" in m else [],
    "original-multi-attach-enabled": lambda m: [flag(m["OriginalMultiAttachEnabled"])],
    "original-size": lambda m: [str(m["OriginalSize"])],
    "original-volume-type": lambda m: [m["OriginalVolumeType"]],
    "start-time": lambda m: [instant(m["StartTime"])],
    "target-iops": lambda m: [str(m["TargetIops"])] if "TargetIops" in m else [],
    "target-multi-attach-enabled": lambda m: [flag(m["TargetMultiAttachEnabled"])],
    "target-size": lambda m: [str(m["TargetSize"])],
    "target-volume-type": lambda m: [m["TargetVolumeType"]],
    "volume-id": lambda m: [m["VolumeId"]],
}


def of_mappings(name, text=str):
    return lambda instance: [text(mapping["Ebs"][name]) for mapping in instance["BlockDeviceMappings"]]


INSTANCE = TAGGED | {
    "architecture": lambda i: [i["Architecture"]],
    "availability-zone": lambda i: [i["Placement"]["AvailabilityZone"]],
    "availability-zone-id": lambda i: [i["Placement"]["AvailabilityZoneId"]],
    "block-device-mapping.attach-time": of_mappings("AttachTime", instant),
    "block-device-mapping.delete-on-termination": of_mappings("DeleteOnTermination", flag),
    "block-device-mapping.device-name": lambda i: [mapping["DeviceName"] for mapping in i["BlockDeviceMappings"]],
    "block-device-mapping.status": of_mappings("Status"),
    "block-device-mapping.volume-id": of_mappings("VolumeId"),
    "ebs-optimized": lambda i: [flag(i["EbsOptimized"])],
    "hypervisor": lambda i: [i["Hypervisor"]],
    # No machine here has an image.
    "image-id": lambda i: [],
    "instance-id": lambda i: [i["InstanceId"]],
    "instance-state-code": lambda i: [str(i["State"]["Code"])],
    "instance-state-name": lambda i: [i["State"]["Name"]],
    "instance-type": lambda i: [i["InstanceType"]],
    "launch-index": lambda i: [str(i["AmiLaunchIndex"])],
    "launch-time": lambda i: [instant(i["LaunchTime"])],
    "monitoring-state": lambda i: [i["Monitoring"]["State"]],
    "operator.managed": lambda i: ["false"],
    "owner-id": lambda i: [i["OwnerId"]],
    "private-dns-name": lambda i: [i["PrivateDnsName"]],
    "reservation-id": lambda i: [i["ReservationId"]],
    "root-device-name": lambda i: [i["RootDeviceName"]],
    "root-device-type": lambda i: [i["RootDeviceType"]],
    "tenancy": lambda i: [i["Placement"]["Tenancy"]],
    "virtualization-type": lambda i: [i["VirtualizationType"]],
}
INSTANCE_STATUS = {
    "availability-zone": lambda s: [s["AvailabilityZone"]],
    "availability-zone-id": lambda s: [s["AvailabilityZoneId"]],
    "event.code": lambda s: [event["Code"] for event in s["Events"]],
    "instance-state-code": lambda s: [str(s["InstanceState"]["Code"])],
    "instance-state-name": lambda s: [s["InstanceState"]["Name"]],
    "instance-status.reachability": lambda s: [detail["Status"] for detail in s["InstanceStatus"]["Details"]],
    "instance-status.status": lambda s: [s["InstanceStatus"]["Status"]],
    "operator.managed": lambda s: [flag(s["Operator"]["Managed"])],
    "system-status.reachability": lambda s: [detail["Status"] for detail in s["SystemStatus"]["Details"]],
    "system-status.status": lambda s: [s["SystemStatus"]["Status"]],
}
AVAILABILITY_ZONE = {
    "group-long-name": lambda z: [z["GroupLongName"]],
    "group-name": lambda z: [z["GroupName"]],
    "message": lambda z: [message["Message"] for message in z["Messages"]],
    "opt-in-status": lambda z: [z["OptInStatus"]],
    "parent-zone-id": lambda z: [],
    "parent-zone-name": lambda z: [],
    "region-name": lambda z: [z["RegionName"]],
    "state": lambda z: [z["State"]],
    "zone-id": lambda z: [z["ZoneId"]],
    "zone-name": lambda z: [z["ZoneName"]],
    "zone-type": lambda z: [z["ZoneType"]],
}
REGION = {
    "endpoint": lambda r: [r["Endpoint"]],
    "opt-in-status": lambda r: [r["OptInStatus"]],
    "region-name": lambda r: [r["RegionName"]],
}
TAG = {
    "key": lambda t: [t["Key"]],
    "tag:Name": lambda t: [t["Value"]] if t["Key"] == "Name" else [],
    "resource-id": lambda t: [t["ResourceId"]],
    "resource-type": lambda t: [t["ResourceType"]],
    "value": lambda t: [t["Value"]],
}
WORDS = ["gp2", "gp3", "g*", "?p2", "us-east-1a", "us-east-1?", "1", "3", "available", "true", "false", "Name", "x", "ab", "a*b"]
WORDS += [r"a\*b", r"a\?b", "a?b", "*", "", "?", "%", "_", r"a\\b", "ä*", "vol-*", "VOL-*", "a" * 255]
WORDS += ["attached", "in-use", "/dev/sdw", "xvd?", "i-*", "snap-*", "*150", "completed", "standard", "100%", "use1-az?", "volume"]
WORDS += ["disabled", "default", "0", "standard", "passed", "ok", "io-*", "not-applicable", "normal", "io?", "100", "?00", "*5*", "running", "16", "xen", "r-*", "vm-*", "hvm", "4"]
WORDS += ["20*", "*Z", "?0*:??.*", "*T*1?Z", "* *", "*1", "*?", "20??-*-*T??:??:??.???Z", "*0??Z"]
WORD = st.one_of(st.sampled_from(WORDS), st.text("ab*?\\% ä1", max_size=5))


def pattern(value):
    """The meaning of a filter's value."""
    parts = re.findall(r"\\.|.|\\$", value, flags=re.DOTALL)
    meaning = {"*": ".*", "?": "."}
    return "".join(meaning.get(part) or re.escape(part[1:] if len(part) == 2 else part) for part in parts)


def holds(fields, resource, filters):
    return all(
        any(re.fullmatch(pattern(value), text, flags=re.DOTALL) for value in values for text in fields[name](resource))
        for name, values in filters.items()
    )


def check(fields, everything, name, describe, filters):
    """Asks for these filters, and works out what they must select of `everything`; others may have resources too."""
    # As they are, since one alone is looked up otherwise than several.
    asked = [{"Name": filter, "Values": values} for filter, values in filters.items()]
    found = [name(resource) for resource in describe(Filters=asked)]
    assert len(found) == len(set(found))
    ours = {name(resource) for resource in everything}
    assert set(found) & ours == {name(resource) for resource in everything if holds(fields, resource, filters)}


def check_filters(fields, everything, name, describe):
    """Any filters: each alone with each value that somebody has, then whatever hypothesis makes of these and others."""
    values = {}
    for field, texts in fields.items():
        there = sorted({text[:255] for resource in everything for text in texts(resource)})
        values[field] = st.lists(st.one_of(WORD, st.sampled_from(there)) if there else WORD, min_size=1, max_size=4)
        for text in there:
            check(fields, everything, name, describe, {field: [text]})
    drawn = st.sampled_from(sorted(fields)).flatmap(lambda field: st.tuples(st.just(field), values[field]))

    @FAST
    @given(st.lists(drawn, min_size=1, max_size=3).map(dict))
    def check_any(filters):
        check(fields, everything, name, describe, filters)

    check_any()


def test_any_filters_select_the_volumes_that_their_definition_says(ec2, volumes):
    _, everything = volumes
    check_filters(VOLUME, everything, lambda v: v["VolumeId"], lambda **asked: ec2.describe_volumes(**asked)["Volumes"])


@pytest.mark.parametrize("scope", [{}, {"OwnerIds": ["self"]}, {"RestorableByUserIds": ["self"]}])
def test_any_filters_select_the_snapshots_that_their_definition_says(ec2, snapshots, scope):
    _, everything = snapshots
    describe = lambda **asked: ec2.describe_snapshots(**asked, **scope)["Snapshots"]  # noqa: E731
    check_filters(SNAPSHOT, everything, lambda s: s["SnapshotId"], describe)


def test_any_filters_select_the_tags_that_their_definition_says(ec2, volumes, snapshots):
    resources = {v["VolumeId"] for v in volumes[1]} | {s["SnapshotId"] for s in snapshots[1]}
    everything = [tag for tag in ec2.describe_tags()["Tags"] if tag["ResourceId"] in resources]
    assert len(everything) > len(resources)
    check_filters(TAG, everything, lambda t: (t["ResourceId"], t["Key"]), lambda **asked: ec2.describe_tags(**asked)["Tags"])


def test_any_filters_select_the_volume_statuses_that_their_definition_says(ec2, volumes):
    ids = [volume["VolumeId"] for volume in volumes[1]]
    everything = ec2.describe_volume_status(VolumeIds=ids)["VolumeStatuses"]
    describe = lambda **asked: ec2.describe_volume_status(**asked)["VolumeStatuses"]  # noqa: E731
    check_filters(STATUS, everything, lambda s: s["VolumeId"], describe)


def test_any_filters_select_the_modifications_that_their_definition_says(ec2, modifications):
    describe = lambda **asked: ec2.describe_volumes_modifications(**asked)["VolumesModifications"]  # noqa: E731
    check_filters(MODIFICATION, modifications, lambda m: m["VolumeId"], describe)


def test_any_filters_select_the_instances_that_their_definition_says(ec2, instances):
    def describe(**asked):
        return [i for reservation in ec2.describe_instances(**asked)["Reservations"] for i in reservation["Instances"]]

    check_filters(INSTANCE, instances, lambda i: i["InstanceId"], describe)


def test_any_filters_select_the_instance_statuses_that_their_definition_says(ec2, vbs):
    everything = ec2.describe_instance_status(InstanceIds=vbs.instances)["InstanceStatuses"]
    describe = lambda **asked: ec2.describe_instance_status(**asked)["InstanceStatuses"]  # noqa: E731
    check_filters(INSTANCE_STATUS, everything, lambda s: s["InstanceId"], describe)


def test_any_filters_select_the_zones_that_their_definition_says(ec2):
    everything = ec2.describe_availability_zones()["AvailabilityZones"]
    describe = lambda **asked: ec2.describe_availability_zones(**asked)["AvailabilityZones"]  # noqa: E731
    check_filters(AVAILABILITY_ZONE, everything, lambda z: z["ZoneId"], describe)


def test_any_filters_select_the_regions_that_their_definition_says(ec2):
    everything = ec2.describe_regions()["Regions"]
    check_filters(REGION, everything, lambda r: r["RegionName"], lambda **asked: ec2.describe_regions(**asked)["Regions"])


def test_any_filters_on_any_tags_select_what_their_definition_says(ec2, volumes, snapshots):
    """Here the data is made up too."""
    ids = [volume["VolumeId"] for volume in volumes[1][:4]] + [snapshot["SnapshotId"] for snapshot in snapshots[1][:4]]
    before = ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": ids}])["Tags"]
    keys = st.sampled_from(["Name", "name", "a*b", "ab", "%", "ä"])
    texts = st.one_of(st.sampled_from(NAMES), st.text("ab*?\\% ä1", max_size=4))
    filters = st.dictionaries(st.sampled_from(sorted(TAGGED)), st.lists(WORD, min_size=1, max_size=3), min_size=1, max_size=3)

    def set_tags(tags):
        ec2.delete_tags(Resources=ids)
        for resource, of_it in tags.items():
            if of_it:
                ec2.create_tags(Resources=[resource], Tags=[{"Key": key, "Value": value} for key, value in of_it.items()])

    @settings(FAST, max_examples=25)
    @given(st.lists(st.dictionaries(keys, texts, max_size=3), min_size=8, max_size=8), st.lists(filters, min_size=1, max_size=4))
    def check_any(drawn, asked):
        tags = dict(zip(ids, drawn))
        set_tags(tags)
        everything = [{"id": i, "Tags": [{"Key": k, "Value": v} for k, v in of_it.items()]} for i, of_it in tags.items()]
        for one in asked:
            found = lambda **query: (  # noqa: E731
                [volume | {"id": volume["VolumeId"]} for volume in ec2.describe_volumes(**query)["Volumes"]]
                + [snapshot | {"id": snapshot["SnapshotId"]} for snapshot in ec2.describe_snapshots(**query)["Snapshots"]]
            )
            check(TAGGED, everything, lambda r: r["id"], found, one)

    try:
        check_any()
    finally:
        set_tags({i: {tag["Key"]: tag["Value"] for tag in before if tag["ResourceId"] == i} for i in ids})


def come_and_go_volumes(ec2, mark, _):
    made = ec2.create_volume(
        AvailabilityZone="us-east-1c", Size=1,
        TagSpecifications=[{"ResourceType": "volume", "Tags": [{"Key": mark, "Value": "x"}]}],
    )["VolumeId"]  # fmt: skip
    ec2.delete_volume(VolumeId=made)


def come_and_go_snapshots(ec2, mark, volume):
    made = ec2.create_snapshot(
        VolumeId=volume, TagSpecifications=[{"ResourceType": "snapshot", "Tags": [{"Key": mark, "Value": "x"}]}]
    )["SnapshotId"]
    wait(ec2, "snapshot_completed", SnapshotIds=[made])
    ec2.delete_snapshot(SnapshotId=made)


def come_and_go_tags(ec2, mark, volume):
    tags = [{"Key": f"{mark}{letter}", "Value": "x"} for letter in "abc"]
    ec2.create_tags(Resources=[volume], Tags=tags)
    ec2.delete_tags(Resources=[volume], Tags=tags)


@pytest.mark.parametrize("kind", ["volumes", "snapshots", "tags"])
def test_pages_joined_are_the_whole_while_others_come_and_go(ec2, volumes, snapshots, kind):
    mark, everything = volumes
    if kind == "tags":
        query = {"Filters": [{"Name": "key", "Values": [f"{mark}*"]}]}
        change, listed = come_and_go_tags, "Tags"
        name = lambda found: (found["ResourceId"], found["Key"])  # noqa: E731
        stable = {(v["VolumeId"], mark) for v in everything} | {(s["SnapshotId"], mark) for s in snapshots[1]}
    else:
        query = {"Filters": [{"Name": f"tag:{mark}", "Values": ["x"]}]}
        change, listed = (come_and_go_volumes, "Volumes") if kind == "volumes" else (come_and_go_snapshots, "Snapshots")
        key = listed[:-1] + "Id"
        name = lambda found: found[key]  # noqa: E731
        stable = {name(found) for found in (everything if kind == "volumes" else snapshots[1])}
    over = threading.Event()

    def come_and_go():
        while not over.is_set():
            change(ec2, mark, everything[4]["VolumeId"])

    others = threading.Thread(target=come_and_go)
    others.start()
    try:

        @settings(FAST, max_examples=25)
        @given(st.integers(5, 9))
        def check(size):
            pages = ec2.get_paginator(f"describe_{kind}").paginate(**query, PaginationConfig={"PageSize": size})
            found = [name(resource) for page in pages for resource in page[listed]]
            assert len(found) == len(set(found)), "nothing is shown twice"
            assert stable <= set(found), "nothing that stays is skipped"

        check()
    finally:
        over.set()
        others.join()
    describe = getattr(ec2, f"describe_{kind}")
    until("the others to go", lambda: {name(found) for found in describe(**query)[listed]} == stable)


def test_what_is_sent_in_the_form_comes_back_the_same(ec2, volumes):
    """A tag's key and value go through the form, its encodings, the database and XML."""
    _, (volume, *_) = volumes
    letters = st.characters(codec="utf-8", min_codepoint=0x20, exclude_categories=["Cs", "Cc", "Cn", "Co"])
    keys = st.text(letters, min_size=1, max_size=40).filter(lambda key: not key.lower().startswith("aws:"))

    @FAST
    @given(keys, st.text(letters, max_size=80))
    def check(key, value):
        ec2.create_tags(Resources=[volume["VolumeId"]], Tags=[{"Key": key, "Value": value}])
        query = [{"Name": "resource-id", "Values": [volume["VolumeId"]]}]
        found = {tag["Key"]: tag["Value"] for tag in ec2.describe_tags(Filters=query)["Tags"]}
        assert found[key] == value
        ec2.delete_tags(Resources=[volume["VolumeId"]], Tags=[{"Key": key, "Value": value}])

    check()
