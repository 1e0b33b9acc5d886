"""Many clients at once, each on a connection of its own, which sends a request as soon as it has the answer to the last.

An own little client rather than an SDK: a thousand of those would leave nothing of two processors to what they measure. It runs
in a process of its own, so that the test can look at the server meanwhile:

    python crowd.py ENDPOINT KEY SECRET KIND CLIENTS SECONDS ATTEMPTS     prints what it saw as JSON

With more than one attempt a request is sent again as SDKs send it again: when the connection breaks, and after 500 and 503. SIGTERM ends
it before its time.
"""

import asyncio
import datetime
import hashlib
import hmac
import json
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from urllib.parse import quote, urlencode, urlsplit

FORM = "application/x-www-form-urlencoded; charset=utf-8"
REGION = "us-east-1"
ZONE = "us-east-1a"
# Longer than any answer may take; then the client says so.
PATIENCE = 60
ERROR = re.compile(rb"<Code>([^<]*)</Code>")
VOLUME = re.compile(rb"<volumeId>([^<]*)</volumeId>")
STATUS = re.compile(rb"<status>([^<]*)</status>")
# What an SDK sends again: a connection that broke, a server's fault, being throttled.
RETRIED = re.compile(r": (\w*Error|50[03] .*)$")


class Signer:
    """SigV4 in the header, with a key that is derived once a day."""

    def __init__(self, endpoint, key, secret):
        self.host = urlsplit(endpoint).netloc
        self.key = key
        self.secret = secret
        self.derived = {}

    def request(self, action, **parameters):
        body = urlencode({"Action": action, "Version": "2016-11-15"} | parameters, quote_via=quote).encode()
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        day = now[:8]
        scope = f"{day}/{REGION}/ec2/aws4_request"
        canonical = f"POST\n/\n\nhost:{self.host}\nx-amz-date:{now}\n\nhost;x-amz-date\n{sha256(body)}"
        to_sign = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{sha256(canonical.encode())}"
        signature = hmac.digest(self.derive(day), to_sign.encode(), "sha256").hex()
        authorization = (
            f"AWS4-HMAC-SHA256 Credential={self.key}/{scope}, SignedHeaders=host;x-amz-date, Signature={signature}"
        )
        head = (
            f"POST / HTTP/1.1\r\nHost: {self.host}\r\nX-Amz-Date: {now}\r\nAuthorization: {authorization}\r\n"
            f"Content-Type: {FORM}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def derive(self, day):
        if day not in self.derived:
            key = f"AWS4{self.secret}".encode()
            for word in (day, REGION, "ec2", "aws4_request"):
                key = hmac.digest(key, word.encode(), "sha256")
            self.derived = {day: key}
        return self.derived[day]


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Crowd:
    """What they share: the end, and what was seen."""

    def __init__(self, signer, seconds, attempts):
        self.signer = signer
        self.end = time.monotonic() + seconds
        self.attempts = attempts
        self.again = 0
        self.took = []
        self.answers = Counter()
        self.of_action = Counter()

    def over(self):
        return time.monotonic() >= self.end

    def stop(self):
        self.end = 0


class Client:
    """A client with a connection."""

    def __init__(self, crowd):
        self.crowd = crowd
        self.line = None

    async def call(self, action, **parameters):
        """The answer's body; None when it was an error, which is noted."""
        for attempt in range(1, self.crowd.attempts + 1):
            what, body = await self.attempt(action, parameters)
            if what == "200" or attempt == self.crowd.attempts or not RETRIED.search(what):
                break
            self.crowd.again += 1
            # As botocore: up to one second, two, four.
            await asyncio.sleep(random.random() * 2 ** (attempt - 1))
        self.crowd.answers[what] += 1
        return body

    async def attempt(self, action, parameters):
        """What came of one: `200` and the body, or the error in words."""
        request = self.crowd.signer.request(action, **parameters)
        begun = time.monotonic()
        try:
            status, body = await asyncio.wait_for(self.exchange(request), PATIENCE)
        except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
            self.hang_up()
            await asyncio.sleep(0.1)
            return f"{action}: {type(error).__name__}", None
        self.crowd.took.append(time.monotonic() - begun)
        self.crowd.of_action[action] += 1
        if status == 200:
            return "200", body
        code = ERROR.search(body)
        return f"{action}: {status} {code[1].decode() if code else body[:80]}", None

    async def exchange(self, request):
        if self.line is None:
            host, port = self.crowd.signer.host.split(":")
            self.line = await asyncio.open_connection(host, int(port), limit=1 << 20)
        reader, writer = self.line
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.split("content-length:")[1].split("\r\n")[0])
        body = await reader.readexactly(length)
        if "connection: close" in head or head.startswith("http/1.0"):
            self.hang_up()
        return int(head.split()[1]), body

    def hang_up(self):
        if self.line:
            self.line[1].close()
        self.line = None

    async def mixed(self, number):
        """Volumes from their making to their end, and all around them what people look at."""
        chance = random.Random(number)
        while not self.crowd.over():
            made = await self.call("CreateVolume", AvailabilityZone=ZONE, Size="1", ClientToken=str(uuid.uuid4()))
            found = made and VOLUME.search(made)
            if not found:
                continue
            await self.life(found[1].decode(), chance)
        self.hang_up()

    async def life(self, volume, chance):
        described = b""
        while not self.crowd.over() and (described is None or b"available" not in STATUS.findall(described)):
            described = await self.call("DescribeVolumes", **{"VolumeId.1": volume})
        if not self.crowd.over():
            await self.call("CreateTags", **{"ResourceId.1": volume, "Tag.1.Key": "Name", "Tag.1.Value": volume})
        for _ in range(chance.randint(2, 8)):
            if not self.crowd.over():
                await self.look(volume, chance)
        await self.call("DeleteVolume", VolumeId=volume)

    async def look(self, volume, chance):
        pages = {"MaxResults": "20"}
        asked = chance.choice(
            [
                ("DescribeVolumes", {"VolumeId.1": volume}),
                ("DescribeVolumes", {"Filter.1.Name": "tag:Name", "Filter.1.Value.1": volume}),
                ("DescribeVolumes", pages),
                ("DescribeTags", {"Filter.1.Name": "resource-id", "Filter.1.Value.1": volume}),
                ("DescribeInstances", pages),
                ("DescribeSnapshots", {"Owner.1": "self"} | pages),
                ("DescribeAvailabilityZones", {}),
            ]
        )
        await self.call(asked[0], **asked[1])

    async def describe(self, _number):
        """One volume, again and again."""
        made = await self.call("CreateVolume", AvailabilityZone=ZONE, Size="1", ClientToken=str(uuid.uuid4()))
        volume = VOLUME.search(made)[1].decode()
        self.crowd.took.clear()
        while not self.crowd.over():
            await self.call("DescribeVolumes", **{"VolumeId.1": volume})
        await self.call("DeleteVolume", VolumeId=volume)
        self.hang_up()


async def run(endpoint, key, secret, kind, clients, seconds, attempts):
    crowd = Crowd(Signer(endpoint, key, secret), seconds, attempts)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, crowd.stop)
    begun = time.monotonic()
    await asyncio.gather(*(getattr(Client(crowd), kind)(number) for number in range(clients)))
    took = sorted(crowd.took)

    def share(percent):
        return 1e3 * took[min(len(took) - 1, len(took) * percent // 100)] if took else float("nan")

    return {
        "rate": len(took) / (time.monotonic() - begun),
        "p50_ms": share(50),
        "p99_ms": share(99),
        "answers": crowd.answers,
        "of_action": crowd.of_action,
        "again": crowd.again,
    }


def start(account, kind, clients, seconds, attempts=1):
    """Begins in another process."""
    words = [account.endpoint, account.key, account.secret, kind, str(clients), str(seconds), str(attempts)]
    return subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True)


def seen(started, seconds):
    """What it saw, when it is over; it may take so long yet."""
    try:
        out, _ = started.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        started.kill()
        raise
    assert started.returncode == 0
    return json.loads(out)


if __name__ == "__main__":
    _, endpoint_, key_, secret_, kind_, clients_, seconds_, attempts_ = sys.argv
    print(json.dumps(asyncio.run(run(endpoint_, key_, secret_, kind_, int(clients_), float(seconds_), int(attempts_)))))
