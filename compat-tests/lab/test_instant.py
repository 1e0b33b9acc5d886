"""A snapshot of a volume that a guest writes to is the volume at one instant."""

import pytest

from cloud import Cloud
from machine import wait_for
from pair import PLACES, numbers, one_instant


# The copy takes its time, so that the guest writes to most of what is not copied yet.
CHAINS = {"thin-lio": {}, "thick-tgt": {"background_mib_s": 100}}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_snapshot_under_numbered_writes_has_all_up_to_one_of_them_and_no_later_one(lab, xen, chain):
    guest = lab.guest("new")
    with Cloud(lab, *chain.split("-"), **CHAINS[chain]) as cloud:
        volume = cloud.create_volume(1)
        cloud.attach(volume, "new")
        guest.count("xvdf")
        # Then what stands in a place that was copied at another instant is a number too many or too few.
        wait_for("the numbers to have come round", lambda: guest.counted("xvdf").last > PLACES, 300, 0.3)
        before = guest.counted("xvdf")
        snapshot = cloud.snapshot(volume)
        after = guest.counted("xvdf")
        wait_for("the guest to go on", lambda: guest.counted("xvdf").last > after.last + 3, 240, 0.3)
        assert guest.counted("xvdf").failed == 0
        guest.stop_counting("xvdf")
        cloud.detach(volume)
        cloud.delete_volume(volume)

        second = cloud.create_volume(snapshot=snapshot)
        cloud.attach(second, "new")
        (link,) = xen.sh("ls /dev/disk/by-path/*iscsi*").split()
        found = numbers(xen, link)
        print(f"{chain}: the guest was at {before.last} before and at {after.last} after, the snapshot is at {max(found)}")
        assert one_instant(found), found
        # One write may have been on its way, and done, before its number was noted.
        assert before.last <= max(found) <= after.last + 1
        cloud.detach(second)
        cloud.delete_volume(second)
        cloud.delete_snapshot(snapshot)
        cloud.assert_nothing_left()
