//! Snapshots that are shared, over HTTP: two accounts, and everybody.

use crate::support::client::Client;
use crate::support::cloud::Cloud;

const STRANGER: &str = "999999999999";
const ATTRIBUTE: (&str, &str) = ("Attribute", "createVolumePermission");

/// A cloud with a stranger and a completed snapshot that has a tag.
struct Shared {
    cloud: Cloud,
    stranger: Client,
    snapshot: String,
}

impl Shared {
    async fn start() -> Self {
        let cloud = Cloud::start().await;
        let stranger = cloud.another_account(STRANGER).await;
        let volume = cloud.volume().await;
        let tag = [("TagSpecification.1.ResourceType", "snapshot"), ("TagSpecification.1.Tag.1.Key", "secret")];
        let asked = [&[("VolumeId", volume.as_str())], &tag[..]].concat();
        let snapshot = cloud.client.ok("CreateSnapshot", &asked).await.text("snapshotId");
        cloud.snapshot_becomes(&snapshot, "completed").await;
        Self { cloud, stranger, snapshot }
    }

    async fn modify(&self, parameters: &[(&str, &str)]) {
        let asked = [&[("SnapshotId", self.snapshot.as_str())], parameters].concat();
        self.cloud.client.ok("ModifySnapshotAttribute", &asked).await;
    }

    /// Who may use it, as its owner is told: accounts and groups.
    async fn granted(&self) -> (Vec<String>, Vec<String>) {
        let asked = [("SnapshotId", self.snapshot.as_str()), ATTRIBUTE];
        let answer = self.cloud.client.ok("DescribeSnapshotAttribute", &asked).await;
        assert_eq!(answer.text("snapshotId"), self.snapshot);
        (answer.all("userId"), answer.all("group"))
    }

    /// How many snapshots the stranger sees so.
    async fn seen(&self, parameters: &[(&str, &str)]) -> usize {
        self.stranger.ok("DescribeSnapshots", parameters).await.all("snapshotId").len()
    }

    async fn restore(&self) -> Result<String, String> {
        let asked = [("AvailabilityZone", "us-east-1a"), ("SnapshotId", self.snapshot.as_str())];
        let answer = self.stranger.call("CreateVolume", &asked).await;
        answer.find("volumeId").ok_or_else(|| answer.text("Code"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_usable_by_those_it_is_shared_with_and_no_longer_than_that() {
    let shared = Shared::start().await;
    assert_eq!(shared.restore().await.unwrap_err(), "InvalidSnapshot.NotFound");
    shared.modify(&[("CreateVolumePermission.Add.1.UserId", STRANGER)]).await;
    assert_eq!(shared.granted().await, (vec![STRANGER.into()], vec![]));
    let volume = shared.restore().await.unwrap();
    let of_stranger = shared.stranger.ok("DescribeVolumes", &[("VolumeId.1", &volume)]).await;
    assert_eq!(of_stranger.text("snapshotId"), shared.snapshot);
    assert_eq!(
        shared.cloud.client.fails("DescribeVolumes", &[("VolumeId.1", &volume)]).await.0,
        "InvalidVolume.NotFound"
    );

    shared.modify(&[ATTRIBUTE, ("OperationType", "remove"), ("UserId.1", STRANGER)]).await;
    assert_eq!(shared.granted().await, (vec![], vec![]));
    assert_eq!(shared.restore().await.unwrap_err(), "InvalidSnapshot.NotFound");
    assert_eq!(shared.seen(&[]).await, 0);

    shared.modify(&[ATTRIBUTE, ("OperationType", "add"), ("UserGroup.1", "all")]).await;
    assert_eq!(shared.granted().await, (vec![], vec!["all".into()]));
    shared.restore().await.unwrap();
    let reset = [("SnapshotId", shared.snapshot.as_str()), ATTRIBUTE];
    shared.cloud.client.ok("ResetSnapshotAttribute", &reset).await;
    assert_eq!(shared.granted().await, (vec![], vec![]));
    assert_eq!(shared.restore().await.unwrap_err(), "InvalidSnapshot.NotFound");
    shared.cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn owner_and_restorable_by_select_among_own_shared_and_public_snapshots() {
    let shared = Shared::start().await;
    let owner = [("Owner.1", "123456789012")];
    for (grantee, explicit, public) in [(("UserId", STRANGER), 1, 0), (("Group", "all"), 0, 1)] {
        let add = format!("CreateVolumePermission.Add.1.{}", grantee.0);
        shared.modify(&[(&add, grantee.1)]).await;
        for (parameters, count) in [
            (&[][..], 1),
            (&owner, 1),
            (&[("SnapshotId.1", shared.snapshot.as_str())], 1),
            (&[("Owner.1", "self")], 0),
            (&[("Owner.1", "amazon")], 0),
            (&[("RestorableBy.1", "self")], explicit),
            (&[("RestorableBy.1", "all")], public),
            (&[("RestorableBy.1", "123456789012")], 0),
            (&[("Filter.1.Name", "owner-id"), ("Filter.1.Value.1", "123456789012")], 1),
            (&[("Filter.1.Name", "owner-id"), ("Filter.1.Value.1", STRANGER)], 0),
            (&[("Filter.1.Name", "owner-alias"), ("Filter.1.Value.1", "*")], 0),
        ] {
            assert_eq!(shared.seen(parameters).await, count, "{grantee:?} {parameters:?}");
        }
        let told = async |by: &str| {
            shared.cloud.client.ok("DescribeSnapshots", &[("RestorableBy.1", by)]).await.all("snapshotId").len()
        };
        assert_eq!((told(STRANGER).await, told("all").await, told("self").await), (explicit, public, 1));
        let remove = add.replace("Add", "Remove");
        shared.modify(&[(&remove, grantee.1)]).await;
    }
    // Shared twice over, it is one.
    let both = [("CreateVolumePermission.Add.1.Group", "all"), ("CreateVolumePermission.Add.2.UserId", STRANGER)];
    shared.modify(&both).await;
    assert_eq!(shared.seen(&[]).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn sharing_gives_no_right_but_to_use_and_shows_no_tags() {
    let shared = Shared::start().await;
    shared
        .modify(&[("CreateVolumePermission.Add.1.UserId", STRANGER), ("CreateVolumePermission.Add.2.Group", "all")])
        .await;
    let id = shared.snapshot.as_str();
    let seen = shared.stranger.ok("DescribeSnapshots", &[("SnapshotId.1", id)]).await;
    assert_eq!(seen.text("ownerId"), "123456789012");
    assert!(!seen.body.contains("secret"), "{}", seen.body);
    for filter in ["tag-key", "tag:secret", "tag-value"] {
        assert_eq!(shared.seen(&[("Filter.1.Name", filter), ("Filter.1.Value.1", "*")]).await, 0, "{filter}");
    }
    assert_eq!(shared.stranger.ok("DescribeTags", &[]).await.all("resourceId").len(), 0);
    for (action, parameters) in [
        ("DeleteSnapshot", vec![("SnapshotId", id)]),
        ("DescribeSnapshotAttribute", vec![("SnapshotId", id), ATTRIBUTE]),
        ("ResetSnapshotAttribute", vec![("SnapshotId", id), ATTRIBUTE]),
        ("ModifySnapshotAttribute", vec![("SnapshotId", id), ("CreateVolumePermission.Add.1.Group", "all")]),
        ("CreateTags", vec![("ResourceId.1", id), ("Tag.1.Key", "mine")]),
        ("DeleteTags", vec![("ResourceId.1", id)]),
    ] {
        assert_eq!(shared.stranger.fails(action, &parameters).await.0, "InvalidSnapshot.NotFound", "{action}");
    }
    shared.cloud.client.ok("DeleteSnapshot", &[("SnapshotId", id)]).await;
    assert_eq!(shared.seen(&[]).await, 0);
    assert_eq!(shared.restore().await.unwrap_err(), "InvalidSnapshot.NotFound");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_item_changes_nothing_and_the_owner_is_never_listed() {
    let shared = Shared::start().await;
    let id = ("SnapshotId", shared.snapshot.as_str());
    let bad = [id, ("CreateVolumePermission.Add.1.UserId", STRANGER), ("CreateVolumePermission.Add.2.UserId", "123")];
    let refused = ("InvalidAMIAttributeItemValue".to_owned(), "UserId 123".to_owned());
    assert_eq!(shared.cloud.client.fails("ModifySnapshotAttribute", &bad).await, refused);
    assert_eq!(shared.granted().await, (vec![], vec![]));
    shared.modify(&[("CreateVolumePermission.Add.1.UserId", "123456789012")]).await;
    assert_eq!(shared.granted().await, (vec![], vec![]));
    let client = &shared.cloud.client;
    for (action, parameters, code) in [
        ("DescribeSnapshotAttribute", vec![id, ("Attribute", "nonsense")], "InvalidRequest"),
        ("ResetSnapshotAttribute", vec![id, ("Attribute", "productCodes")], "InvalidRequest"),
        ("DescribeSnapshotAttribute", vec![id], "MissingParameter"),
        ("ResetSnapshotAttribute", vec![("SnapshotId", "bad"), ATTRIBUTE], "InvalidSnapshotID.Malformed"),
        ("ModifySnapshotAttribute", vec![id], "InvalidParameterCombination"),
        ("ModifySnapshotAttribute", vec![id, ("DryRun", "true")], "DryRunOperation"),
        ("ResetSnapshotAttribute", vec![("DryRun", "true")], "DryRunOperation"),
    ] {
        assert_eq!(client.fails(action, &parameters).await.0, code, "{action} {parameters:?}");
    }
    let codes = client.ok("DescribeSnapshotAttribute", &[id, ("Attribute", "productCodes")]).await;
    assert!(codes.body.contains("<productCodes/>"), "{}", codes.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_own_and_shared_snapshots_joined_are_the_whole() {
    let shared = Shared::start().await;
    let volume =
        shared.stranger.ok("CreateVolume", &[("AvailabilityZone", "us-east-1a"), ("Size", "1")]).await.text("volumeId");
    let find = async || shared.stranger.ok("DescribeVolumes", &[("VolumeId.1", &volume)]).await.text("status");
    shared.cloud.until("available", async || find().await == "available").await;
    let mut expected = Vec::new();
    for n in 0..8 {
        let made = if n % 2 == 0 {
            let own = shared.stranger.ok("CreateSnapshot", &[("VolumeId", &volume)]).await.text("snapshotId");
            shared.cloud.settle().await;
            own
        } else {
            let source = shared
                .cloud
                .client
                .ok("DescribeSnapshots", &[("SnapshotId.1", &shared.snapshot)])
                .await
                .text("volumeId");
            let other = shared.cloud.client.ok("CreateSnapshot", &[("VolumeId", &source)]).await.text("snapshotId");
            let grantee = if n % 4 == 1 { ("Group", "all") } else { ("UserId", STRANGER) };
            let add = format!("CreateVolumePermission.Add.1.{}", grantee.0);
            shared.cloud.client.ok("ModifySnapshotAttribute", &[("SnapshotId", &other), (&add, grantee.1)]).await;
            other
        };
        expected.push(made);
    }
    expected.sort();
    let (mut found, mut token) = (Vec::new(), None::<String>);
    loop {
        let mut parameters = vec![("MaxResults", "5")];
        parameters.extend(token.as_deref().map(|token| ("NextToken", token)));
        let page = shared.stranger.ok("DescribeSnapshots", &parameters).await;
        found.extend(page.all("snapshotId"));
        token = page.find("nextToken");
        if token.is_none() {
            break;
        }
    }
    assert_eq!(found, expected);
}
