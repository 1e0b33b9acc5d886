"""A guest gets the operations a second that its volume has, and no more: the kernel of the Xen node holds it to them.

How fast the machines are depends on what else this one does; so a limit that surely holds the guest back is chosen by how fast it
is just then.
"""

from cloud import ZONE, Cloud
from machine import wait_for

FEW, MANY = 100, 2000
# Of each disk that is held to limits.
GROUPS = "/sys/fs/cgroup/vbs/iqn.*"
# Writers at once, so that what one of them waits for is not what is measured; each write goes past the guest's cache.
BEGIN = """
for n in 0 1 2 3 4 5 6 7; do
    setsid dd if=/dev/zero of=/dev/xvdf bs=4k count=1000000 seek=$((n * 100000)) conv=notrunc oflag=direct 2>/dev/null &
    echo $! >> /tmp/writers
done
"""
END = """
for writer in $(cat /tmp/writers); do
    kill $writer
    # Gone, or only its status is left, which nobody asks for.
    while grep -q '^State:[^Z]*$' /proc/$writer/status 2>/dev/null; do usleep 50000; done
done
rm /tmp/writers
"""
# Writes that were done in these seconds, and the seconds.
MEASURE = """
at() { read -r now rest < /proc/uptime; set -- $(cat /sys/block/xvdf/stat); echo "$5 $now"; }
sleep 2; at; sleep 8; at
"""


def rate(guest):
    """Writes a second, some seconds long."""
    began, ended = ([float(word) for word in line.split()] for line in guest.run(MEASURE, timeout=240).out.splitlines())
    return (ended[0] - began[0]) / (ended[1] - began[1])


def test_a_guest_gets_the_iops_of_its_volume_and_others_when_they_are_modified(lab, xen):
    guest = lab.guest("new")
    with Cloud(lab, "thin", "lio", overcommit=100.0) as cloud:
        options = ["--volume-type", "io1", "--iops", FEW, "--size", MANY // 50]
        volume = cloud.aws("create-volume", "--availability-zone", ZONE, *options)["VolumeId"]
        cloud.wait_for(volume, lambda: cloud.volume_state(volume), "available")
        cloud.attach(volume, "new")
        assert limits(xen) == [(FEW, FEW)]
        guest.run(BEGIN)
        # Nobody needs the delegate for it.
        cloud.xen.restart()
        few = rate(guest)
        assert limits(xen) == [(FEW, FEW)]
        assert few <= FEW * 1.1

        cloud.aws("modify-volume", "--volume-id", volume, "--iops", MANY)
        wait_for("the new limit", lambda: limits(xen) == [(MANY, MANY)], 240, 0.3)
        many = rate(guest)
        assert many <= MANY * 1.1

        # The group that vbs has made holds the guest to what stands there.
        least = max(int(many / 4), 2)
        xen.sh(f"cd {GROUPS}; sed 's/riops=.*/riops={least} wiops={least}/' io.max > /tmp/max; cat /tmp/max > io.max")
        held = rate(guest)
        print(f"of {FEW} a second: {few:.0f}; of {MANY}: {many:.0f}; of {least}: {held:.1f}")
        # One that was under way is counted when it is done.
        assert held <= least * 1.1 + 1 < many / 2
        guest.run(END, timeout=240)
        cloud.detach(volume)
        cloud.delete_volume(volume)
        cloud.assert_nothing_left()


def limits(xen):
    """The limits that the kernel has: of each disk, reads and writes a second."""
    lines = xen.sh(f"cat {GROUPS}/io.max").splitlines()
    return [tuple(int(word.partition("=")[2]) for word in line.split()[3:]) for line in lines]
