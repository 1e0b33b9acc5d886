//! The published vectors, with every string on the way to the signature.

use chrono::{DateTime, TimeZone, Utc};
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

use super::*;

const SUITE: &str = include_str!("testdata/suite.json");
const OLDER: &str = include_str!("testdata/older.json");
const UNSIGNED: &str = include_str!("testdata/unsigned.json");
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    form: String,
    normalize: bool,
    signed_request: String,
    canonical_request: String,
    string_to_sign: String,
    signature: String,
}

fn cases(file: &str) -> Vec<Case> {
    serde_json::from_str(file).unwrap()
}

fn then() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2015, 8, 30, 12, 36, 0).unwrap()
}

/// Takes a request apart as an HTTP server does, folded header lines and all.
fn read(text: &str) -> (String, String, String, HeaderMap, Vec<u8>) {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let head = head.replace("\n ", " ");
    let mut lines = head.lines();
    let line = lines.next().unwrap().strip_suffix(" HTTP/1.1").unwrap();
    let (method, target) = line.split_once(' ').unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut headers = HeaderMap::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').unwrap();
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(value.trim().as_bytes()).unwrap(),
        );
    }
    (method.to_owned(), path.to_owned(), query.to_owned(), headers, body.as_bytes().to_vec())
}

#[test]
fn every_string_of_the_published_suites_is_met() {
    let (suite, older) = (cases(SUITE), cases(OLDER));
    assert_eq!((suite.len(), older.len()), (75, 5));
    for case in suite.into_iter().chain(older) {
        let label = format!("{} in the {}", case.name, case.form);
        let (method, path, query, headers, body) = read(&case.signed_request);
        let request = Request { method: &method, path: &path, query: &query, headers: &headers, body: &body };

        let presented = parse(&request).unwrap_or_else(|e| panic!("{label}: {e}"));
        assert_eq!(presented.access_key_id, "AKIDEXAMPLE", "{label}");
        assert_eq!(presented.scope(), "20150830/us-east-1/service/aws4_request", "{label}");
        let Scheme::V4(claim) = &presented.scheme else { panic!("{label}: not version 4") };

        let signed_path = if case.normalize { canonical::normalised(&path) } else { Cow::Borrowed(&*path) };
        let host = headers["host"].as_bytes();
        let canonical = claim.canonical(&request, &claim.fixed(&request).unwrap(), &signed_path, host).unwrap();
        assert_eq!(String::from_utf8(canonical.clone()).unwrap(), case.canonical_request, "{label}");
        let text = v4::string_to_sign("20150830T123600Z", presented.scope(), &canonical);
        assert_eq!(text, case.string_to_sign, "{label}");
        let key = presented.signing_key(SECRET);
        assert_eq!(hex::encode(key.mac(text.as_bytes())), case.signature, "{label}");

        assert_eq!(verify(&request, &presented, SECRET, then()), Ok(()), "{label}");
        assert_eq!(verify(&request, &presented, "other", then()), Err(AuthError::Mismatch), "{label}");
    }
}

/// A signer may leave the body out of its signature; whoever sees such a request could choose another action for it. Only a presigned one
/// without any body, which has nothing that could be exchanged, is met in this spelling.
#[test]
fn a_body_that_was_left_unsigned_is_refused_though_its_signature_is_the_published_one() {
    for case in cases(UNSIGNED) {
        let (method, path, query, headers, body) = read(&case.signed_request);
        assert!(body.starts_with(b"Param1=value1"));
        let request = Request { method: &method, path: &path, query: &query, headers: &headers, body: &body };
        let presented = parse(&request).unwrap();
        let hashed = v4::string_to_sign("20150830T123600Z", presented.scope(), case.canonical_request.as_bytes());
        assert_eq!(hashed, case.string_to_sign, "{}", case.form);
        let signature = hex::encode(presented.signing_key(SECRET).mac(case.string_to_sign.as_bytes()));
        assert_eq!(signature, case.signature, "{}", case.form);
        assert_eq!(verify(&request, &presented, SECRET, then()), Err(AuthError::Mismatch), "{}", case.form);

        let bodiless = Request { body: b"", ..request };
        let expected = if case.form == "query" { Ok(()) } else { Err(AuthError::Mismatch) };
        assert_eq!(verify(&bodiless, &parse(&bodiless).unwrap(), SECRET, then()), expected, "{}", case.form);
    }
}

/// The one form that the suite above lacks: where a token is added behind the signature's back. There are no tokens here, and
/// whatever is in the query must be signed.
#[test]
fn a_session_token_that_was_added_after_signing_is_refused() {
    let suite = cases(SUITE);
    let case = suite.iter().find(|case| case.name == "post-vanilla" && case.form == "query").unwrap();
    let (method, path, query, headers, body) = read(&case.signed_request);
    let query = format!("{query}&X-Amz-Security-Token=AQoDYXdz");
    let request = Request { method: &method, path: &path, query: &query, headers: &headers, body: &body };
    assert_eq!(verify(&request, &parse(&request).unwrap(), SECRET, then()), Err(AuthError::Mismatch));
}

/// "Create a signed AWS API request": `ListUsers` of IAM.
#[test]
fn the_worked_example_of_version_4_is_met_down_to_the_key() {
    let key = SigningKey::derive(SECRET, "20150830", "us-east-1", "iam");
    let request = "GET /?Action=ListUsers&Version=2010-05-08 HTTP/1.1\n\
        content-type:application/x-www-form-urlencoded; charset=utf-8\n\
        host:iam.amazonaws.com\n\
        x-amz-date:20150830T123600Z\n\
        authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
        SignedHeaders=content-type;host;x-amz-date, \
        Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7\n\n";
    let (method, path, query, headers, body) = read(request);
    let request = Request { method: &method, path: &path, query: &query, headers: &headers, body: &body };
    let presented = parse(&request).unwrap();
    let Scheme::V4(claim) = &presented.scheme else { panic!("not version 4") };
    let canonical =
        claim.canonical(&request, &claim.fixed(&request).unwrap(), &path, headers["host"].as_bytes()).unwrap();
    assert_eq!(
        v4::string_to_sign("20150830T123600Z", presented.scope(), &canonical),
        "AWS4-HMAC-SHA256\n20150830T123600Z\n20150830/us-east-1/iam/aws4_request\n\
         f536975d06c0309214f805bb90ccff089219ecd68b2577efef23edd43b7e1a59"
    );
    assert_eq!(verify_with_key(&request, &presented, &key, then()), Ok(()));
}

/// The bytes of the signing key itself, which the example prints too.
#[test]
fn the_signing_key_of_the_worked_example_is_derived() {
    assert_eq!(
        hex::encode(SigningKey::bytes(SECRET, "20150830", "us-east-1", "iam")),
        "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"
    );
}

/// "Signature Version 2 signing process": `DescribeJobFlows` of EMR.
#[test]
fn the_worked_example_of_version_2_is_met() {
    let request = "GET /?Action=DescribeJobFlows&Version=2009-03-31&AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&SignatureVersion=2\
        &SignatureMethod=HmacSHA256&Timestamp=2011-10-03T15%3A19%3A30\
        &Signature=i91nKc4PWAt0JJIdXwz9HxZCJDdiy6cf%2FMj6vPxyYIs%3D HTTP/1.1\nHost:elasticmapreduce.amazonaws.com\n\n";
    let (method, path, query, headers, body) = read(request);
    let request = Request { method: &method, path: &path, query: &query, headers: &headers, body: &body };
    let presented = parse(&request).unwrap();
    assert_eq!(presented.access_key_id, "AKIAIOSFODNN7EXAMPLE");
    let pairs = canonical::pairs(query.as_bytes()).unwrap();
    let canonical = canonical::query_v2(&pairs, "Signature");
    let text = v2::string_to_sign(&method, headers["host"].as_bytes(), &path, &canonical);
    assert_eq!(
        String::from_utf8(text).unwrap(),
        "GET\nelasticmapreduce.amazonaws.com\n/\nAWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Action=DescribeJobFlows\
         &SignatureMethod=HmacSHA256&SignatureVersion=2&Timestamp=2011-10-03T15%3A19%3A30&Version=2009-03-31"
    );
    let now = Utc.with_ymd_and_hms(2011, 10, 3, 15, 20, 0).unwrap();
    assert_eq!(verify(&request, &presented, "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", now), Ok(()));
}
