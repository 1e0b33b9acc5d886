"""The calls of the Kubernetes EBS CSI driver, replayed: many at once, in batches, with what it does about each refusal.

The driver is a program for a cluster. Here its cloud layer is written down in boto3, call by call: the parameters it sends, the
codes and texts it branches on, the fields it reads without asking whether they are there, and its polling.
"""

import hashlib
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError

from conftest import Account, boto3_client, wait
from running import until

ZONE = "us-east-1a"
PVC = "CSIVolumeName"
VOLUME_ID = re.compile("vol-[a-z0-9]+")
TOO_HIGH = re.compile(r"iops.*is too high.*maximum is ([0-9]+)", re.IGNORECASE)


class Driver:
    """The cloud of the driver."""

    def __init__(self, account, **config):
        self.ec2 = boto3_client(account, **config)
        self.batches = []

    def refusal(self, call, **parameters):
        """The code and the text of what must be refused."""
        with pytest.raises(ClientError) as caught:
            call(**parameters)
        error = caught.value.response["Error"]
        return error["Code"], error["Message"]

    def is_alive(self):
        code, _ = self.refusal(self.ec2.describe_availability_zones, DryRun=True)
        return code == "DryRunOperation"

    def most_iops(self, volume_type, zone=ZONE):
        """It asks for more than there can be, and reads the limit in the refusal."""
        probe = {"AvailabilityZone": zone, "VolumeType": volume_type, "Size": 4, "Iops": 2147483647, "DryRun": True}
        code, text = self.refusal(self.ec2.create_volume, **probe)
        found = TOO_HIGH.search(text)
        return int(found[1]) if found else code

    def create_disk(self, name, size=1, snapshot=None, attempt=1, **more):
        """Makes a volume, or finds the one that it has made: the token is made of the name."""
        tag = {"ResourceType": "volume", "Tags": [{"Key": PVC, "Value": name}, {"Key": "ebs.csi.aws.com/cluster", "Value": "true"}]}
        token = hashlib.sha256((name if attempt == 1 else f"{name}-{attempt}").encode()).hexdigest()
        wanted = {"AvailabilityZone": ZONE, "Size": size, "VolumeType": "gp3", "ClientToken": token, "TagSpecifications": [tag]} | more
        if snapshot:
            wanted["SnapshotId"] = snapshot
        try:
            made = self.ec2.create_volume(Encrypted=False, **wanted)
        except ClientError as error:
            if error.response["Error"]["Code"] == "IdempotentParameterMismatch" and attempt < 3:
                return self.create_disk(name, size, snapshot, attempt + 1, **more)
            raise
        self.poll("available", made["VolumeId"], lambda found: found["State"] == "available")
        return made["VolumeId"], made["Size"]

    def poll(self, what, volume, condition):
        """Looks after 1.25 s at the driver; here at once, and then more and more seldom, as it does."""
        pause = 0.05
        end = time.monotonic() + 60
        while not condition(found := self.describe(volume)):
            assert time.monotonic() < end, (what, found)
            time.sleep(pause)
            pause *= 1.5
        return found

    def describe(self, volume):
        (found,) = self.ec2.describe_volumes(VolumeIds=[volume])["Volumes"]
        return found

    def batch(self, ids):
        """Describes up to 500 at once. Those that are named in a refusal are taken out, and the rest is asked for again."""
        ids, missing = list(ids), {}
        while ids:
            self.batches.append(len(ids))
            try:
                answer = self.ec2.describe_volumes(VolumeIds=ids)
                found = answer["Volumes"]
                while token := answer.get("NextToken"):
                    answer = self.ec2.describe_volumes(NextToken=token)
                    found += answer["Volumes"]
                return {volume["VolumeId"]: volume for volume in found}, missing
            except ClientError as error:
                code, text = error.response["Error"]["Code"], error.response["Error"]["Message"]
                assert code == "InvalidVolume.NotFound", (code, text)
                bad = set(VOLUME_ID.findall(text)) & set(ids)
                assert bad, "a refusal names what it is about"
                missing |= dict.fromkeys(bad, code)
                ids = [volume for volume in ids if volume not in bad]
        return {}, missing

    def by_name(self, names):
        assert len(names) <= 500
        found, token = [], {}
        while True:
            answer = self.ec2.describe_volumes(Filters=[{"Name": f"tag:{PVC}", "Values": names}], **token)
            found += answer["Volumes"]
            if not answer.get("NextToken"):
                return {tag["Value"]: v["VolumeId"] for v in found for tag in v["Tags"] if tag["Key"] == PVC}
            token = {"NextToken": answer["NextToken"]}

    def cards(self, instance):
        """Those of the machine's type."""
        (reservation,) = self.ec2.describe_instances(InstanceIds=[instance])["Reservations"]
        kind = reservation["Instances"][0]["InstanceType"]
        (shape,) = self.ec2.describe_instance_types(InstanceTypes=[kind])["InstanceTypes"]
        return shape["EbsInfo"]["EbsCards"]

    def attach(self, volume, instance, names, lock):
        """Takes the first name that the instance does not have, and another when that one is taken after all."""
        bad = set()
        while True:
            with lock:
                (reservation,) = self.ec2.describe_instances(InstanceIds=[instance])["Reservations"]
                mapped = {m["DeviceName"]: m["Ebs"]["VolumeId"] for m in reservation["Instances"][0]["BlockDeviceMappings"]}
                device = next(name for name in names if name not in mapped and name not in bad)
                bad.add(device)
            try:
                self.ec2.attach_volume(Device=device, InstanceId=instance, VolumeId=volume)
                break
            except ClientError as error:
                code, text = error.response["Error"]["Code"], error.response["Error"]["Message"]
                assert code == "InvalidParameterValue" and "already in use" in text, (code, text)

        def attached(found):
            states = [(a["State"], a["Device"], a["InstanceId"]) for a in found["Attachments"]]
            return states == [("attached", device, instance)]

        self.poll("attached", volume, attached)
        return device

    def detach(self, volume, instance):
        try:
            self.ec2.detach_volume(InstanceId=instance, VolumeId=volume)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            assert code in ("IncorrectState", "InvalidAttachment.NotFound", "InvalidVolume.NotFound"), code
        self.poll("detached", volume, lambda found: not found["Attachments"])

    def modify(self, volume, **to):
        """Grows or changes a volume: the answer of the last modification decides whether to wait or to ask."""
        try:
            last = self.ec2.describe_volumes_modifications(VolumeIds=[volume])["VolumesModifications"]
        except ClientError as error:
            assert error.response["Error"]["Code"] == "InvalidVolumeModification.NotFound"
            last = []
        assert not last or last[-1]["ModificationState"] in ("completed", "optimizing", "failed")
        self.ec2.modify_volume(VolumeId=volume, **to)

        def state():
            return self.ec2.describe_volumes_modifications(VolumeIds=[volume])["VolumesModifications"][-1]

        until("modified", lambda: state()["ModificationState"] in ("optimizing", "completed"))
        return self.describe(volume)

    def delete(self, volume):
        try:
            self.ec2.delete_volume(VolumeId=volume)
        except ClientError as error:
            assert error.response["Error"]["Code"] == "InvalidVolume.NotFound"


@pytest.fixture(scope="module")
def driver(owner):
    return Driver(owner)


@pytest.fixture
def disks(driver):
    """Makes volumes that go away after the test: `disks(5)` is their ids by their names."""
    made = {}

    def create(count, **more):
        names = [f"pvc-{uuid4()}" for _ in range(count)]
        with ThreadPoolExecutor(20) as pool:
            ids = [volume for volume, _ in pool.map(lambda name: driver.create_disk(name, **more), names)]
        made.update(zip(names, ids))
        return dict(zip(names, ids))

    yield create
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(driver.delete, made.values()))


def test_it_finds_the_service_alive_and_reads_the_limits_in_refusals(driver):
    assert driver.is_alive()
    assert {kind: driver.most_iops(kind) for kind in ("gp3", "io1", "io2")} == {"gp3": 80000, "io1": 64000, "io2": 256000}
    assert driver.most_iops("gp2") in ("InvalidParameterCombination", "InvalidParameterValue", "UnsupportedOperation")


def test_a_name_makes_one_volume_however_often_and_at_once(driver):
    name = f"pvc-{uuid4()}"
    with ThreadPoolExecutor(10) as pool:
        made = set(pool.map(lambda _: driver.create_disk(name), range(10)))
    ((volume, size),) = made
    try:
        assert size == 1
        other, _ = driver.create_disk(name, size=2)
        assert other != volume, "the same name with another size is another token, as the driver does it"
        driver.delete(other)
    finally:
        driver.delete(volume)
    until("gone", lambda: driver.batch([volume]) == ({}, {volume: "InvalidVolume.NotFound"}))


def test_500_ids_are_one_call_and_bad_ones_are_taken_out(driver, disks):
    made = list(disks(60).values())
    unknown = [f"vol-{number:017x}" for number in range(0xFEDC00000, 0xFEDC00000 + 440)]
    driver.batches.clear()
    found, missing = driver.batch(made + unknown)
    assert driver.batches[0] == 500
    assert set(found) == set(made) and set(missing) == set(unknown)
    assert len(driver.batches) == 2, "all that do not exist are named at once"
    for volume in found.values():
        assert volume["State"] == "available" and volume["Size"] == 1 and volume["Attachments"] == []


def test_500_names_are_one_filter(driver, disks):
    """AWS takes 200 values of filters in a call, and the driver sends up to 500: what is over is refused, not cut off."""
    made = disks(30)
    names = list(made) + [f"pvc-{uuid4()}" for _ in range(170)]
    assert driver.by_name(names) == made
    many = names + [f"pvc-{uuid4()}" for _ in range(300)]
    code, text = driver.refusal(driver.ec2.describe_volumes, Filters=[{"Name": f"tag:{PVC}", "Values": many}])
    assert code == "FilterLimitExceeded" and "200" in text


def test_many_volumes_go_to_two_instances_at_once_and_come_back(driver, disks, vbs):
    one, other = vbs.instances
    made = {volume: one for volume in disks(12).values()}
    made |= {volume: other for volume in disks(12, AvailabilityZone="us-east-1b").values()}
    names = [f"/dev/xvd{a}{b}" for a in "bcd" for b in "abcdefghijklmnopqrstuvwx"]
    # The driver chooses names under a lock for each machine.
    locks = {one: threading.Lock(), other: threading.Lock()}
    with ThreadPoolExecutor(len(made)) as pool:
        devices = list(pool.map(lambda volume: driver.attach(volume, made[volume], names, locks[made[volume]]), made))
    assert len({*zip(made.values(), devices)}) == len(made)
    volume = next(iter(made))
    again = driver.refusal(driver.ec2.attach_volume, Device=devices[0], InstanceId=one, VolumeId=volume)
    assert again[0] == "VolumeInUse"
    assert driver.refusal(driver.ec2.delete_volume, VolumeId=volume)[0] == "VolumeInUse"
    with ThreadPoolExecutor(len(made)) as pool:
        list(pool.map(lambda volume: driver.detach(volume, made[volume]), made))
    # Each is a success for the driver, since it is what it wanted.
    driver.detach(volume, one)
    zone_mismatch = driver.refusal(driver.ec2.attach_volume, Device="/dev/xvdba", InstanceId=other, VolumeId=volume)
    assert zone_mismatch[0] == "InvalidVolume.ZoneMismatch"


def test_a_machine_that_is_full_is_known_by_its_code(driver, disks, vbs):
    made = list(disks(27).values())
    instance, lock = vbs.instances[0], threading.Lock()
    names = [f"/dev/xvd{a}{b}" for a in "bcd" for b in "abcdefghijklmnopqrstuvwx"]
    with ThreadPoolExecutor(13) as pool:
        list(pool.map(lambda volume: driver.attach(volume, instance, names, lock), made[:26]))
    refused = driver.refusal(driver.ec2.attach_volume, Device="/dev/xvdda", InstanceId=instance, VolumeId=made[26])
    assert refused[0] == "AttachmentLimitExceeded"
    with ThreadPoolExecutor(13) as pool:
        list(pool.map(lambda volume: driver.detach(volume, instance), made[:26]))


def test_an_attachment_that_is_given_up_while_it_is_made_goes(driver, disks, vbs):
    """The driver takes one that seems stuck for one to detach."""
    (volume,) = disks(1).values()
    instance = vbs.instances[0]
    card = driver.cards(instance)[0]["EbsCardIndex"]
    driver.ec2.attach_volume(Device="/dev/xvdca", InstanceId=instance, VolumeId=volume, EbsCardIndex=card)
    driver.detach(volume, instance)


def test_a_volume_has_all_that_its_storage_class_says(driver, disks):
    (fast,) = disks(1, size=10, Iops=4000, Throughput=250).values()
    found = driver.describe(fast)
    assert (found["VolumeType"], found["Iops"], found["Throughput"]) == ("gp3", 4000, 250)
    (shared,) = disks(1, size=4, VolumeType="io2", Iops=200, MultiAttachEnabled=True).values()
    assert driver.describe(shared)["MultiAttachEnabled"]
    snapshot = driver.ec2.create_snapshot(VolumeId=fast)["SnapshotId"]
    wait(driver.ec2, "snapshot_completed", SnapshotIds=[snapshot])
    (restored,) = disks(1, size=10, snapshot=snapshot, VolumeInitializationRate=200).values()
    assert driver.describe(restored)["VolumeInitializationRate"] == 200
    driver.ec2.delete_snapshot(SnapshotId=snapshot)
    by_id = {"AvailabilityZoneId": "use1-az1", "Size": 1, "VolumeType": "gp3"}
    there = driver.ec2.create_volume(**by_id)
    driver.poll("available", there["VolumeId"], lambda found: found["State"] == "available")
    assert there["AvailabilityZone"] == ZONE
    driver.delete(there["VolumeId"])


def test_a_name_that_is_taken_makes_it_choose_another(driver, disks, vbs):
    one, other = disks(2).values()
    instance = vbs.instances[0]
    driver.ec2.attach_volume(Device="/dev/xvdba", InstanceId=instance, VolumeId=one)
    code, text = driver.refusal(driver.ec2.attach_volume, Device="/dev/xvdba", InstanceId=instance, VolumeId=other)
    assert code == "InvalidParameterValue" and "already in use" in text
    assert driver.attach(other, instance, ["/dev/xvdba", "/dev/xvdbb"], threading.Lock()) == "/dev/xvdbb"
    for volume in (one, other):
        driver.poll("attached", volume, lambda found: found["Attachments"][0]["State"] == "attached")
        driver.detach(volume, instance)


def test_volumes_are_modified_once_and_their_modifications_found(driver, disks):
    made = list(disks(4).values())
    code, _ = driver.refusal(driver.ec2.describe_volumes_modifications, VolumeIds=[made[0]])
    assert code == "InvalidVolumeModification.NotFound"
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda volume: driver.modify(volume, Size=10, VolumeType="gp3", Iops=3500), made):
            assert (found["Size"], found["Iops"]) == (10, 3500), "DescribeVolumes shows it when it is optimizing"
    found = driver.ec2.describe_volumes_modifications(VolumeIds=made)["VolumesModifications"]
    assert {item["VolumeId"] for item in found} == set(made)
    assert driver.refusal(driver.ec2.modify_volume, VolumeId=made[0], Size=9)[0].startswith("InvalidParameter")
    code, text = driver.refusal(driver.ec2.modify_volume, VolumeId=made[0], Iops=2147483647, DryRun=False)
    assert code.startswith("InvalidParameter") and TOO_HIGH.search(text), text
    statuses = driver.ec2.describe_volume_status(VolumeIds=made)["VolumeStatuses"]
    assert {status["VolumeId"] for status in statuses} == set(made)
    assert all(detail["Name"] and detail["Status"] for s in statuses for detail in s["VolumeStatus"]["Details"])


def test_snapshots_are_found_by_their_name_and_restored(driver, disks):
    (volume,) = disks(1).values()
    name = f"snapshot-{uuid4()}"
    tags = [{"ResourceType": "snapshot", "Tags": [{"Key": "CSIVolumeSnapshotName", "Value": name}]}]

    def by_name():
        # What the Go SDK sends when no number is set.
        filters = [{"Name": "tag:CSIVolumeSnapshotName", "Values": [name]}]
        return driver.ec2.describe_snapshots(Filters=filters, MaxResults=0)["Snapshots"]

    assert by_name() == []
    made = driver.ec2.create_snapshot(
        VolumeId=volume, Description=f"Created by AWS EBS CSI driver for volume {volume}", TagSpecifications=tags
    )
    assert made["VolumeSize"] == 1 and made["StartTime"]
    until("taken", lambda: [found["State"] for found in by_name()] == ["completed"])
    (found,) = by_name()
    assert (found["SnapshotId"], found["VolumeId"], found["VolumeSize"]) == (made["SnapshotId"], volume, 1)
    listed = driver.ec2.describe_snapshots(Filters=[{"Name": "volume-id", "Values": [volume]}], MaxResults=5)
    assert [item["SnapshotId"] for item in listed["Snapshots"]] == [made["SnapshotId"]]
    unknown = [f"snap-{number:017x}" for number in range(0xFEDC00000, 0xFEDC00000 + 30)]
    code, text = driver.refusal(driver.ec2.describe_snapshots, SnapshotIds=[made["SnapshotId"], *unknown])
    assert code == "InvalidSnapshot.NotFound" and set(re.findall("snap-[a-z0-9]+", text)) == set(unknown)
    driver.ec2.create_tags(Resources=[made["SnapshotId"]], Tags=[{"Key": "added", "Value": "later"}])
    driver.ec2.delete_tags(Resources=[made["SnapshotId"]], Tags=[{"Key": "added"}])

    restored, size = driver.create_disk(f"pvc-{uuid4()}", size=2, snapshot=made["SnapshotId"])
    assert size == 2
    driver.delete(restored)
    driver.ec2.delete_snapshot(SnapshotId=made["SnapshotId"], DryRun=False)
    assert driver.refusal(driver.ec2.delete_snapshot, SnapshotId=made["SnapshotId"])[0] == "InvalidSnapshot.NotFound"
    code = driver.refusal(driver.create_disk, name=f"pvc-{uuid4()}", snapshot=made["SnapshotId"])[0]
    assert code == "InvalidSnapshot.NotFound"


def test_a_volume_is_cloned(driver, disks):
    (volume,) = disks(1).values()
    name = f"pvc-{uuid4()}"
    tags = [{"ResourceType": "volume", "Tags": [{"Key": PVC, "Value": name}]}]
    asked = {"SourceVolumeId": volume, "ClientToken": hashlib.sha256(name.encode()).hexdigest(), "VolumeType": "gp3"}
    copies = driver.ec2.copy_volumes(**asked, Size=2, TagSpecifications=tags)["Volumes"]
    try:
        assert [copy["Size"] for copy in copies] == [2]
        (again,) = driver.ec2.copy_volumes(**asked, Size=2, TagSpecifications=tags)["Volumes"]
        assert again["VolumeId"] == copies[0]["VolumeId"]
        driver.poll("available", copies[0]["VolumeId"], lambda found: found["State"] == "available")
    finally:
        driver.delete(copies[0]["VolumeId"])


def test_a_thousand_ids_of_a_status_and_of_snapshots_are_one_call_each(driver, disks):
    made = list(disks(4).values())
    unknown = [f"vol-{number:017x}" for number in range(0xFEDC00000, 0xFEDC00000 + 996)]
    code, text = driver.refusal(driver.ec2.describe_volume_status, VolumeIds=made + unknown)
    assert code == "InvalidVolume.NotFound" and set(VOLUME_ID.findall(text)) == set(unknown)
    code, text = driver.refusal(driver.ec2.describe_volumes_modifications, VolumeIds=made + unknown[:496])
    assert code == "InvalidVolume.NotFound" and set(VOLUME_ID.findall(text)) == set(unknown[:496])
    unknown = [f"snap-{number:017x}" for number in range(0xFEDC00000, 0xFEDC00000 + 1000)]
    code, text = driver.refusal(driver.ec2.describe_snapshots, SnapshotIds=unknown)
    assert code == "InvalidSnapshot.NotFound" and set(re.findall("snap-[a-z0-9]+", text)) == set(unknown)


def test_fifty_machines_are_one_call_and_unknown_ones_are_taken_out(driver, vbs):
    unknown = [f"i-{number:017x}" for number in range(0xFEDC00000, 0xFEDC00000 + 48)]
    code, text = driver.refusal(driver.ec2.describe_instances, InstanceIds=[*vbs.instances, *unknown])
    assert code == "InvalidInstanceID.NotFound" and set(re.findall("i-[a-z0-9]+", text)) == set(unknown)
    found = driver.ec2.describe_instances(InstanceIds=list(vbs.instances))["Reservations"]
    assert {machine["InstanceId"] for one in found for machine in one["Instances"]} == set(vbs.instances)


def test_each_quota_has_the_code_that_it_branches_on(vbs):
    number = vbs.operator("account", "create", "csi")
    driver = Driver(Account(vbs.endpoint, *vbs.operator("access-key", "create", "csi").split()))

    def quota(**most):
        vbs.operator("account", "quota", number, *(word for name in most for word in (f"--{name}", str(most[name]))))

    name = f"pvc-{uuid4()}"
    volume, _ = driver.create_disk(name)
    try:
        quota(volumes=1)
        assert driver.refusal(driver.create_disk, name=f"pvc-{uuid4()}")[0] == "VolumeLimitExceeded"
        assert driver.by_name([name]) == {name: volume}, "what it looks for then, since it may have been made before"
        assert driver.create_disk(name)[0] == volume, "a repetition is no second volume"
        quota(volumes="none", iops=100)
        assert driver.refusal(driver.create_disk, name=f"pvc-{uuid4()}", size=4, VolumeType="io1", Iops=101)[0] == "MaxIOPSLimitExceeded"
        quota(iops="none", gib=1)
        assert driver.refusal(driver.modify, volume=volume, Size=2)[0] == "VolumeModificationSizeLimitExceeded"
        quota(gib="none", snapshots=0)
        assert driver.refusal(driver.ec2.create_snapshot, VolumeId=volume)[0] == "SnapshotLimitExceeded"
    finally:
        driver.delete(volume)


def test_what_it_can_do_without_is_refused_by_name(driver):
    snapshot = "snap-0fedcba9876543210"
    for call, parameters in (
        (driver.ec2.lock_snapshot, {"SnapshotId": snapshot, "LockMode": "governance", "LockDuration": 1}),
        (driver.ec2.enable_fast_snapshot_restores, {"AvailabilityZones": [ZONE], "SourceSnapshotIds": [snapshot]}),
    ):
        assert driver.refusal(call, **parameters)[0] == "UnsupportedOperation"
