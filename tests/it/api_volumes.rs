//! CreateVolume, DeleteVolume and DescribeVolumes over HTTP: what AWS answers, and nothing but what was asked.

use std::collections::BTreeSet;

use crate::support::client::Client;
use crate::support::cloud::Cloud;

const ZONE: (&str, &str) = ("AvailabilityZone", "us-east-1a");

async fn create(client: &Client, more: &[(&str, &str)]) -> String {
    client.ok("CreateVolume", &[&[ZONE, ("Size", "1")], more].concat()).await.text("volumeId")
}

/// The ids a DescribeVolumes with these filters shows.
async fn select(client: &Client, filters: &[(&str, &str)]) -> BTreeSet<String> {
    let mut parameters = Vec::new();
    for (at, (name, value)) in filters.iter().enumerate() {
        parameters.push((format!("Filter.{}.Name", at + 1), (*name).to_owned()));
        parameters.push((format!("Filter.{}.Value.1", at + 1), (*value).to_owned()));
    }
    let parameters: Vec<(&str, &str)> =
        parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    client.ok("DescribeVolumes", &parameters).await.all("volumeId").into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_created_volume_is_answered_and_described_with_the_elements_clients_need() {
    let cloud = Cloud::start().await;
    let answer = cloud.client.ok("CreateVolume", &[ZONE, ("Size", "1"), ("VolumeType", "GP3")]).await;
    for part in [
        "<CreateVolumeResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>",
        "<size>1</size><snapshotId/><availabilityZone>us-east-1a</availabilityZone>",
        "<availabilityZoneId>use1-az1</availabilityZoneId><status>creating</status>",
        "<tagSet/><volumeType>gp3</volumeType><iops>3000</iops><encrypted>false</encrypted>",
        "<multiAttachEnabled>false</multiAttachEnabled><throughput>125</throughput></CreateVolumeResponse>",
    ] {
        assert!(answer.body.contains(part), "{part} is not in {}", answer.body);
    }
    let id = answer.text("volumeId");
    cloud.volume_becomes(&id, "available").await;
    let described = cloud.client.ok("DescribeVolumes", &[("VolumeId.1", &id)]).await;
    let (exact, answered) = (described.text("createTime"), answer.text("createTime"));
    assert_eq!(answered, format!("{}.000Z", &exact[..19]), "the answer tells whole seconds, the describe more");
    assert!(described.body.contains("<attachmentSet/><volumeType>"), "no tagSet without tags: {}", described.body);
    assert_eq!(described.text("volumeArn"), format!("arn:aws:ec2:us-east-1:123456789012:volume/{id}"));
    assert!(described.find("nextToken").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_create_says_what_aws_says_and_makes_nothing() {
    let cloud = Cloud::start().await;
    let size = ("Size", "1");
    for (parameters, code, message) in [
        (vec![size], "MissingParameter", "The request must contain the parameter zone"),
        (vec![ZONE], "MissingParameter", "The request must contain the parameter size/snapshot"),
        (vec![("AvailabilityZone", "mars-1a"), size], "InvalidZone.NotFound", "The zone 'mars-1a' does not exist."),
        (
            vec![ZONE, ("Size", "-1")],
            "InvalidParameterValue",
            "Value (-1) for parameter size is invalid. Value must be a positive integer.",
        ),
        (
            vec![ZONE, ("Size", "ten")],
            "InvalidParameterValue",
            "Value (ten) for parameter size is invalid. Value must be an integer.",
        ),
        (
            vec![ZONE, size, ("VolumeType", "bad")],
            "UnknownVolumeType",
            "Unsupported volume type 'bad' for volume creation. ",
        ),
        (
            vec![("AvailabilityZone", "mars-1a"), size, ("TagSpecification.1.Tag.1.Key", "k")],
            "InvalidZone.NotFound",
            "The zone 'mars-1a' does not exist.",
        ),
        (
            vec![ZONE, size, ("TagSpecification.1.Tag.1.Key", "k"), ("DryRun", "true")],
            "InvalidParameterValue",
            "Tag specification resource type must have a value",
        ),
        (vec![ZONE, size, ("Colour", "red")], "UnknownParameter", "The parameter Colour is not recognized"),
        (vec![ZONE, size, ("Encrypted", "true")], "UnsupportedOperation", "Encrypted volumes are not supported."),
        (
            vec![ZONE, size, ("DryRun", "true")],
            "DryRunOperation",
            "Request would have succeeded, but DryRun flag is set.",
        ),
        (
            vec![ZONE, ("SnapshotId", "snap-00000000")],
            "InvalidSnapshot.NotFound",
            "The snapshot 'snap-00000000' does not exist.",
        ),
        (
            vec![ZONE, size, ("TagSpecification.1.ResourceType", "snapshot"), ("TagSpecification.1.Tag.1.Key", "k")],
            "InvalidParameterValue",
            "'snapshot' is not a valid taggable resource type for this operation.",
        ),
        (
            vec![ZONE, ("Size", "4"), ("VolumeType", "gp3"), ("Iops", "2147483647"), ("DryRun", "true")],
            "InvalidParameterValue",
            "Volume iops of 2147483647 is too high; maximum is 80000.",
        ),
    ] {
        let found = cloud.client.fails("CreateVolume", &parameters).await;
        assert_eq!(found, (code.to_owned(), message.to_owned()), "{parameters:?}");
    }
    assert_eq!(select(&cloud.client, &[]).await, BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_tries_at_once_with_one_token_make_one_volume() {
    let cloud = Cloud::start().await;
    let tries = (0..50).map(|_| {
        let client = cloud.client.clone();
        tokio::spawn(async move { create(&client, &[("ClientToken", "once")]).await })
    });
    let mut ids = BTreeSet::new();
    for each in tries.collect::<Vec<_>>() {
        ids.insert(each.await.unwrap());
    }
    assert_eq!(ids.len(), 1);
    assert_eq!(select(&cloud.client, &[]).await, ids);
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_for_the_same_request_of_the_same_account_while_its_volume_lives() {
    let cloud = Cloud::start().await;
    let token = ("ClientToken", "t");
    let tagged = |a, b| {
        [
            ("TagSpecification.1.ResourceType", "volume"),
            ("TagSpecification.1.Tag.1.Key", a),
            ("TagSpecification.1.Tag.2.Key", b),
        ]
    };
    let first = create(&cloud.client, &[&[token], &tagged("x", "y")[..]].concat()).await;
    assert_eq!(
        create(&cloud.client, &[&[token], &tagged("y", "x")[..]].concat()).await,
        first,
        "the order of tags does not matter"
    );
    let mismatch = "Parameters on this idempotent request are inconsistent with parameters used in previous request(s)";
    for other in [
        vec![ZONE, ("Size", "2"), token],
        vec![ZONE, ("Size", "1"), token],
        vec![("AvailabilityZone", "us-east-1b"), ("Size", "1"), token],
    ] {
        let found = cloud.client.fails("CreateVolume", &other).await;
        assert_eq!(found, ("IdempotentParameterMismatch".to_owned(), mismatch.to_owned()));
    }
    let stranger = cloud.another_account("999999999999").await;
    assert_ne!(create(&stranger, &[token]).await, first, "another account's token is another token");
    cloud.volume_becomes(&first, "available").await;
    cloud.client.ok("DeleteVolume", &[("VolumeId", &first)]).await;
    let (code, message) =
        cloud.client.fails("CreateVolume", &[&[ZONE, ("Size", "1"), token], &tagged("x", "y")[..]].concat()).await;
    assert_eq!(code, "IdempotentParameterMismatch");
    assert!(message.contains("already deleted"), "{message}");
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_accounts_volume_does_not_exist() {
    let cloud = Cloud::start().await;
    let id = cloud.volume().await;
    let instance = &cloud.instances().await[0];
    let stranger = cloud.another_account("999999999999").await;
    let gone = ("InvalidVolume.NotFound".to_owned(), format!("The volume '{id}' does not exist."));
    for (action, parameters) in [
        ("DescribeVolumes", vec![("VolumeId.1", id.as_str())]),
        ("DeleteVolume", vec![("VolumeId", id.as_str())]),
        ("DeleteVolume", vec![("VolumeId", id.as_str()), ("DryRun", "true")]),
        ("CreateSnapshot", vec![("VolumeId", id.as_str())]),
        ("DetachVolume", vec![("VolumeId", id.as_str())]),
        ("AttachVolume", vec![("VolumeId", id.as_str()), ("InstanceId", instance), ("Device", "/dev/sdf")]),
        ("CreateTags", vec![("ResourceId.1", id.as_str()), ("Tag.1.Key", "mine")]),
        ("DeleteTags", vec![("ResourceId.1", id.as_str())]),
    ] {
        assert_eq!(stranger.fails(action, &parameters).await, gone, "{action}");
    }
    assert_eq!(select(&stranger, &[]).await, BTreeSet::new());
    assert_eq!(select(&stranger, &[("volume-id", &id)]).await, BTreeSet::new());
    let own = create(&stranger, &[]).await;
    let parameters = [("VolumeId", own.as_str()), ("InstanceId", instance), ("Device", "/dev/sdf")];
    assert_eq!(stranger.fails("AttachVolume", &parameters).await.0, "InvalidInstanceID.NotFound");
    assert_eq!(cloud.volume_state(&id).await, "available");
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_select_by_every_field_and_an_unknown_one_is_refused() {
    let cloud = Cloud::start().await;
    let client = &cloud.client;
    let spec = |key, value| {
        [
            ("TagSpecification.1.ResourceType", "volume"),
            ("TagSpecification.1.Tag.1.Key", key),
            ("TagSpecification.1.Tag.1.Value", value),
        ]
    };
    let plain = create(client, &[]).await;
    let web = create(client, &[&[("VolumeType", "gp3")], &spec("Name", "web-1")[..]].concat()).await;
    let odd = create(client, &spec("Name", r"50%_*\")).await;
    for id in [&plain, &web, &odd] {
        cloud.volume_becomes(id, "available").await;
    }
    let instance = &cloud.instances().await[0];
    cloud.attach(&plain, instance, "xvdf").await;
    let set = |ids: &[&String]| ids.iter().map(|id| (*id).clone()).collect::<BTreeSet<_>>();
    for (filters, expected) in [
        (vec![], set(&[&plain, &web, &odd])),
        (vec![("volume-id", web.as_str())], set(&[&web])),
        (vec![("volume-id", "bad")], set(&[])),
        (vec![("tag:Name", "web-?")], set(&[&web])),
        (vec![("tag:Name", "WEB-1")], set(&[])),
        (vec![("tag:Name", "*")], set(&[&web, &odd])),
        (vec![("tag:Name", r"50%_\*\\")], set(&[&odd])),
        (vec![("tag:Name", "50__*")], set(&[])),
        (vec![("tag-key", "N*")], set(&[&web, &odd])),
        (vec![("tag-value", "web-1")], set(&[&web])),
        (vec![("volume-type", "gp2")], set(&[&plain, &odd])),
        (vec![("volume-type", "gp?"), ("status", "available")], set(&[&web, &odd])),
        (vec![("status", "in-use")], set(&[&plain])),
        (vec![("attachment.device", "xvdf")], set(&[&plain])),
        (vec![("attachment.instance-id", instance)], set(&[&plain])),
        (vec![("attachment.status", "attached")], set(&[&plain])),
        (vec![("attachment.delete-on-termination", "false")], set(&[&plain])),
        (vec![("availability-zone", "us-east-1?")], set(&[&plain, &web, &odd])),
        (vec![("availability-zone-id", "use1-az1")], set(&[&plain, &web, &odd])),
        (vec![("availability-zone-id", "use1-az2")], set(&[])),
        (vec![("size", "1")], set(&[&plain, &web, &odd])),
        (vec![("encrypted", "true")], set(&[])),
        (vec![("multi-attach-enabled", "false"), ("create-time", "20*T*Z")], set(&[&plain, &web, &odd])),
        (vec![("snapshot-id", "snap-00000000")], set(&[])),
    ] {
        assert_eq!(select(client, &filters).await, expected, "{filters:?}");
    }
    let found = client.fails("DescribeVolumes", &[("Filter.1.Name", "bad-filter"), ("Filter.1.Value.1", "x")]).await;
    assert_eq!(found, ("InvalidParameterValue".to_owned(), "The filter 'bad-filter' is invalid".to_owned()));
    assert_eq!(
        client.ok("DescribeVolumes", &[("Filter.1.Name", "size")]).await.all("volumeId").len(),
        0,
        "no value, no volume"
    );
    let named = client.ok("DescribeVolumes", &[("VolumeId.1", plain.as_str())]).await;
    assert_eq!(BTreeSet::from_iter(named.all("volumeId")), BTreeSet::from([plain.clone()]), "that one of all");
    let both = [("VolumeId.1", plain.as_str()), ("Filter.1.Name", "status"), ("Filter.1.Value.1", "error")];
    assert!(
        client.ok("DescribeVolumes", &both).await.body.contains("<volumeSet/>"),
        "hidden by a filter is not unknown"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_every_volume_once_also_when_filters_thin_them_out() {
    let cloud = Cloud::start().await;
    let mut all = BTreeSet::new();
    for n in 0..13 {
        let kind = if n % 2 == 0 { "gp2" } else { "gp3" };
        all.insert(create(&cloud.client, &[("VolumeType", kind)]).await);
    }
    for filter in [None, Some("gp2")] {
        let (mut seen, mut token, mut pages) = (Vec::new(), None::<String>, 0);
        loop {
            let mut parameters = vec![("MaxResults", "5")];
            if let Some(kind) = filter {
                parameters.extend([("Filter.1.Name", "volume-type"), ("Filter.1.Value.1", kind)]);
            }
            if let Some(token) = &token {
                parameters.push(("NextToken", token));
            }
            let answer = cloud.client.ok("DescribeVolumes", &parameters).await;
            seen.extend(answer.all("volumeId"));
            pages += 1;
            token = answer.find("nextToken");
            if token.is_none() {
                break;
            }
        }
        let unique: BTreeSet<String> = seen.iter().cloned().collect();
        assert_eq!(unique.len(), seen.len());
        assert_eq!((seen.len(), pages), if filter.is_none() { (13, 3) } else { (7, 2) });
    }
    for (parameters, message) in [
        (
            vec![("MaxResults", "4")],
            "Value ( 4 ) for parameter maxResults is invalid. Expecting a value greater than 5.",
        ),
        (vec![("NextToken", "invalid")], "Unable to parse pagination token"),
        (
            vec![("VolumeId.1", "vol-00000000"), ("MaxResults", "5")],
            "The parameter volumeIdsSet cannot be used with the parameter maxResults",
        ),
    ] {
        assert_eq!(cloud.client.fails("DescribeVolumes", &parameters).await.1, message);
    }
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_unknown_id_fails_the_describe_and_every_one_is_named() {
    let cloud = Cloud::start().await;
    let known = create(&cloud.client, &[]).await;
    let (code, message) = cloud
        .client
        .fails(
            "DescribeVolumes",
            &[("VolumeId.1", &known), ("VolumeId.2", "vol-00000001"), ("VolumeId.3", "vol-00000002")],
        )
        .await;
    assert_eq!(code, "InvalidVolume.NotFound");
    assert_eq!(message, "The volumes 'vol-00000001, vol-00000002' do not exist.");
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_volume_cannot_be_deleted_and_a_deleted_one_is_gone() {
    let cloud = Cloud::start().await;
    let id = cloud.volume().await;
    let instance = cloud.instances().await.remove(0);
    cloud.attach(&id, &instance, "/dev/sdf").await;
    let found = cloud.client.fails("DeleteVolume", &[("VolumeId", &id)]).await;
    assert_eq!(found, ("VolumeInUse".to_owned(), format!("Volume {id} is currently attached to {instance}")));
    cloud.client.ok("DetachVolume", &[("VolumeId", &id)]).await;
    cloud.volume_becomes(&id, "available").await;
    assert_eq!(cloud.client.fails("DeleteVolume", &[("VolumeId", &id), ("DryRun", "true")]).await.0, "DryRunOperation");
    assert!(cloud.client.ok("DeleteVolume", &[("VolumeId", &id)]).await.body.contains("<return>true</return>"));
    assert_eq!(cloud.client.fails("DeleteVolume", &[("VolumeId", &id)]).await.0, "InvalidVolume.NotFound");
    cloud.volume_becomes(&id, "gone").await;
    cloud.settle().await;
}
