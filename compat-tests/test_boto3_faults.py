"""What boto3 users see when something is wrong: EC2's codes, texts and statuses, because programs branch on them.

boto3's own checks of parameters are off, so that what it sends is judged by vbs.
"""

import pytest
from botocore.exceptions import ClientError

from conftest import boto3_client, wait

ZONE = {"AvailabilityZone": "us-east-1a"}
GONE = "vol-0fedcba9876543210"


@pytest.fixture(scope="module")
def careless(owner):
    """A client that sends whatever it is given."""
    return boto3_client(owner, parameter_validation=False)


def refused(call, **arguments):
    """The code, the text and the status that a call is refused with."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    response = caught.value.response
    assert response["ResponseMetadata"]["RequestId"]
    error = response["Error"]
    return error["Code"], error["Message"], response["ResponseMetadata"]["HTTPStatusCode"]


def specification(*tags, kind="volume"):
    return {"TagSpecifications": [{"ResourceType": kind, "Tags": [{"Key": k, "Value": v} for k, v in tags]}]}


BAD_VOLUMES = [
    ({"Size": 1}, "MissingParameter", "The request must contain the parameter zone"),
    ({"Size": 1, "AvailabilityZone": ""}, "MissingParameter", "The request must contain the parameter zone"),
    (ZONE, "MissingParameter", "The request must contain the parameter size/snapshot"),
    (
        {"Size": 1, "AvailabilityZone": "not-a-zone"},
        "InvalidZone.NotFound",
        "The zone 'not-a-zone' does not exist.",
    ),
    (
        {"Size": 1, "AvailabilityZoneId": "use1-az999"},
        "InvalidZone.NotFound",
        "The zone 'use1-az999' does not exist.",
    ),
    (
        {**ZONE, "Size": 1, "AvailabilityZoneId": "use1-az1"},
        "InvalidParameterCombination",
        "AvailabilityZone and AvailabilityZoneId can't be used together. Specify only one of these parameters.",
    ),
    (
        {**ZONE, "Size": 1, "VolumeType": "bad"},
        "UnknownVolumeType",
        "Unsupported volume type 'bad' for volume creation. ",
    ),
    (
        {**ZONE, "Size": 0, "VolumeType": "gp3"},
        "InvalidParameterValue",
        "The volume size is invalid for gp3 volumes: 0 GiB. gp3 volumes must be at least 1 GiB in size. "
        "Please specify a volume size above the minimum limit.",
    ),
    (
        {**ZONE, "Size": -1},
        "InvalidParameterValue",
        "Value (-1) for parameter size is invalid. Value must be a positive integer.",
    ),
    (
        {**ZONE, "Size": 1, "VolumeType": "gp3", "Iops": -1},
        "InvalidParameterValue",
        "Value (-1) for parameter iops is invalid. Value must be a positive integer.",
    ),
    (
        {**ZONE, "Size": 16385},
        "InvalidParameterValue",
        "Volume of 16385GiB is too large for volume type gp2; maximum is 16384GiB",
    ),
    (
        {**ZONE, "Size": 65537, "VolumeType": "gp3"},
        "InvalidParameterValue",
        "Volume of 65537GiB is too large for volume type gp3; maximum is 65536GiB",
    ),
    (
        {**ZONE, "Size": 1025, "VolumeType": "standard"},
        "InvalidParameterValue",
        "Volume of 1025GiB is too large for volume type standard; maximum is 1024GiB",
    ),
    (
        {**ZONE, "Size": 10, "VolumeType": "io1"},
        "InvalidParameterCombination",
        "The parameter iops must be specified for io1 volumes.",
    ),
    (
        {**ZONE, "Size": 10, "Iops": 100},
        "InvalidParameterCombination",
        "The parameter iops is not supported for gp2 volumes.",
    ),
    (
        {**ZONE, "Size": 10, "Throughput": 125},
        "InvalidParameterCombination",
        "The throughput parameter is not supported for gp2 volumes.",
    ),
    (
        {**ZONE, "Size": 10, "VolumeType": "io1", "Iops": 99},
        "InvalidParameterValue",
        "Volume iops of 99 is too low; minimum is 100.",
    ),
    (
        {**ZONE, "Size": 1000, "VolumeType": "gp3", "Iops": 80001},
        "InvalidParameterValue",
        "Volume iops of 80001 is too high; maximum is 80000.",
    ),
    (
        {**ZONE, "Size": 4, "VolumeType": "io1", "Iops": 201},
        "InvalidParameterValue",
        "Iops to volume size ratio of 50.250000 is too high; maximum is 50",
    ),
    (
        {**ZONE, "Size": 1000, "VolumeType": "gp3", "Iops": 8000, "Throughput": 2001},
        "InvalidParameterValue",
        "Volume throughput of 2001 is too high; maximum is 2000.",
    ),
    (
        {**ZONE, "Size": 100, "VolumeType": "gp3", "Iops": 3000, "Throughput": 751},
        "InvalidParameterValue",
        "Throughput (MiBps) to iops ratio of 0.250333 is too high; maximum is 0.250000 MiBps per iops",
    ),
    (
        {**ZONE, "Size": 10, "VolumeType": "gp3", "MultiAttachEnabled": True},
        "InvalidParameterCombination",
        "The parameter multi-attach-enabled is not supported for gp3 volumes.",
    ),
    (
        {**ZONE, "Size": 10, "VolumeInitializationRate": 100},
        "InvalidParameterCombination",
        "You can't specify VolumeInitializationRate for volumes that are not created from a snapshot.",
    ),
    (
        {**ZONE, "Size": 1, "ClientToken": "t" * 65},
        "InvalidParameterValue",
        "Client token must be less than or equal to 64 characters.",
    ),
    (
        {**ZONE, "Size": 1, **specification(("a", "b"), kind="snapshot")},
        "InvalidParameterValue",
        "'snapshot' is not a valid taggable resource type for this operation.",
    ),
    (
        {**ZONE, "Size": 1, **specification(("suite", "1"), ("suite", "2"))},
        "InvalidParameterValue",
        "Duplicate tag key 'suite' specified.",
    ),
    (
        {**ZONE, "Size": 1, **specification(("aws:x", "1"))},
        "InvalidParameterValue",
        "Tag keys starting with 'aws:' are reserved for internal use",
    ),
    (
        {**ZONE, "Size": 1, **specification(("", "1"))},
        "InvalidParameterValue",
        "Tag key must have a value",
    ),
]


@pytest.mark.parametrize(("arguments", "code", "message"), BAD_VOLUMES)
def test_a_volume_that_cannot_be_is_refused_in_the_words_of_ec2(careless, arguments, code, message):
    before = volume_ids(careless)
    assert refused(careless.create_volume, **arguments) == (code, message, 400)
    assert volume_ids(careless) == before


def volume_ids(client):
    return [v["VolumeId"] for v in client.describe_volumes()["Volumes"]]


VALUE, MALFORMED, NOT_FOUND = "InvalidParameterValue", "InvalidVolumeID.Malformed", "InvalidVolume.NotFound"
BAD_IDS = [
    (
        "delete_volume",
        {},
        "MissingParameter",
        "The request must include the VolumeId parameter. Add the required parameter and retry the request.",
    ),
    ("delete_volume", {"VolumeId": ""}, VALUE, "The volume ID '' is malformed"),
    ("delete_volume", {"VolumeId": "bad"}, VALUE, "The volume ID 'bad' is malformed"),
    ("delete_volume", {"VolumeId": GONE}, NOT_FOUND, f"The volume '{GONE}' does not exist."),
    ("delete_volume", {"VolumeId": "vol-12345678"}, NOT_FOUND, "The volume 'vol-12345678' does not exist."),
    ("describe_volumes", {"VolumeIds": [""]}, "MissingParameter", "The request must contain the parameter volumes"),
    (
        "describe_volumes",
        {"VolumeIds": ["bad"]},
        VALUE,
        "Value (bad) for parameter volumes is invalid. Expected: 'vol-...'.",
    ),
    ("describe_volumes", {"VolumeIds": [GONE]}, NOT_FOUND, f"The volume '{GONE}' does not exist."),
    (
        "create_snapshot",
        {"VolumeId": "vol-ahsg23h"},
        VALUE,
        "Value (vol-ahsg23h) for parameter volumeId is invalid. Expected: 'vol-...'.",
    ),
    ("create_snapshot", {"VolumeId": GONE}, NOT_FOUND, f"The volume '{GONE}' does not exist."),
    (
        "describe_snapshots",
        {"SnapshotIds": ["snap-0fedcba9876543210"]},
        "InvalidSnapshot.NotFound",
        "The snapshot 'snap-0fedcba9876543210' does not exist.",
    ),
    (
        "delete_snapshot",
        {"SnapshotId": "snap-0fedcba9876543210"},
        "InvalidSnapshot.NotFound",
        "The snapshot 'snap-0fedcba9876543210' does not exist.",
    ),
    (
        "describe_instances",
        {"InstanceIds": ["i-0fedcba9876543210"]},
        "InvalidInstanceID.NotFound",
        "The instance ID 'i-0fedcba9876543210' does not exist",
    ),
    ("describe_instances", {"InstanceIds": ["10.10.1.202"]}, "InvalidInstanceID.Malformed", 'Invalid id: "10.10.1.202"'),
    (
        "create_tags",
        {"Tags": [{"Key": "a", "Value": "b"}]},
        "MissingParameter",
        "The request must contain the parameter resourceIdSet",
    ),
    (
        "create_tags",
        {"Resources": ["eipassoc-0578b4e3415869944"], "Tags": [{"Key": "a", "Value": "b"}]},
        "InvalidID",
        "The ID 'eipassoc-0578b4e3415869944' is not valid",
    ),
    (
        "create_tags",
        {"Resources": [GONE], "Tags": [{"Key": "a", "Value": "b"}]},
        NOT_FOUND,
        f"The volume '{GONE}' does not exist.",
    ),
]


@pytest.mark.parametrize(("action", "arguments", "code", "message"), BAD_IDS)
def test_an_id_that_names_nothing_is_refused_in_the_words_of_its_action(careless, action, arguments, code, message):
    assert refused(getattr(careless, action), **arguments) == (code, message, 400)


@pytest.mark.parametrize("action", ["describe_volumes", "describe_snapshots", "describe_tags", "describe_instances"])
def test_pages_are_refused_alike_everywhere(careless, action):
    describe = getattr(careless, action)
    for size in (-1, 1, 4):
        message = f"Value ( {size} ) for parameter maxResults is invalid. Expecting a value greater than 5."
        assert refused(describe, MaxResults=size) == ("InvalidParameterValue", message, 400)
    answer = refused(describe, NextToken="invalid", MaxResults=5)
    assert answer == ("InvalidParameterValue", "Unable to parse pagination token", 400)
    filters = [{"Name": "bad-filter", "Values": ["x"]}]
    assert refused(describe, Filters=filters) == ("InvalidParameterValue", "The filter 'bad-filter' is invalid", 400)
    assert "NextToken" not in describe(MaxResults=5, Filters=[{"Name": "tag-key" if action != "describe_tags" else "key", "Values": ["none"]}])


def test_ids_and_pages_do_not_go_together(careless, volume):
    for paging, name in (({"MaxResults": 4}, "maxResults"), ({"NextToken": "invalid"}, "nextToken")):
        message = f"The parameter volumeIdsSet cannot be used with the parameter {name}"
        answer = refused(careless.describe_volumes, VolumeIds=[volume], **paging)
        assert answer == ("InvalidParameterCombination", message, 400)


def test_one_unknown_volume_among_known_ones_is_named(careless, volume):
    answer = refused(careless.describe_volumes, VolumeIds=[volume, GONE])
    assert answer == (NOT_FOUND, f"The volume '{GONE}' does not exist.", 400)
    code, message, _ = refused(careless.describe_volumes, VolumeIds=[volume, GONE, "vol-0fedcba9876543211"])
    assert code == NOT_FOUND and GONE in message and "vol-0fedcba9876543211" in message and volume not in message


def test_an_attached_volume_stays_what_it_is(careless, vbs, volume):
    first, second = vbs.instances
    attach = {"VolumeId": volume, "InstanceId": first, "Device": "/dev/sdf"}
    careless.attach_volume(**attach)
    wait(careless, "volume_in_use", VolumeIds=[volume])
    in_use = ("VolumeInUse", f"{volume} is already attached to an instance", 400)
    assert refused(careless.attach_volume, **attach) == in_use
    attached = ("VolumeInUse", f"Volume {volume} is currently attached to {first}", 400)
    assert refused(careless.delete_volume, VolumeId=volume) == attached
    code, *_ = refused(careless.detach_volume, VolumeId=volume, InstanceId=second)
    assert code == "InvalidAttachment.NotFound"
    code, *_ = refused(careless.detach_volume, VolumeId=volume, Device="/dev/sdg")
    assert code == "InvalidAttachment.NotFound"


def test_an_attachment_that_cannot_be_is_refused(careless, vbs, volume):
    here, elsewhere = vbs.instances
    attach = {"VolumeId": volume, "InstanceId": here, "Device": "/dev/sdf"}
    cases = [
        (
            {"InstanceId": elsewhere},
            "InvalidVolume.ZoneMismatch",
            f"The volume '{volume}' is not in the same availability zone as instance '{elsewhere}'",
        ),
        (
            {"Device": "/dev/sdZZ"},
            "InvalidParameterValue",
            "Value (/dev/sdZZ) for parameter device is invalid. /dev/sdZZ is not a valid EBS device name.",
        ),
        (
            {"Device": "/dev/nvme1n1"},
            "InvalidParameterValue",
            "Value (/dev/nvme1n1) for parameter device is invalid. /dev/nvme1n1 is not a valid EBS device name.",
        ),
        (
            {"InstanceId": "i-0fedcba9876543210"},
            "InvalidInstanceID.NotFound",
            "The instance ID 'i-0fedcba9876543210' does not exist",
        ),
        ({"VolumeId": GONE}, NOT_FOUND, f"The volume '{GONE}' does not exist."),
    ]
    for changed, code, message in cases:
        assert refused(careless.attach_volume, **(attach | changed)) == (code, message, 400)
    code, message, status = refused(careless.detach_volume, VolumeId=volume)
    assert (code, status) == ("IncorrectState", 400) and "'available' state." in message


def test_a_device_name_is_taken_once_an_instance_however_it_is_spelt(careless, ec2, vbs, volume):
    second = ec2.create_volume(**ZONE, Size=1)["VolumeId"]
    wait(ec2, "volume_available", VolumeIds=[second])
    careless.attach_volume(VolumeId=volume, InstanceId=vbs.instances[0], Device="/dev/xvdh")
    for name in ("/dev/xvdh", "xvdh"):
        answer = refused(careless.attach_volume, VolumeId=second, InstanceId=vbs.instances[0], Device=name)
        message = f"Invalid value '{name}' for unixDevice. Attachment point {name} is already in use"
        assert answer == ("InvalidParameterValue", message, 400)
    careless.delete_volume(VolumeId=second)


def test_fifty_tags_fit_and_no_more(careless, volume):
    tags = [{"Key": f"k{n}", "Value": "v" * 256} for n in range(50)]
    careless.create_tags(Resources=[volume], Tags=tags)
    careless.create_tags(Resources=[volume], Tags=[{"Key": "k0", "Value": "over"}])
    code, *_ = refused(careless.create_tags, Resources=[volume], Tags=[{"Key": "one more", "Value": ""}])
    assert code == "TagLimitExceeded"
    (seen,) = careless.describe_volumes(VolumeIds=[volume])["Volumes"]
    assert len(seen["Tags"]) == 50 and {"Key": "k0", "Value": "over"} in seen["Tags"]
    for tag in ({"Key": "k" * 129, "Value": ""}, {"Key": "k0", "Value": "v" * 257}):
        assert refused(careless.create_tags, Resources=[volume], Tags=[tag])[0] == "InvalidParameterValue"


def test_tags_hold_any_text_that_xml_can_carry(careless, volume):
    text = "<&>\"' \t\n ä 你 🙂 %41+\\"
    careless.create_tags(Resources=[volume], Tags=[{"Key": "k", "Value": text}])
    (seen,) = careless.describe_volumes(VolumeIds=[volume])["Volumes"]
    assert seen["Tags"] == [{"Key": "k", "Value": text}]
    found = careless.describe_volumes(Filters=[{"Name": "tag:k", "Values": [text.replace("\\", "\\\\")]}])["Volumes"]
    assert [v["VolumeId"] for v in found] == [volume]


def test_a_disk_smaller_than_its_snapshot_or_of_none_is_refused(careless, snapshot):
    unknown = {"SnapshotId": "snap-0fedcba9876543210"}
    assert refused(careless.create_volume, **ZONE, **unknown)[0] == "InvalidSnapshot.NotFound"
    assert refused(careless.create_volume, **ZONE, SnapshotId="snap")[0] == "InvalidParameterValue"
    larger = careless.create_volume(**ZONE, SnapshotId=snapshot, Size=3)
    assert larger["Size"] == 3
    wait(careless, "volume_available", VolumeIds=[larger["VolumeId"]])
    careless.delete_volume(VolumeId=larger["VolumeId"])
