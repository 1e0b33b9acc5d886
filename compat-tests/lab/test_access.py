"""Who may log in to an attached volume: the one initiator that the attachment names, with its secret, and nobody else."""

import os

import pytest

import bare
from cloud import Cloud

STRANGER = "iqn.2026-01.lab.vbs:stranger"
# Of each target: the layout of volumes, and where it is.
TARGETS = {"lio": ("thin", bare.LIO), "tgt": ("thin", bare.TGT)}
if os.environ.get("VBS_LAB_IET"):
    TARGETS["iet"] = ("thick", "192.168.77.4:3260")
# Of iscsiadm(8): the log-in failed for good, as when there is no such target for this initiator; it was not authorized. Trouble on
# the way has others.
REFUSED = (19, 24)


def login(machine, iqn, portal, user, secret):
    """Tries to log in as the machine's own initiator; the exit status. Nothing of a failed try stays."""
    node = f"iscsiadm -m node -T {iqn} -p {portal}"
    machine.sh(f"""
        {node} -o new
        {node} -o update -n node.startup -v manual
        {node} -o update -n node.session.auth.authmethod -v CHAP
        {node} -o update -n node.session.auth.username -v {user}
        {node} -o update -n node.session.auth.password -v {secret}
    """, timeout=bare.SLOW)
    done = machine.run(*f"{node} --login".split(), check=False, timeout=bare.SLOW)
    machine.run(*f"{node} --logout".split(), check=False, timeout=bare.SLOW)
    machine.run(*f"{node} -o delete".split(), timeout=bare.SLOW)
    return done.status


@pytest.fixture
def other(storage):
    """A second initiator, on the other machine: a function that gives it a name."""

    def call_it(name):
        storage.sh(f"""
            modprobe iscsi_tcp
            echo InitiatorName={name} > /etc/iscsi/initiatorname.iscsi
            kill $(pidof iscsid) || true
            while pidof iscsid; do sleep 0.1; done
            mkdir -p /run/lock/iscsi
            iscsid
        """)
        return storage

    yield call_it
    storage.sh("kill $(pidof iscsid) || true")


@pytest.mark.parametrize("target", TARGETS)
def test_another_initiator_and_another_secret_are_refused_while_the_guest_goes_on(lab, xen, other, target):
    guest, (layout, portal) = lab.guest("new"), TARGETS[target]
    with Cloud(lab, layout, target) as cloud:
        volume = cloud.create_volume(1)
        cloud.attach(volume, "new")
        record = xen.sh("cat $(find /etc/iscsi/nodes -type f)")
        fields = dict(line.split(" = ", 1) for line in record.splitlines() if " = " in line)
        iqn = fields["node.name"]
        user, secret = (fields[f"node.session.auth.{what}"] for what in ("username", "password"))
        mine = xen.sh("cat /etc/iscsi/initiatorname.iscsi").split("=", 1)[1].strip()

        guest.count("xvdf")
        found = {"another name": login(other(STRANGER), iqn, portal, user, secret)}
        machine = other(mine)
        found["another secret"] = login(machine, iqn, portal, user, "not-the-secret-12")
        found["another user"] = login(machine, iqn, portal, "somebody", secret)
        assert all(status in REFUSED for status in found.values()), found
        print(f"{target}: {found}")
        before = guest.counted("xvdf")
        guest.stop_counting("xvdf")
        assert before.failed == 0 and before.last > 0
        cloud.detach(volume)
        cloud.delete_volume(volume)
        cloud.assert_nothing_left()
