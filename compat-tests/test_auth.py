"""Who may do what: signatures of every kind, clocks that are wrong, and accounts that never meet."""

import re
import socket
import urllib.request
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

import pytest
from botocore.exceptions import ClientError

from conftest import boto3_client, wait
from raw import FORM, call, presigned, read, request, send, signed
from running import until

DESCRIBE = {"Action": "DescribeVolumes", "Version": "2016-11-15"}
NOT_VALIDATED = ("AuthFailure", "AWS was not able to validate the provided access credentials")


@pytest.fixture
def clock(monkeypatch):
    """Sets the clients' clock: `clock(minutes=-20)`."""

    def shift(**by):
        wrong = datetime.now(timezone.utc).replace(tzinfo=None) + timedelta(**by)
        for module in ("botocore.auth", "botocore.compat"):
            monkeypatch.setattr(f"{module}.get_current_datetime", lambda remove_tzinfo=True: wrong, raising=False)

    return shift


def test_an_unsigned_request_is_told_what_it_lacks(owner):
    for method, target, body in (("GET", "/?Action=DescribeVolumes", b""), ("POST", "/", b"Action=DescribeVolumes")):
        answer = send(owner, request(owner, method, target, {"Content-Type": FORM}, body))
        assert answer.status == 400
        assert answer.error() == ("MissingParameter", "The request must contain the parameter AWSAccessKeyId")


def test_an_unknown_key_and_a_wrong_secret_look_alike(owner):
    for wrong in (replace(owner, key="AKIAIOSFODNN7EXAMPLE"), replace(owner, secret=owner.secret[::-1])):
        answer = call(wrong, Action="DescribeVolumes")
        assert answer.status == 401 and answer.error() == NOT_VALIDATED
        answer = send(wrong, presigned(wrong, DESCRIBE))
        assert answer.status == 401 and answer.error() == NOT_VALIDATED


def test_a_signed_request_that_was_changed_on_the_way_is_refused(owner):
    data = signed(owner, DESCRIBE)
    for old, new in ((b"DescribeVolumes", b"DescribeRegions"), (b"POST / ", b"POST /x "), (b"utf-8", b"utf-9")):
        assert send(owner, data.replace(old, new)).error() == NOT_VALIDATED, old
    assert send(owner, data).status == 200


def test_sts_refuses_in_its_own_words(owner):
    wrong = boto3_client(replace(owner, secret="x" * 40), "sts")
    with pytest.raises(ClientError, match="InvalidClientTokenId|SignatureDoesNotMatch"):
        wrong.get_caller_identity()


@pytest.mark.parametrize("minutes", [-16, 16, -60 * 24 * 400])
def test_a_wrong_clock_is_told_both_times(owner, clock, minutes):
    clock(minutes=minutes)
    answer = call(owner, Action="DescribeVolumes")
    assert (answer.status, answer.code) == (400, "RequestExpired")
    times = [datetime.fromisoformat(t) for t in re.findall(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z", answer.message)]
    assert len(times) == 2, answer.message
    then, now = times
    assert abs((then - now).total_seconds() - minutes * 60) < 60
    assert abs((parsedate_to_datetime(answer.headers["date"]) - now).total_seconds()) < 60


@pytest.mark.parametrize("minutes", [-14, 14])
def test_a_clock_that_is_a_little_wrong_is_good_enough(owner, clock, minutes):
    clock(minutes=minutes)
    assert call(owner, Action="DescribeVolumes").status == 200


def test_a_presigned_request_works_until_it_expires(owner, clock):
    assert send(owner, presigned(owner, DESCRIBE)).status == 200
    clock(minutes=-2)
    assert send(owner, presigned(owner, DESCRIBE, expires=600)).status == 200
    assert send(owner, presigned(owner, DESCRIBE, expires=60)).code == "RequestExpired"


def test_botos_presigned_url_is_good_for_any_http_client(owner, volume):
    made = boto3_client(owner).generate_presigned_url("describe_volumes", {"VolumeIds": [volume]}, 60, "GET")
    with urllib.request.urlopen(made, timeout=30) as answer:
        assert volume.encode() in answer.read()


@pytest.mark.parametrize("path", ["/", "/services/compute/", "/services/Eucalyptus/", "/services/Eucalyptus", "/a/b%20c/"])
def test_any_path_will_do(owner, path):
    assert send(owner, signed(owner, DESCRIBE, path=path)).status == 200


@pytest.mark.parametrize(("service", "region"), [("ec2", "eu-west-1"), ("127", "0"), ("ec2", "undefined-1234")])
def test_any_scope_will_do(owner, service, region):
    assert send(owner, signed(owner, DESCRIBE, service=service, region=region)).status == 200


@pytest.mark.parametrize("version", ["2016-11-15", "2014-10-01", "2009-07-15"])
def test_the_namespace_is_of_the_version_asked_for(owner, version):
    answer = call(owner, Action="DescribeVolumes", Version=version)
    assert f'xmlns="http://ec2.amazonaws.com/doc/{version}/"'.encode() in answer.body
    assert answer.headers["content-type"] == "text/xml;charset=UTF-8"


def test_a_client_that_waits_for_leave_to_send_its_body_gets_it(owner):
    headers = {"Content-Type": FORM, "Expect": "100-continue"}
    data = signed(owner, DESCRIBE, headers=headers)
    head, _, body = data.partition(b"\r\n\r\n")
    with socket.create_connection(owner.address, timeout=10) as line:
        line.sendall(head + b"\r\n\r\n")
        leave = b""
        while not leave.endswith(b"\r\n\r\n"):
            leave += line.recv(1)
        assert leave.startswith(b"HTTP/1.1 100 ")
        line.sendall(body)
        assert read(line).status == 200


def test_a_key_is_refused_as_soon_as_it_is_disabled(vbs, owner):
    key, secret = vbs.operator("access-key", "create", "dev").split()
    second = replace(owner, key=key, secret=secret)
    assert call(second, Action="DescribeRegions").status == 200
    vbs.operator("access-key", "disable", key)
    until("the key to be refused", lambda: call(second, Action="DescribeRegions").status == 401, 5)
    vbs.operator("access-key", "enable", key)
    until("the key to be accepted", lambda: call(second, Action="DescribeRegions").status == 200, 5)
    vbs.operator("access-key", "delete", key)
    until("the key to be refused", lambda: call(second, Action="DescribeRegions").status == 401, 5)


def test_the_secret_is_in_no_log(vbs, owner):
    assert call(owner, Action="DescribeRegions").status == 200
    for log in [vbs.process.log, *vbs.data.rglob("*.log")]:
        assert owner.secret not in log.read_text(errors="replace"), log


def test_accounts_do_not_exist_for_each_other(ec2, strangers_ec2, vbs, volume, snapshot):
    ec2.create_tags(Resources=[volume], Tags=[{"Key": "private", "Value": "yes"}])
    assert strangers_ec2.describe_volumes()["Volumes"] == []
    assert strangers_ec2.describe_snapshots()["Snapshots"] == []
    assert strangers_ec2.describe_tags()["Tags"] == []
    assert strangers_ec2.describe_instances()["Reservations"] == []
    instance = vbs.instances[0]
    tags = [{"Key": "a", "Value": "b"}]
    for action, code, arguments in [
        ("describe_volumes", "InvalidVolume.NotFound", {"VolumeIds": [volume]}),
        ("delete_volume", "InvalidVolume.NotFound", {"VolumeId": volume}),
        ("delete_volume", "InvalidVolume.NotFound", {"VolumeId": volume, "DryRun": True}),
        ("create_snapshot", "InvalidVolume.NotFound", {"VolumeId": volume}),
        ("detach_volume", "InvalidVolume.NotFound", {"VolumeId": volume}),
        ("create_tags", "InvalidVolume.NotFound", {"Resources": [volume], "Tags": tags}),
        ("describe_snapshots", "InvalidSnapshot.NotFound", {"SnapshotIds": [snapshot]}),
        ("delete_snapshot", "InvalidSnapshot.NotFound", {"SnapshotId": snapshot}),
        ("create_volume", "InvalidSnapshot.NotFound", {"AvailabilityZone": "us-east-1a", "SnapshotId": snapshot}),
        ("describe_instances", "InvalidInstanceID.NotFound", {"InstanceIds": [instance]}),
    ]:
        with pytest.raises(ClientError) as caught:
            getattr(strangers_ec2, action)(**arguments)
        assert caught.value.response["Error"]["Code"] == code, action

    theirs = strangers_ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"]
    wait(strangers_ec2, "volume_available", VolumeIds=[theirs])
    with pytest.raises(ClientError, match="InvalidInstanceID.NotFound"):
        strangers_ec2.attach_volume(VolumeId=theirs, InstanceId=instance, Device="/dev/sdf")
    with pytest.raises(ClientError, match="InvalidVolume.NotFound"):
        ec2.attach_volume(VolumeId=theirs, InstanceId=instance, Device="/dev/sdf")
    assert [v["VolumeId"] for v in strangers_ec2.describe_volumes()["Volumes"]] == [theirs]
    assert theirs not in [v["VolumeId"] for v in ec2.describe_volumes()["Volumes"]]
    strangers_ec2.delete_volume(VolumeId=theirs)
    wait(strangers_ec2, "volume_deleted", VolumeIds=[theirs])


def test_two_accounts_may_use_one_token(ec2, strangers_ec2):
    same = {"AvailabilityZone": "us-east-1a", "Size": 1, "ClientToken": "the-same"}
    made = [client.create_volume(**same)["VolumeId"] for client in (ec2, strangers_ec2)]
    assert made[0] != made[1]
    for client, volume in zip((ec2, strangers_ec2), made, strict=True):
        client.delete_volume(VolumeId=volume)
        wait(client, "volume_deleted", VolumeIds=[volume])
