// The AWS SDK for JavaScript v3: the actions of vbs, with waiters and paginators. Fails by throwing.
import assert from "node:assert/strict";
import * as sdk from "@aws-sdk/client-ec2";
import { GetCallerIdentityCommand, STSClient } from "@aws-sdk/client-sts";

const ec2 = new sdk.EC2Client({});
const send = (name, input = {}) => ec2.send(new sdk[`${name}Command`](input));
const soon = { client: ec2, minDelay: 1, maxDelay: 1, maxWaitTime: 60 };
const [instance] = process.env.VBS_INSTANCES.split(",");
const tags = (kind) => [{ ResourceType: kind, Tags: [{ Key: "Name", Value: "by JavaScript & v3" }] }];
const byName = [{ Name: "tag:Name", Values: ["by JavaScript & v3"] }];

async function refused(name, input, code, text = /./) {
  await assert.rejects(send(name, input), (error) => {
    assert.equal(error.name, code);
    assert.match(error.message, text);
    return true;
  });
}

async function all(paginate, key, input = {}) {
  const found = [];
  for await (const page of paginate({ client: ec2, pageSize: 5 }, input)) found.push(...(page[key] ?? []));
  return found;
}

async function until(what, condition) {
  for (let turn = 0; turn < 600; turn += 1) {
    if (await condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.fail(`waited in vain for ${what}`);
}

const who = await new STSClient({}).send(new GetCallerIdentityCommand({}));
assert.match(who.Account, /^\d{12}$/);

// Volumes.
const made = await send("CreateVolume", {
  AvailabilityZone: "us-east-1a",
  Size: 10,
  VolumeType: "gp3",
  Iops: 4000,
  Throughput: 200,
  TagSpecifications: tags("volume"),
  ClientToken: `v3-${Date.now()}`,
});
const volume = made.VolumeId;
assert.ok(made.CreateTime instanceof Date && made.Iops === 4000 && made.Encrypted === false);
await sdk.waitUntilVolumeAvailable(soon, { VolumeIds: [volume] });
const others = [];
for (let count = 0; count < 6; count += 1) {
  const other = await send("CreateVolume", { AvailabilityZone: "us-east-1a", Size: 1, TagSpecifications: tags("volume") });
  others.push(other.VolumeId);
}
const paged = await all(sdk.paginateDescribeVolumes, "Volumes", { Filters: byName });
assert.deepEqual(paged.map((found) => found.VolumeId).sort(), [volume, ...others].sort());
await refused("CreateVolume", { AvailabilityZone: "us-east-1a", Size: 1, DryRun: true }, "DryRunOperation");
await refused("DescribeVolumes", { VolumeIds: ["vol-0fedcba9876543210"] }, "InvalidVolume.NotFound", /'vol-0fedcba9876543210'/);
await refused("CreateVolume", { AvailabilityZone: "mars", Size: 1 }, "InvalidZone.NotFound");

// Attachments.
await send("AttachVolume", { VolumeId: volume, InstanceId: instance, Device: "/dev/sdp" });
await sdk.waitUntilVolumeInUse(soon, { VolumeIds: [volume] });
const attachment = async () => (await send("DescribeVolumes", { VolumeIds: [volume] })).Volumes[0].Attachments[0];
await until("attached", async () => (await attachment()).State === "attached");
assert.equal((await attachment()).Device, "/dev/sdp");
const described = (await all(sdk.paginateDescribeInstances, "Reservations")).flatMap((found) => found.Instances);
const mapped = described.find((found) => found.InstanceId === instance).BlockDeviceMappings;
assert.ok(mapped.some((mapping) => mapping.Ebs.VolumeId === volume && mapping.DeviceName === "/dev/sdp"));
await sdk.waitUntilInstanceRunning(soon, { InstanceIds: [instance] });
await sdk.waitUntilInstanceStatusOk(soon, { InstanceIds: [instance] });
assert.ok((await all(sdk.paginateDescribeInstanceStatus, "InstanceStatuses")).length >= 1);
const types = await all(sdk.paginateDescribeInstanceTypes, "InstanceTypes");
assert.ok(types.some((type) => type.InstanceType === described[0].InstanceType));
await send("ModifyInstanceAttribute", {
  InstanceId: instance,
  BlockDeviceMappings: [{ DeviceName: "/dev/sdp", Ebs: { VolumeId: volume, DeleteOnTermination: true } }],
});
const attribute = await send("DescribeInstanceAttribute", { InstanceId: instance, Attribute: "blockDeviceMapping" });
assert.ok(attribute.BlockDeviceMappings.some((mapping) => mapping.Ebs.DeleteOnTermination === true));
await refused("AttachVolume", { VolumeId: volume, InstanceId: instance, Device: "/dev/sdo" }, "VolumeInUse");

// Modifications, status, attributes.
await send("ModifyVolume", { VolumeId: volume, Size: 12 });
const modification = async () => (await send("DescribeVolumesModifications", { VolumeIds: [volume] })).VolumesModifications[0];
await until("grown", async () => (await modification()).ModificationState === "completed");
assert.ok((await all(sdk.paginateDescribeVolumesModifications, "VolumesModifications")).length >= 1);
assert.equal((await send("DescribeVolumes", { VolumeIds: [volume] })).Volumes[0].Size, 12);
const status = await all(sdk.paginateDescribeVolumeStatus, "VolumeStatuses");
assert.equal(status.find((found) => found.VolumeId === volume).VolumeStatus.Status, "ok");
await send("ModifyVolumeAttribute", { VolumeId: volume, AutoEnableIO: { Value: true } });
const auto = await send("DescribeVolumeAttribute", { VolumeId: volume, Attribute: "autoEnableIO" });
assert.equal(auto.AutoEnableIO.Value, true);
await send("EnableVolumeIO", { VolumeId: volume });

// Snapshots.
const snapshot = (await send("CreateSnapshot", { VolumeId: volume, Description: "v3", TagSpecifications: tags("snapshot") })).SnapshotId;
const set = await send("CreateSnapshots", { InstanceSpecification: { InstanceId: instance }, TagSpecifications: tags("snapshot") });
assert.deepEqual(set.Snapshots.map((found) => found.VolumeId), [volume]);
await sdk.waitUntilSnapshotCompleted(soon, { SnapshotIds: [snapshot, set.Snapshots[0].SnapshotId] });
const copy = (await send("CopySnapshot", { SourceSnapshotId: snapshot, SourceRegion: "us-east-1", Description: "a copy" })).SnapshotId;
await sdk.waitUntilSnapshotCompleted(soon, { SnapshotIds: [copy] });
const named = await all(sdk.paginateDescribeSnapshots, "Snapshots", { Filters: byName, OwnerIds: ["self"] });
assert.equal(named.length, 2);
await send("ModifySnapshotAttribute", { SnapshotId: snapshot, CreateVolumePermission: { Add: [{ UserId: "123456789012" }] } });
const permissions = () => send("DescribeSnapshotAttribute", { SnapshotId: snapshot, Attribute: "createVolumePermission" });
assert.deepEqual((await permissions()).CreateVolumePermissions.map((given) => given.UserId), ["123456789012"]);
await send("ResetSnapshotAttribute", { SnapshotId: snapshot, Attribute: "createVolumePermission" });
assert.equal(((await permissions()).CreateVolumePermissions ?? []).length, 0);
const restored = (await send("CreateVolume", { AvailabilityZone: "us-east-1a", SnapshotId: snapshot })).VolumeId;
const copied = (await send("CopyVolumes", { SourceVolumeId: volume })).Volumes[0].VolumeId;
await sdk.waitUntilVolumeAvailable(soon, { VolumeIds: [restored, copied] });

// Tags.
await send("CreateTags", { Resources: [volume, snapshot, instance], Tags: [{ Key: "job", Value: "a+b c%" }] });
const tagged = await all(sdk.paginateDescribeTags, "Tags", { Filters: [{ Name: "key", Values: ["job"] }] });
assert.deepEqual(tagged.map((tag) => tag.ResourceId).sort(), [volume, snapshot, instance].sort());
assert.ok(tagged.every((tag) => tag.Value === "a+b c%"));
await send("DeleteTags", { Resources: [volume, snapshot, instance], Tags: [{ Key: "job" }] });

// Around.
assert.equal((await send("DescribeAvailabilityZones")).AvailabilityZones.length, 3);
assert.equal((await send("DescribeRegions")).Regions[0].RegionName, "us-east-1");
assert.ok((await send("DescribeAccountAttributes")).AccountAttributes.length);
await refused("RunInstances", { ImageId: "ami-12345678", MinCount: 1, MaxCount: 1 }, "UnsupportedOperation", /RunInstances/);

await send("DetachVolume", { VolumeId: volume });
await sdk.waitUntilVolumeAvailable(soon, { VolumeIds: [volume] });
for (const gone of [snapshot, copy, set.Snapshots[0].SnapshotId]) await send("DeleteSnapshot", { SnapshotId: gone });
for (const gone of [volume, restored, copied, ...others]) await send("DeleteVolume", { VolumeId: gone });
await sdk.waitUntilVolumeDeleted(soon, { VolumeIds: [volume] });
