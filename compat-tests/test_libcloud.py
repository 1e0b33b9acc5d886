"""libcloud's EC2 driver: SigV2 over GET as it does by itself, and SigV4."""

import pytest
from libcloud.common.exceptions import BaseHTTPError
from libcloud.compute.providers import get_driver
from libcloud.compute.types import NodeState, Provider, StorageVolumeState, VolumeSnapshotState

from conftest import LEDGER, remove_volume
from running import until
from tap import tap


@pytest.fixture(params=["2", "4"])
def driver(request, owner):
    with tap(owner, lambda action: LEDGER.sent("apache-libcloud", action)) as through:
        host, port = through.address
        make = get_driver(Provider.EC2)
        yield make(
            owner.key, owner.secret, secure=False, host=host, port=port, region="us-east-1",
            signature_version=request.param,
        )  # fmt: skip


def machine(driver, vbs):
    """The first instance."""
    (found,) = driver.list_nodes(ex_node_ids=[vbs.instances[0]])
    return found


def test_machines_are_listed_though_they_have_no_addresses(driver, vbs):
    found = driver.list_nodes()
    assert {node.id for node in found} == set(vbs.instances)
    for node in found:
        assert (node.state, node.public_ips, node.extra["status"]) == (NodeState.RUNNING, [], "running")
    assert driver.ex_describe_all_addresses() == [] and driver.ex_describe_addresses_for_node(found[0]) == []


def test_volumes_and_snapshots_live_and_go(driver, ec2, vbs):
    locations = driver.list_locations()
    assert [location.availability_zone.name for location in locations] == ["us-east-1a", "us-east-1b", "us-east-1c"]
    node = machine(driver, vbs)
    volume = driver.create_volume(10, "by libcloud", location=locations[0], ex_volume_type="gp3", ex_iops=3100)
    try:
        assert volume.extra["tags"]["Name"] == "by libcloud" and volume.extra["iops"] == 3100

        def seen():
            (found,) = driver.list_volumes(ex_filters={"volume-id": volume.id})
            return found

        until("available", lambda: seen().state == StorageVolumeState.AVAILABLE)
        assert (seen().name, seen().size, seen().extra["volume_type"]) == ("by libcloud", 10, "gp3")
        assert driver.attach_volume(node, volume, "/dev/sdj")
        until("attached", lambda: seen().state == StorageVolumeState.INUSE)
        assert volume.id in [found.id for found in driver.list_volumes(node)]
        assert (seen().extra["instance_id"], seen().extra["device"]) == (node.id, "/dev/sdj")

        snapshot = driver.create_volume_snapshot(volume, "a snapshot", {"kept": "yes"})
        until("taken", lambda: driver.list_snapshots(snapshot)[0].state == VolumeSnapshotState.AVAILABLE)
        assert [found.id for found in driver.list_volume_snapshots(volume)] == [snapshot.id]
        assert driver.list_snapshots(snapshot)[0].extra["tags"] == {"Name": "a snapshot", "kept": "yes"}

        assert driver.ex_create_tags(volume, {"colour": "blue & green"})
        assert driver.ex_describe_tags(volume) == {"Name": "by libcloud", "colour": "blue & green"}
        assert driver.ex_delete_tags(volume, {"colour": "blue & green"})
        assert driver.ex_describe_tags(volume) == {"Name": "by libcloud"}

        assert driver.detach_volume(volume)
        until("available", lambda: seen().state == StorageVolumeState.AVAILABLE)
        copy = driver.create_volume(11, "a copy", location=locations[0], snapshot=snapshot)
        until("a copy", lambda: driver.list_volumes(ex_filters={"volume-id": copy.id, "status": "available"}))
        assert driver.destroy_volume_snapshot(snapshot) and driver.destroy_volume(copy)
        until("gone", lambda: not driver.list_volumes(ex_filters={"volume-id": copy.id}))
        assert driver.destroy_volume(volume)
        until("gone", lambda: not driver.list_volumes(ex_filters={"volume-id": volume.id}))
    finally:
        remove_volume(ec2, volume.id)


def test_a_volume_grows_and_its_snapshot_is_shared(driver, volume, snapshot):
    (found,) = driver.list_volumes(ex_filters={"volume-id": volume})
    begun = driver.ex_modify_volume(found, {"Size": 5, "VolumeType": "gp3"})
    assert (begun.volume_id, begun.original_size, begun.target_size) == (volume, 1, 5)

    def modification():
        (item,) = driver.ex_describe_volumes_modifications(volume_ids=[volume])
        return item

    until("grown", lambda: modification().modification_state == "completed")
    (grown,) = driver.list_volumes(ex_filters={"volume-id": volume})
    assert grown.size == 5 and grown.extra["volume_type"] == "gp3"
    (taken,) = [item for item in driver.list_snapshots(owner="self") if item.id == snapshot]
    assert driver.ex_modify_snapshot_attribute(taken, {"CreateVolumePermission.Add.1.UserId": "123456789012"})
    assert driver.ex_modify_snapshot_attribute(taken, {"CreateVolumePermission.Remove.1.UserId": "123456789012"})


def test_what_is_not_there_is_refused(driver, vbs, volume):
    (found,) = driver.list_volumes(ex_filters={"volume-id": volume})
    found.id = "vol-0fedcba9876543210"
    with pytest.raises(BaseHTTPError, match="InvalidVolume.NotFound: The volume 'vol-0fedcba9876543210' does not exist."):
        driver.destroy_volume(found)
    found.id = volume
    with pytest.raises(BaseHTTPError, match="IncorrectState"):
        driver.detach_volume(found)
    with pytest.raises(BaseHTTPError, match="InvalidParameterValue"):
        driver.attach_volume(machine(driver, vbs), found, "/dev/nonsense")
    with pytest.raises(BaseHTTPError, match="UnsupportedOperation: The action AllocateAddress is not supported here."):
        driver.ex_allocate_address()
