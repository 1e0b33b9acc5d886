//! The main job by the AWS SDK for Rust: a volume is made, attached, snapshotted, restored, detached and deleted.
//!
//! Where to and with which key comes from the environment, as the SDK's own configuration would take it; that is a crate of
//! its own with much that nobody needs here.

use std::env;
use std::error::Error;
use std::time::Duration;

use aws_sdk_ec2::Client;
use aws_sdk_ec2::client::Waiters;
use aws_sdk_ec2::config::{BehaviorVersion, Config, Credentials, Region};
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::types::{
    AttributeBooleanValue, Filter, ResourceType, SnapshotState, Tag, TagSpecification, VolumeAttachmentState,
    VolumeModificationState, VolumeState, VolumeType,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
const ZONE: &str = "us-east-1a";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let client = client()?;
    let instances = env::var("VBS_INSTANCES")?;
    let instance = instances.split(',').next().ok_or("no instance")?;

    let volume = create(&client, 10).await?;
    let others = [create(&client, 1).await?, create(&client, 1).await?, create(&client, 1).await?];
    let more = [create(&client, 1).await?, create(&client, 1).await?];
    pages(&client).await?;
    refusals(&client).await?;

    client.attach_volume().volume_id(&volume).instance_id(instance).device("/dev/sdr").send().await?;
    until("the volume to be attached", async || {
        let attachments = describe(&client, &volume).await?.attachments.unwrap_or_default();
        Ok(attachments
            .iter()
            .any(|a| a.state() == Some(&VolumeAttachmentState::Attached) && a.instance_id() == Some(instance)))
    })
    .await?;
    client.wait_until_volume_in_use().volume_ids(&volume).wait(PATIENCE).await?;
    let shown = client.describe_instances().instance_ids(instance).send().await?;
    let mapped = shown.reservations()[0].instances()[0].block_device_mappings();
    check(mapped.iter().any(|m| m.device_name() == Some("/dev/sdr")), "the instance shows the volume")?;

    attributes(&client, &volume).await?;
    let snapshot = snapshot(&client, &volume).await?;
    let restored = client.create_volume().availability_zone(ZONE).snapshot_id(&snapshot).send().await?;
    let restored = restored.volume_id().ok_or("no id")?.to_owned();
    available(&client, &restored).await?;
    check(describe(&client, &restored).await?.snapshot_id() == Some(&snapshot), "it is of the snapshot")?;
    tags(&client, &[&volume, &snapshot, instance]).await?;

    client.detach_volume().volume_id(&volume).send().await?;
    available(&client, &volume).await?;
    client.delete_snapshot().snapshot_id(&snapshot).send().await?;
    for id in others.iter().chain(&more).chain([&restored, &volume]) {
        client.delete_volume().volume_id(id).send().await?;
    }
    until("the volume to go", async || {
        Ok(client
            .describe_volumes()
            .volume_ids(&volume)
            .send()
            .await
            .is_err_and(|e| e.code() == Some("InvalidVolume.NotFound")))
    })
    .await?;
    client.wait_until_volume_deleted().volume_ids(&volume).wait(PATIENCE).await?;
    Ok(())
}

fn client() -> Result<Client> {
    let key =
        Credentials::new(env::var("AWS_ACCESS_KEY_ID")?, env::var("AWS_SECRET_ACCESS_KEY")?, None, None, "environment");
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(env::var("AWS_ENDPOINT_URL")?)
        .credentials_provider(key)
        .http_client(aws_smithy_http_client::Builder::new().build_http());
    Ok(Client::from_conf(config.build()))
}

/// A volume with a name. The SDK adds a client token.
async fn create(client: &Client, size: i32) -> Result<String> {
    let made = client
        .create_volume()
        .availability_zone(ZONE)
        .size(size)
        .volume_type(VolumeType::Gp3)
        .tag_specifications(named(ResourceType::Volume))
        .send()
        .await?;
    check(made.iops() == Some(3000) && made.encrypted() == Some(false) && made.create_time().is_some(), "its fields")?;
    let id = made.volume_id().ok_or("no id")?.to_owned();
    available(client, &id).await?;
    Ok(id)
}

fn named(kind: ResourceType) -> TagSpecification {
    TagSpecification::builder().resource_type(kind).tags(tag("Name", "by Rust")).build()
}

fn tag(key: &str, value: &str) -> Tag {
    Tag::builder().key(key).value(value).build()
}

fn filter(name: &str, value: &str) -> Filter {
    Filter::builder().name(name).values(value).build()
}

async fn describe(client: &Client, id: &str) -> Result<aws_sdk_ec2::types::Volume> {
    let answer = client.describe_volumes().volume_ids(id).send().await?;
    answer.volumes.and_then(|mut volumes| volumes.pop()).ok_or_else(|| "no volume".into())
}

/// The SDK's waiter looks again after fifteen seconds at the earliest, so it is asked when there is nothing to wait for.
async fn available(client: &Client, id: &str) -> Result<()> {
    until("the volume to be available", async || {
        Ok(describe(client, id).await?.state() == Some(&VolumeState::Available))
    })
    .await?;
    client.wait_until_volume_available().volume_ids(id).wait(PATIENCE).await?;
    Ok(())
}

async fn pages(client: &Client) -> Result<()> {
    let mut pages =
        client.describe_volumes().filters(filter("tag:Name", "by Rust")).into_paginator().page_size(5).send();
    let mut lengths = Vec::new();
    while let Some(page) = pages.next().await {
        lengths.push(page?.volumes().len());
    }
    check(lengths == [5, 1], &format!("two pages: {lengths:?}"))
}

async fn refusals(client: &Client) -> Result<()> {
    let trial = client.create_volume().availability_zone(ZONE).size(1).dry_run(true).send().await;
    refused("DryRunOperation", "flag is set", trial)?;
    let unknown = client.describe_volumes().volume_ids("vol-0fedcba9876543210").send().await;
    refused("InvalidVolume.NotFound", "'vol-0fedcba9876543210' does not exist", unknown)?;
    refused("UnsupportedOperation", "DescribeVpcs", client.describe_vpcs().send().await)
}

fn refused<T, E: ProvideErrorMetadata, R>(
    code: &str,
    part: &str,
    answer: std::result::Result<T, SdkError<E, R>>,
) -> Result<()> {
    let Err(error) = answer else { return Err(format!("{code} was expected").into()) };
    let found = (error.code().unwrap_or_default(), error.message().unwrap_or_default());
    check(found.0 == code && found.1.contains(part), &format!("refused with {code}, not {found:?}"))
}

async fn attributes(client: &Client, volume: &str) -> Result<()> {
    client.modify_volume().volume_id(volume).size(12).send().await?;
    until("the volume to grow", async || {
        let answer = client.describe_volumes_modifications().volume_ids(volume).send().await?;
        Ok(answer.volumes_modifications()[0].modification_state() == Some(&VolumeModificationState::Completed))
    })
    .await?;
    check(describe(client, volume).await?.size() == Some(12), "it has grown")?;
    let on = AttributeBooleanValue::builder().value(true).build();
    client.modify_volume_attribute().volume_id(volume).auto_enable_io(on).send().await?;
    Ok(())
}

async fn snapshot(client: &Client, volume: &str) -> Result<String> {
    let made =
        client.create_snapshot().volume_id(volume).tag_specifications(named(ResourceType::Snapshot)).send().await?;
    let id = made.snapshot_id().ok_or("no id")?.to_owned();
    until("the snapshot to be completed", async || {
        let answer = client.describe_snapshots().snapshot_ids(&id).send().await?;
        Ok(answer.snapshots()[0].state() == Some(&SnapshotState::Completed))
    })
    .await?;
    client.wait_until_snapshot_completed().snapshot_ids(&id).wait(PATIENCE).await?;
    Ok(id)
}

async fn tags(client: &Client, resources: &[&str]) -> Result<()> {
    let ids = Some(resources.iter().map(|&id| id.to_owned()).collect::<Vec<_>>());
    client.create_tags().set_resources(ids.clone()).tags(tag("job", "a+b c%")).send().await?;
    let found =
        client.describe_tags().filters(filter("key", "job")).into_paginator().items().send().try_collect().await?;
    check(found.len() == 3 && found.iter().all(|t| t.value() == Some("a+b c%")), "three tags")?;
    client.delete_tags().set_resources(ids).tags(tag("job", "a+b c%")).send().await?;
    check(client.describe_tags().filters(filter("key", "job")).send().await?.tags().is_empty(), "no tags")
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let waiting = async {
        while !is_so().await? {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| Err(format!("waited in vain for {what}").into()))
}

fn check(is_so: bool, what: &str) -> Result<()> {
    if is_so { Ok(()) } else { Err(format!("it is not so: {what}").into()) }
}
