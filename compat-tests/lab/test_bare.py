"""The lab without vbs: when one of these fails, no other test of the lab says anything about vbs."""

import pytest

import bare
from machine import CommandFailed, wait_for
from pair import numbers, one_instant

CASES = {
    "thin-lio-new": (bare.make_thin, bare.export_by_lio, bare.unexport_by_lio, "new"),
    "thick-tgt-old": (bare.make_thick, bare.export_by_tgt, bare.unexport_by_tgt, "old"),
}


@pytest.mark.parametrize("make, export, unexport, guest", CASES.values(), ids=CASES)
def test_a_guests_bytes_reach_the_logical_volume_and_nothing_is_left(lab, storage, xen, make, export, unexport, guest):
    inside = lab.guest(guest)
    make(storage, "bare", "96M")
    made = export(storage, "bare")
    bare.login(xen, made)
    bare.attach(xen, guest, made, "xvdf")
    assert inside.disks() == {"xvdf": 96 << 20}

    written = inside.fill("xvdf", seed=7, mib=8)
    assert inside.checksum("xvdf", mib=8) == written
    read = storage.sh("dd if=/dev/vbs/bare bs=1M count=8 iflag=direct status=none | md5sum | cut -c1-32")
    assert read.strip() == written

    bare.detach(xen, guest, "xvdf")
    assert inside.disks() == {}
    bare.logout(xen, made)
    unexport(storage, made)
    storage.run("lvremove", "-y", "vbs/bare")
    assert "iqn" not in storage.sh("ls /sys/kernel/config/target/iscsi; tgtadm --lld iscsi --mode target --op show")
    assert "iqn" not in xen.sh("ls /dev/disk/by-path")
    assert xen.run("iscsiadm", "-m", "session", check=False).status == 21


@pytest.fixture
def attached(lab, storage, xen):
    """A function that gives a guest a disk of 96 MiB, by LIO."""
    given = []

    def attach(guest):
        bare.make_thin(storage, f"bare-{guest}", "96M")
        made = bare.export_by_lio(storage, f"bare-{guest}")
        bare.login(xen, made)
        bare.attach(xen, guest, made, "xvdf")
        given.append(made)
        return lab.guest(guest)

    yield attach
    for made in given:
        bare.logout(xen, made)
        bare.unexport_by_lio(storage, made)
        storage.run("lvremove", "-y", f"vbs/{made.name}")


def test_the_old_guest_keeps_a_disk_that_it_holds_and_the_new_one_does_not(attached, xen):
    old, new = attached("old"), attached("new")
    for guest in (old, new):
        guest.mount("xvdf")

    bare.detach(xen, "new", "xvdf")
    assert new.disks() == {}
    new.unmount("xvdf")

    with pytest.raises(CommandFailed):
        bare.detach(xen, "old", "xvdf")
    assert list(old.disks()) == ["xvdf"]
    old.unmount("xvdf")
    wait_for("the guest to let go", lambda: xen.run("xl", "block-detach", "old", "xvdf", check=False).status == 0, 30)
    wait_for("the disk to go", lambda: old.disks() == {}, 30)


def test_numbers_that_a_guest_counts_onto_a_disk_are_there_after_a_power_cut(lab, storage, xen):
    bare.make_thin(storage, "counted", "96M")
    made = bare.export_by_lio(storage, "counted")
    bare.login(xen, made)
    bare.attach(xen, "new", made, "xvdf")
    guest = lab.guest("new")
    guest.count("xvdf")
    wait_for("some numbers", lambda: guest.counted("xvdf").last > 20, 120, 0.2)
    known = guest.counted("xvdf")
    assert known.failed == 0

    storage.power_cut()
    storage.power_on()
    storage.wait_until_up()
    on_disk = numbers(storage, "/dev/vbs/counted")
    assert max(on_disk) >= known.last
    assert one_instant(on_disk)
