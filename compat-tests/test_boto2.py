"""boto 2.49, the last of its line: the actions of the main job, by SigV4 as it signs today and by SigV2 as it did before."""

import time
from dataclasses import replace

import pytest
from boto.exception import EC2ResponseError

from conftest import boto2_connection, remove_volume
from running import until

SIGV2 = "sign-v2"


@pytest.fixture(scope="module", params=["sigv4", "sigv2"])
def conn(request, owner):
    return boto2_connection(owner, auth=SIGV2 if request.param == "sigv2" else None)


@pytest.fixture
def volume(conn, ec2):
    made = conn.create_volume(1, "us-east-1a")
    assert made.status == "creating"
    reaches(made, "available")
    yield made
    remove_volume(ec2, made.id)


def reaches(resource, status):
    until(f"{resource.id} to be {status}", lambda: resource.update(validate=True) == status)


def refusal(call, *arguments, **named):
    with pytest.raises(EC2ResponseError) as caught:
        call(*arguments, **named)
    assert caught.value.request_id
    return caught.value.status, caught.value.error_code


def test_a_volume_lives_and_dies(conn, vbs, volume):
    assert (volume.size, volume.zone, volume.type, volume.iops) == (1, "us-east-1a", "gp2", 100)
    assert volume.encrypted is False and volume.snapshot_id in ("", None)
    (found,) = conn.get_all_volumes([volume.id])
    assert found.id == volume.id and found.create_time.endswith("Z")

    instance = vbs.instances[0]
    assert volume.attach(instance, "/dev/sdf")
    reaches(volume, "in-use")
    until("attached", lambda: volume.update() and volume.attachment_state() == "attached")
    assert (volume.attach_data.instance_id, volume.attach_data.device) == (instance, "/dev/sdf")
    (machine,) = conn.get_only_instances([instance])
    assert machine.state == "running" and machine.placement == "us-east-1a"
    assert machine.block_device_mapping["/dev/sdf"].volume_id == volume.id
    assert refusal(volume.delete) == (400, "VolumeInUse")
    assert volume.detach()
    reaches(volume, "available")

    assert volume.delete()
    until("gone", lambda: not conn.get_all_volumes(filters={"volume-id": volume.id}))
    assert refusal(conn.get_all_volumes, [volume.id]) == (400, "InvalidVolume.NotFound")


def test_a_snapshot_lives_and_dies(conn, ec2, volume):
    volume.add_tag("Name", "original")
    snapshot = volume.create_snapshot("by boto 2")
    assert snapshot.status == "pending" and snapshot.volume_id == volume.id
    until("completed", lambda: snapshot.update() == "100%")
    assert snapshot.status == "completed" and snapshot.volume_size == 1
    (found,) = conn.get_all_snapshots(owner="self", filters={"volume-id": volume.id})
    assert (found.id, found.description) == (snapshot.id, "by boto 2")
    assert found.tags == {"Name": "original"}, "boto 2 copies the name from the volume"

    copy = snapshot.create_volume("us-east-1a")
    reaches(copy, "available")
    assert copy.snapshot_id == snapshot.id
    remove_volume(ec2, copy.id)
    assert snapshot.delete()
    assert refusal(conn.get_all_snapshots, [snapshot.id]) == (400, "InvalidSnapshot.NotFound")


def test_tags_and_filters(conn, volume):
    tags = {"Name": "a name", "empty": "", "odd": "<&>+% ä"}
    assert conn.create_tags([volume.id], tags)
    assert {t.name: t.value or "" for t in conn.get_all_tags({"resource-id": volume.id})} == tags
    for filters in ({"tag:Name": "a n*"}, {"tag-key": ["empt?", "none"], "status": "available"}):
        assert volume.id in [v.id for v in conn.get_all_volumes(filters=filters)]
    assert conn.delete_tags([volume.id], ["empty", "odd"])
    assert conn.get_all_volumes([volume.id])[0].tags == {"Name": "a name"}


def test_status_and_attributes(conn, volume):
    (status,) = conn.get_all_volume_status([volume.id])
    assert (status.id, status.zone, status.volume_status.status) == (volume.id, "us-east-1a", "ok")
    assert not status.events and not status.actions
    assert conn.enable_volume_io(volume.id)
    for wanted in (True, False):
        assert conn.modify_volume_attribute(volume.id, "AutoEnableIO", str(wanted).lower())
        assert conn.get_volume_attribute(volume.id).attrs == {"autoEnableIO": wanted}


def test_zones_and_regions(conn):
    assert [(z.name, z.state) for z in conn.get_all_zones()] == [(f"us-east-1{z}", "available") for z in "abc"]
    assert [r.name for r in conn.get_all_regions()] == ["us-east-1"]


def test_a_dry_run_is_answered_as_such(conn, volume):
    assert refusal(conn.delete_volume, volume.id, dry_run=True) == (412, "DryRunOperation")
    assert volume.update(validate=True) == "available"


def test_refusals_have_ec2s_codes_and_are_not_tried_again(conn):
    started = time.monotonic()
    assert refusal(conn.create_volume, 1, "nowhere") == (400, "InvalidZone.NotFound")
    assert refusal(conn.get_all_volumes, ["vol-0fedcba9876543210"]) == (400, "InvalidVolume.NotFound")
    assert refusal(conn.get_all_volumes, filters={"colour": "red"}) == (400, "InvalidParameterValue")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("auth", [None, SIGV2])
@pytest.mark.parametrize("path", ["/services/compute/", "/services/Eucalyptus", "/services/Eucalyptus/"])
def test_the_paths_of_other_clouds_work(owner, path, auth):
    assert boto2_connection(owner, path, auth).get_all_regions()[0].name == "us-east-1"


@pytest.mark.parametrize("auth", [None, SIGV2])
def test_a_wrong_secret_is_refused(owner, auth):
    wrong = boto2_connection(replace(owner, secret="x" * 40), auth=auth)
    assert refusal(wrong.get_all_volumes) == (401, "AuthFailure")
