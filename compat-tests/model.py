"""botocore's model of EC2, as what vbs is held against: its parameters as they travel, and what may stand in an answer.

A client's parser passes over what it does not know and makes nothing of what is not there, so it cannot tell whether an answer is
as the model has it. The walk here can.
"""

import re
from dataclasses import dataclass
from functools import cache
from xml.etree import ElementTree

import botocore.session

# What a model's enumeration lacks on purpose: docs/api.md names both.
OPEN_ENUMS = {"InstanceType"}

# What clients cannot do without, though the model requires nothing: they fail where it is not there.
VOLUME = {
    "volumeId", "size", "snapshotId", "availabilityZone", "availabilityZoneId", "status", "createTime", "volumeType",
    "encrypted", "multiAttachEnabled",
}  # fmt: skip
SNAPSHOT = {
    "snapshotId", "volumeId", "status", "startTime", "progress", "ownerId", "volumeSize", "description", "encrypted",
}  # fmt: skip
ATTACHMENT = {"volumeId", "instanceId", "device", "status", "attachTime"}
MODIFICATION = {
    "volumeId", "modificationState", "targetSize", "targetVolumeType", "targetMultiAttachEnabled", "originalSize",
    "originalVolumeType", "originalMultiAttachEnabled", "progress", "startTime",
}  # fmt: skip
REQUIRED = {
    "AttachVolume": ATTACHMENT,
    "CopySnapshot": {"snapshotId"},
    "CopyVolumes": {"volumeSet", *(f"volumeSet.item.{name}" for name in VOLUME)},
    "CreateSnapshot": SNAPSHOT,
    "CreateSnapshots": {
        "snapshotSet",
        *(f"snapshotSet.item.{name}" for name in (SNAPSHOT - {"status"}) | {"state"}),
    },
    "CreateVolume": VOLUME,
    "DescribeAccountAttributes": {
        "accountAttributeSet.item.attributeName",
        "accountAttributeSet.item.attributeValueSet.item.attributeValue",
    },
    "DescribeAvailabilityZones": {
        *(f"availabilityZoneInfo.item.{name}" for name in ("zoneName", "zoneId", "zoneState", "regionName", "zoneType")),
    },
    "DescribeInstanceAttribute": {"instanceId"},
    "DescribeInstanceStatus": {
        "instanceStatusSet",
        *(f"instanceStatusSet.item.{name}" for name in ("instanceId", "availabilityZone")),
        *(f"instanceStatusSet.item.{name}" for name in ("instanceState.name", "systemStatus.status")),
    },
    "DescribeInstanceTypes": {"instanceTypeSet", "instanceTypeSet.item.instanceType"},
    "DescribeInstances": {
        "reservationSet",
        *(f"reservationSet.item.{name}" for name in ("reservationId", "ownerId", "instancesSet")),
        *(f"reservationSet.item.instancesSet.item.{name}" for name in ("instanceId", "instanceState.name")),
        *(f"reservationSet.item.instancesSet.item.{name}" for name in ("placement.availabilityZone", "instanceType")),
        *(
            f"reservationSet.item.instancesSet.item.blockDeviceMapping.item.{name}"
            for name in ("deviceName", "ebs.volumeId", "ebs.status", "ebs.attachTime", "ebs.deleteOnTermination")
        ),
    },
    "DescribeRegions": {"regionInfo.item.regionName", "regionInfo.item.regionEndpoint"},
    "DescribeSnapshotAttribute": {"snapshotId"},
    "DescribeSnapshots": {"snapshotSet", *(f"snapshotSet.item.{name}" for name in SNAPSHOT)},
    "DescribeTags": {"tagSet", *(f"tagSet.item.{name}" for name in ("resourceId", "resourceType", "key", "value"))},
    "DescribeVolumeAttribute": {"volumeId"},
    "DescribeVolumeStatus": {
        "volumeStatusSet",
        *(f"volumeStatusSet.item.{name}" for name in ("volumeId", "availabilityZone", "actionsSet", "eventsSet")),
        *(f"volumeStatusSet.item.volumeStatus.{name}" for name in ("status", "details.item.name", "details.item.status")),
    },
    "DescribeVolumes": {
        "volumeSet",
        "volumeSet.item.attachmentSet",
        *(f"volumeSet.item.{name}" for name in VOLUME),
        *(f"volumeSet.item.attachmentSet.item.{name}" for name in ATTACHMENT | {"deleteOnTermination"}),
    },
    "DescribeVolumesModifications": {
        "volumeModificationSet",
        *(f"volumeModificationSet.item.{name}" for name in MODIFICATION),
    },
    "DetachVolume": ATTACHMENT,
    "ModifyVolume": {"volumeModification", *(f"volumeModification.{name}" for name in MODIFICATION)},
}


@cache
def service():
    return botocore.session.get_session().get_service_model("ec2")


@dataclass(frozen=True)
class Parameter:
    """A parameter of an action, as it travels: `TagSpecification.1.Tag.1.Key`."""

    name: str
    kind: str
    enum: tuple

    @property
    def value(self):
        """A value of its type."""
        if self.enum:
            return self.enum[0]
        return {"boolean": "false", "integer": "7", "long": "7", "blob": "eA=="}.get(self.kind, "something")


def parameters(action):
    """All that the model documents for an action."""
    shape = service().operation_model(action).input_shape
    return list(leaves(shape, "")) if shape else []


def leaves(shape, name):
    if shape.type_name == "structure":
        for key, member in shape.members.items():
            yield from leaves(member, f"{name}.{wire_name(key, member)}".removeprefix("."))
    elif shape.type_name == "list":
        yield from leaves(shape.member, f"{name}.1")
    else:
        yield Parameter(name, shape.type_name, tuple(getattr(shape, "enum", ())))


def wire_name(key, shape):
    """The name of a parameter in the form of EC2, which begins with a capital."""
    name = shape.serialization.get("queryName")
    if name:
        return name
    name = shape.serialization.get("name", key)
    return name[0].upper() + name[1:]


def check_answer(operation_model, response_dict, **_):
    """A handler of botocore's event `before-parse`: the answer must be as the model has it."""
    if response_dict["status_code"] == 200:
        faults = faults_of(operation_model, response_dict["body"])
        assert not faults, f"{operation_model.name}: {faults} in {response_dict['body']}"


def faults_of(operation, body):
    """What in an answer the model does not know or has otherwise, and what is not there that clients need."""
    root = ElementTree.fromstring(body)
    if operation.service_model.service_name != "ec2":
        return []
    namespace, _, tag = root.tag.removeprefix("{").partition("}")
    faults = []
    if tag != f"{operation.name}Response":
        faults.append(f"it is a {tag}")
    if not re.fullmatch(r"http://ec2\.amazonaws\.com/doc/\d{4}-\d\d-\d\d/", namespace):
        faults.append(f"its namespace is {namespace}")
    children = list(root)
    if not children or local(children[0]) != "requestId" or not children[0].text:
        faults.append("it does not begin with its requestId")
    if operation.output_shape is None or not operation.output_shape.members:
        rest = [(local(child), child.text) for child in children[1:]]
        return faults + ([] if rest == [("return", "true")] else [f"instead of <return>true</return>: {rest}"])
    root.remove(children[0])
    for child in root.findall("{*}return"):
        # AWS has it in some answers that have more to say.
        root.remove(child)
    faults += structure(operation.output_shape, root, "")
    return faults + absent(root, sorted(REQUIRED.get(operation.name, ())))


def structure(shape, element, path):
    members = {member.serialization.get("name", key): (key, member) for key, member in shape.members.items()}
    faults, seen = [], set()
    for child in element:
        name = local(child)
        where = f"{path}.{name}".removeprefix(".")
        if name not in members:
            faults.append(f"{where} is not in the model")
            continue
        key, member = members[name]
        if name in seen and not member.serialization.get("flattened"):
            faults.append(f"{where} is there twice")
        seen.add(name)
        faults += value(member, child, where)
    required = {shape.members[key].serialization.get("name", key) for key in shape.required_members}
    return faults + [f"{path}.{name} is missing" for name in sorted(required - seen)]


def value(shape, element, where):
    if element.attrib:
        return [f"{where} has attributes"]
    if shape.type_name == "structure":
        return structure(shape, element, where) + blank(element, where)
    if shape.type_name == "list":
        faults = blank(element, where)
        for item in element:
            if local(item) != shape.member.serialization.get("name", "item") and local(item) != "item":
                faults.append(f"{where} holds {local(item)}")
            else:
                faults += value(shape.member, item, f"{where}.{local(item)}")
        return faults
    text = element.text or ""
    if len(element):
        return [f"{where} is a {shape.type_name} and has elements"]
    return [] if scalar(shape, text) else [f"{where} is no {shape.type_name}: {text!r}"]


def scalar(shape, text):
    """Whether a text is what the model says. An empty one is a string only, and that of an enumeration too where AWS has it."""
    match shape.type_name:
        case "integer":
            return re.fullmatch(r"-?\d{1,10}", text) is not None and -(2**31) <= int(text) < 2**31
        case "long":
            return re.fullmatch(r"-?\d{1,19}", text) is not None and -(2**63) <= int(text) < 2**63
        case "float" | "double":
            return re.fullmatch(r"-?\d+(\.\d+)?", text) is not None
        case "boolean":
            return text in ("true", "false")
        case "timestamp":
            return re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text) is not None
        case "string":
            return not getattr(shape, "enum", ()) or text in shape.enum or shape.name in OPEN_ENUMS
        case _:
            return True


def blank(element, where):
    return [f"{where} has a text"] if (element.text or "").strip() else []


def absent(root, paths):
    """The paths that are missing. One below a list that is empty, or below something optional that is not there, is not."""
    faults = []
    for path in paths:
        *above, name = path.split(".")
        for parent in root.findall("/".join(f"{{*}}{part}" for part in above)) if above else [root]:
            if parent.find(f"{{*}}{name}") is None:
                faults.append(f"{path} is missing")
    return faults


def local(element):
    return element.tag.rpartition("}")[2]


def filters(action):
    """The names of the filters that the model's text documents for an action."""
    shape = service().operation_model(action).input_shape
    documented = shape and shape.members.get("Filters")
    if not documented:
        return []
    names = re.findall(r"<li> <p> <code>([^<]+)</code>", documented.documentation)
    return ["tag:Name" if name.startswith("tag:") or name == "tag" else name.strip(" '") for name in names]
