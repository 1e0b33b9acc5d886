"""A disk that the guest has mounted: a kernel that refuses to give it back keeps it, one that does not loses nothing it had synced."""

import time

import pytest

from cloud import Cloud
from machine import wait_for
from pair import numbers

# MiB at the start of a disk that was counted on.
FILLED = 4
FILE = "seq 1 50000 > /mnt/{0}/kept && sync && md5sum < /mnt/{0}/kept"


@pytest.fixture(scope="module")
def cloud(lab):
    with Cloud(lab, "thin", "lio") as made:
        yield made


def test_a_guest_that_refuses_keeps_its_disk_and_the_detach_ends_when_it_lets_go(lab, cloud, xen):
    guest = lab.guest("old")
    volume = cloud.create_volume(1)
    cloud.attach(volume, "old", "/dev/sdf")
    guest.mount("xvdf")

    assert cloud.aws("detach-volume", "--volume-id", volume)["State"] == "detaching"
    cloud.wait_for(volume, lambda: cloud.attachment_state(volume), "busy")
    # It was asked more than once by now, and nothing was taken from under the guest.
    guest.run("for n in 1 2 3; do echo $n > /mnt/xvdf/$n; sync; done; dmesg | grep -c 'I/O error' | grep -qx 0")
    assert guest.disks() == {"xvdf": 1 << 30}
    assert len(xen.run("iscsiadm", "-m", "session").out.splitlines()) == 1
    assert cloud.attachment_state(volume) == "busy"

    guest.unmount("xvdf")
    cloud.wait_for(volume, lambda: cloud.volume_state(volume), "available")
    assert guest.disks() == {}
    cloud.delete_volume(volume)
    cloud.assert_nothing_left()


def test_what_a_guest_had_synced_is_there_when_its_mounted_disk_is_taken(lab, cloud):
    new, old = lab.guest("new"), lab.guest("old")
    volume = cloud.create_volume(1)
    cloud.attach(volume, "new", "/dev/sdf")
    new.mount("xvdf")
    written = new.run(FILE.format("xvdf")).out
    cloud.detach(volume)
    assert new.disks() == {}
    new.unmount("xvdf")

    cloud.attach(volume, "old", "/dev/sdg")
    old.mount("xvdg")
    assert old.run("md5sum < /mnt/xvdg/kept").out == written
    old.unmount("xvdg")
    cloud.detach(volume)
    cloud.delete_volume(volume)
    cloud.assert_nothing_left()


def test_force_takes_the_disk_at_once_from_a_guest_that_refuses_and_no_later_write_of_it_arrives(lab, cloud, storage):
    """Last in this file: the guest keeps a dead disk."""
    new, old = lab.guest("new"), lab.guest("old")
    volume = cloud.create_volume(1)
    device = f"/dev/vbs/{volume}"
    cloud.attach(volume, "old", "/dev/sdh")
    old.count("xvdh")
    wait_for("some numbers", lambda: old.counted("xvdh").last > 3, 240, 0.2)
    cloud.aws("detach-volume", "--volume-id", volume)
    cloud.wait_for(volume, lambda: cloud.attachment_state(volume), "busy")

    began = time.monotonic()
    cloud.detach(volume, force=True)
    forced = time.monotonic() - began
    found = numbers(storage, device)
    known = old.counted("xvdh").last
    assert known <= max(found) <= known + 1

    # What the other guest still had to write, or writes now, comes neither before this one writes nor after: it waits on a dead
    # disk.
    cloud.attach(volume, "new", "/dev/sdh")
    assert numbers(storage, device) == found
    written = new.fill("xvdh", seed=5, mib=FILLED)
    assert new.checksum("xvdh", mib=FILLED) == written
    assert numbers(storage, device, first=FILLED) == found[FILLED:]
    assert old.counted("xvdh").last == known
    began = time.monotonic()
    cloud.detach(volume)
    given = time.monotonic() - began
    print(f"forced after {forced:.1f} s, given back after {given:.1f} s")
    # Not after a time in which the guest might have thought better of it.
    assert forced < 2 * given + 10
    cloud.delete_volume(volume)
    cloud.assert_nothing_left("disks of old")
