"""The manual way of 2009 with today's commands: what an operator types to bring a logical volume into a guest.

The tests use it to show that the lab itself works, and to know how long the commands take without vbs.
"""

from dataclasses import dataclass

INITIATOR = "iqn.2026-01.lab.vbs:xen"
LIO = "192.168.77.1:3260"
TGT = "192.168.77.3:3260"
# Seconds; a machine that shares its processors with others' work needs many times what it needs alone.
SLOW = 180
TARGETS = "/sys/kernel/config/target"


@dataclass(frozen=True)
class Export:
    """Where a volume is served, to one initiator by one secret."""

    name: str
    portal: str
    lun: int
    user: str = "bare"
    secret: str = "bare-secret-12"

    @property
    def iqn(self):
        return f"iqn.2026-01.lab.vbs:{self.name}"

    @property
    def device(self):
        return f"/dev/disk/by-path/ip-{self.portal}-iscsi-{self.iqn}-lun-{self.lun}"


def make_thin(storage, name, size):
    storage.run("lvcreate", "-y", "-V", size, "--thinpool", "vbs/pool", "-n", name)


def make_thick(storage, name, size):
    storage.run("lvcreate", "-y", "-W", "y", "-Z", "y", "-L", size, "-n", name, "vbs")


def export_by_lio(storage, name):
    """Backstore, target, LUN, access rule, in LIO's configfs. A line's end would become part of a user's name."""
    made = Export(name, LIO, 0)
    storage.sh(f"""
        backstore={TARGETS}/core/fileio_0/{name}
        target={TARGETS}/iscsi/{made.iqn}/tpgt_1
        mkdir -p $backstore
        echo fd_dev_name=/dev/vbs/{name} > $backstore/control
        echo {name} > $backstore/wwn/vpd_unit_serial
        echo 1 > $backstore/enable
        mkdir -p $target/np/{LIO} $target/lun/lun_0 $target/acls/{INITIATOR}/lun_0
        ln -s $backstore $target/lun/lun_0/{name}
        ln -s $target/lun/lun_0 $target/acls/{INITIATOR}/lun_0/lun
        printf %s {made.user} > $target/acls/{INITIATOR}/auth/userid
        printf %s {made.secret} > $target/acls/{INITIATOR}/auth/password
        echo 1 > $target/attrib/authentication
        echo 1 > $target/enable
    """)
    return made


def unexport_by_lio(storage, made):
    storage.sh(f"""
        backstore={TARGETS}/core/fileio_0/{made.name}
        target={TARGETS}/iscsi/{made.iqn}/tpgt_1
        echo 0 > $target/enable
        rm $target/acls/{INITIATOR}/lun_0/lun
        rmdir $target/acls/{INITIATOR}/lun_0 $target/acls/{INITIATOR}
        rm $target/lun/lun_0/{made.name}
        rmdir $target/lun/lun_0 $target/np/{LIO} $target ${{target%/*}} $backstore
    """)


def export_by_tgt(storage, name, tid=1):
    made = Export(name, TGT, 1)
    tgtadm = "tgtadm --lld iscsi"
    storage.sh(f"""
        {tgtadm} --mode target --op new --tid {tid} --targetname {made.iqn}
        {tgtadm} --mode logicalunit --op new --tid {tid} --lun 1 --backing-store /dev/vbs/{name}
        {tgtadm} --mode logicalunit --op update --tid {tid} --lun 1 --params scsi_sn={name}
        {tgtadm} --mode account --op new --user {made.user} --password {made.secret}
        {tgtadm} --mode account --op bind --tid {tid} --user {made.user}
        {tgtadm} --mode target --op bind --tid {tid} -Q {INITIATOR}
    """)
    return made


def unexport_by_tgt(storage, made, tid=1):
    storage.sh(f"""
        tgtadm --lld iscsi --mode target --op delete --tid {tid}
        tgtadm --lld iscsi --mode account --op delete --user {made.user}
    """)


def login(xen, made):
    """A node record of its own for the target, by hand and not by discovery, then a session."""
    node = f"iscsiadm -m node -T {made.iqn} -p {made.portal}"
    xen.sh(f"""
        {node} -o new
        {node} -o update -n node.startup -v manual
        {node} -o update -n node.session.auth.authmethod -v CHAP
        {node} -o update -n node.session.auth.username -v {made.user}
        {node} -o update -n node.session.auth.password -v {made.secret}
        {node} --login
        udevadm settle
        test -b {made.device}
    """, timeout=SLOW)


def logout(xen, made):
    node = f"iscsiadm -m node -T {made.iqn} -p {made.portal}"
    xen.sh(f"{node} --logout; {node} -o delete", timeout=SLOW)


def attach(xen, guest, made, device):
    xen.run("xl", "block-attach", guest, f"phy:{made.device}", device, "w", timeout=SLOW)


def detach(xen, guest, device):
    xen.run("xl", "block-detach", guest, device, timeout=SLOW)
