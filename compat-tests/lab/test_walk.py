"""The walk of the project's first day, through every chain of drivers: the bytes that a guest wrote come back from a snapshot."""

import pytest

from cloud import CHAINS, Cloud
from machine import wait_for


@pytest.mark.parametrize("chain", CHAINS)
def test_what_a_guest_wrote_is_in_a_volume_made_of_its_snapshot_and_nothing_is_left(lab, chain):
    guest = lab.guest("new")
    with Cloud(lab, *chain.split("-")) as cloud:
        volume = cloud.create_volume(1)
        asked = cloud.ask_to_attach(volume, "new", "/dev/sdf")
        assert (asked["State"], asked["Device"]) == ("attaching", "/dev/sdf")
        cloud.wait_for(volume, lambda: cloud.attachment_state(volume), "attached")
        (shown,) = cloud.aws("describe-volumes", "--volume-ids", volume)["Volumes"]
        assert shown["State"] == "in-use"
        (attachment,) = shown["Attachments"]
        assert attachment["Device"] == "/dev/sdf"
        assert attachment["InstanceId"] == cloud.instances["new"]
        wait_for("the guest's disk", lambda: guest.disks() == {"xvdf": 1 << 30}, 60, 0.2)
        written = guest.fill("xvdf", seed=11, mib=8)

        snapshot = cloud.snapshot(volume)
        cloud.detach(volume)
        assert guest.disks() == {}
        cloud.delete_volume(volume)

        second = cloud.create_volume(snapshot=snapshot)
        cloud.attach(second, "new", "xvdg")
        assert cloud.attachment(second)["Device"] == "xvdg"
        assert guest.disks() == {"xvdg": 1 << 30}
        assert guest.checksum("xvdg", mib=8) == written

        cloud.detach(second)
        cloud.delete_volume(second)
        cloud.delete_snapshot(snapshot)
        cloud.assert_nothing_left()
