//! What a signature covers, and the habits of real clients.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::TimeZone;
use hyper::header::{HeaderName, HeaderValue};

use super::*;

const SECRET: &str = "a secret of forty characters, more or less";
const TIMESTAMP: &str = "20260131T120000Z";
const BODY: &str = "Action=DescribeVolumes&Version=2016-11-15&Filter.1.Value.1=a+%2A";

fn now() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 1, 31, 12, 0, 0).unwrap()
}

/// A request that can be changed after it was signed.
#[derive(Clone)]
struct Sent {
    method: &'static str,
    path: String,
    query: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Sent {
    fn request(&self) -> Request<'_> {
        Request { method: self.method, path: &self.path, query: &self.query, headers: &self.headers, body: &self.body }
    }

    fn set(&mut self, name: &'static str, value: &str) {
        self.headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }

    fn edit(&mut self, name: &'static str, from: &str, to: &str) {
        let value = self.headers[name].to_str().unwrap().to_owned();
        assert!(value.contains(from), "{value}");
        self.set(name, &value.replace(from, to));
    }

    fn check_at(&self, now: DateTime<Utc>) -> Result<(), AuthError> {
        let request = self.request();
        let presented = parse(&request)?;
        let secret = if presented.access_key_id == "KEY" { SECRET } else { "the secret of another key" };
        verify(&request, &presented, secret, now)
    }

    fn check(&self) -> Result<(), AuthError> {
        self.check_at(now())
    }

    fn is_incomplete(&self) -> bool {
        matches!(self.check(), Err(AuthError::Incomplete(_)))
    }
}

/// As our own delegate client sends it.
fn ours(host: &str, path: &str, query: &str) -> Sent {
    let signed = sign(
        &Outgoing {
            method: "POST",
            path,
            query,
            host,
            body: BODY.as_bytes(),
            access_key_id: "KEY",
            secret: SECRET,
            region: "0",
            service: "127",
        },
        now(),
    );
    let (path, query) = (path.to_owned(), query.to_owned());
    let mut sent = Sent { method: "POST", path, query, headers: HeaderMap::new(), body: BODY.into() };
    sent.set("host", host);
    for (name, value) in signed {
        sent.set(name, &value);
    }
    sent
}

fn post() -> Sent {
    ours("127.0.0.1:8773", "/services/Eucalyptus/", "a=1&b=2")
}

/// Presigned for ten minutes, as boto3 does it.
fn presigned(body: &[u8], extra: &str) -> Sent {
    let scope = "20260131/us-east-1/ec2/aws4_request";
    let mut query = format!(
        "Action=DescribeVolumes&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=KEY%2F{}\
         &X-Amz-Date=20260131T120000Z&X-Amz-Expires=600&X-Amz-SignedHeaders=host{extra}",
        scope.replace('/', "%2F")
    );
    let payload = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(b""));
    let payload = if extra.contains("UNSIGNED") { "UNSIGNED-PAYLOAD" } else { &payload };
    let canonical =
        v4::canonical_request("GET", b"/", &canonical::query_v4(&query, None).unwrap(), b"host:h\n", "host", payload);
    let key = SigningKey::derive(SECRET, "20260131", "us-east-1", "ec2");
    let signature = hex::encode(key.mac(v4::string_to_sign(TIMESTAMP, scope, &canonical).as_bytes()));
    query.push_str("&X-Amz-Signature=");
    query.push_str(&signature);
    let mut sent = Sent { method: "GET", path: "/".into(), query, headers: HeaderMap::new(), body: body.into() };
    sent.set("host", "h");
    sent
}

/// Signed with version 2 over `host`, by `time` (`Timestamp=…` or `Expires=…`).
fn v2(method: &'static str, host: &str, time: &str) -> Sent {
    let mut text = format!(
        "Version=2010-08-31&Action=DescribeVolumes&Name=a+b%2A&AWSAccessKeyId=KEY&SignatureVersion=2\
         &SignatureMethod=HmacSHA256&{time}"
    );
    let query = canonical::query_v2(&canonical::pairs(text.as_bytes()).unwrap(), "Signature");
    let signature = STANDARD.encode(SigningKey::v2(SECRET).mac(&super::v2::string_to_sign(
        method,
        host.as_bytes(),
        "/services/Cloud",
        &query,
    )));
    text = format!("{text}&Signature={}", signature.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D"));
    let (query, body) = if method == "GET" { (text, Vec::new()) } else { (String::new(), text.into_bytes()) };
    let mut sent = Sent { method, path: "/services/Cloud".into(), query, headers: HeaderMap::new(), body };
    sent.set("host", host);
    sent.set("content-type", "application/x-www-form-urlencoded; charset=UTF-8");
    sent
}

#[test]
fn what_sign_makes_verify_accepts_with_any_scope() {
    assert_eq!(post().check(), Ok(()));
    assert_eq!(ours("h", "/", "").check(), Ok(()));
    assert_eq!(ours("h", "/a%20b//./c/", "x=%2A+y&x=1&&z").check(), Ok(()));
    let sent = post();
    let (key, wrong) = (SigningKey::derive(SECRET, "20260131", "0", "127"), SigningKey::v2(SECRET));
    let request = sent.request();
    let presented = parse(&request).unwrap();
    assert_eq!(presented.scope(), "20260131/0/127/aws4_request");
    assert_eq!(verify_with_key(&request, &presented, &key, now()), Ok(()));
    assert_eq!(verify_with_key(&request, &presented, &wrong, now()), Err(AuthError::Mismatch));
}

#[test]
fn a_change_of_any_part_is_noticed() {
    let changes: [fn(&mut Sent); 8] = [
        |s| s.method = "GET",
        |s| s.path.push('x'),
        |s| s.query = "a=1&b=3".into(),
        |s| s.query.push_str("&c"),
        |s| s.body.push(b'0'),
        |s| s.set("host", "127.0.0.1:8774"),
        |s| s.set("x-amz-date", "20260131T120001Z"),
        |s| s.edit("authorization", "/0/127/", "/0/128/"),
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut sent = post();
        change(&mut sent);
        assert_eq!(sent.check(), Err(AuthError::Mismatch), "change {number}");
    }
    let mut sent = post();
    sent.headers.append("x-amz-content-sha256", HeaderValue::from_static("UNSIGNED-PAYLOAD"));
    assert!(sent.is_incomplete());
}

#[test]
fn a_clock_may_be_wrong_by_a_quarter_of_an_hour() {
    let quarter = Duration::minutes(15);
    for time in [now() - quarter, now() + quarter] {
        assert_eq!(post().check_at(time), Ok(()));
    }
    for time in [now() - quarter - Duration::seconds(1), now() + quarter + Duration::seconds(1)] {
        let expected = AuthError::Expired { request_time: now(), server_time: time };
        assert_eq!(post().check_at(time), Err(expected.clone()));
        assert_eq!(v2("GET", "h", "Timestamp=2026-01-31T12:00:00Z").check_at(time), Err(expected));
    }
}

#[test]
fn signatures_of_the_wrong_form_are_told_from_wrong_signatures() {
    let mut unsigned = post();
    unsigned.headers.remove("authorization");
    assert_eq!(unsigned.check(), Err(AuthError::Missing));

    let edits = [
        ("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"),
        ("AWS4-HMAC-SHA256 ", "Basic "),
        ("Credential=", "Credentials="),
        ("Credential=KEY/", "Credential="),
        ("Credential=KEY/", "Credential=/"),
        ("/aws4_request", "/aws3_request"),
        ("20260131", "20260130"),
        ("SignedHeaders=host;", "SignedHeaders="),
        ("SignedHeaders=host;", "SignedHeaders=Host;"),
        ("SignedHeaders=host;", "SignedHeaders=host;host;"),
        ("SignedHeaders=host;", "SignedHeaders=host;missing;"),
        ("SignedHeaders=host;", "Signature=host;"),
        ("Signature=", "Signature=0"),
        (", Signature=", ", Nothing="),
    ];
    for (from, to) in edits {
        let mut sent = post();
        sent.edit("authorization", from, to);
        assert!(sent.is_incomplete(), "{to}: {:?}", sent.check());
    }
    for time in ["", "20260131", "2026-01-31T12:00:00Z", "20260231T120000Z", "20260131T120000+", "\u{b9}0260131T12000Z"]
    {
        let mut sent = post();
        sent.headers.insert("x-amz-date", HeaderValue::from_bytes(time.as_bytes()).unwrap());
        assert!(sent.is_incomplete(), "{time}");
    }
    for query in ["a=%", "a=%1", "a=%zz", "%g0"] {
        let mut sent = post();
        sent.query = query.into();
        assert!(sent.is_incomplete(), "{query}");
    }
    let mut sent = post();
    sent.headers.remove("host");
    assert!(sent.is_incomplete());
}

#[test]
fn bytes_that_are_no_text_are_signed_like_any_others() {
    assert_eq!(ours("h", "/", "%00=%FF&a=%C3").check(), Ok(()));
}

#[test]
fn header_parts_joined_without_blanks_and_a_date_header_are_read() {
    let mut sent = post();
    sent.edit("authorization", ", ", ",");
    assert_eq!(sent.check(), Ok(()));

    // The time is in the text that is signed, under whichever name it travels.
    let names = "host";
    let (hash, scope) = (hex::encode(<sha2::Sha256 as sha2::Digest>::digest(BODY)), "20260131/0/127/aws4_request");
    let canonical = v4::canonical_request("POST", b"/", b"", b"host:h\n", names, &hash);
    let key = SigningKey::derive(SECRET, "20260131", "0", "127");
    let signature = hex::encode(key.mac(v4::string_to_sign(TIMESTAMP, scope, &canonical).as_bytes()));
    let mut sent = ours("h", "/", "");
    sent.headers.remove("x-amz-date");
    sent.set("date", "Sat, 31 Jan 2026 12:00:00 GMT");
    let value = format!("AWS4-HMAC-SHA256 Credential=KEY/{scope},SignedHeaders={names},Signature={signature}");
    sent.set("authorization", &value);
    assert_eq!(sent.check(), Ok(()));
}

#[test]
fn a_default_port_that_a_library_drops_or_adds_does_no_harm_but_another_port_does() {
    for (signed, received) in
        [("h", "h:80"), ("h", "h:443"), ("h:80", "h"), ("[::1]:443", "[::1]"), ("[::1]", "[::1]:80")]
    {
        let mut sent = ours(signed, "/", "");
        sent.set("host", received);
        assert_eq!(sent.check(), Ok(()), "{signed} {received}");
    }
    let mut sent = ours("h", "/", "");
    sent.set("host", "h:8080");
    assert_eq!(sent.check(), Err(AuthError::Mismatch));
}

#[test]
fn a_presigned_request_is_good_from_its_time_until_it_expires() {
    let sent = presigned(b"", "");
    assert_eq!(sent.check(), Ok(()));
    assert_eq!(sent.check_at(now() + Duration::seconds(600)), Ok(()));
    for time in [now() + Duration::seconds(601), now() - Duration::minutes(16)] {
        assert_eq!(sent.check_at(time), Err(AuthError::Expired { request_time: now(), server_time: time }));
    }
    for expires in ["0", "604801", "-1", "x", "99999999999999999999", ""] {
        let mut sent = presigned(b"", "");
        sent.query = sent.query.replace("Expires=600", &format!("Expires={expires}"));
        assert!(sent.is_incomplete(), "{expires}");
    }
    let mut sent = presigned(b"", "");
    sent.query = sent.query.replace("Expires=600", "Expires=700");
    assert_eq!(sent.check(), Err(AuthError::Mismatch));
    sent = presigned(b"", "");
    sent.query.push_str("&X-Amz-Date=20260131T120000Z");
    assert!(sent.is_incomplete());
}

#[test]
fn a_presigned_request_never_carries_an_unsigned_body() {
    let unsigned = "&X-Amz-Content-Sha256=UNSIGNED-PAYLOAD";
    assert_eq!(presigned(b"", unsigned).check(), Ok(()));
    assert_eq!(presigned(b"Action=DeleteVolume", unsigned).check(), Err(AuthError::Mismatch));
    assert_eq!(presigned(b"Action=DeleteVolume", "").check(), Err(AuthError::Mismatch));
}

#[test]
fn version_2_is_read_from_query_and_form_with_timestamp_or_expiry() {
    for method in ["GET", "POST"] {
        for time in
            ["Timestamp=2026-01-31T12%3A00%3A00", "Timestamp=2026-01-31T12:00:00.000Z", "Expires=2026-01-31T12:00:00Z"]
        {
            let sent = v2(method, "h", time);
            assert_eq!(sent.check(), Ok(()), "{method} {time}");
            assert!(parse(&sent.request()).unwrap().is_v2());
        }
    }
    let late = now() + Duration::seconds(1);
    let expected = AuthError::Expired { request_time: now(), server_time: late };
    assert_eq!(v2("GET", "h", "Expires=2026-01-31T12:00:00Z").check_at(late), Err(expected));
}

#[test]
fn version_2_takes_the_host_with_its_port_and_without() {
    let time = "Timestamp=2026-01-31T12:00:00Z";
    assert_eq!(v2("GET", "127.0.0.1:8773", time).check(), Ok(()));
    let mut sent = v2("GET", "host.example", time);
    sent.set("host", "Host.Example:8773");
    assert_eq!(sent.check(), Ok(()));
    sent.set("host", "other.example");
    assert_eq!(sent.check(), Err(AuthError::Mismatch));
}

#[test]
fn version_2_covers_every_parameter_and_refuses_weaker_forms() {
    let time = "Timestamp=2026-01-31T12:00:00Z";
    for method in ["GET", "POST"] {
        let mut sent = v2(method, "h", time);
        sent.query.push_str("&Force=true");
        assert_eq!(sent.check(), Err(AuthError::Mismatch), "{method}");
    }
    let edits = [
        ("SignatureVersion=2", "SignatureVersion=1"),
        ("SignatureMethod=HmacSHA256", "SignatureMethod=HmacSHA1"),
        ("AWSAccessKeyId=KEY", "AWSAccessKeyId="),
        ("AWSAccessKeyId=KEY", "AWSAccessKeyId=%FF"),
        ("AWSAccessKeyId=KEY", "AWSAccessKeyId=KEY&AWSAccessKeyId=KEY"),
        (time, ""),
        (time, "Timestamp=%2B262142-12-31T23:59:59.999&Expires=2027-01-01T00:00:00Z"),
        (time, "Timestamp=today"),
        ("&Signature=", "&Signature=A"),
    ];
    for (from, to) in edits {
        let mut sent = v2("GET", "h", time);
        assert!(sent.query.contains(from));
        sent.query = sent.query.replace(from, to);
        assert!(sent.is_incomplete(), "{to}: {:?}", sent.check());
    }
    let mut far = v2("GET", "h", time);
    far.query = far.query.replace(time, "Timestamp=%2B262142-12-31T23:59:59.999");
    assert!(matches!(far.check(), Err(AuthError::Expired { .. } | AuthError::Incomplete(_))));
}

#[test]
fn no_byte_of_a_signed_request_can_be_changed() {
    let time = "Timestamp=2026-01-31T12:00:00Z";
    for sent in [post(), presigned(b"", ""), v2("GET", "h", time), v2("POST", "h", time)] {
        assert_eq!(sent.check(), Ok(()));
        for byte in *b"%&=/;,\0" {
            for at in 0..sent.query.len() {
                let mut bytes = sent.query.clone().into_bytes();
                if std::mem::replace(&mut bytes[at], byte) != byte {
                    let changed = Sent { query: String::from_utf8(bytes).unwrap(), ..sent.clone() };
                    assert!(changed.check().is_err(), "{}", changed.query);
                }
            }
            for at in 0..sent.body.len() {
                let mut changed = sent.clone();
                if std::mem::replace(&mut changed.body[at], byte) != byte {
                    assert!(changed.check().is_err(), "{}", String::from_utf8_lossy(&changed.body));
                }
            }
            let authorization = sent.headers.get("authorization").map_or(&b""[..], HeaderValue::as_bytes);
            for at in 0..authorization.len() {
                let mut bytes = authorization.to_vec();
                if std::mem::replace(&mut bytes[at], byte) != byte
                    && let Ok(value) = HeaderValue::from_bytes(&bytes)
                {
                    let mut changed = sent.clone();
                    changed.headers.insert("authorization", value);
                    assert!(changed.check().is_err(), "{}", String::from_utf8_lossy(&bytes));
                }
            }
        }
    }
}

#[test]
fn version_2_is_refused_with_a_body_that_it_does_not_cover() {
    let time = "Timestamp=2026-01-31T12:00:00Z";
    let mut get = v2("GET", "h", time);
    get.body = b"DryRun=false".to_vec();
    assert!(get.is_incomplete());
    // A POST with its parameters in the query, and more of them in a body that says it is no form.
    let mut post = v2("POST", "h", time);
    post.query = String::from_utf8(std::mem::take(&mut post.body)).unwrap();
    assert_eq!(post.check(), Ok(()));
    post.body = b"DryRun=false".to_vec();
    assert!(post.check().is_err(), "a form is signed");
    post.set("content-type", "text/plain");
    assert!(post.is_incomplete());
}
