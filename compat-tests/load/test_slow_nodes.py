"""Storage nodes that are slow or dead: the API does not feel it, and neither do the other nodes' volumes."""

import time

import boto3
from botocore.config import Config

import crowd
import wires
from gateways import Site
from running import free_port, until

SLOW = 10
# More than a gateway works on at once of any one node.
WAITING = 100
CLIENTS = 16
SECONDS = 4
# What else runs on the machine only ever makes it slower: the best of so many turns counts.
TURNS = 4
# Times as slow as idle, and what a busy machine adds to either.
FACTOR = 2
NOISE_MS = 5
# How long a volume of a node that is well may take, on a busy machine.
AT_ONCE = 15


def test_slow_and_dead_nodes_slow_neither_the_api_nor_other_nodes(table):
    with Site("abcd") as site:
        near = site.storage_node("near")
        far = site.storage_node("far")
        with wires.slow(far, SLOW) as slow, wires.silent() as silent:
            site.knows("near", "a", near)
            site.knows("far", "b", slow)
            site.knows("silent", "c", silent)
            site.knows("gone", "d", f"127.0.0.1:{free_port()}")
            gateway = site.gateway("gateway")
            account = site.account(gateway.address)
            ec2 = client(account)
            idle = best(account)
            waiting = {zone: [create(ec2, zone) for _ in range(WAITING)] for zone in "bcd"}
            until("the workers to be busy", lambda: busy(site) >= WAITING, 120)
            took = [until_available(ec2, create(ec2, "a")) for _ in range(5)]
            loaded = best(account)
            took += [until_available(ec2, create(ec2, "a")) for _ in range(5)]
            still = busy(site)
            table(
                f"{3 * WAITING} volumes wait for nodes that are slow, silent and gone",
                [["DescribeVolumes, p99", "idle", "then", "a volume elsewhere"]]
                + [["", f"{idle:.1f} ms", f"{loaded:.1f} ms", f"{1e3 * max(took):.0f} ms"]],
            )
            assert still >= WAITING, "the workers were not busy all the time"
            assert loaded <= FACTOR * idle + NOISE_MS, (idle, loaded)
            assert max(took) < AT_ONCE, took
            # The slow node does all of it in the end.
            until("the slow node", lambda: not creating(ec2, waiting["b"]), 180)


def client(account):
    return boto3.Session().client(
        "ec2",
        endpoint_url=account.endpoint,
        region_name="us-east-1",
        aws_access_key_id=account.key,
        aws_secret_access_key=account.secret,
        config=Config(retries={"total_max_attempts": 1}),
    )


def best(account):
    """The p99 of describing one volume, in milliseconds: that of the best turn."""
    turns = [crowd.seen(crowd.start(account, "describe", CLIENTS, SECONDS), 120) for _ in range(TURNS)]
    for seen in turns:
        assert set(seen["answers"]) == {"200"}, seen
    return min(seen["p99_ms"] for seen in turns)


def create(ec2, zone):
    return ec2.create_volume(AvailabilityZone=f"us-east-1{zone}", Size=1)["VolumeId"]


def creating(ec2, volumes):
    found = ec2.describe_volumes(VolumeIds=volumes)["Volumes"]
    return [volume["VolumeId"] for volume in found if volume["State"] == "creating"]


def until_available(ec2, volume):
    """The seconds that it took."""
    begun = time.monotonic()
    until(f"{volume} available", lambda: not creating(ec2, [volume]), 120)
    return time.monotonic() - begun


def busy(site):
    """Workflows that are not over."""
    return len(site.operator("workflow", "list").splitlines())
