"""What boto3 users see when something is wrong: EC2's codes, texts and statuses, because programs branch on them.

boto3's own checks of parameters are off, so that what it sends is judged by vbs. `test_answers.py` has all faults that take one
request.
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


NOT_FOUND = "InvalidVolume.NotFound"


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
