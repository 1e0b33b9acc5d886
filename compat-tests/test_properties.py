"""Filters and pages against what they mean, on data and requests that hypothesis makes up.

What is asked of vbs is also worked out here from the whole, by the definition: each filter holds when one of its values matches, all
filters must hold, `*` is any run and `?` any character, and pages joined are the whole.
"""

import re
import threading
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import wait
from running import until

FAST = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
ZONES = ["us-east-1a", "us-east-1b", "us-east-1c"]


@pytest.fixture(scope="module")
def volumes(ec2):
    """Fourteen volumes of all kinds, and the tag that they and no others have."""
    mark = f"p-{uuid4().hex}"
    made = []
    for number in range(14):
        tags = [{"Key": mark, "Value": "x"}, {"Key": "Name", "Value": ["a*b", "ab", "a?b", "ä b", "", "a\\b", "%"][number % 7]}]
        kind = ["gp2", "gp3", "standard"][number % 3]
        volume = ec2.create_volume(
            AvailabilityZone=ZONES[number % 2], Size=number // 2 + 1, VolumeType=kind,
            TagSpecifications=[{"ResourceType": "volume", "Tags": tags[: 1 + (number % 4 > 0)]}],
        )  # fmt: skip
        made.append(volume["VolumeId"])
    wait(ec2, "volume_available", VolumeIds=made)
    yield mark, ec2.describe_volumes(VolumeIds=made)["Volumes"]
    for volume in made:
        ec2.delete_volume(VolumeId=volume)


FIELDS = {
    "volume-id": lambda v: [v["VolumeId"]],
    "size": lambda v: [str(v["Size"])],
    "volume-type": lambda v: [v["VolumeType"]],
    "availability-zone": lambda v: [v["AvailabilityZone"]],
    "create-time": lambda v: [f"{v['CreateTime']:%Y-%m-%dT%H:%M:%S}.{v['CreateTime'].microsecond // 1000:03}Z"],
    "status": lambda v: [v["State"]],
    "encrypted": lambda v: [str(v["Encrypted"]).lower()],
    "multi-attach-enabled": lambda v: [str(v["MultiAttachEnabled"]).lower()],
    # That of a blank volume is shown, empty.
    "snapshot-id": lambda v: [v["SnapshotId"]],
    "tag:Name": lambda v: [tag["Value"] for tag in v["Tags"] if tag["Key"] == "Name"],
    "tag-key": lambda v: [tag["Key"] for tag in v["Tags"]],
    "tag-value": lambda v: [tag["Value"] for tag in v["Tags"]],
}
WORDS = ["gp2", "gp3", "g*", "?p2", "us-east-1a", "us-east-1?", "1", "3", "available", "true", "false", "Name", "x", "ab", "a*b"]
WORDS += [r"a\*b", r"a\?b", "a?b", "*", "", "?", "%", "_", r"a\\b", "ä*", "vol-*", "VOL-*", "a" * 255]
WORDS += ["20*", "*Z", "?0*:??.*", "*T*1?Z", "* *", "*1", "*?", "20??-*-*T??:??:??.???Z", "*0??Z"]
VALUES = st.lists(st.one_of(st.sampled_from(WORDS), st.text("ab*?\\% ä1", max_size=5)), min_size=1, max_size=4)
FILTERS = st.dictionaries(st.sampled_from(sorted(FIELDS)), VALUES, min_size=1, max_size=3)


def pattern(value):
    """The meaning of a filter's value."""
    parts = re.findall(r"\\.|.|\\$", value, flags=re.DOTALL)
    meaning = {"*": ".*", "?": "."}
    return "".join(meaning.get(part) or re.escape(part[1:] if len(part) == 2 else part) for part in parts)


def holds(volume, filters):
    return all(
        any(re.fullmatch(pattern(value), text, flags=re.DOTALL) for value in values for text in FIELDS[name](volume))
        for name, values in filters.items()
    )


def test_any_filters_select_what_their_definition_says(ec2, volumes):
    _, everything = volumes
    ours = {volume["VolumeId"] for volume in everything}

    @FAST
    @given(FILTERS)
    def check(filters):
        asked = [{"Name": name, "Values": values} for name, values in filters.items()]
        # As they are, since one alone is looked up otherwise than several; other tests have volumes too.
        found = {volume["VolumeId"] for volume in ec2.describe_volumes(Filters=asked)["Volumes"]}
        wanted = {volume["VolumeId"] for volume in everything if holds(volume, filters)}
        assert found & ours == wanted

    check()


def test_pages_joined_are_the_whole_while_others_come_and_go(ec2, volumes):
    mark, everything = volumes
    stable = {volume["VolumeId"] for volume in everything}
    over = threading.Event()

    def come_and_go():
        while not over.is_set():
            made = ec2.create_volume(
                AvailabilityZone="us-east-1c", Size=1,
                TagSpecifications=[{"ResourceType": "volume", "Tags": [{"Key": mark, "Value": "x"}]}],
            )["VolumeId"]  # fmt: skip
            ec2.delete_volume(VolumeId=made)

    others = threading.Thread(target=come_and_go)
    others.start()
    try:

        @settings(FAST, max_examples=25)
        @given(st.integers(5, 9))
        def check(size):
            paginator = ec2.get_paginator("describe_volumes")
            pages = paginator.paginate(
                Filters=[{"Name": f"tag:{mark}", "Values": ["x"]}], PaginationConfig={"PageSize": size}
            )
            found = [volume["VolumeId"] for page in pages for volume in page["Volumes"]]
            assert len(found) == len(set(found)), "nothing is shown twice"
            assert stable <= set(found), "nothing that stays is skipped"

        check()
    finally:
        over.set()
        others.join()
    query = {"Filters": [{"Name": f"tag:{mark}", "Values": ["x"]}]}
    until("the others to go", lambda: {v["VolumeId"] for v in ec2.describe_volumes(**query)["Volumes"]} == stable)


def test_what_is_sent_in_the_form_comes_back_the_same(ec2, volumes):
    """A tag's key and value go through the form, its encodings, the database and XML."""
    _, (volume, *_) = volumes
    letters = st.characters(codec="utf-8", min_codepoint=0x20, exclude_categories=["Cs", "Cc", "Cn", "Co"])
    keys = st.text(letters, min_size=1, max_size=40).filter(lambda key: not key.lower().startswith("aws:"))

    @FAST
    @given(keys, st.text(letters, max_size=80))
    def check(key, value):
        ec2.create_tags(Resources=[volume["VolumeId"]], Tags=[{"Key": key, "Value": value}])
        query = [{"Name": "resource-id", "Values": [volume["VolumeId"]]}]
        found = {tag["Key"]: tag["Value"] for tag in ec2.describe_tags(Filters=query)["Tags"]}
        assert found[key] == value
        ec2.delete_tags(Resources=[volume["VolumeId"]], Tags=[{"Key": key, "Value": value}])

    check()
