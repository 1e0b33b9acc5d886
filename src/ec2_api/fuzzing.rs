//! What must hold of whatever a client sends: see [`crate::fuzzing`].

use hyper::HeaderMap;
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use quick_xml::Reader;
use quick_xml::events::Event;

use crate::ids::{Id, Instance, Kind, Snapshot, Volume};
use crate::sigv4::{self, Outgoing};

use super::device::{self, Device};
use super::error::{ApiError, ApiResult};
use super::filters::{self, Filter, Glob};
use super::paging::{self, PageParams, PageRules};
use super::query::Query;
use super::resource_id::{self, Dialect};
use super::xml::{self, Xml};
use super::{actions, ebs_direct, faults, tag_rules};

/// The most bytes that any refusal has, whatever it refuses.
const MOST_REFUSAL: usize = 8 << 10;

const RULES: PageRules = PageRules { ids_set: "volumeIdsSet", kind: "volumes", zero_is_none: false };

const KEY: &str = "AKIAEXAMPLE";
const SECRET: &str = "the secret of the one who signs";

/// A query string and a body, apart by a NUL. What is decoded is what its own form is decoded to, and no more than was sent; what is
/// taken from it is taken or refused, and each refusal is short and well-formed.
///
/// # Panics
/// When that does not hold.
pub fn query(data: &[u8]) {
    let (query, body) = halves(data, 0);
    let decoded = match Query::decode(query, body) {
        Ok(decoded) => decoded,
        Err(error) => return is_sound(&error),
    };
    let form = decoded.form();
    assert_eq!(Query::decode(form.as_bytes(), b"").as_ref(), Ok(&decoded));
    assert_eq!(Query::decode(b"", form.as_bytes()).as_ref(), Ok(&decoded));
    assert!(decoded.params.bytes() <= data.len());
    if let Some(action) = decoded.action.as_deref().filter(|action| actions::find(action).is_none()) {
        is_sound(&faults::no_handler(action));
    }
    let mut params = decoded.params;
    let outcomes = [
        params.boolean("DryRun").map(drop),
        params.integer("Size").map(drop),
        params.filters().and_then(|asked| filters::check(asked, &["status", "size", "tag:"])).map(drop),
        params.tag_specifications().and_then(|asked| tag_rules::from_specifications(asked, "volume")).map(drop),
        params.tags().and_then(tag_rules::from_params).map(drop),
        params.devices().map(drop),
        params.permissions("CreateVolumePermission.Add").map(drop),
        params.list("VolumeId").and_then(|ids| resource_id::list::<Volume>(&ids, Dialect::Volumes)).map(drop),
        PageParams::take(&mut params).and_then(|page| page.check(RULES, false)).map(drop),
        Device::parse(params.text("Device")).map(drop),
        params.finish(),
    ];
    for error in outcomes.into_iter().filter_map(Result::err) {
        is_sound(&error);
    }
}

/// Two lines. The words of requests: patterns of filters select what their translation for the database selects; tokens, ids, device
/// names and texts in XML are read back as what they were written from.
///
/// # Panics
/// When that does not hold.
pub fn words(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (first, second) = text.split_once('\n').unwrap_or((&text, ""));
    pattern(first, second);
    token(first);
    id::<Volume>(first);
    id::<Snapshot>(first);
    id::<Instance>(first);
    if let Some(key) = device::key(first) {
        assert!((1..=3).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_alphanumeric()));
        assert_eq!(Device::parse(Some(first.to_owned())).map(|device| device.key), Ok(key.to_owned()));
        let spelt = ["xvd", "sd"].map(|family| format!("/dev/{family}{key}"));
        assert!(spelt.iter().any(|name| device::key(name) == Some(key)));
    } else if let Err(error) = Device::parse(Some(first.to_owned())) {
        is_sound(&error);
    }
    let mut answer = Xml::answer("Describe", "2016-11-15", "r");
    answer.text("value", &text).set("set", [first], |xml, each| {
        xml.text("of", each);
    });
    let shown = |text: &str| text.chars().map(|c| if xml::legal(c) { c } else { '\u{FFFD}' }).collect::<String>();
    assert_eq!(
        texts(&answer.finish()),
        [("requestId", "r"), ("value", &shown(&text)), ("of", &shown(first))].map(owned)
    );
}

/// A request as HTTP writes it. No signature is that of a secret that nobody has, and what is taken from the wire is bounded.
///
/// # Panics
/// When that does not hold.
pub fn signature(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
    let mut lines = head.lines();
    let (method, target) = lines.next().and_then(|line| line.split_once(' ')).unwrap_or(("GET", "/"));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value.trim())) {
            headers.append(name, value);
        }
    }
    let request = sigv4::Request { method, path, query, headers: &headers, body: body.as_bytes() };
    if let Some(operation) = ebs_direct::operation(&request) {
        let reply = ebs_direct::render(&ebs_direct::refusal(operation));
        assert!(serde_json::from_str::<serde_json::Value>(&reply.body).is_ok() && reply.status == 400);
    }
    let Ok(presented) = sigv4::parse(&request) else { return };
    let id = &presented.access_key_id;
    assert!(
        (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()) && presented.scope().len() <= 256
    );
    // At the time that the request claims, or nothing but its age is looked at.
    let epoch = chrono::DateTime::UNIX_EPOCH;
    let claimed = match presented.in_time(epoch) {
        Err(sigv4::AuthError::Expired { request_time, .. }) => request_time,
        _ => epoch,
    };
    assert!(sigv4::verify(&request, &presented, "a secret that nobody has", claimed).is_err());
}

/// Lines: host, path, query, body, and another query and body. What was signed verifies, in each of the three ways; and a
/// signature that is good for another request as well is so only when that one means the same.
///
/// # Panics
/// When that does not hold.
pub fn signed(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.split('\n');
    let mut line = || lines.next().unwrap_or_default();
    let (host, path, query, body) = (line().trim(), line(), line(), line());
    let others = (line(), line());
    let (Ok(host_value), true) = (HeaderValue::from_str(host), host.is_ascii()) else { return };
    let now = chrono::DateTime::from_timestamp(1_769_860_800, 0).unwrap_or_default();
    let outgoing = Outgoing {
        method: "POST",
        path,
        query,
        host,
        body: body.as_bytes(),
        access_key_id: KEY,
        secret: SECRET,
        region: "us-east-1",
        service: "ec2",
    };
    let mut headers = HeaderMap::from_iter([
        (HOST, host_value),
        (CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded")),
    ]);
    for get in [false, true] {
        let outgoing = Outgoing { method: if get { "GET" } else { "POST" }, ..outgoing };
        let body = if get { "" } else { body };
        let outgoing = Outgoing { body: body.as_bytes(), ..outgoing };
        if let Some((query, body)) = sigv4::fuzzing::sign_v2(&outgoing, now) {
            means_what_was_signed(
                &headers,
                &Outgoing { query: &query, body: body.as_bytes(), ..outgoing },
                others,
                now,
            );
        }
        if let Some(query) = sigv4::fuzzing::presign(&outgoing, now) {
            means_what_was_signed(&headers, &Outgoing { query: &query, ..outgoing }, others, now);
        }
    }
    for (name, value) in sigv4::sign(&outgoing, now) {
        headers.insert(name, value.parse().expect("what we sign with are headers"));
    }
    if sigv4::fuzzing::is_encoded(query) {
        means_what_was_signed(&headers, &outgoing, others, now);
    }
}

fn means_what_was_signed(
    headers: &HeaderMap,
    sent: &Outgoing<'_>,
    others: (&str, &str),
    now: chrono::DateTime<chrono::Utc>,
) {
    let check = |query: &str, body: &[u8]| {
        let request = sigv4::Request { method: sent.method, path: sent.path, query, headers, body };
        let presented = sigv4::parse(&request)?;
        sigv4::verify(&request, &presented, SECRET, now)
    };
    assert_eq!(check(sent.query, sent.body), Ok(()), "{:?} of {:?}", sent.method, sent.query);
    let meant = Query::decode(sent.query.as_bytes(), sent.body).ok();
    let (query, body) = (others.0, others.1.as_bytes());
    // The signature's own parameters go along, or nothing would ever be taken for signed.
    let behind = |signed: &str| format!("{query}{}", signed.find(sigv4::fuzzing::MARK).map_or("", |at| &signed[at..]));
    let queries = [query.to_owned(), behind(sent.query), sent.query.to_owned()];
    let form = behind(&String::from_utf8_lossy(sent.body)).into_bytes();
    for query in &queries {
        for body in [body, &form, sent.body] {
            if check(query, body).is_ok() {
                assert_eq!(Query::decode(query.as_bytes(), body).ok(), meant, "{query:?} with {body:?}");
            }
        }
    }
}

fn pattern(pattern: &str, text: &str) {
    // The one here that compares takes length times length steps, as the one that is tested does.
    if pattern.len() > 256 || text.len() > 256 {
        return;
    }
    let filter = Filter { name: "status".into(), globs: vec![Glob::parse(pattern)] };
    let values = filter.values();
    let selected = values.exact.iter().any(|exact| exact == text) || values.like.iter().any(|like| is_like(text, like));
    assert_eq!(filter.matches(text), selected, "{pattern:?} {text:?}");
}

/// What SQL's LIKE says, a step a character of the pattern.
fn is_like(text: &str, like: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    // Where in the text each way to read the pattern so far has come to.
    let mut at = vec![false; text.len() + 1];
    at[0] = true;
    let mut pattern = like.chars();
    while let Some(c) = pattern.next() {
        if c == '%' {
            let first = at.iter().position(|here| *here).unwrap_or(at.len());
            at[first..].fill(true);
            continue;
        }
        let wanted = match c {
            '_' => None,
            '\\' => pattern.next(),
            c => Some(c),
        };
        let step = |(letter, here): (&char, &bool)| *here && wanted.is_none_or(|wanted| wanted == *letter);
        at = std::iter::once(false).chain(text.iter().zip(&at).map(step)).collect();
    }
    at[text.len()]
}

fn token(text: &str) {
    if let Some(key) = paging::read(text, RULES.kind) {
        assert_eq!(paging::write(&key, RULES.kind), text);
    }
    let token = paging::write(text, RULES.kind);
    if token.len() <= 1024 && !text.is_empty() && text.chars().all(xml::legal) {
        assert_eq!(paging::read(&token, RULES.kind).as_deref(), Some(text));
        assert_eq!(paging::read(&token, "snapshots"), None);
    }
}

fn id<K: Kind>(text: &str) {
    let known = Id::<K>::parse(text);
    if let Ok(id) = &known {
        assert_eq!(id.as_str(), text);
        assert!(id.serial().bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9')) && id.serial().len() <= 22);
    }
    let dialects = [
        Dialect::DeleteVolume,
        Dialect::Volumes,
        Dialect::Volume,
        Dialect::VolumeAttribute,
        Dialect::VolumeStatus,
        Dialect::Snapshot,
        Dialect::ResetSnapshot,
        Dialect::Instance,
        Dialect::Instances,
    ];
    for dialect in dialects {
        let read: ApiResult<Id<K>> = resource_id::read(text, dialect);
        assert_eq!(read.is_ok(), known.is_ok());
        if let Err(error) = read {
            is_sound(&error);
        }
    }
}

/// A refusal is short, and is read back from its document as it is.
fn is_sound(error: &ApiError) {
    let document = error.render("r");
    assert!(document.len() <= MOST_REFUSAL, "{} bytes of {}", document.len(), error.code);
    let message: String = error.message.chars().map(|c| if xml::legal(c) { c } else { '\u{FFFD}' }).collect();
    assert_eq!(texts(&document), [("Code", error.code), ("Message", &message), ("RequestID", "r")].map(owned));
    assert!((400..=599).contains(&error.status));
}

fn owned((name, text): (&str, &str)) -> (String, String) {
    (name.to_owned(), text.to_owned())
}

/// The texts of a document with the elements they are in, as a parser reads them.
fn texts(document: &str) -> Vec<(String, String)> {
    let mut reader = Reader::from_str(document);
    let mut found = Vec::new();
    let (mut path, mut text, mut leaf) = (Vec::new(), String::new(), false);
    loop {
        match reader.read_event().expect("a document that is well-formed") {
            Event::Start(tag) => {
                path.push(tag.name().as_ref().to_owned());
                (text, leaf) = (String::new(), true);
            }
            Event::Text(part) => text.push_str(&part),
            Event::GeneralRef(entity) => match entity.resolve_char_ref().expect("a number of a character") {
                Some(c) => text.push(c),
                None => {
                    text.push_str(quick_xml::escape::resolve_predefined_entity(&entity).expect("a known entity"));
                }
            },
            Event::Empty(tag) => {
                found.push((tag.name().as_ref().to_owned(), String::new()));
                leaf = false;
            }
            Event::End(_) => {
                let name = path.pop().expect("the parser has checked it");
                if leaf {
                    found.push((name, std::mem::take(&mut text)));
                }
                leaf = false;
            }
            Event::Eof => break,
            _ => {}
        }
    }
    found
}

/// What is before the first such byte, and what is behind it.
fn halves(data: &[u8], at: u8) -> (&[u8], &[u8]) {
    match data.iter().position(|byte| *byte == at) {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (data, b""),
    }
}
