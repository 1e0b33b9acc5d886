//! The front of the API: who is let in, what is refused before anything is done, and in which words.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use vbs::db::{self, Pool};
use vbs::ec2_api::error::ApiError;

use crate::support::client::{Answer, send};
use crate::support::cloud::{ACCOUNT, Cloud};
use crate::support::postgres;

async fn post(cloud: &Cloud, form: impl Into<Bytes>) -> Answer {
    let request = Request::post("/").header("host", "localhost").body(Full::new(form.into())).unwrap();
    send(cloud.client.address, request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_and_hostile_requests_get_the_ec2_error_document_before_authentication() {
    let cloud = Cloud::start().await;
    let deep = format!("Action=DescribeVolumes&Filter{}=x", ".1".repeat(1000));
    let million = (0..100_000).map(|n| format!("a{n}=")).collect::<Vec<_>>().join("&");
    for (form, status, code) in [
        (&b"Action=DescribeVolumes"[..], 400, "MissingParameter"),
        (b"", 400, "MissingParameter"),
        (b"Action=%", 400, "MalformedQueryString"),
        (b"Action=%ff", 400, "MalformedQueryString"),
        (b"Action=\xff\xfe", 400, "MalformedQueryString"),
        (b"Action=DescribeVolumes&Filter.1.Name=a%00b", 400, "InvalidParameterValue"),
        (b"Action=DescribeVolumes&Action=DeleteVolume", 400, "InvalidQueryParameter"),
        (b"Action=DescribeVolumes&Version=%22%3E%3Cx", 400, "NoSuchVersion"),
        (deep.as_bytes(), 400, "MissingParameter"),
        (million.as_bytes(), 400, "MalformedQueryString"),
        (&vec![b'a'; 2 << 20], 413, "RequestEntityTooLarge"),
    ] {
        let answer = post(&cloud, form.to_vec()).await;
        let head = String::from_utf8_lossy(&form[..form.len().min(60)]).into_owned();
        assert_eq!((answer.status, answer.text("Code").as_str()), (status, code), "{head}");
        assert!(answer.body.contains("<Response><Errors><Error>") && answer.find("RequestID").is_some(), "{head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_get_and_post_are_taken() {
    let cloud = Cloud::start().await;
    for method in ["PUT", "DELETE", "BREW"] {
        let request = Request::builder().method(method).uri("/").header("host", "localhost");
        let answer = send(cloud.client.address, request.body(Full::new(Bytes::new())).unwrap()).await;
        assert_eq!((answer.status, answer.text("Code").as_str()), (405, "MethodNotAllowed"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_actions_parameters_and_versions_are_refused_by_name() {
    let cloud = Cloud::start().await;
    let found = cloud.client.fails("DescribeFoo", &[]).await;
    assert_eq!(
        found,
        ("InvalidAction".to_owned(), "The action DescribeFoo is not valid for this web service.".to_owned())
    );
    let found = cloud.client.fails("EnableFastSnapshotRestores", &[("Colour", "x"), ("DryRun", "true")]).await;
    assert_eq!(
        found,
        ("UnsupportedOperation".to_owned(), "The action EnableFastSnapshotRestores is not supported here.".to_owned())
    );
    assert_eq!(cloud.client.fails("", &[]).await.0, "MissingAction");
    let deep = format!("Filter{}", ".1".repeat(1000));
    for name in ["Colour", "VolumeId", "VolumeId.x", "Filter.1.Colour", "volumeid.1", deep.as_str()] {
        assert_eq!(cloud.client.fails("DescribeVolumes", &[(name, "x")]).await.0, "UnknownParameter", "{name:.60}");
    }
    for name in ["Colour", "DryRun"] {
        assert_eq!(cloud.client.fails("GetCallerIdentity", &[(name, "true")]).await.0, "UnknownParameter");
    }
    assert_eq!(cloud.client.fails("DescribeVolumes", &[("DryRun", "maybe")]).await.0, "InvalidParameterValue");
    cloud.client.ok("DescribeVolumes", &[("Filter.999999999.Name", "size"), ("Filter.999999999.Value.7", "1")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_enabled_key_with_the_right_secret_is_let_in() {
    let cloud = Cloud::start().await;
    let refused = ("AuthFailure".to_owned(), "AWS was not able to validate the provided access credentials".to_owned());
    let mut stranger = cloud.client.clone();
    stranger.secret.push('x');
    assert_eq!(stranger.fails("DescribeVolumes", &[]).await, refused);
    assert_eq!(stranger.call("DescribeVolumes", &[]).await.status, 401);
    stranger.access_key_id = "AKIAIOSFODNN7EXAMPLE".into();
    assert_eq!(stranger.fails("DescribeVolumes", &[]).await, refused);
    cloud.client.ok("DescribeVolumes", &[]).await;
    let mut conn = cloud.pool.get().await.unwrap();
    db::access_keys::set_enabled(&mut conn, &cloud.client.access_key_id, false).await.unwrap();
    cloud.until("refused", async || cloud.client.call("DescribeVolumes", &[]).await.status == 401).await;
    db::access_keys::set_enabled(&mut conn, &cloud.client.access_key_id, true).await.unwrap();
    cloud.client.ok("DescribeVolumes", &[]).await;
    db::accounts::set_enabled(&mut conn, ACCOUNT, false).await.unwrap();
    cloud.until("refused", async || cloud.client.call("DescribeVolumes", &[]).await.status == 401).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_request_with_a_made_up_signature_does_not_tell_whether_there_is_the_key() {
    let cloud = Cloud::start().await;
    for id in [cloud.client.access_key_id.as_str(), "AKIAIOSFODNN7EXAMPLE"] {
        let form = format!(
            "Action=DescribeVolumes&AWSAccessKeyId={id}&SignatureVersion=2&SignatureMethod=HmacSHA256\
             &Timestamp=2020-01-01T00:00:00Z&Signature={}",
            "A".repeat(43) + "%3D"
        );
        assert_eq!(post(&cloud, form).await.text("Code"), "RequestExpired", "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_region_its_zones_and_the_caller_are_described() {
    let cloud = Cloud::start().await;
    let zones = cloud.client.ok("DescribeAvailabilityZones", &[]).await;
    assert_eq!(zones.all("zoneName"), ["us-east-1a", "us-east-1b"]);
    assert_eq!(zones.all("zoneId"), ["use1-az1", "use1-az2"]);
    let one = [("Filter.1.Name", "zone-name"), ("Filter.1.Value.1", "*b")];
    assert_eq!(cloud.client.ok("DescribeAvailabilityZones", &one).await.all("zoneName"), ["us-east-1b"]);
    assert_eq!(cloud.client.fails("DescribeAvailabilityZones", &[("DryRun", "true")]).await.0, "DryRunOperation");
    let unknown = [("ZoneName.1", "us-east-1z"), ("ZoneName.2", "us-east-1a"), ("ZoneName.3", "mars")];
    let found = cloud.client.fails("DescribeAvailabilityZones", &unknown).await;
    assert_eq!(found, ("InvalidParameterValue".into(), "Invalid availability zone: [us-east-1z, mars]".into()));
    let by_id = [("ZoneId.1", "use1-az2")];
    assert_eq!(cloud.client.ok("DescribeAvailabilityZones", &by_id).await.all("zoneName"), ["us-east-1b"]);
    let regions = cloud.client.ok("DescribeRegions", &[]).await;
    assert_eq!(regions.text("regionEndpoint"), cloud.client.address.to_string());
    assert_eq!(cloud.client.ok("GetCallerIdentity", &[]).await.text("Account"), ACCOUNT);
    let mut stranger = cloud.client.clone();
    stranger.secret.push('x');
    let answer = stranger.call("GetCallerIdentity", &[]).await;
    assert_eq!((answer.status, answer.text("Code").as_str()), (403, "InvalidClientTokenId"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_found_by_its_id_though_another_one_is_called_so() {
    let cloud = Cloud::start().await;
    let mut conn = cloud.pool.get().await.unwrap();
    db::accounts::create(&mut conn, "111111111111", "222222222222").await.unwrap();
    db::accounts::create(&mut conn, "222222222222", "the real one").await.unwrap();
    db::accounts::create(&mut conn, "333333333333", "333333333334").await.unwrap();
    for (asked, id) in [("222222222222", "222222222222"), ("333333333334", "333333333333")] {
        assert_eq!(db::accounts::find(&mut conn, asked).await.unwrap().unwrap().id, id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_in_vain_for_the_database_is_throttled_if_others_were_served_meanwhile() {
    let pool = Pool::new(&postgres::database().await, 1).unwrap();
    let wait = || {
        let pool = pool.clone();
        tokio::spawn(async move { pool.get().await })
    };
    let first = pool.get().await.unwrap();
    let code = |refused: Option<db::Error>| ApiError::from(refused.unwrap()).code;
    assert_eq!(code(wait().await.unwrap().err()), "Unavailable", "nobody was served");
    let (second, third) = (wait(), wait());
    tokio::time::sleep(Duration::from_secs(2)).await;
    drop(first);
    let (second, third) = (second.await.unwrap(), third.await.unwrap());
    let (served, refused): (Vec<_>, Vec<_>) = [second, third].into_iter().partition(Result::is_ok);
    assert_eq!((served.len(), refused.len()), (1, 1));
    assert_eq!(code(refused.into_iter().next().and_then(Result::err)), "RequestLimitExceeded");
}
