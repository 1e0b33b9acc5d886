"""Two accounts and every action: what is another's cannot be told from what is not there, and nothing of it is seen or changed.

Each action is called by a stranger with the owner's ids, and again with ids that nobody has. The answers must be the same to the
letter, but for the ids themselves.
"""

import itertools
import re
from uuid import uuid4

import pytest

import model
from conftest import boto3_client, remove_volume, wait
from raw import call
from running import until
from test_conformance import good, supported, with_it  # noqa: F401

ABSENT = {
    "attached": "vol-0fedcba9876543210",
    "free": "vol-0fedcba9876543211",
    "snapshot": "snap-0fedcba9876543210",
    "instance": "i-0fedcba9876543210",
}
# How each action can touch what is another's: by ids that a request names, by lists that show what there is, or by nothing, since
# it tells of no account, or of the caller's alone. An action that is not here fails the tests, in Python and in Rust.
MATRIX = {
    "AttachVolume": "ids",
    "CopySnapshot": "ids",
    "CopyVolumes": "ids",
    "CreateSnapshot": "ids",
    "CreateSnapshots": "ids",
    "CreateTags": "ids",
    "CreateVolume": "ids",
    "DeleteSnapshot": "ids",
    "DeleteTags": "ids",
    "DeleteVolume": "ids",
    "DescribeAccountAttributes": "list",
    "DescribeAddresses": "list",
    "DescribeAvailabilityZones": "list",
    "DescribeInstanceAttribute": "ids",
    "DescribeInstanceStatus": "ids, list",
    "DescribeInstanceTypes": "list",
    "DescribeInstances": "ids, list",
    "DescribeRegions": "list",
    "DescribeSnapshotAttribute": "ids",
    "DescribeSnapshots": "ids, list",
    "DescribeTags": "list",
    "DescribeVolumeAttribute": "ids",
    "DescribeVolumeStatus": "ids, list",
    "DescribeVolumes": "ids, list",
    "DescribeVolumesModifications": "ids, list",
    "DetachVolume": "ids",
    "EnableVolumeIO": "ids",
    "GetCallerIdentity": "nothing",
    "ModifyInstanceAttribute": "ids",
    "ModifySnapshotAttribute": "ids",
    "ModifyVolume": "ids",
    "ModifyVolumeAttribute": "ids",
    "ResetSnapshotAttribute": "ids",
}
# What an action must be told for there to be anything that it would change: without, it is refused before it looks at the ids.
REAL = {
    "ModifyInstanceAttribute": {
        "BlockDeviceMapping.1.DeviceName": "/dev/sdr",
        "BlockDeviceMapping.1.Ebs.DeleteOnTermination": "true",
    },
    "ModifySnapshotAttribute": {
        "Attribute": "createVolumePermission",
        "OperationType": "add",
        "UserId.1": "123456789012",
    },
    "ModifyVolume": {"Size": "9"},
    "ModifyVolumeAttribute": {"AutoEnableIO.Value": "true"},
}
# What changes of itself between two answers.
PASSING = re.compile(rb"<(requestId|RequestID)>[^<]*</\1>")


def made_by(ec2, instance):
    """A volume, an attached one when there is an instance, and a snapshot; all with tags."""
    tag = f"of-{uuid4().hex}"
    tags = [{"ResourceType": "volume", "Tags": [{"Key": "Name", "Value": tag}, {"Key": tag, "Value": "key"}]}]
    volumes = [
        ec2.create_volume(AvailabilityZone="us-east-1a", Size=3, VolumeType="gp3", TagSpecifications=tags)["VolumeId"]
        for _ in range(2)
    ]
    wait(ec2, "volume_available", VolumeIds=volumes)
    if instance:
        ec2.attach_volume(VolumeId=volumes[0], InstanceId=instance, Device="/dev/sdr")
        until("attached", lambda: attachment(ec2, volumes[0]) == "attached")
        ec2.create_tags(Resources=[instance], Tags=[{"Key": "Name", "Value": tag}])
        ec2.modify_volume(VolumeId=volumes[1], Size=4)
        until("grown", lambda: modification(ec2, volumes[1]) == "completed")
    tags = [{"ResourceType": "snapshot", "Tags": [{"Key": "Name", "Value": tag}]}]
    snapshot = ec2.create_snapshot(VolumeId=volumes[0], Description=tag, TagSpecifications=tags)["SnapshotId"]
    wait(ec2, "snapshot_completed", SnapshotIds=[snapshot])
    return {"attached": volumes[0], "free": volumes[1], "snapshot": snapshot, "instance": instance}, tag


def attachment(ec2, volume):
    (found,) = ec2.describe_volumes(VolumeIds=[volume])["Volumes"]
    return found["Attachments"][0]["State"]


def modification(ec2, volume):
    (found,) = ec2.describe_volumes_modifications(VolumeIds=[volume])["VolumesModifications"]
    return found["ModificationState"]


@pytest.fixture(scope="module")
def theirs(ec2, vbs):
    """The owner's things, and a text that is in all of them and nowhere else."""
    made, tag = made_by(ec2, vbs.instances[0])
    yield made, tag
    ec2.delete_tags(Resources=[made["instance"]], Tags=[{"Key": "Name", "Value": tag}])
    ec2.delete_snapshot(SnapshotId=made["snapshot"])
    for volume in (made["attached"], made["free"]):
        remove_volume(ec2, volume)


@pytest.fixture(scope="module")
def own(owner, strangers_ec2, vbs):
    """The stranger's things; its instance, which is the owner's again afterwards, has no volumes."""
    owners_account = boto3_client(owner, "sts").get_caller_identity()["Account"]
    instance = vbs.instances[1]
    vbs.operator("instance", "assign", instance, "stranger")
    made, _ = made_by(strangers_ec2, None)
    yield made | {"instance": instance}
    vbs.operator("instance", "assign", instance, owners_account)
    for snapshot in strangers_ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]:
        strangers_ec2.delete_snapshot(SnapshotId=snapshot["SnapshotId"])
    for volume in (made["attached"], made["free"]):
        remove_volume(strangers_ec2, volume)


def requests(action, foreign, own):
    """The action with ids of others at every place where an id can be, at all of them and at one at a time."""
    mixed = [foreign] + [own | {key: foreign[key]} for key in ("free", "snapshot", "instance", "attached")]
    for world in mixed:
        alone = good(action, world) | REAL.get(action, {})
        yield alone
        for parameter in model.parameters(action):
            last = re.sub(r"(\.\d+)+$", "", parameter.name).rpartition(".")[2]
            kind = {"SourceVolumeId": "free", "VolumeId": "free", "ExcludeDataVolumeId": "attached"}.get(last)
            kind = kind or {"SnapshotId": "snapshot", "SourceSnapshotId": "snapshot", "InstanceId": "instance"}.get(last)
            for name in [kind] if kind else ["free", "snapshot", "instance"] if last == "ResourceId" else []:
                yield alone | with_it(action, parameter.name) | {parameter.name: world[name]}


def answer(account, action, parameters, foreign):
    """The answer with the foreign ids taken out, in which two answers may differ."""
    got = call(account, Action=action, **parameters)
    body = PASSING.sub(b"", got.body)
    for number, name in enumerate(foreign.values()):
        body = body.replace(name.encode(), f"ID{number}".encode())
    return got.status, body


def is_of_others(parameters, foreign):
    return any(value in foreign.values() for value in parameters.values())


def state(account, foreign):
    """All that an account has, as it is described."""
    actions = ("Volumes", "Snapshots", "Tags", "Instances", "VolumesModifications", "VolumeStatus")
    answers = {action: PASSING.sub(b"", call(account, Action=f"Describe{action}").body) for action in actions}
    for kind, name, attribute in (
        ("Instance", "instance", "blockDeviceMapping"),
        ("Snapshot", "snapshot", "createVolumePermission"),
        ("Volume", "free", "autoEnableIO"),
    ):
        asked = {f"{kind}Id": foreign[name], "Attribute": attribute}
        got = call(account, Action=f"Describe{kind}Attribute", **asked)
        assert got.status == 200, got.body
        answers[attribute] = PASSING.sub(b"", got.body)
    return answers


@pytest.mark.parametrize("dry_run", [True, False])
def test_what_is_anothers_is_as_if_it_were_not_there(owner, stranger, supported, theirs, own, dry_run):  # noqa: F811
    foreign, _ = theirs
    before = state(owner, foreign)
    faults, crossed = [], set()
    trial = {"DryRun": "true"} if dry_run else {}
    for action in supported:
        asked = zip(requests(action, foreign, own), requests(action, ABSENT, own), strict=True)
        for parameters, absent in asked:
            if not is_of_others(parameters, foreign):
                continue
            crossed.add(action)
            got = answer(stranger, action, parameters | trial, foreign)
            wanted = answer(stranger, action, absent | trial, ABSENT)
            if action == "CopySnapshot" and got[0] == wanted[0] == 200:
                # Both are accepted, as on AWS, and fail alike.
                got, wanted = (outcome(stranger, one[1]) for one in (got, wanted))
            if got != wanted:
                faults.append((action, parameters, got, wanted))
    assert not faults, "\n".join(map(str, faults))
    assert state(owner, foreign) == before, "nothing of it was changed"
    with_ids = {action for action in supported if any(model_ids(action))}
    assert crossed == with_ids == those("ids"), "every action that takes an id was tried"


def those(way):
    return {action for action, ways in MATRIX.items() if way in ways.split(", ")}


def test_every_action_is_crossed(supported):  # noqa: F811
    assert set(MATRIX) == set(supported) | {"GetCallerIdentity"}
    assert all(MATRIX.values())


def test_each_account_is_told_of_itself(owner, stranger):
    own, others = (boto3_client(account, "sts").get_caller_identity()["Account"] for account in (owner, stranger))
    assert own != others
    told = call(stranger, Action="GetCallerIdentity")
    assert others.encode() in told.body and own.encode() not in told.body


def model_ids(action):
    return [parameter for parameter in model.parameters(action) if re.search(r"(VolumeId|SnapshotId|InstanceId|ResourceId)(\.\d+)?$", parameter.name)]


def outcome(account, body):
    """What becomes of a copy, which is deleted then."""
    (name,) = re.findall(rb"<snapshotId>([^<]+)<", body)
    described = {"SnapshotId.1": name.decode()}

    def over():
        found = call(account, Action="DescribeSnapshots", **described).body
        return b"<status>pending<" not in found and found

    found = until("the copy", over)
    call(account, Action="DeleteSnapshot", SnapshotId=name.decode())
    found = re.sub(rb"<(startTime|completionTime)>[^<]*<", b"<", PASSING.sub(b"", found))
    return found.replace(name, b"COPY")


def test_nothing_of_anothers_is_in_any_list_whatever_is_asked(stranger, supported, theirs, own):  # noqa: F811
    foreign, tag = theirs
    secrets = [tag, *foreign.values()]
    tried = set()
    for action in (action for action in supported if action.startswith("Describe")):
        tried.add(action)
        asked = [{}, {"MaxResults": "5"}, {"Owner.1": "self"}, {"RestorableBy.1": "self"}, {"RestorableBy.1": "all"}]
        for name in model.filters(action) + ["tag-value"]:
            if name == "tag:Name":
                asked.append({"Filter.1.Name": f"tag:{tag}", "Filter.1.Value.1": "*"})
            for value in itertools.chain(["*"], secrets):
                asked.append({"Filter.1.Name": name, "Filter.1.Value.1": value})
        for parameters in asked:
            got = call(stranger, Action=action, **good(action, own) | parameters)
            told = [secret for secret in secrets if secret.encode() in got.body]
            # A refusal may say what was asked for.
            assert not told or got.status != 200, (action, parameters, told)
    assert tried >= those("list"), "every list was looked at"


def test_a_page_of_one_account_is_no_page_of_another(owner, stranger, ec2, theirs, own):
    """A token that somebody else was given shows nothing of theirs."""
    foreign, tag = theirs
    more = [ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"] for _ in range(5)]
    for action in ("DescribeVolumes", "DescribeVolumeStatus"):
        body = call(owner, Action=action, MaxResults="5").body
        (token,) = re.findall(rb"<nextToken>([^<]+)<", body)
        got = call(stranger, Action=action, MaxResults="5", NextToken=token.decode())
        shown = set(re.findall(rb"vol-[0-9a-f]+", got.body))
        assert shown <= {own["attached"].encode(), own["free"].encode()}, (action, shown)
    for volume in more:
        remove_volume(ec2, volume)


def test_a_client_token_of_one_account_is_free_in_another(ec2, strangers_ec2):
    same = {"AvailabilityZone": "us-east-1a", "ClientToken": f"crossed-{uuid4()}"}
    ours = ec2.create_volume(Size=1, **same)["VolumeId"]
    others = strangers_ec2.create_volume(Size=2, **same)["VolumeId"]
    assert ours != others
    remove_volume(ec2, ours)
    remove_volume(strangers_ec2, others)
