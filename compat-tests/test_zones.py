"""A snapshot restored in another zone: on a gateway and two volume delegates that are processes of their own, with real files, and
on the simulation."""

import random
import secrets
import tomllib

import pytest

from conftest import Account, boto3_client, wait
from running import Dev, Process, directory, free_port, toml, until

MIB = 1 << 20


class World:
    """A gateway on the Postgres and the tgtd that a killed `vbs dev` has left, and a storage node in each of two zones."""

    def __init__(self, data, env):
        self.data = data
        self.processes = {}
        self.settings = tomllib.loads((data / "vbs.toml").read_text())
        self.key = {"file": str(data / "node.key")}
        (data / "node.key").write_text(secrets.token_hex(32))
        (data / "node.key").chmod(0o600)
        self.zones = ["us-east-1a", "us-east-1b"]
        (node,) = self.settings["volume_node"]
        nodes = []
        for zone in self.zones:
            place = data / f"storage-{zone}"
            link = {"local": node["delegate"]["local"] | {"data_dir": str(place)}}
            url = self.delegate(zone, link)
            nodes.append({"name": zone, "zone": zone, "delegate": {"remote": {"url": url, "key": self.key}}})
        address = f"127.0.0.1:{free_port()}"
        self.settings |= {"zones": self.zones, "volume_node": nodes, "vmm_node": []}
        self.settings["gateway"]["server"]["listen"] = address
        (data / "gateway.toml").write_text(toml(self.settings))
        self.start("gateway", "gateway")
        self.ec2 = boto3_client(Account(f"http://{address}", env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"]))

    def delegate(self, zone, link):
        address = f"127.0.0.1:{free_port()}"
        settings = {"node": zone, "server": {"listen": address}, "key": self.key, "delegate": link}
        (self.data / f"{zone}.toml").write_text(toml(settings))
        self.start(zone, "volume-delegate")
        return f"http://{address}"

    def start(self, name, role):
        # Each start has a log of its own.
        turn = sum(1 for known in self.processes if known.startswith(name))
        process = Process(f"{name}-{turn}", [role, "--config", self.data / f"{name}.toml"], self.data.parent)
        self.processes[process.name] = process
        until(name, lambda: process.says("serving"))
        return process

    def newest(self, zone):
        return [process for name, process in self.processes.items() if name.startswith(zone)][-1]

    def file(self, zone, volume):
        return self.data / f"storage-{zone}" / "volumes" / volume


@pytest.fixture(scope="module")
def world():
    with directory() as place:
        data = place / "data"
        dev = Dev(data, "--instances", "0")
        dev.process.kill()
        made = None
        try:
            made = World(data, dev.env)
            yield made
        finally:
            for process in made.processes.values() if made else ():
                process.kill()
            # Takes over what is left, and ends it.
            with Dev(data):
                pass


@pytest.fixture(scope="module")
def written(world):
    """A snapshot in the first zone, and the bytes that it holds here and there."""
    here = world.zones[0]
    volume = world.ec2.create_volume(AvailabilityZone=here, Size=1)["VolumeId"]
    wait(world.ec2, "volume_available", VolumeIds=[volume])
    words = {at * MIB + 12345: random.Random(at).randbytes(3000) for at in (0, 1, 77, 500, 1023)}
    with world.file(here, volume).open("r+b") as file:
        for at, word in words.items():
            file.seek(at)
            file.write(word)
    snapshot = world.ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    wait(world.ec2, "snapshot_completed", SnapshotIds=[snapshot])
    world.ec2.delete_volume(VolumeId=volume)
    wait(world.ec2, "volume_deleted", VolumeIds=[volume])
    return snapshot, words


def assert_holds(path, words, size):
    assert path.stat().st_size == size
    assert path.stat().st_blocks * 512 < 16 * MIB, "holes were written"
    expected = bytearray(size)
    for at, word in words.items():
        expected[at : at + len(word)] = word
    assert path.read_bytes() == expected


def test_a_volume_of_the_other_zone_has_every_byte_of_the_snapshot(world, written):
    snapshot, words = written
    for zone, more, gib in ((world.zones[1], {}, 1), (world.zones[1], {"Size": 2}, 2), (world.zones[0], {}, 1)):
        made = world.ec2.create_volume(AvailabilityZone=zone, SnapshotId=snapshot, **more)
        assert (made["State"], made["SnapshotId"], made["Size"]) == ("creating", snapshot, gib)
        wait(world.ec2, "volume_available", VolumeIds=[made["VolumeId"]])
        assert_holds(world.file(zone, made["VolumeId"]), words, gib << 30)
        world.ec2.delete_volume(VolumeId=made["VolumeId"])
        wait(world.ec2, "volume_deleted", VolumeIds=[made["VolumeId"]])
    assert list((world.data / f"storage-{world.zones[1]}" / "restores").iterdir()) == []


def test_a_node_that_is_killed_comes_back_and_the_volume_is_made(world, written):
    snapshot, words = written
    here, there = world.zones
    for killed in (here, there):
        world.newest(killed).kill()
        volume = world.ec2.create_volume(AvailabilityZone=there, SnapshotId=snapshot)["VolumeId"]
        (seen,) = world.ec2.describe_volumes(VolumeIds=[volume])["Volumes"]
        assert seen["State"] == "creating"
        world.start(killed, "volume-delegate")
        wait(world.ec2, "volume_available", VolumeIds=[volume])
        assert_holds(world.file(there, volume), words, 1 << 30)
        world.ec2.delete_volume(VolumeId=volume)
        wait(world.ec2, "volume_deleted", VolumeIds=[volume])


def test_no_log_has_the_leave_to_read(world, written):
    for process in world.processes.values():
        assert "X-Amz-" not in process.log.read_text(errors="replace")


def test_the_simulation_restores_in_each_of_its_zones():
    with directory() as place, Dev(place / "data", "--sim", "--instances", "0") as dev:
        ec2 = boto3_client(Account(dev.endpoint, dev.env["AWS_ACCESS_KEY_ID"], dev.env["AWS_SECRET_ACCESS_KEY"]))
        zones = [zone["ZoneName"] for zone in ec2.describe_availability_zones()["AvailabilityZones"]]
        assert len(zones) == 3
        volume = ec2.create_volume(AvailabilityZone=zones[0], Size=1)["VolumeId"]
        wait(ec2, "volume_available", VolumeIds=[volume])
        snapshot = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
        wait(ec2, "snapshot_completed", SnapshotIds=[snapshot])
        made = [ec2.create_volume(AvailabilityZone=zone, SnapshotId=snapshot)["VolumeId"] for zone in zones]
        wait(ec2, "volume_available", VolumeIds=made)
        seen = ec2.describe_volumes(VolumeIds=made)["Volumes"]
        assert sorted(volume["AvailabilityZone"] for volume in seen) == zones
