"""What AWS answers to mistakes, as far as it is known from recordings, documents and what users quote: a case a fault.

Where the wording is known it is held to the letter, odd blanks and all; `...` stands for one that nobody has seen, of which only the code
is held. Where vbs answers otherwise on purpose docs/api.md says why, and the case here has what vbs answers, under `OTHERWISE`.
"""

import time
from dataclasses import dataclass
from xml.etree import ElementTree

import pytest

from conftest import remove_volume, wait
from raw import call
from running import until

GONE = "vol-0fedcba9876543210"
NO_SNAPSHOT = "snap-0fedcba9876543210"
NO_INSTANCE = "i-0fedcba9876543210"
ZONE = {"AvailabilityZone": "us-east-1a"}
ONE = {**ZONE, "Size": "1"}
DRY = {"DryRun": "true"}

# The codes that most faults have.
VALUE, MISSING = "InvalidParameterValue", "MissingParameter"
COMBINATION, STATE = "InvalidParameterCombination", "IncorrectState"
MALFORMED, NOT_FOUND = "InvalidVolumeID.Malformed", "InvalidVolume.NotFound"
SNAPSHOT_NOT_FOUND, NO_SUCH_INSTANCE = "InvalidSnapshot.NotFound", "InvalidInstanceID.NotFound"

NO_VOLUME = f"The volume '{GONE}' does not exist."
NULL = "Value (null) for parameter volumeId is invalid. Parameter may not be null or empty."
EMPTY = "Value () for parameter volumeId is invalid. Parameter may not be null or empty."
BAD = "Value (bad) for parameter volumeId is invalid. Expected: 'vol-...'."
SHORT = "Value ( vol-123 ) for parameter VOLUME is invalid. "
DRY_RUN = ("DryRunOperation", "Request would have succeeded, but DryRun flag is set.", 412)
TYPE = "Unsupported volume type 'bad' for volume creation. "
TOO_SMALL = (
    "The volume size is invalid for {kind} volumes: {size} GiB. {kind} volumes must be at least {least} GiB in size. "
    "Please specify a volume size above the minimum limit."
)
TOO_BIG = "Volume of {size}GiB is too large for volume type {kind}; maximum is {most}GiB"


def kind(name, size, **more):
    return {**ZONE, "VolumeType": name, "Size": str(size)} | {key: str(value) for key, value in more.items()}


def tag(key, value="1", of="volume"):
    return {
        "TagSpecification.1.ResourceType": of,
        "TagSpecification.1.Tag.1.Key": key,
        "TagSpecification.1.Tag.1.Value": value,
    }


def page_too_small(size, name="maxResults"):
    return f"Value ( {size} ) for parameter {name} is invalid. Expecting a value greater than 5."


def with_ids(what, name="volumeIdsSet"):
    return f"The parameter {name} cannot be used with the parameter {what}"


ANY_ACTION = [
    ("DescribeFoo", {}, "InvalidAction", "The action DescribeFoo is not valid for this web service."),
    ("", {}, "MissingAction", ...),
    ("DescribeVolumes", {"SpreadDomain": "x"}, "UnknownParameter", "The parameter SpreadDomain is not recognized"),
    ("DescribeVolumes", {"Version": "yesterday"}, "NoSuchVersion", ...),
    (
        "DescribeVolumes",
        {"Filter.1.Name": "size"} | {f"Filter.1.Value.{n}": str(n) for n in range(1, 202)},
        "FilterLimitExceeded",
        "The maximum number of filter values specified on a single call is 200",
    ),
    *(
        (action, {"Filter.1.Name": "bad-filter", "Filter.1.Value.1": "x"}, VALUE, "The filter 'bad-filter' is invalid")
        for action in ("DescribeVolumes", "DescribeVolumeStatus", "DescribeVolumesModifications", "DescribeSnapshots")
    ),
    ("CreateVolume", ONE | DRY, *DRY_RUN),
]

PAGES = [
    *(
        (action, {"MaxResults": str(size)}, VALUE, page_too_small(size, name))
        for action, name in (
            ("DescribeVolumes", "maxResults"),
            ("DescribeVolumeStatus", "maxResults"),
            ("DescribeVolumesModifications", "MaxResults"),
        )
        for size in (-1, 0, 1, 4)
    ),
    ("DescribeInstances", {"MaxResults": "3"}, VALUE, page_too_small(3)),
    ("DescribeSnapshots", {"MaxResults": "4"}, VALUE, ...),
    ("DescribeTags", {"MaxResults": "4"}, VALUE, ...),
    *(
        (action, {"NextToken": "invalid", "MaxResults": "5"}, VALUE, "Unable to parse pagination token")
        for action in ("DescribeVolumes", "DescribeVolumeStatus")
    ),
    (
        "DescribeVolumesModifications",
        {"NextToken": "invalid", "MaxResults": "5"},
        VALUE,
        "Value ( invalid ) for parameter NextToken is invalid. The token is Invalid.",
    ),
    *(
        (action, {"VolumeId.1": "{free}", parameter: value}, COMBINATION, with_ids(name, of))
        for action, of in (
            ("DescribeVolumes", "volumeIdsSet"),
            ("DescribeVolumeStatus", "volumeIdsSet"),
            ("DescribeVolumesModifications", "volumeModificationSet"),
        )
        # Looked at before how many they are.
        for parameter, value, name in (("MaxResults", "4", "maxResults"), ("NextToken", "invalid", "nextToken"))
        if (action, parameter) != ("DescribeVolumesModifications", "MaxResults")
    ),
    (
        "DescribeInstances",
        {"InstanceId.1": "{instance}", "MaxResults": "5"},
        COMBINATION,
        with_ids("maxResults", "instancesSet"),
    ),
    ("DescribeSnapshots", {"SnapshotId.1": "{snapshot}", "MaxResults": "5"}, COMBINATION, ...),
]

IDS = [
    (
        "DeleteVolume",
        {},
        MISSING,
        "The request must include the VolumeId parameter. Add the required parameter and retry the request.",
    ),
    *(
        ("DeleteVolume", {"VolumeId": bad}, VALUE, f"The volume ID '{bad}' is malformed")
        for bad in ("", "bad", "vol-123", "vol-XYZ")
    ),
    ("DeleteVolume", {"VolumeId": GONE}, NOT_FOUND, NO_VOLUME),
    *(
        (action, more | parameters, code, message)
        for action, more in (
            ("DescribeVolumeAttribute", {"Attribute": "autoEnableIO"}),
            ("ModifyVolume", {"Size": "5"}),
            ("EnableVolumeIO", {}),
            ("AttachVolume", {"InstanceId": "{instance}", "Device": "/dev/sdz"}),
            ("DetachVolume", {}),
            ("CreateSnapshot", {}),
        )
        for parameters, code, message in (
            ({}, MISSING, NULL),
            ({"VolumeId": ""}, MISSING, EMPTY),
            ({"VolumeId": "bad"}, VALUE, BAD),
            ({"VolumeId": "vol-123"}, MALFORMED, SHORT),
            ({"VolumeId": GONE}, NOT_FOUND, NO_VOLUME),
        )
    ),
    ("ModifyVolumeAttribute", {"AutoEnableIO.Value": "true"}, MISSING, "volumeId"),
    *(
        (
            "ModifyVolumeAttribute",
            {"AutoEnableIO.Value": "true", "VolumeId": bad},
            MALFORMED,
            f"The volume ID '{bad}' is malformed",
        )
        for bad in ("", "bad", "vol-123")
    ),
    ("ModifyVolumeAttribute", {"AutoEnableIO.Value": "true", "VolumeId": GONE}, NOT_FOUND, NO_VOLUME),
    ("DescribeVolumes", {"VolumeId.1": ""}, MISSING, "The request must contain the parameter volumes"),
    *(
        (
            "DescribeVolumes",
            {"VolumeId.1": bad},
            VALUE,
            f"Value ({bad}) for parameter volumes is invalid. Expected: 'vol-...'.",
        )
        for bad in ("bad", "vol-123", "vol-0FEDCBA9876543210")
    ),
    ("DescribeVolumes", {"VolumeId.1": GONE}, NOT_FOUND, NO_VOLUME),
    ("DescribeVolumes", {"VolumeId.1": "{free}", "VolumeId.2": GONE}, NOT_FOUND, NO_VOLUME),
    (
        "DescribeVolumes",
        {"VolumeId.1": GONE, "VolumeId.2": "vol-12345678"},
        NOT_FOUND,
        f"The volumes '{GONE}, vol-12345678' do not exist.",
    ),
    ("DescribeVolumeStatus", {"VolumeId.1": "bad"}, MALFORMED, 'Invalid id: "bad" (expecting "vol-...")'),
    ("DescribeVolumeStatus", {"VolumeId.1": "vol-123"}, MALFORMED, 'Invalid id: "vol-123"'),
    ("DescribeVolumeStatus", {"VolumeId.1": GONE}, NOT_FOUND, NO_VOLUME),
    ("DescribeVolumesModifications", {"VolumeId.1": ""}, MISSING, EMPTY),
    ("DescribeVolumesModifications", {"VolumeId.1": "bad"}, VALUE, BAD),
    ("DescribeVolumesModifications", {"VolumeId.1": "vol-123"}, MALFORMED, SHORT),
    ("DescribeVolumesModifications", {"VolumeId.1": GONE}, NOT_FOUND, NO_VOLUME),
    *(
        (action, more | {name: bad}, code, message)
        for action, more, name in (
            ("DescribeSnapshots", {}, "SnapshotId.1"),
            ("DescribeSnapshotAttribute", {"Attribute": "createVolumePermission"}, "SnapshotId"),
            ("CreateVolume", ZONE, "SnapshotId"),
        )
        for bad, code, message in (
            ("bad", VALUE, ...),
            ("snap-0FEDCBA9876543210", VALUE, ...),
            ("snap-123", "InvalidSnapshotID.Malformed", ...),
            (NO_SNAPSHOT, SNAPSHOT_NOT_FOUND, ...),
        )
    ),
    *(
        (action, {"SnapshotId" + ending: NO_SNAPSHOT}, SNAPSHOT_NOT_FOUND, f"The snapshot '{NO_SNAPSHOT}' does not exist.")
        for action, ending in (("DescribeSnapshots", ".1"), ("DeleteSnapshot", ""))
    ),
    (
        "ResetSnapshotAttribute",
        {"SnapshotId": "bad", "Attribute": "createVolumePermission"},
        "InvalidSnapshotID.Malformed",
        ...,
    ),
    ("DescribeInstances", {"InstanceId.1": "10.10.1.202"}, "InvalidInstanceID.Malformed", 'Invalid id: "10.10.1.202"'),
    (
        "DescribeInstances",
        {"InstanceId.1": NO_INSTANCE},
        NO_SUCH_INSTANCE,
        f"The instance ID '{NO_INSTANCE}' does not exist",
    ),
    (
        "DescribeInstances",
        {"InstanceId.1": NO_INSTANCE, "InstanceId.2": "i-12345678"},
        NO_SUCH_INSTANCE,
        f"The instance IDs '{NO_INSTANCE}, i-12345678' do not exist",
    ),
    *(
        (action, more | {"InstanceId": bad}, code, ...)
        for action, more in (
            ("AttachVolume", {"VolumeId": "{free}", "Device": "/dev/sdz"}),
            ("DetachVolume", {"VolumeId": "{attached}"}),
        )
        for bad, code in (("foo", "InvalidInstanceID.Malformed"), (NO_INSTANCE, NO_SUCH_INSTANCE))
    ),
]

CREATE_VOLUME = [
    ({"Size": "1"}, MISSING, "The request must contain the parameter zone"),
    ({"Size": "1", "AvailabilityZone": ""}, MISSING, "The request must contain the parameter zone"),
    ({"Size": "1", "AvailabilityZoneId": ""}, MISSING, "The request must contain the parameter zone"),
    (ZONE, MISSING, "The request must contain the parameter size/snapshot"),
    ({"Size": "1", "AvailabilityZone": "not-a-zone"}, "InvalidZone.NotFound", "The zone 'not-a-zone' does not exist."),
    (
        {"Size": "1", "AvailabilityZoneId": "use1-az999"},
        "InvalidZone.NotFound",
        "The zone 'use1-az999' does not exist.",
    ),
    (
        {**ONE, "AvailabilityZoneId": "use1-az1"},
        COMBINATION,
        "AvailabilityZone and AvailabilityZoneId can't be used together. Specify only one of these parameters.",
    ),
    (kind("bad", 1), "UnknownVolumeType", TYPE),
    *(
        (kind(name, size, **more), VALUE, TOO_SMALL.format(kind=name, size=size, least=least))
        for name, size, least, more in (
            ("gp3", 0, 1, {}),
            ("io1", 3, 4, {"Iops": 100}),
            ("io2", 3, 4, {"Iops": 100}),
            ("st1", 124, 125, {}),
            ("sc1", 124, 125, {}),
        )
    ),
    *(
        (kind(name, most + 1, **more), VALUE, TOO_BIG.format(kind=name, size=most + 1, most=most))
        for name, most, more in (
            ("gp2", 16384, {}),
            ("gp3", 65536, {}),
            ("io1", 16384, {"Iops": 100}),
            ("io2", 65536, {"Iops": 100}),
            ("st1", 16384, {}),
            ("standard", 1024, {}),
        )
    ),
    *(
        (
            kind("gp3", 100) | {name: "-1"},
            VALUE,
            f"Value (-1) for parameter {name.lower()} is invalid. Value must be a positive integer.",
        )
        for name in ("Size", "Iops", "Throughput")
    ),
    (kind("io1", 10), COMBINATION, "The parameter iops must be specified for io1 volumes."),
    (kind("io2", 10), COMBINATION, "The parameter iops must be specified for io2 volumes."),
    *(
        (kind(name, 125, Iops=100), COMBINATION, f"The parameter iops is not supported for {name} volumes.")
        for name in ("gp2", "standard", "st1", "sc1")
    ),
    *(
        (kind(name, 125, Throughput=125), COMBINATION, f"The throughput parameter is not supported for {name} volumes.")
        for name in ("gp2", "standard", "st1", "sc1")
    ),
    (kind("io1", 10, Iops=99), VALUE, "Volume iops of 99 is too low; minimum is 100."),
    (kind("gp3", 10, Iops=1), VALUE, "Volume iops of 1 is too low; minimum is 100."),
    (kind("gp3", 10, Iops=0), VALUE, "Volume iops of 0 is too low; minimum is 100."),
    *(
        (kind(name, 16000, Iops=most + 1), VALUE, f"Volume iops of {most + 1} is too high; maximum is {most}.")
        for name, most in (("gp3", 80000), ("io1", 64000), ("io2", 256000))
    ),
    (kind("io1", 4, Iops=201), VALUE, "Iops to volume size ratio of 50.250000 is too high; maximum is 50"),
    (kind("io2", 4, Iops=4001), VALUE, "Iops to volume size ratio of 1000.250000 is too high; maximum is 1000"),
    (kind("gp3", 1, Iops=501), VALUE, "Iops to volume size ratio of 501.000000 is too high; maximum is 500"),
    (kind("gp3", 1, Iops=2999), VALUE, "Iops to volume size ratio of 2999.000000 is too high; maximum is 500"),
    (
        kind("gp3", 1000, Iops=8000, Throughput=2001),
        VALUE,
        "Volume throughput of 2001 is too high; maximum is 2000.",
    ),
    (
        kind("gp3", 100, Iops=3000, Throughput=751),
        VALUE,
        "Throughput (MiBps) to iops ratio of 0.250333 is too high; maximum is 0.250000 MiBps per iops",
    ),
    (
        {**ONE, "VolumeInitializationRate": "100"},
        COMBINATION,
        "You can't specify VolumeInitializationRate for volumes that are not created from a snapshot.",
    ),
    (
        {**ZONE, "SnapshotId": "{snapshot}", "VolumeInitializationRate": "99"},
        VALUE,
        "The value specified for VolumeInitializationRate is not in the allowed range.",
    ),
    ({**ONE, **tag("a", of="snapshot")}, VALUE, "'snapshot' is not a valid taggable resource type for this operation."),
    (
        {**ONE, **tag("suite"), "TagSpecification.1.Tag.2.Key": "suite", "TagSpecification.1.Tag.2.Value": "2"},
        VALUE,
        "Duplicate tag key 'suite' specified.",
    ),
    ({**ONE, **tag("aws:x")}, VALUE, "Tag keys starting with 'aws:' are reserved for internal use"),
    ({**ONE, **tag("")}, VALUE, "Tag key must have a value"),
    ({**ONE, "TagSpecification.1.ResourceType": "volume"}, VALUE, ...),
    ({**ONE, "TagSpecification.1.Tag.1.Key": "a"}, VALUE, ...),
    ({**ONE, "KmsKeyId": "alias/x"}, "InvalidParameterDependency", ...),
]

# Found after a trial has ended.
CREATE_VOLUME_LATE = [
    (
        kind("gp3", 10, MultiAttachEnabled="true"),
        COMBINATION,
        "The parameter multi-attach-enabled is not supported for gp3 volumes.",
    ),
    (kind("gp3", 10, MultiAttachEnabled="true") | DRY, *DRY_RUN),
    ({**ONE, "ClientToken": "t" * 65}, VALUE, "Client token must be less than or equal to 64 characters."),
    ({**ONE, "ClientToken": "t" * 65} | DRY, *DRY_RUN),
    (
        {**ZONE, "Size": "2", "ClientToken": "{token}"},
        "IdempotentParameterMismatch",
        "Parameters on this idempotent request are inconsistent with parameters used in previous request(s)",
    ),
    (
        {**ONE, "ClientToken": "{token}", "Encrypted": "false"},
        "IdempotentParameterMismatch",
        "Parameters on this idempotent request are inconsistent with parameters used in previous request(s)",
    ),
    (
        {**ONE, "ClientToken": "{used_token}"},
        "IdempotentParameterMismatch",
        "The client token you have provided is associated with a resource that is already deleted. "
        "Please use a different client token.",
    ),
]

VOLUMES = [
    ("DeleteVolume", {"VolumeId": "{attached}"}, "VolumeInUse", "Volume {attached} is currently attached to {instance}"),
    ("DeleteVolume", {"VolumeId": "{attached}"} | DRY, *DRY_RUN),
    ("DeleteVolume", {"VolumeId": GONE} | DRY, NOT_FOUND, NO_VOLUME),
    ("DeleteVolume", {"VolumeId": "{deleted}"}, NOT_FOUND, "The volume '{deleted}' does not exist."),
    *(
        (action, {"VolumeId" + ending: "{deleted}"}, NOT_FOUND, "The volume '{deleted}' does not exist.")
        for action, ending in (("DescribeVolumeStatus", ".1"), ("DescribeVolumesModifications", ".1"), ("CreateSnapshot", ""))
    ),
    *(
        (action, parameters | DRY, *DRY_RUN)
        for action in (
            "ModifyVolume",
            "DescribeVolumeAttribute",
            "ModifyVolumeAttribute",
            "DescribeVolumes",
            "DescribeVolumeStatus",
            "DescribeVolumesModifications",
        )
        for parameters in (
            {},
            {"VolumeId" + (".1" if action.endswith(("Volumes", "Status", "Modifications")) else ""): "bad"},
        )
    ),
    *(
        ("DescribeVolumeAttribute", {"VolumeId": "{free}"} | more, COMBINATION, "No attributes specified.")
        for more in ({}, {"Attribute": ""})
    ),
    (
        "DescribeVolumeAttribute",
        {"VolumeId": "{free}", "Attribute": "bad"},
        VALUE,
        "Value (bad) for parameter attribute is invalid. Unknown attribute.",
    ),
    ("ModifyVolumeAttribute", {"VolumeId": "{free}"}, COMBINATION, "No attributes specified."),
]

ATTACHMENTS = [
    (
        "AttachVolume",
        {"VolumeId": "{attached}", "InstanceId": "{instance}", "Device": "/dev/sdf"},
        "VolumeInUse",
        "{attached} is already attached to an instance",
    ),
    (
        "AttachVolume",
        {"VolumeId": "{free}", "InstanceId": "{elsewhere}", "Device": "/dev/sdz"},
        "InvalidVolume.ZoneMismatch",
        "The volume '{free}' is not in the same availability zone as instance '{elsewhere}'",
    ),
    *(
        (
            "AttachVolume",
            {"VolumeId": "{free}", "InstanceId": "{instance}", "Device": name},
            VALUE,
            f"Value ({name}) for parameter device is invalid. {name} is not a valid EBS device name.",
        )
        for name in ("/dev/sdZZ", "/dev/nvme1n1", "Disk_D")
    ),
    *(
        (
            "AttachVolume",
            {"VolumeId": "{free}", "InstanceId": "{instance}", "Device": name},
            VALUE,
            f"Invalid value '{name}' for unixDevice. Attachment point {name} is already in use",
        )
        for name in ("/dev/sdf", "sdf")
    ),
    (
        "AttachVolume",
        {"VolumeId": "{free}", "InstanceId": "{instance}"},
        MISSING,
        "The request must contain the parameter device",
    ),
    ("DetachVolume", {"VolumeId": "{free}"}, STATE, "Volume '{free}' is in the 'available' state."),
    ("DetachVolume", {"VolumeId": "{attached}", "InstanceId": "{elsewhere}"}, "InvalidAttachment.NotFound", ...),
    ("DetachVolume", {"VolumeId": "{attached}", "Device": "/dev/sdg"}, "InvalidAttachment.NotFound", ...),
]

MODIFICATIONS = [
    (
        "ModifyVolume",
        {"VolumeId": "{free}"},
        VALUE,
        "Invalid input: Must specify at least one of size, type, iops, throughput or multi-attach.",
    ),
    *(
        ("ModifyVolume", {"VolumeId": "{multi}", "Size": size}, VALUE, "New size cannot be smaller than existing size")
        for size in ("0", "3")
    ),
    ("ModifyVolume", {"VolumeId": "{free}", "VolumeType": "bad"}, "UnknownVolumeType", TYPE),
    (
        "ModifyVolume",
        {"VolumeId": "{free}", "VolumeType": "gp3", "Iops": "80001"},
        VALUE,
        "Volume iops of 80001 is too high; maximum is 80000.",
    ),
    (
        "ModifyVolume",
        {"VolumeId": "{free}", "VolumeType": "gp3", "MultiAttachEnabled": "true"},
        COMBINATION,
        "The parameter multi-attach-enabled is not supported for gp3 volumes.",
    ),
    (
        "ModifyVolume",
        {"VolumeId": "{io1}", "Size": "20"},
        VALUE,
        "io1 volumes with Multi-Attach enabled do not support modify-volume actions. Please review the EBS technical "
        "documentation for information on the Multi-Attach limitations and considerations.",
    ),
    (
        "ModifyVolume",
        {"VolumeId": "{worn}", "Size": "9"},
        "VolumeModificationRateExceeded",
        "You've reached the maximum modification rate per volume limit. Wait until {again} before you can issue the next "
        "modification request for this volume.",
    ),
    (
        "DescribeVolumesModifications",
        {"VolumeId.1": "{free}"},
        "InvalidVolumeModification.NotFound",
        "Modification for volume '{free}' does not exist.",
    ),
    (
        "DescribeVolumesModifications",
        {"VolumeId.1": "{free}", "Filter.1.Name": "bad-filter", "Filter.1.Value.1": "x"},
        "InvalidVolumeModification.NotFound",
        "Modification for volume '{free}' does not exist.",
    ),
]

COPY = {"SourceSnapshotId": "{snapshot}", "SourceRegion": "us-east-1"}
SHARE = {"SnapshotId": "{snapshot}"}
ADD, REMOVE = "CreateVolumePermission.Add.1.", "CreateVolumePermission.Remove.1."
SNAPSHOTS = [
    ("CreateSnapshots", {"InstanceSpecification.InstanceId": "foo"}, "InvalidInstanceID.Malformed", ...),
    ("CreateSnapshots", {"InstanceSpecification.InstanceId": NO_INSTANCE}, NO_SUCH_INSTANCE, ...),
    ("DescribeSnapshots", {"Owner.1": "foo"}, "InvalidUserID.Malformed", ...),
    (
        "CopySnapshot",
        {"SourceRegion": "us-east-1"},
        MISSING,
        "The request must contain the parameter SourceSnapshotId",
    ),
    *(
        ("CopySnapshot", COPY | {"SourceSnapshotId": bad} | more, VALUE, "The specified snapshotId is invalid")
        for bad in ("", "bad")
        for more in ({}, DRY)
    ),
    *(
        ("CopySnapshot", COPY | {"SourceRegion": region}, "InvalidRegion", f"{region} is not a valid region name")
        for region in ("", "not-a-region")
    ),
    (
        "CopySnapshot",
        COPY | {"DestinationRegion": "us-west-2"},
        VALUE,
        "DestinationRegion 'us-west-2' does not match the current region (us-east-1).",
    ),
    ("CopySnapshot", COPY | {"DestinationRegion": "us-west-2"} | DRY, *DRY_RUN),
    *(("CopySnapshot", COPY | {"CompletionDurationMinutes": time}, VALUE, ...) for time in ("0", "14", "16", "2895")),
    ("ModifySnapshotAttribute", SHARE, COMBINATION, "No attributes specified."),
    (
        "ModifySnapshotAttribute",
        SHARE | {"Attribute": "createVolumePermission"},
        COMBINATION,
        "No operation specified for createVolumePermission attribute.",
    ),
    (
        "ModifySnapshotAttribute",
        SHARE | {f"{ADD}Group": "all", f"{REMOVE}UserId": "123456789012"},
        COMBINATION,
        "One and only one operation type may be specified for createVolumePermissions",
    ),
    *(
        ("ModifySnapshotAttribute", SHARE | {f"{ADD}UserId": bad}, "InvalidAMIAttributeItemValue", f"UserId {bad}")
        for bad in ("123", "not-an-account", "9175-4600-8205", "")
    ),
    (
        "ModifySnapshotAttribute",
        SHARE | {f"{ADD}Group": "everyone"},
        "InvalidAMIAttributeItemValue",
        "UserGroup everyone",
    ),
    (
        "ModifySnapshotAttribute",
        SHARE | {"Attribute": "createVolumePermission", "OperationType": "add", "UserId.1": "123"},
        "InvalidAMIAttributeItemValue",
        ...,
    ),
    (
        "ModifySnapshotAttribute",
        SHARE | {"Attribute": "colour", "OperationType": "add", "UserGroup.1": "all"},
        VALUE,
        ...,
    ),
    ("DescribeSnapshotAttribute", SHARE | {"Attribute": "colour"}, "InvalidRequest", ...),
    ("ResetSnapshotAttribute", SHARE | {"Attribute": "colour"}, "InvalidRequest", ...),
    (
        "ModifySnapshotAttribute",
        SHARE | {f"CreateVolumePermission.Add.{n}.UserId": f"{n:012}" for n in range(1, 502)},
        VALUE,
        ...,
    ),
]

TAGS = [
    ("CreateTags", {"Tag.1.Key": "a"}, MISSING, "The request must contain the parameter resourceIdSet"),
    ("CreateTags", {"ResourceId.1": "{free}"}, MISSING, ...),
    (
        "CreateTags",
        {"ResourceId.1": "eipassoc-0578b4e3415869944", "Tag.1.Key": "a"},
        "InvalidID",
        "The ID 'eipassoc-0578b4e3415869944' is not valid",
    ),
    ("CreateTags", {"ResourceId.1": GONE, "Tag.1.Key": "a"}, NOT_FOUND, ...),
    ("CreateTags", {"ResourceId.1": NO_SNAPSHOT, "Tag.1.Key": "a"}, SNAPSHOT_NOT_FOUND, ...),
    *(
        ("CreateTags", {"ResourceId.1": "{free}", "Tag.1.Key": key, "Tag.1.Value": value} | more, VALUE, ...)
        for key, value, more in (
            ("a", "1", {"Tag.2.Key": "a", "Tag.2.Value": "2"}),
            ("aws:a", "1", {}),
            ("", "1", {}),
            ("k" * 129, "1", {}),
            ("a", "v" * 257, {}),
        )
    ),
    (
        "CreateTags",
        {"ResourceId.1": "{free}"} | {f"Tag.{n}.Key": f"k{n}" for n in range(1, 52)},
        "TagLimitExceeded",
        ...,
    ),
]

AROUND = [
    ("DescribeAvailabilityZones", {"ZoneName.1": "us-east-1z"}, VALUE, "Invalid availability zone: [us-east-1z]"),
    ("DescribeAvailabilityZones", {"ZoneId.1": "use1-az99"}, VALUE, ...),
    ("DescribeRegions", {"RegionName.1": "xx"}, VALUE, ...),
]

# On purpose, as docs/api.md says.
OTHERWISE = [
    # Any digits are an id.
    ("DescribeVolumes", {"VolumeId.1": "vol-" + "0" * 17}, NOT_FOUND, ...),
    ("DescribeInstances", {"InstanceId.1": "i-1234567890abcdef0"}, NO_SUCH_INSTANCE, ...),
    # A volume must not be smaller than its snapshot; AWS makes it as large.
    ("CreateVolume", {**ZONE, "SnapshotId": "{big_snapshot}", "Size": "1"}, VALUE, ...),
    # An internal error of AWS.
    ("CopySnapshot", {"SourceSnapshotId": "{snapshot}"}, MISSING, ...),
]

FAULTS = [
    *ANY_ACTION,
    *PAGES,
    *IDS,
    *(("CreateVolume", *fault) for fault in CREATE_VOLUME + CREATE_VOLUME_LATE),
    *(("CreateVolume", parameters | DRY, *answer) for parameters, *answer in CREATE_VOLUME),
    *VOLUMES,
    *ATTACHMENTS,
    *MODIFICATIONS,
    *SNAPSHOTS,
    *TAGS,
    *AROUND,
    *OTHERWISE,
]

NOTHING = {"Filter.1.Value.1": "nothing has this"}
ACCEPTED = [
    ("DescribeVolumes", {"Filter.1.Name": "status"}),
    ("DescribeVolumes", {"Filter.1.Name": "volume-id"} | NOTHING),
    ("DescribeVolumes", {"Filter.1.Name": "availability-zone"} | NOTHING),
    ("DescribeVolumes", {"Filter.1.Name": "volume-id", "Filter.1.Value.1": "{free}", "MaxResults": "5"}),
    ("DescribeVolumeStatus", {"VolumeId.1": ""}),
    *(
        (action, {"MaxResults": str(size)})
        for action in ("DescribeVolumes", "DescribeVolumeStatus", "DescribeVolumesModifications")
        for size in (5, 500, 501, 1000, 1001)
    ),
    *(
        ("DescribeVolumesModifications", {"Filter.1.Name": f"{side}-multi-attach-enabled"} | NOTHING)
        for side in ("original", "target")
    ),
    ("ModifySnapshotAttribute", SHARE | {f"{ADD}UserId": "123456789012"}),
    ("ModifySnapshotAttribute", SHARE | {f"{ADD}UserId": "123456789012"}),
    ("DeleteTags", {"ResourceId.1": "{free}", "Tag.1.Key": "there is none"}),
    ("CreateTags", {"ResourceId.1": "{free}", "Tag.1.Key": "no value"}),
]


@dataclass
class World:
    """What the cases name in braces."""

    names: dict

    def fill(self, text):
        for name, value in self.names.items():
            text = text.replace("{" + name + "}", value)
        return text

    def call(self, account, action, parameters):
        return call(account, Action=action, **{name: self.fill(value) for name, value in parameters.items()})


@pytest.fixture(scope="module")
def world(ec2, vbs):
    zone = {"AvailabilityZone": "us-east-1a"}
    token = f"answers-{time.time_ns()}"
    instance, elsewhere = vbs.instances[:2]
    made = {
        "free": ec2.create_volume(**zone, Size=1, ClientToken=token),
        "attached": ec2.create_volume(**zone, Size=1),
        "deleted": ec2.create_volume(**zone, Size=1, ClientToken=f"{token}-used"),
        "multi": ec2.create_volume(**zone, Size=4, VolumeType="io2", Iops=100, MultiAttachEnabled=True),
        "io1": ec2.create_volume(**zone, Size=4, VolumeType="io1", Iops=100, MultiAttachEnabled=True),
        "worn": ec2.create_volume(**zone, Size=2),
    }
    names = {name: volume["VolumeId"] for name, volume in made.items()}
    wait(ec2, "volume_available", VolumeIds=list(names.values()))
    ec2.delete_volume(VolumeId=names["deleted"])
    ec2.attach_volume(VolumeId=names["attached"], InstanceId=instance, Device="/dev/sdf")
    snapshots = {
        name: ec2.create_snapshot(VolumeId=names[of])["SnapshotId"]
        for name, of in (("snapshot", "free"), ("big_snapshot", "worn"))
    }
    wait(ec2, "snapshot_completed", SnapshotIds=list(snapshots.values()))
    for size in range(3, 7):
        ec2.modify_volume(VolumeId=names["worn"], Size=size)
        until("modified", lambda: modification(ec2, names["worn"])["ModificationState"] == "completed")
    names |= snapshots | {"instance": instance, "elsewhere": elsewhere, "token": token, "used_token": f"{token}-used"}
    yield World(names)
    for snapshot in snapshots.values():
        ec2.delete_snapshot(SnapshotId=snapshot)
    for name in made:
        remove_volume(ec2, names[name])


def modification(ec2, volume):
    (found,) = ec2.describe_volumes_modifications(VolumeIds=[volume])["VolumesModifications"]
    return found


@pytest.mark.parametrize(
    ("action", "parameters", "answer"),
    [pytest.param(action, parameters, answer, id=f"{action}-{answer[0]}") for action, parameters, *answer in FAULTS],
)
def test_a_fault_is_answered_as_aws_answers_it(owner, world, action, parameters, answer):
    code, message, status = (*answer, 400)[:3]
    found = world.call(owner, action, parameters)
    assert (found.status, found.code) == (status, code), found
    if message is ...:
        return
    before, again, after = world.fill(message).partition("{again}")
    if again:
        assert found.message.startswith(before) and found.message.endswith(after), found.message
    else:
        assert found.message == before


@pytest.mark.parametrize(("action", "parameters"), ACCEPTED)
def test_what_aws_accepts_is_accepted(owner, world, action, parameters):
    found = world.call(owner, action, parameters)
    assert found.status == 200, found


def test_a_copy_of_a_snapshot_that_is_not_there_is_accepted_and_fails(ec2):
    """CopySnapshot alone finds that out later."""
    copy = ec2.copy_snapshot(SourceSnapshotId=NO_SNAPSHOT, SourceRegion="us-east-1")["SnapshotId"]
    (found,) = ec2.describe_snapshots(SnapshotIds=[copy])["Snapshots"]
    assert (found["State"], found["StateMessage"]) == ("error", "Source snapshot is not found")
    ec2.delete_snapshot(SnapshotId=copy)


# The elements of recorded answers, in their order, of what is untagged and unattached, and of what is not; `?` before one that is there
# only when there is something to say.
VOLUME = "volumeId size snapshotId availabilityZone status createTime attachmentSet ?tagSet volumeType ?iops encrypted multiAttachEnabled"
ATTACHMENT = "volumeId instanceId device status attachTime"
SNAPSHOT = "snapshotId volumeId status startTime progress ownerId volumeSize description encrypted ?tagSet"


def children(element):
    return [child.tag.rpartition("}")[2] for child in element]


def assert_in_order(element, expected):
    found = children(element)
    names = [name.removeprefix("?") for name in expected.split() if not name.startswith("?") or name[1:] in found]
    assert [name for name in found if name in names] == names


def document(answer):
    assert answer.status == 200, answer
    return ElementTree.fromstring(answer.body)


def of_set(answer, name):
    return document(answer).findall(f"{{*}}{name}/{{*}}item")


def test_bodies_have_the_elements_of_recorded_ones_in_their_order(owner, world):
    blank, attached = (
        of_set(world.call(owner, "DescribeVolumes", {"VolumeId.1": name}), "volumeSet")[0] for name in ("{io1}", "{attached}")
    )
    for volume in (blank, attached):
        assert_in_order(volume, VOLUME)
        assert volume.find("{*}snapshotId").text is None
        # There when there is one.
        assert volume.find("{*}tagSet") is None and volume.find("{*}kmsKeyId") is None
        assert {"availabilityZoneId", "ownerId", "volumeArn", "operator"} <= set(children(volume))
    assert children(blank.find("{*}attachmentSet")) == []
    (attachment,) = attached.find("{*}attachmentSet")
    assert_in_order(attachment, f"{ATTACHMENT} deleteOnTermination")
    assert attachment.findtext("{*}attachTime").endswith(".000Z")
    (snapshot,) = of_set(world.call(owner, "DescribeSnapshots", {"SnapshotId.1": "{snapshot}"}), "snapshotSet")
    assert_in_order(snapshot, f"{SNAPSHOT} storageTier transferType")
    assert snapshot.find("{*}description").text is None and snapshot.findtext("{*}progress") == "100%"
    assert {"completionTime", "fullSnapshotSizeInBytes"} <= set(children(snapshot))
    (status,) = of_set(world.call(owner, "DescribeVolumeStatus", {"VolumeId.1": "{free}"}), "volumeStatusSet")
    assert {"actionsSet", "eventsSet", "volumeStatus", "availabilityZone", "availabilityZoneId"} <= set(children(status))
    details = {detail.findtext("{*}name"): detail.findtext("{*}status") for detail in status.iterfind(".//{*}details/{*}item")}
    assert details == {"io-enabled": "passed", "io-performance": "not-applicable"}
    zones = of_set(world.call(owner, "DescribeAvailabilityZones", {}), "availabilityZoneInfo")
    order = "zoneName zoneId zoneState regionName groupName optInStatus networkBorderGroup zoneType messageSet"
    for zone in zones:
        assert_in_order(zone, order)


def test_what_is_made_is_answered_as_recorded(owner, world):
    made = document(world.call(owner, "CreateVolume", ONE))
    assert_in_order(made, f"requestId {VOLUME.replace('attachmentSet ?tagSet', 'tagSet')}")
    assert not {"attachmentSet", "ownerId", "volumeArn", "operator"} & set(children(made))
    assert (made.findtext("{*}status"), children(made.find("{*}tagSet"))) == ("creating", [])
    assert made.findtext("{*}createTime").endswith(".000Z")
    volume = {"VolumeId": made.findtext("{*}volumeId")}
    until("available", lambda: b"<status>available</status>" in world.call(owner, "DescribeVolumes", {"VolumeId.1": volume["VolumeId"]}).body)

    snapshot = document(world.call(owner, "CreateSnapshot", volume))
    assert_in_order(snapshot, f"requestId {SNAPSHOT.replace('?', '')}")
    assert snapshot.find("{*}progress").text is None and snapshot.findtext("{*}status") == "pending"
    assert not {"storageTier", "transferType", "completionTime"} & set(children(snapshot))

    attached = document(world.call(owner, "AttachVolume", volume | {"InstanceId": "{instance}", "Device": "/dev/sdq"}))
    detached = document(world.call(owner, "DetachVolume", volume))
    for answer, status in ((attached, "attaching"), (detached, "detaching")):
        assert children(answer) == f"requestId {ATTACHMENT}".split() and answer.findtext("{*}status") == status

    modified = document(world.call(owner, "ModifyVolume", volume | {"Size": "2"}))[1]
    assert {"progress", "startTime", "originalSize", "targetSize"} <= set(children(modified))
    assert not {"endTime", "statusMessage", "originalThroughput"} & set(children(modified))
    assert (modified.findtext("{*}modificationState"), modified.findtext("{*}progress")) == ("modifying", "0")
    assert modified.findtext("{*}startTime").endswith(".000Z")

    document(world.call(owner, "DeleteSnapshot", {"SnapshotId": snapshot.findtext("{*}snapshotId")}))
    until("deleted", lambda: world.call(owner, "DeleteVolume", volume).status == 200)
