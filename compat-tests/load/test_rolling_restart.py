"""Three gateways behind a balancer are restarted one after another while SDKs work and a thousand others with them: nothing is lost,
and nobody sees an error.
"""

import signal
import threading
import time

import boto3

import crowd
import wires
from gateways import Site
from running import until

CLIENTS = 16
# Who sends again what SDKs do, as often as boto3 does, and for longer than the restarts take.
OTHERS, ATTEMPTS, SECONDS = 1000, 5, 1200
ROUNDS = 2
# Longer than a balancer needs to hear of it.
DRAIN = 2


def test_a_rolling_restart_loses_nothing_and_shows_clients_no_error(table):
    with Site("a", drain_s=DRAIN) as site:
        site.knows("storage", "a", site.storage_node("storage"))
        gateways = {name: site.gateway(name) for name in ("one", "two", "three")}
        with wires.Balancer([gateway.address for gateway in gateways.values()]) as balancer:
            account = site.account(balancer.address)
            others = crowd.start(account, "mixed", OTHERS, SECONDS, ATTEMPTS)
            until("all others to be there", lambda: sum(balancer.given.values()) >= OTHERS, 120)
            workers = [Worker(account) for _ in range(CLIENTS)]
            for worker in workers:
                worker.thread.start()
            until("all at work", lambda: all(worker.calls > 10 for worker in workers), 120)
            took = [restart(site, gateways, name, balancer) for _ in range(ROUNDS) for name in gateways]
            others.send_signal(signal.SIGTERM)
            for worker in workers:
                worker.over.set()
            for worker in workers:
                worker.thread.join(120)
            seen = crowd.seen(others, 300)
            retries = sum(worker.retries for worker in workers)
            calls = sum(worker.calls for worker in workers)
            errors = [error for worker in workers for error in worker.errors]
            refused = {what: count for what, count in seen["answers"].items() if what != "200"}
            table(
                f"{len(took)} restarts of 3 gateways, the longest {max(took):.1f} s",
                [["", "calls", "errors", "sent again"]]
                + [[f"{CLIENTS} boto3 clients", str(calls), str(len(errors)), str(retries)]]
                + [[f"{OTHERS} others", str(seen["answers"]["200"]), str(sum(refused.values())), str(seen["again"])]],
            )
            assert not errors, errors
            assert not refused and seen["answers"]["200"] > OTHERS, refused
            assert all(balancer.given.values()), balancer.given
            check(workers[0].ec2, workers)


def check(ec2, workers):
    """Everything that was accepted is there, and what was deleted is gone."""
    kept = {volume for worker in workers for volume in worker.kept}
    deleted = {volume for worker in workers for volume in worker.deleted}
    assert len(kept) > CLIENTS and deleted

    def states():
        pages = ec2.get_paginator("describe_volumes").paginate(PaginationConfig={"PageSize": 500})
        return {volume["VolumeId"]: volume["State"] for page in pages for volume in page["Volumes"]}

    until("all to be made and deleted", lambda: set(states().values()) == {"available"}, 300)
    found = set(states())
    assert found == kept, (found - kept, kept - found)
    tags = {
        tag["ResourceId"]: tag["Value"]
        for page in ec2.get_paginator("describe_tags").paginate(PaginationConfig={"PageSize": 500})
        for tag in page["Tags"]
    }
    assert tags == {volume: volume for volume in kept}


def restart(site, gateways, name, balancer):
    """Stops a gateway as an operator does and starts it anew; the next may follow when the balancer knows of it."""
    begun = time.monotonic()
    address = gateways[name].address
    gateways[name].stop()
    assert not balancer.ready[address], "it has stopped before the balancer could know"
    gateways[name] = site.gateway(f"{name}-{time.monotonic_ns()}", address)
    until(f"{name} to be given clients", lambda: balancer.ready[address], 60)
    return time.monotonic() - begun


class Worker:
    """Someone with an SDK as it comes, who makes volumes, names them, looks at them and deletes some."""

    def __init__(self, account):
        self.ec2 = boto3.Session().client(
            "ec2",
            endpoint_url=account.endpoint,
            region_name="us-east-1",
            aws_access_key_id=account.key,
            aws_secret_access_key=account.secret,
        )
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.calls = 0
        self.retries = 0
        self.errors = []
        self.kept = []
        self.deleted = []

    def run(self):
        while not self.over.is_set():
            try:
                self.life()
            except Exception as error:  # whatever a caller would see
                self.errors.append(repr(error))

    def life(self):
        volume = self.call("create_volume", AvailabilityZone="us-east-1a", Size=1)["VolumeId"]
        self.kept.append(volume)
        self.call("create_tags", Resources=[volume], Tags=[{"Key": "Name", "Value": volume}])
        for _ in range(5):
            (found,) = self.call("describe_volumes", VolumeIds=[volume])["Volumes"]
            assert found["Tags"] == [{"Key": "Name", "Value": volume}], found
        if len(self.kept) > len(self.deleted):
            self.call("delete_volume", VolumeId=volume)
            self.kept.remove(volume)
            self.deleted.append(volume)

    def call(self, operation, **parameters):
        answer = getattr(self.ec2, operation)(**parameters)
        self.calls += 1
        self.retries += answer["ResponseMetadata"]["RetryAttempts"]
        return answer
