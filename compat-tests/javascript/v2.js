// The AWS SDK for JavaScript v2: the actions of vbs, with waiters and paging. Fails by throwing.
import assert from "node:assert/strict";
import AWS from "aws-sdk";

const ec2 = new AWS.EC2({ endpoint: process.env.AWS_ENDPOINT_URL, region: "us-east-1", paramValidation: true });
const send = (name, input = {}) => ec2[name](input).promise();
const wait = (state, input) => ec2.waitFor(state, { ...input, $waiter: { delay: 1, maxAttempts: 60 } }).promise();
const [instance] = process.env.VBS_INSTANCES.split(",");
const tags = (kind) => [{ ResourceType: kind, Tags: [{ Key: "Name", Value: "by JavaScript & v2" }] }];
const byName = [{ Name: "tag:Name", Values: ["by JavaScript & v2"] }];

async function refused(name, input, code, text = /./) {
  await assert.rejects(send(name, input), (error) => {
    assert.equal(error.code, code);
    assert.match(error.message, text);
    return true;
  });
}

function all(name, key, input = {}) {
  const found = [];
  return new Promise((resolve, reject) => {
    ec2[name]({ MaxResults: 5, ...input }).eachPage((error, page) => {
      if (error) reject(error);
      else if (page) found.push(...page[key]);
      else resolve(found);
      return true;
    });
  });
}

async function until(what, condition) {
  for (let turn = 0; turn < 600; turn += 1) {
    if (await condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.fail(`waited in vain for ${what}`);
}

const sts = new AWS.STS({ endpoint: process.env.AWS_ENDPOINT_URL, region: "us-east-1" });
assert.match((await sts.getCallerIdentity().promise()).Account, /^\d{12}$/);

const made = await send("createVolume", { AvailabilityZone: "us-east-1a", Size: 4, VolumeType: "io1", Iops: 150, TagSpecifications: tags("volume") });
const volume = made.VolumeId;
assert.ok(made.CreateTime instanceof Date && made.Iops === 150 && made.MultiAttachEnabled === false);
await wait("volumeAvailable", { VolumeIds: [volume] });
const others = [];
for (let count = 0; count < 6; count += 1) {
  others.push((await send("createVolume", { AvailabilityZone: "us-east-1a", Size: 1, TagSpecifications: tags("volume") })).VolumeId);
}
const paged = await all("describeVolumes", "Volumes", { Filters: byName });
assert.deepEqual(paged.map((found) => found.VolumeId).sort(), [volume, ...others].sort());
await refused("createVolume", { AvailabilityZone: "us-east-1a", Size: 1, DryRun: true }, "DryRunOperation");
await refused("deleteVolume", { VolumeId: "vol-0fedcba9876543210" }, "InvalidVolume.NotFound", /'vol-0fedcba9876543210'/);

await send("attachVolume", { VolumeId: volume, InstanceId: instance, Device: "/dev/sdn" });
await wait("volumeInUse", { VolumeIds: [volume] });
const attachment = async () => (await send("describeVolumes", { VolumeIds: [volume] })).Volumes[0].Attachments[0];
await until("attached", async () => (await attachment()).State === "attached");
await wait("instanceRunning", { InstanceIds: [instance] });
await wait("instanceStatusOk", { InstanceIds: [instance] });
await wait("systemStatusOk", { InstanceIds: [instance] });
const described = (await all("describeInstances", "Reservations")).flatMap((found) => found.Instances);
const mapped = described.find((found) => found.InstanceId === instance).BlockDeviceMappings;
assert.ok(mapped.some((mapping) => mapping.Ebs.VolumeId === volume && mapping.DeviceName === "/dev/sdn"));
assert.ok((await all("describeInstanceStatus", "InstanceStatuses")).length >= 1);
assert.ok((await all("describeInstanceTypes", "InstanceTypes")).length >= 1);
await send("modifyInstanceAttribute", { InstanceId: instance, BlockDeviceMappings: [{ DeviceName: "/dev/sdn", Ebs: { DeleteOnTermination: true } }] });
const attribute = await send("describeInstanceAttribute", { InstanceId: instance, Attribute: "blockDeviceMapping" });
assert.ok(attribute.BlockDeviceMappings.some((mapping) => mapping.Ebs.DeleteOnTermination === true));

await send("modifyVolume", { VolumeId: volume, Size: 6 });
const modification = async () => (await send("describeVolumesModifications", { VolumeIds: [volume] })).VolumesModifications[0];
await until("grown", async () => (await modification()).ModificationState === "completed");
assert.equal((await send("describeVolumes", { VolumeIds: [volume] })).Volumes[0].Size, 6);
const status = await all("describeVolumeStatus", "VolumeStatuses");
assert.equal(status.find((found) => found.VolumeId === volume).VolumeStatus.Status, "ok");
await send("modifyVolumeAttribute", { VolumeId: volume, AutoEnableIO: { Value: true } });
assert.equal((await send("describeVolumeAttribute", { VolumeId: volume, Attribute: "autoEnableIO" })).AutoEnableIO.Value, true);
await send("enableVolumeIO", { VolumeId: volume });

const snapshot = (await send("createSnapshot", { VolumeId: volume, Description: "v2", TagSpecifications: tags("snapshot") })).SnapshotId;
const set = await send("createSnapshots", { InstanceSpecification: { InstanceId: instance }, TagSpecifications: tags("snapshot") });
await wait("snapshotCompleted", { SnapshotIds: [snapshot, set.Snapshots[0].SnapshotId] });
// The SDK adds a PresignedUrl of its own, which points to AWS.
const copy = (await send("copySnapshot", { SourceSnapshotId: snapshot, SourceRegion: "us-east-1", Description: "a copy" })).SnapshotId;
await wait("snapshotCompleted", { SnapshotIds: [copy] });
assert.equal((await all("describeSnapshots", "Snapshots", { Filters: byName, OwnerIds: ["self"] })).length, 2);
await send("modifySnapshotAttribute", { SnapshotId: snapshot, Attribute: "createVolumePermission", OperationType: "add", UserIds: ["123456789012"] });
const permissions = () => send("describeSnapshotAttribute", { SnapshotId: snapshot, Attribute: "createVolumePermission" });
assert.deepEqual((await permissions()).CreateVolumePermissions.map((given) => given.UserId), ["123456789012"]);
await send("resetSnapshotAttribute", { SnapshotId: snapshot, Attribute: "createVolumePermission" });
assert.equal((await permissions()).CreateVolumePermissions.length, 0);
const restored = (await send("createVolume", { AvailabilityZone: "us-east-1a", SnapshotId: snapshot })).VolumeId;
await wait("volumeAvailable", { VolumeIds: [restored] });

await send("createTags", { Resources: [volume, snapshot, instance], Tags: [{ Key: "job", Value: "a+b c%" }] });
const tagged = await all("describeTags", "Tags", { Filters: [{ Name: "key", Values: ["job"] }] });
assert.deepEqual(tagged.map((tag) => tag.ResourceId).sort(), [volume, snapshot, instance].sort());
await send("deleteTags", { Resources: [volume, snapshot, instance], Tags: [{ Key: "job" }] });

assert.equal((await send("describeAvailabilityZones")).AvailabilityZones.length, 3);
assert.equal((await send("describeRegions")).Regions[0].RegionName, "us-east-1");
assert.ok((await send("describeAccountAttributes")).AccountAttributes.length);
await refused("describeFastSnapshotRestores", {}, "UnsupportedOperation", /DescribeFastSnapshotRestores/);

await send("detachVolume", { VolumeId: volume });
await wait("volumeAvailable", { VolumeIds: [volume] });
for (const gone of [snapshot, copy, set.Snapshots[0].SnapshotId]) await send("deleteSnapshot", { SnapshotId: gone });
for (const gone of [volume, restored, ...others]) await send("deleteVolume", { VolumeId: gone });
await wait("volumeDeleted", { VolumeIds: [volume] });
