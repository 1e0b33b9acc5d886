"""The walk of the project's first day, through every chain of drivers: the bytes that a guest wrote come back from a snapshot.

On the way: what is new reads as zeros, a volume grows under the guest, a volume group inside it is nobody's but the guest's, and
nothing is left, without help from the sweeper.
"""

import base64
import gzip
import hashlib

import pytest

from cloud import CHAINS, NEVER, Cloud
from machine import wait_for
from pair import mark, marks

GIB = 1 << 30
# MiB of a disk that are read in the guest, with the places in them that may hold what somebody has left.
LOOK = 16
# What `vbs node list` says of the storage node's drivers.
DRIVERS = {"thin-lio": "lvm-thin, lio", "thin-tgt": "lvm-thin, tgt", "thick-tgt": "lvm-thick, tgt", "thick-iet": "lvm-thick, iet"}


@pytest.mark.parametrize("chain", CHAINS)
def test_what_a_guest_wrote_is_in_a_volume_made_of_its_snapshot_and_nothing_is_left(lab, storage, xen, chain):
    guest = lab.guest("new")
    with Cloud(lab, *chain.split("-"), sweep_s=NEVER) as cloud:
        shown = [line.split("\t") for line in cloud.operator("node", "list").splitlines()]
        assert {line[0]: line[3:6] for line in shown} == {
            "storage-1": ["in use", DRIVERS[chain], capacity(storage, chain)],
            "xen-1": ["in use", "xen, open-iscsi", "-"],
        }

        # So large that all the rest of the walk comes to lie on it.
        other = cloud.create_volume(6)
        mark(storage, f"/dev/vbs/{other}")
        assert marks(storage, f"/dev/vbs/{other}") == 6 * GIB >> 22
        cloud.delete_volume(other)

        volume = cloud.create_volume(1)
        assert marks(storage, f"/dev/vbs/{volume}") == 0
        asked = cloud.ask_to_attach(volume, "new", "/dev/sdf")
        assert (asked["State"], asked["Device"]) == ("attaching", "/dev/sdf")
        cloud.wait_for(volume, lambda: cloud.attachment_state(volume), "attached")
        (shown,) = cloud.aws("describe-volumes", "--volume-ids", volume)["Volumes"]
        assert shown["State"] == "in-use"
        (attachment,) = shown["Attachments"]
        assert attachment["Device"] == "/dev/sdf"
        assert attachment["InstanceId"] == cloud.instances["new"]
        wait_for("the guest's disk", lambda: guest.disks() == {"xvdf": GIB}, 60, 0.2)
        assert reads_as_zeros(guest, "xvdf", 0)
        written = guest.fill("xvdf", seed=11, mib=8)

        snapshot = cloud.snapshot(volume)
        cloud.detach(volume)
        assert guest.disks() == {}
        cloud.delete_volume(volume)

        second = cloud.create_volume(snapshot=snapshot)
        cloud.attach(second, "new", "xvdg")
        assert cloud.attachment(second)["Device"] == "xvdg"
        assert guest.disks() == {"xvdg": GIB}
        assert guest.checksum("xvdg", mib=8) == written

        cloud.grow(second, 2)
        if chain.endswith("-lio"):
            wait_for("the guest to see the new size", lambda: guest.disks() == {"xvdg": 2 * GIB}, 60, 0.2)
        else:
            assert guest.disks() == {"xvdg": GIB}
            cloud.detach(second)
            cloud.attach(second, "new", "xvdg")
            assert guest.disks() == {"xvdg": 2 * GIB}
        # Past the old end, and across it.
        assert reads_as_zeros(guest, "xvdg", 1024)
        assert writes_and_reads(guest, "xvdg", 1023)
        assert guest.checksum("xvdg", mib=8) == written

        guest.run(f"echo {volume_group(storage)} | base64 -d | gunzip | dd of=/dev/xvdg conv=notrunc,fsync 2>/dev/null")
        assert active_groups(xen) == []
        assert active_groups(storage) == ["vbs"]

        cloud.detach(second)
        cloud.delete_volume(second)
        cloud.delete_snapshot(snapshot)
        cloud.assert_nothing_left()


def capacity(storage, chain):
    """What LVM has for volumes, as people read it: the group, or ten times the pool, which is what may be promised of it."""
    thin = chain.startswith("thin")
    what = "lvs -o lv_size vbs/pool" if thin else "vgs -o vg_size vbs"
    size = float(storage.sh(f"{what} --noheadings --nosuffix --units b")) * (10 if thin else 1)
    return f"{int(size * 10 / GIB) / 10} GiB"


def reads_as_zeros(guest, device, at):
    """Whether a part of a disk reads as zeros, also after some zeros were written into the middle of it here and there: for each of
    them a thin pool gives out a block that is larger."""
    return guest.run(f"""
        for mib in {' '.join(str(at + place) for place in range(0, LOOK, 4))}; do
            dd if=/dev/zero of=/dev/{device} bs=4k count=1 seek=$((mib * 256 + 1)) conv=notrunc,fsync 2>/dev/null
        done
        echo 3 > /proc/sys/vm/drop_caches
        dd if=/dev/{device} bs=1M count={LOOK} skip={at} 2>/dev/null | md5sum | cut -c1-32
    """, timeout=240).out.strip() == hashlib.md5(bytes(LOOK << 20)).hexdigest()


def writes_and_reads(guest, device, at):
    """Whether two MiB that are written to a disk are read from it."""
    written, read = guest.run(f"""
        seq 1 400000 | head -c 2097152 > /tmp/data
        dd if=/tmp/data of=/dev/{device} bs=1M seek={at} conv=notrunc,fsync 2>/dev/null
        echo 3 > /proc/sys/vm/drop_caches
        md5sum < /tmp/data
        dd if=/dev/{device} bs=1M count=2 skip={at} 2>/dev/null | md5sum
        rm /tmp/data
    """, timeout=240).out.splitlines()
    return written == read


def volume_group(machine):
    """What LVM writes to the start of a disk for a volume group on it, with a volume in it; packed."""
    lvm = """--config 'devices { global_filter = [ "a|.*|" ] }'"""
    machine.sh(f"""
        truncate -s 1G /tmp/inside
        disk=$(losetup -f --show /tmp/inside)
        vgcreate {lvm} inside $disk
        lvcreate {lvm} -an -Zn -Wn -l 4 -n data inside
        losetup -d $disk
    """, timeout=120)
    start = base64.b64decode(machine.sh("head -c 1048576 /tmp/inside | base64; rm /tmp/inside"))
    return base64.b64encode(gzip.compress(start)).decode()


def active_groups(machine):
    """The volume groups of a machine after an operator has activated all that its LVM sees."""
    machine.sh("vgchange -ay", timeout=120)
    return machine.sh("vgs --noheadings -o vg_name").split()
