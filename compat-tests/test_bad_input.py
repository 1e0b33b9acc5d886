"""Hostile bytes: every one is answered by EC2's error document, and nothing is changed by any."""

import random
import socket
from urllib.parse import quote

import pytest

from conftest import remove_volume, wait
from raw import FORM, call, request, send, signed

MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def landmark(ec2):
    """A volume with a tag, for the requests to hit or miss."""
    tags = [{"ResourceType": "volume", "Tags": [{"Key": "keep", "Value": "me"}]}]
    made = ec2.create_volume(AvailabilityZone="us-east-1a", Size=1, TagSpecifications=tags)["VolumeId"]
    wait(ec2, "volume_available", VolumeIds=[made])
    yield made
    remove_volume(ec2, made)


@pytest.fixture(autouse=True)
def nothing_changes(ec2, landmark):
    """What there was before a test is there after it, and nothing else."""
    before = everything(ec2)
    yield
    assert everything(ec2) == before


def everything(ec2):
    volumes = [(v["VolumeId"], v["State"], v["Size"], v.get("Tags")) for v in ec2.describe_volumes()["Volumes"]]
    return volumes, ec2.describe_snapshots()["Snapshots"], ec2.describe_tags()["Tags"]


CREATE = "Action=CreateVolume&Version=2016-11-15&AvailabilityZone=us-east-1a"
DESCRIBE = "Action=DescribeVolumes&Version=2016-11-15"
BODIES = {
    "a percent sign alone": f"{CREATE}&Size=1&ClientToken=%",
    "half an escape": f"{CREATE}&Size=1&ClientToken=%4",
    "an escape of no digits": f"{CREATE}&Size=1&ClientToken=%zz",
    "an escape in a name": f"{CREATE}&Size=1&Client%Token=a",
    "bytes that are not UTF-8": f"{CREATE}&Size=1&ClientToken=%ff%fe",
    "raw bytes that are not UTF-8": f"{CREATE}&Size=1&ClientToken=".encode() + b"\xff\xfe",
    "a surrogate": f"{CREATE}&Size=1&ClientToken=%ed%a0%80",
    "an overlong slash": f"{CREATE}&Size=1&ClientToken=%c0%af",
    "a NUL": f"{CREATE}&Size=1&ClientToken=a%00b",
    "a raw NUL": f"{CREATE}&Size=1&ClientToken=a".encode() + b"\0b",
    "a NUL in a tag": f"{CREATE}&Size=1&TagSpecification.1.ResourceType=volume"
    "&TagSpecification.1.Tag.1.Key=k&TagSpecification.1.Tag.1.Value=%00",
    "a character that XML has no place for": f"{CREATE}&Size=1&ClientToken=%07",
    "an action twice": f"Action=DescribeVolumes&{CREATE}&Size=1",
    "a size twice": f"{CREATE}&Size=1&Size=1",
    "a size of letters": f"{CREATE}&Size=one",
    "a size with a fraction": f"{CREATE}&Size=1.5",
    "a size in hexadecimal": f"{CREATE}&Size=0x1",
    "a size with blanks": f"{CREATE}&Size=+1",
    "a size beyond 32 bits": f"{CREATE}&Size=4294967297",
    "a size beyond 64 bits": f"{CREATE}&Size=18446744073709551617",
    "the least of all sizes": f"{CREATE}&Size=-2147483648",
    "a size of other digits": f"{CREATE}&Size=%D9%A1",
    "an empty size": f"{CREATE}&Size=",
    "a truth value that is none": f"{CREATE}&Size=1&Encrypted=perhaps",
    "an unknown parameter": f"{CREATE}&Size=1&Colour=red",
    "a parameter of another case": f"{CREATE}&size=1",
    "a parameter below a plain one": f"{CREATE}&Size.1=1",
    "a list index a thousand deep": f"{CREATE}&Size=1&TagSpecification" + ".1" * 1000 + "=x",
    "a filter a thousand deep": f"{DESCRIBE}&Filter" + ".1.Value" * 1000 + "=x",
    "a huge list index": f"{DESCRIBE}&VolumeId.99999999999999999999999=vol-12345678",
    "a negative list index": f"{DESCRIBE}&VolumeId.-1=vol-12345678",
    "a list index of letters": f"{DESCRIBE}&VolumeId.one=vol-12345678",
    "an unknown filter": f"{DESCRIBE}&Filter.1.Name=colour&Filter.1.Value.1=red",
    "a filter without a name": f"{DESCRIBE}&Filter.1.Value.1=red",
    "a filter with something else": f"{DESCRIBE}&Filter.1.Name=size&Filter.1.Colour=1",
    "a thousand filter values": f"{DESCRIBE}&Filter.1.Name=size"
    + "".join(f"&Filter.1.Value.{n}={n}" for n in range(1, 1001)),
    "a page of letters": f"{DESCRIBE}&MaxResults=many",
    "a token of somebody's making": f"{DESCRIBE}&MaxResults=5&NextToken=%27;DROP%20TABLE%20volumes;--",
    "a very long token": f"{DESCRIBE}&MaxResults=5&NextToken=" + "A" * 100_000,
    "an id that is SQL": f"{DESCRIBE}&VolumeId.1=vol-1%27%20OR%20%271%27=%271",
    "a very long id": "Action=DeleteVolume&Version=2016-11-15&VolumeId=vol-" + "0" * 100_000,
    "an id of upper case": "Action=DeleteVolume&Version=2016-11-15&VolumeId=VOL-12345678",
    "a version that is markup": "Action=DescribeVolumes&Version=%22%3E%3Cx%20y=%22",
    "a version of far away": "Action=DescribeVolumes&Version=nineteen",
    "an unknown action": "Action=DescribeUnicorns&Version=2016-11-15",
    "an action of another case": "Action=describevolumes&Version=2016-11-15",
    "an action that is markup": "Action=%3Cscript%3E%26&Version=2016-11-15",
    "an empty action": "Action=&Version=2016-11-15",
    "no action": "Version=2016-11-15",
    "nothing": "",
    "only separators": "&&&=&&=&",
    "no name": f"{CREATE}&Size=1&=x",
    "a hundred thousand parameters": f"{CREATE}&Size=1" + "".join(f"&a{n}=" for n in range(100_000)),
    "as many parameters as a mebibyte holds": "&".join(["a"] * (MEBIBYTE // 2)),
    "a document of XML": '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>',
    "JSON": '{"Action": "CreateVolume", "AvailabilityZone": "us-east-1a", "Size": 1}',
    "a mebibyte of NULs": b"\0" * MEBIBYTE,
    "a mebibyte of percent signs": b"%" * MEBIBYTE,
    "a mebibyte of one value": f"{CREATE}&Size=1&ClientToken=".encode() + b"x" * (MEBIBYTE - 200),
}


@pytest.mark.parametrize("what", BODIES)
def test_a_signed_form_that_makes_no_sense_is_refused(owner, what):
    body = BODIES[what]
    body = body.encode() if isinstance(body, str) else body
    answer = send(owner, signed(owner, body))
    assert answer.status == 400 and answer.code, answer
    assert len(answer.body) < 4096, "a long question needs no long answer"


@pytest.mark.parametrize("what", BODIES)
def test_the_same_without_a_signature_is_refused_too(owner, what):
    body = BODIES[what]
    body = body.encode() if isinstance(body, str) else body
    answer = send(owner, request(owner, "POST", "/", {"Content-Type": FORM}, body))
    assert answer.status in (400, 401, 403) and answer.code, answer


ACTIONS = """AttachVolume CreateSnapshot CreateTags CreateVolume DeleteSnapshot DeleteTags DeleteVolume
DescribeAvailabilityZones DescribeInstances DescribeRegions DescribeSnapshots DescribeTags DescribeVolumes
DetachVolume""".split()
NAMES = """AllRegions AvailabilityZone AvailabilityZoneId ClientToken Description Device EbsCardIndex Encrypted
Filter.1.Name Filter.1.Value.1 Filter.1.Value.2 Filter.2.Name Filter.2.Value.1 Force InstanceId InstanceId.1 Iops KmsKeyId
MaxResults MultiAttachEnabled NextToken Operator.Principal OutpostArn Owner.1 RegionName.1 ResourceId.0 ResourceId.1
RestorableBy.1 Size SnapshotId SnapshotId.1 Tag.1.Key Tag.1.Value Tag.2.Key TagSpecification.1.ResourceType
TagSpecification.1.Tag.1.Key TagSpecification.1.Tag.1.Value Throughput VolumeId VolumeId.1 VolumeId.2
VolumeInitializationRate VolumeType ZoneId.1 ZoneName.1""".split()
VALUES = [
    *["", "0", "1", "5", "-1", "2147483647", "2147483648", "9" * 40, "1e3", "true", "FALSE", "null", "NaN", " ", "a b", "\t\n"],
    *["vol-00000000", "vol-0fedcba9876543210", "vol-", "snap-0fedcba9876543210", "i-0fedcba9876543210", "I-1", "vol-\u0660" * 9],
    *["us-east-1a", "use1-az1", "gp3", "io2", "standard", "/dev/sdf", "xvdba", "/dev/sda1", "self", "all", "amazon"],
    *["*", "?", "\\", "\\*", "%", "_", "*" * 200, "[a-z]", "'", '"', "; DROP TABLE volumes", "$1", "${x}", "../../etc/passwd"],
    *["<a>", "&amp;", "]]>", "\u202e", "\ufeff", "\U0001f642", "e\u0301", "x" * 300, "\u4f60" * 300],
    *["tag:Name", "tag:", "tag-key", "status", "size", "volume-id", "key", "value", "resource-id", "create-time", "state"],
]


def test_no_mixture_of_known_words_breaks_it(owner):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    for _ in range(1000):
        names = dice.sample(NAMES, dice.randint(0, 8))
        # A dry run is never a success, so nothing that is asked for can happen.
        asked = {"Action": dice.choice(ACTIONS), "DryRun": "true"} | {name: dice.choice(VALUES) for name in names}
        answer = call(owner, **asked)
        assert answer.status in (400, 412) and answer.code, (asked, answer)


def test_the_codes_of_the_commonest_mistakes(owner):
    assert call(owner, Action="DescribeUnicorns").error() == (
        "InvalidAction",
        "The action DescribeUnicorns is not valid for this web service.",
    )
    assert call(owner).code == "MissingAction"
    answer = call(owner, Action="DescribeVolumes", SpreadDomain="x")
    assert answer.error() == ("UnknownParameter", "The parameter SpreadDomain is not recognized")
    answer = call(owner, Action="DescribeVolumes", **{"Filter.1.Name": "colour", "Filter.1.Value.1": "red"})
    assert answer.error() == ("InvalidParameterValue", "The filter 'colour' is invalid")


def test_a_query_that_makes_no_sense_is_refused(owner):
    for query in ("%", "Action=%zz", "Action=" + "x" * 60_000, "a=" * 5000, "Action=DescribeVolumes&Action=DescribeTags"):
        answer = send(owner, request(owner, "GET", f"/?{query}", {}, b""))
        assert 400 <= answer.status < 500 and answer.code, (query[:40], answer)


def test_more_than_a_mebibyte_is_refused(owner):
    data = signed(owner, DESCRIBE.encode() + b"&" * MEBIBYTE)
    answer = send(owner, data)
    assert answer.status == 413 and answer.code


@pytest.mark.parametrize("more", [{"Content-Length": "9" * 18}, {"Content-Length": str(MEBIBYTE + 1), "Expect": "100-continue"}])
def test_a_length_that_will_not_do_is_refused_before_the_body_comes(owner, more):
    answer = send(owner, request(owner, "POST", "/", {"Content-Type": FORM} | more, b""))
    assert answer.status == 413 and answer.code


def test_more_than_a_mebibyte_in_chunks_is_refused_too(owner):
    host, port = owner.address
    head = f"POST / HTTP/1.1\r\nHost: {host}:{port}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    answer = send(owner, head + chunk * 17 + b"0\r\n\r\n")
    assert answer.status == 413 and answer.code


def test_a_body_that_breaks_off_changes_nothing(owner):
    data = signed(owner, f"{CREATE}&Size=1".encode())
    with socket.create_connection(owner.address, timeout=60) as line:
        line.sendall(data[:-3])
    with socket.create_connection(owner.address, timeout=60) as line:
        line.sendall(data[:-3])
        line.shutdown(socket.SHUT_WR)
        answered = line.recv(1 << 16)
    assert not answered or answered.startswith(b"HTTP/1.1 4"), answered


def test_headers_that_make_no_sense_are_refused(owner):
    host, port = owner.address
    authorizations = [
        "",
        "Basic dXNlcjpwYXNz",
        "AWS4-HMAC-SHA256",
        "AWS4-HMAC-SHA256 Credential=, SignedHeaders=, Signature=",
        f"AWS4-HMAC-SHA256 Credential={owner.key}/a/b, SignedHeaders=host, Signature=" + "0" * 64,
        f"AWS4-HMAC-SHA256 Credential={owner.key}/20260101/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=ff",
        "AWS4-HMAC-SHA256 " + "x" * 5000,
        "AWS4-HMAC-SHA256 Credential=" + "/" * 3000 + ", SignedHeaders=" + ";" * 3000 + ", Signature=" + "," * 1000,
        "AWS4-HMAC-SHA256 Credential=\xff\xfe, SignedHeaders=host, Signature=\xff",
    ]
    for authorization in authorizations:
        headers = {"Content-Type": FORM, "X-Amz-Date": "20260101T000000Z", "Authorization": authorization}
        data = request(owner, "POST", "/", headers, b"Action=DescribeVolumes").decode().encode("latin-1")
        answer = send(owner, data)
        assert answer.status in (400, 401, 403) and answer.code, (authorization[:80], answer)


def test_what_is_not_http_gets_ec2s_error_document_and_no_further(owner):
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100 + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"POST / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
        b"GET /" + b"a" * MEBIBYTE + b" HTTP/1.1\r\n\r\n",
    ):
        answer = send(owner, data, half_close=True)
        assert 400 <= answer.status < 500 and answer.code, (data[:40], answer)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"])
def test_other_methods_than_get_and_post_are_refused(owner, method):
    answer = send(owner, signed(owner, f"{CREATE}&Size=1".encode(), method=method))
    assert (answer.status, answer.headers["allow"]) == (405, "GET, POST")
    assert method == "HEAD" or answer.code == "MethodNotAllowed"


def test_it_serves_on_after_all_that(owner):
    answer = call(owner, Action="DescribeRegions")
    assert answer.status == 200 and b"us-east-1" in answer.body


def test_a_parameter_may_be_in_the_query_of_a_post_but_not_in_both(owner):
    action = f"Action=DescribeRegions&Version={quote('2016-11-15')}"
    assert send(owner, signed(owner, b"", query=action)).status == 200
    assert send(owner, signed(owner, action.encode(), query=action)).status == 400


def test_a_slow_sender_does_not_hold_up_others(owner):
    with socket.create_connection(owner.address, timeout=60) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nA")
        assert call(owner, Action="DescribeRegions").status == 200
