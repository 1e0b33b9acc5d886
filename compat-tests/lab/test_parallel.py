"""Two volumes come and go at two guests at the same time, again and again: each guest gets the disk that was meant for it."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

from cloud import Cloud

ROUNDS = int(os.environ.get("VBS_LAB_ROUNDS", "10"))
GUESTS = ("new", "old")
DEVICES = ("sdf", "sdg")


def test_volumes_that_come_and_go_at_once_are_never_mistaken_for_one_another(lab):
    with Cloud(lab, "thin", "lio") as cloud:
        volumes = [cloud.create_volume(1) for _ in DEVICES]

        def rounds(number):
            """At its own pace, so that what is done for the one meets what is done for the other in ever new ways."""
            volume, device, written = volumes[number], DEVICES[number].replace("sd", "xvd"), None
            for turn in range(ROUNDS):
                name = GUESTS[(number + turn) % 2]
                guest = lab.guest(name)
                cloud.attach(volume, name, DEVICES[number])
                if written is None:
                    written = guest.fill(device, seed=number, mib=1)
                assert guest.checksum(device, mib=1) == written, f"round {turn}: {name} has another disk as {device}"
                cloud.detach(volume)
                assert device not in guest.disks(), f"round {turn}: {name} has kept {device}"
            return written

        began = time.monotonic()
        with ThreadPoolExecutor(2) as both:
            first, second = both.map(rounds, range(2))
        print(f"{ROUNDS} rounds of two volumes: {time.monotonic() - began:.0f} s")
        assert first != second

        for volume in volumes:
            cloud.delete_volume(volume)
        cloud.assert_nothing_left()
