//! What was signed is what is done, byte for byte; and who has no key learns nothing of those who have.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use chrono::Utc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use vbs::db;
use vbs::sigv4::{Outgoing, sign};

use crate::support::client::Client;
use crate::support::cloud::{Cloud, PATIENCE};

const FORM: &str = "Action=DescribeRegions&Version=2016-11-15";
const DELETE: &str = "Action=DeleteVolume&VolumeId=vol-0123456789abcdef0";

/// The lines of a head that sign a POST of this query and body, `Host` included.
fn signature(client: &Client, query: &str, body: &str) -> String {
    let host = client.address.to_string();
    let signed = sign(
        &Outgoing {
            method: "POST",
            path: "/",
            query,
            host: &host,
            body: body.as_bytes(),
            access_key_id: &client.access_key_id,
            secret: &client.secret,
            region: "us-east-1",
            service: "ec2",
        },
        Utc::now(),
    );
    let lines = signed.map(|(name, value)| format!("{name}: {value}\r\n")).concat();
    format!("Host: {host}\r\n{lines}")
}

/// Sends these bytes, no more, and reads all that is answered.
async fn raw(address: SocketAddr, sent: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(sent.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A server that refuses may close before it has read all; what it said counts.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
    String::from_utf8(answer).unwrap()
}

fn code(answer: &str) -> &str {
    answer.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map_or("none", |(code, _)| code)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_reading_of_a_signed_request_is_acted_upon() {
    let cloud = Cloud::start().await;
    let client = &cloud.client;
    let plain = |body: &str| format!("Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    let chunked = |parts: &[&str]| {
        let parts = parts.iter().map(|part| format!("{:x}\r\n{part}\r\n", part.len())).collect::<Vec<_>>().concat();
        format!("Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n{parts}0\r\n\r\n")
    };
    let post = |target: &str, signed: &str, rest: &str| format!("POST {target} HTTP/1.1\r\n{signed}{rest}");
    let good = signature(client, "", FORM);
    let authorization = good.lines().find(|line| line.starts_with("authorization")).unwrap();
    let date = good.lines().find(|line| line.starts_with("x-amz-date")).unwrap();
    let twice = |line: &str| format!("{good}{line}\r\n");
    let (first, second) = FORM.split_at(9);
    let cases = [
        ("as it was signed", post("/", &good, &plain(FORM)), "200", "none"),
        ("in chunks", post("/", &good, &chunked(&[first, second])), "200", "none"),
        ("by its absolute target", post(&format!("http://{}/", client.address), &good, &plain(FORM)), "200", "none"),
        (
            "spelt otherwise",
            post("/?%41%2e1=+", &signature(client, "A.1=%20", FORM), &plain(FORM)),
            "400",
            "UnknownParameter",
        ),
        ("another body", post("/", &good, &plain(DELETE)), "401", "AuthFailure"),
        ("another body in chunks", post("/", &good, &chunked(&[first, second, "&x=y"])), "401", "AuthFailure"),
        ("a query besides", post("/?DryRun=true", &good, &plain(FORM)), "401", "AuthFailure"),
        (
            "a target of another host with a query",
            post("http://x/?DryRun=true", &good, &plain(FORM)),
            "401",
            "AuthFailure",
        ),
        (
            "an action in the query and one in the body",
            post(&format!("/?{DELETE}"), &signature(client, DELETE, FORM), &plain(FORM)),
            "400",
            "InvalidQueryParameter",
        ),
        (
            "a parameter twice",
            post("/", &signature(client, "", &format!("{FORM}&{FORM}")), &plain(&format!("{FORM}&{FORM}"))),
            "400",
            "InvalidQueryParameter",
        ),
        ("two hosts", post("/", &twice("Host: other"), &plain(FORM)), "400", "IncompleteSignature"),
        ("two signatures", post("/", &twice(authorization), &plain(FORM)), "400", "IncompleteSignature"),
        ("two times", post("/", &twice(date), &plain(FORM)), "400", "IncompleteSignature"),
        (
            "a digest of nothing",
            post("/", &twice("x-amz-content-sha256: UNSIGNED-PAYLOAD"), &plain(FORM)),
            "400",
            "IncompleteSignature",
        ),
        (
            "a header folded",
            post("/", &good.replace("x-amz-date: ", "x-amz-date:\r\n "), &plain(FORM)),
            "400",
            "InvalidRequest",
        ),
        (
            "a blank before a colon",
            post("/", &good.replace("x-amz-date:", "x-amz-date :"), &plain(FORM)),
            "400",
            "InvalidRequest",
        ),
        ("two lengths", post("/", &twice("Content-Length: 1"), &plain(FORM)), "400", "InvalidRequest"),
        (
            "chunks that are none",
            post("/", &twice("Transfer-Encoding: chunked, identity"), &plain(FORM)),
            "400",
            "InvalidRequest",
        ),
    ];
    for (what, sent, status, expected) in cases {
        let answer = raw(client.address, &sent).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && code(&answer) == expected, "{what}: {answer}");
    }
    // Whatever ends the body for others: what comes behind it here is not taken for a request of its own.
    let hidden = post("/", &signature(client, "", DELETE), &plain(DELETE));
    let both = format!("{good}Content-Length: {}\r\n", FORM.len());
    let answer = raw(client.address, &post("/", &both, &chunked(&[&format!("{FORM}{hidden}")]))).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(answer.starts_with("HTTP/1.1 40"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_is_refused_as_a_wrong_signature_is_whatever_is_wrong_besides() {
    let cloud = Cloud::start().await;
    let mut answers = Vec::new();
    for id in [cloud.client.access_key_id.as_str(), "AKIAIOSFODNN7EXAMPLE"] {
        let stranger = Client { access_key_id: id.into(), secret: "a guess".into(), ..cloud.client.clone() };
        let head = |edit: fn(String) -> String| {
            let lines = edit(signature(&stranger, "", FORM));
            format!("POST / HTTP/1.1\r\n{lines}Content-Length: {}\r\nConnection: close\r\n\r\n{FORM}", FORM.len())
        };
        let now = Utc::now().format("%Y-%m-%dT%H:%M:%SZ");
        let v2 = format!(
            "{FORM}&AWSAccessKeyId={id}&SignatureVersion=2&SignatureMethod=HmacSHA256&Timestamp={now}&Signature={}%3D",
            "A".repeat(43)
        );
        let mut of_one = Vec::new();
        for sent in [
            head(|lines| lines),
            head(|lines| lines.replace("SignedHeaders=host;", "SignedHeaders=accept;host;")),
            head(|lines| lines.replace("x-amz-content-sha256: ", "x-amz-content-sha256: x")),
            format!("GET /?{v2} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"),
        ] {
            // The second time the key is remembered, if there is one.
            for _ in 0..2 {
                let answer = raw(cloud.client.address, &sent).await;
                let (head, body) = answer.split_once("\r\n\r\n").unwrap();
                let same = |line: &&str| !line.starts_with("x-amzn-requestid") && !line.starts_with("date");
                let head: Vec<_> = head.lines().filter(same).map(str::to_owned).collect();
                of_one.push((head, body.split_once("<RequestID>").unwrap().0.to_owned()));
            }
        }
        answers.push(of_one);
    }
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0][0].1.contains("AuthFailure"));
}

/// They are told of it: a gateway that only remembers for a while finds out when that while is over.
#[tokio::test(flavor = "multi_thread")]
async fn every_gateway_is_told_of_a_key_and_of_an_account_that_is_disabled() {
    const TRIES: usize = 5;
    /// Half of what a gateway remembers a key for.
    const AT_ONCE: Duration = Duration::from_millis(500);
    let first = Cloud::start().await;
    let second = Cloud::join(&first.context.database_url, &first.sim, "").await;
    let here = first.another_account("999999999999").await;
    let there = Client { address: second.client.address, ..here.clone() };
    // Both remember the key from here on.
    for gateway in [&here, &there] {
        gateway.ok("DescribeRegions", &[]).await;
    }
    let mut conn = first.pool.get().await.unwrap();
    for whole_account in [false, true] {
        let mut took = Vec::new();
        // Enabled at the end, so that the other is all that is disabled.
        for enabled in [false, true].repeat(TRIES) {
            if whole_account {
                db::accounts::set_enabled(&mut conn, "999999999999", enabled).await.unwrap();
            } else {
                db::access_keys::set_enabled(&mut conn, &here.access_key_id, enabled).await.unwrap();
            }
            let since = Instant::now();
            for gateway in [&here, &there] {
                let status = if enabled { 200 } else { 401 };
                first.until("told", async || gateway.call("DescribeRegions", &[]).await.status == status).await;
            }
            if !enabled {
                took.push(since.elapsed());
            }
        }
        // A machine that is busy elsewhere may be late now and then.
        assert!(*took.iter().min().unwrap() < AT_ONCE, "refused after {took:?}, of a whole account: {whole_account}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_disabled_is_refused_by_every_gateway_within_a_second() {
    let first = Cloud::start().await;
    let second = Cloud::join(&first.context.database_url, &first.sim, "").await;
    let here = &first.client;
    let there = Client { address: second.client.address, ..here.clone() };
    for gateway in [here, &there] {
        gateway.ok("DescribeRegions", &[]).await;
    }
    let mut conn = first.pool.get().await.unwrap();
    db::access_keys::set_enabled(&mut conn, &here.access_key_id, false).await.unwrap();
    let disabled = Instant::now();
    let mut refused = [false; 2];
    while refused != [true; 2] || disabled.elapsed() < Duration::from_millis(1500) {
        for (gateway, refused) in [here, &there].into_iter().zip(&mut refused) {
            let asked_after = disabled.elapsed();
            let status = gateway.call("DescribeRegions", &[]).await.status;
            // Most often it is at once. Whatever becomes of the notification, a second is the end.
            assert!(status == 401 || asked_after <= Duration::from_secs(1), "let in after {asked_after:?}");
            assert!(status == 401 || !*refused, "let in again");
            *refused = status == 401;
        }
    }
}
