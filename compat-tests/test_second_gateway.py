"""A second gateway on the same database, with TLS, without workers and without SigV2: two gateways are one service."""

import subprocess
import tomllib
import urllib.request
from dataclasses import replace

import boto3
import pytest
from boto.exception import EC2ResponseError
from botocore.exceptions import SSLError

from conftest import boto2_connection, wait
from running import Process, aws_environment, free_port, toml, until


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for the loopback address, and its key."""
    place = tmp_path_factory.mktemp("tls")
    files = place / "certificate.pem", place / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        + ["-subj", "/CN=vbs", "-addext", "subjectAltName=IP:127.0.0.1", "-out", files[0], "-keyout", files[1]],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return files


def gateway(vbs, name, **server):
    settings = tomllib.loads((vbs.data / "vbs.toml").read_text())
    settings["gateway"] = {"sigv2": False, "server": {"listen": f"127.0.0.1:{free_port()}"} | server}
    settings["workers"] = {"concurrency": 0}
    file = vbs.data / f"{name}.toml"
    file.write_text(toml(settings))
    process = Process(name, ["gateway", "--config", file], vbs.data.parent)
    until(name, lambda: process.says("serving"))
    return process, settings["gateway"]["server"]["listen"]


@pytest.fixture(scope="module")
def second(vbs, owner):
    process, address = gateway(vbs, "second")
    yield replace(owner, endpoint=f"http://{address}")
    process.stop()


@pytest.fixture(scope="module")
def behind_tls(vbs, owner, certificate):
    process, address = gateway(vbs, "tls", tls_cert=str(certificate[0]), tls_key=str(certificate[1]))
    yield replace(owner, endpoint=f"https://{address}")
    process.stop()


def client(account, **more):
    return boto3.Session().client(
        "ec2",
        endpoint_url=account.endpoint,
        region_name="us-east-1",
        aws_access_key_id=account.key,
        aws_secret_access_key=account.secret,
        **more,
    )


def test_what_one_gateway_answered_the_other_shows_at_once(ec2, second):
    other = client(second)
    for number in range(10):
        made = ec2.create_volume(AvailabilityZone="us-east-1a", Size=1, ClientToken=f"both-{number}")["VolumeId"]
        assert [v["VolumeId"] for v in other.describe_volumes(VolumeIds=[made])["Volumes"]] == [made]
        same = other.create_volume(AvailabilityZone="us-east-1a", Size=1, ClientToken=f"both-{number}")
        assert same["VolumeId"] == made, "a token is one token at every gateway"
        other.create_tags(Resources=[made], Tags=[{"Key": "by", "Value": "the other"}])
        (seen,) = ec2.describe_volumes(VolumeIds=[made])["Volumes"]
        assert seen["Tags"] == [{"Key": "by", "Value": "the other"}]
        other.delete_volume(VolumeId=made)
        (seen,) = ec2.describe_volumes(Filters=[{"Name": "volume-id", "Values": [made]}])["Volumes"] or [None]
        assert seen is None or seen["State"] == "deleting"
        wait(ec2, "volume_deleted", VolumeIds=[made])


def test_a_page_begun_at_one_gateway_goes_on_at_the_other(ec2, second):
    made = [ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"] for _ in range(6)]
    first = ec2.describe_volumes(MaxResults=5)
    rest = client(second).describe_volumes(MaxResults=1000, NextToken=first["NextToken"])
    found = [v["VolumeId"] for v in first["Volumes"] + rest["Volumes"]]
    assert set(made) <= set(found) and len(found) == len(set(found))
    for volume in made:
        ec2.delete_volume(VolumeId=volume)
    wait(ec2, "volume_deleted", VolumeIds=made)


def test_sigv2_can_be_turned_off(second):
    assert boto2_connection(second).get_all_regions()
    with pytest.raises(EC2ResponseError) as caught:
        boto2_connection(second, auth="sign-v2").get_all_regions()
    assert (caught.value.status, caught.value.error_code) == (401, "AuthFailure")


def test_clients_speak_tls(behind_tls, certificate, tmp_path):
    assert client(behind_tls, verify=str(certificate[0])).describe_regions()["Regions"]
    with pytest.raises(SSLError):
        client(behind_tls).describe_regions()
    environment = aws_environment(behind_tls, tmp_path) | {"AWS_CA_BUNDLE": str(certificate[0])}
    line = ["aws", "ec2", "describe-regions", "--query", "Regions[].RegionName", "--output", "text"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "us-east-1\n", done.stderr


def test_health_needs_no_signature(second):
    for path in ("/healthz", "/readyz"):
        with urllib.request.urlopen(second.endpoint + path, timeout=30) as answer:
            assert answer.status == 200
