use hyper::HeaderMap;
use hyper::header::{HOST, HeaderName};
use serde_json::{Value, json};

use super::*;
use crate::config::Sim;
use crate::delegate::replay;
use crate::delegate::sim::SimCloud;
use crate::delegate::{Generation, SnapshotSpec, VolumeSpec};
use crate::ids::VolumeId;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn service(dir: &tempfile::TempDir) -> StorageService {
    let path = dir.path().join("key");
    std::fs::write(&path, format!("{SECRET}\n")).unwrap();
    let storage = SimCloud::new().storage("storage-1", &Sim::default());
    StorageService::new("storage-1", &SecretSource::File(path), Arc::new(storage)).unwrap()
}

/// A call for this life of a service.
fn request(life: &str, verb: &str, body: &str, node: &str, secret: &str, service: &str) -> Request {
    let (path, query) = (format!("/v1/{verb}"), wire::query(life, &replay::random_name()));
    let outgoing = sigv4::Outgoing {
        method: "POST",
        path: &path,
        query: &query,
        host: "127.0.0.1:1",
        body: body.as_bytes(),
        access_key_id: node,
        secret,
        region: node,
        service,
    };
    let mut headers = HeaderMap::from_iter([(HOST, "127.0.0.1:1".parse().unwrap())]);
    for (name, value) in sigv4::sign(&outgoing, Utc::now()) {
        headers.insert(HeaderName::from_static(name), value.parse().unwrap());
    }
    Request {
        method: Method::POST,
        uri: format!("{path}?{query}").parse().unwrap(),
        headers,
        body: body.to_owned().into(),
        peer: ([127, 0, 0, 1], 1).into(),
        id: "id".into(),
    }
}

#[tokio::test]
async fn only_a_signature_under_the_key_and_name_of_this_node_for_this_service_gets_in() {
    let dir = tempfile::tempdir().unwrap();
    let service = service(&dir);
    let life = service.door.replays.life();
    let status = async |request| service.handle(request).await.status;
    let good = || request(life, "observe", "null", "storage-1", SECRET, wire::SERVICE);
    assert_eq!(status(good()).await, StatusCode::OK);
    for other in [
        request(life, "observe", "null", "storage-2", SECRET, wire::SERVICE),
        request(life, "observe", "null", "storage-1", "0123456789abcdef0123456789abcdeX", wire::SERVICE),
        request(life, "observe", "null", "storage-1", SECRET, "ec2"),
        Request { body: "{}".into(), ..good() },
        Request { uri: format!("/v1/ensure_no_volume?{}", good().query()).parse().unwrap(), ..good() },
        Request { uri: format!("/v1/observe?life={life}").parse().unwrap(), ..good() },
        Request { headers: HeaderMap::new(), ..good() },
    ] {
        assert_eq!(status(other).await, StatusCode::FORBIDDEN);
    }
}

fn copy_of(request: &Request) -> Request {
    let Request { method, uri, headers, body, peer, id } = request;
    let (method, uri, headers) = (method.clone(), uri.clone(), headers.clone());
    Request { method, uri, headers, body: body.clone(), peer: *peer, id: id.clone() }
}

#[tokio::test]
async fn a_call_is_taken_once_and_only_by_the_life_that_it_was_signed_for() {
    let dir = tempfile::tempdir().unwrap();
    let (before, after) = (service(&dir), service(&dir));
    let volume = VolumeId::generate();
    let body = format!(r#"{{"generation":1,"spec":{{"volume":"{volume}","size_bytes":4096,"snapshot":null}}}}"#);
    let call = || request(before.door.replays.life(), "ensure_volume", &body, "storage-1", SECRET, wire::SERVICE);
    let heard = call();
    assert_eq!(before.handle(copy_of(&heard)).await.status, StatusCode::OK);
    // What the signature does not cover, and another spelling of its digits, make no other call of it.
    let (mut with_more, mut in_capitals) = (copy_of(&heard), copy_of(&heard));
    with_more.headers.insert("x-other", "1".parse().unwrap());
    let (start, digits) = heard.headers["authorization"].to_str().unwrap().rsplit_once('=').unwrap();
    let authorization = format!("{start}={}", digits.to_uppercase());
    in_capitals.headers.insert("authorization", authorization.parse().unwrap());
    for again in [copy_of(&heard), with_more, in_capitals] {
        assert_eq!(before.handle(again).await.status, StatusCode::FORBIDDEN);
    }
    assert_eq!(before.handle(call()).await.status, StatusCode::OK, "the same, signed anew");

    let answer = after.handle(heard).await;
    assert_eq!(answer.status, StatusCode::MISDIRECTED_REQUEST);
    let told: AnotherLife = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(told.life, after.door.replays.life());
    assert!(after.delegate.observe().await.unwrap().volumes.is_empty(), "and nothing was done");
}

/// Nobody's names, whatever they stand in the place of.
const NEVER: [&str; 18] = [
    "../../etc/passwd",
    "/etc/passwd",
    "",
    ".",
    "a\0b",
    "a\nb",
    "a b",
    "a,b",
    "-rf",
    "$(id)",
    "%2e%2e%2f",
    "\u{202e}",
    "vol-",
    "vol-../../../x",
    "vol-0123abcd/../x",
    "snap-0123ABCD",
    "i-0123abcd",
    "ALL",
];
const TARGETS: [&str; 4] = [
    "iqn.2026-01.net.example:vol-0123abce.1",
    "iqn.2026-01.org.other:vol-0123abcd.1",
    "iqn.2026-01.net.example.org:vol-0123abcd.1",
    "iqn.2026-01.net.example:vol-0123abcd.1/../x",
];
const URLS: [&str; 11] = [
    "http://169.254.169.254",
    "http://127.0.0.1:22",
    "http://127.0.0.1",
    "http://localhost:1",
    "http://127.0.0.1:1/latest",
    "http://127.0.0.1:1?x=y",
    "http://root@127.0.0.2:1",
    "file:///etc/passwd",
    "ftp://127.0.0.1:1",
    "https://127.0.0.1:1",
    "http://127.0.0.1:1@127.0.0.2:2",
];
const MACHINES: [&str; 4] = ["../../etc", "a/b", "a\0b", "a\nb"];
const USERS: [&str; 6] = ["", "a b", "a\0b", "a,b", "a/b", "$(id)"];
const SECRETS: [&str; 5] = ["", "short", "89abcdef89ab\n", "89abcdef89ab cd", "89abcdef89ab\0"];
const PORTALS: [&str; 11] = [
    "",
    "127.0.0.1",
    "127.0.0.1:0",
    "127.0.0.1:99999",
    "0.0.0.0:3260",
    "[::]:3260",
    "224.0.0.1:3260",
    "a/b:1",
    "127.0.0.1:3260,1",
    "host:1\0",
    "unix:/run/x",
];
const DEVICES: [&str; 6] = ["../sda", "/dev/../sda", "/dev/disk/by-id/x", "sda b", "sda\0", "sda,x=y"];

/// Where a field is, and what it may not be.
type Field = (String, Vec<&'static str>);

/// The specification of each verb, and what no field of it may be.
fn calls() -> Vec<(&'static str, Value, Vec<Field>)> {
    let export = json!({
        "volume": "vol-0123abcd", "iqn": "iqn.2026-01.net.example:vol-0123abcd.1", "lun": 1, "chap_user": "vbs-1",
        "chap_secret": "0123456789abcdef", "initiator_iqn": "iqn.2026-01.net.example:m1",
        "beside": ["iqn.2026-01.net.example:vol-0123abcd.2"],
    });
    let machine = json!({"name": "m1", "uuid": "00000000-0000-4000-8000-000000000001"});
    let disk = json!({
        "volume": "vol-0123abcd", "iqn": "iqn.2026-01.net.example:vol-0123abcd.1", "machine": machine,
        "device": "/dev/sdf",
    });
    let volume = json!({"volume": "vol-0123abcd", "size_bytes": 4096, "snapshot": "snap-0123abcd"});
    let snapshot = json!({"volume": "vol-0123abcd", "snapshot": "snap-0123abcd"});
    let targets = [&NEVER[..], &TARGETS].concat();
    let at = |start: &str, field: &str, values: &[&'static str]| (format!("{start}/{field}"), values.to_vec());
    let two = |first: &str, second: &str| vec![at("", first, &NEVER), at("", second, &NEVER)];
    let of_export = |start: &str| {
        let names = [("volume", &NEVER[..]), ("iqn", &targets), ("initiator_iqn", &NEVER), ("beside/0", &targets)];
        let chap = [("chap_user", &USERS[..]), ("chap_secret", &SECRETS)];
        names.into_iter().chain(chap).map(|(field, values)| at(start, field, values)).collect::<Vec<_>>()
    };
    let of_disk = |start: &str| {
        let names = [("volume", &NEVER[..]), ("iqn", &targets), ("device", &DEVICES)];
        let machine = [("machine/name", &MACHINES[..]), ("machine/uuid", &MACHINES)];
        names.into_iter().chain(machine).map(|(field, values)| at(start, field, values)).collect::<Vec<_>>()
    };
    let of_restore = vec![
        at("/restore", "volume", &NEVER),
        at("/restore", "snapshot", &NEVER),
        at("/from", "url", &NEVER),
        at("/from", "url", &URLS),
    ];
    let of_connect =
        [of_export("/export"), vec![at("/portal", "address", &PORTALS), at("/machine", "name", &MACHINES)]];
    let restore = json!({"restore": volume, "from": {"url": "http://127.0.0.1:1", "query": "X-Amz-Signature=0"}});
    let copy = json!({"source": "snap-0123abcd", "snapshot": "snap-0123abce"});
    let connect = json!({"export": export, "portal": {"address": "127.0.0.1:3260"}, "machine": machine});
    let pause = json!({"disk": disk, "snapshot": "snap-0123abcd", "seconds": 60});
    vec![
        ("ensure_volume", volume.clone(), two("volume", "snapshot")),
        ("ensure_restored", restore, of_restore),
        ("ensure_snapshot", snapshot.clone(), two("volume", "snapshot")),
        ("ensure_no_snapshot", snapshot, two("volume", "snapshot")),
        ("ensure_snapshot_copy", copy, two("source", "snapshot")),
        ("ensure_exported", export, of_export("")),
        ("ensure_connected", connect, of_connect.concat()),
        ("ensure_disconnected", disk.clone(), of_disk("")),
        ("ensure_attached", disk.clone(), of_disk("")),
        ("ensure_detached", json!({"disk": disk, "force": false}), of_disk("/disk")),
        ("ensure_grown", json!({"disk": disk, "size_bytes": 4096}), of_disk("/disk")),
        ("ensure_paused", pause.clone(), of_disk("/disk")),
        ("ensure_resumed", pause, of_disk("/disk")),
    ]
}

#[tokio::test]
async fn what_is_not_of_a_gateways_making_is_refused_at_the_door() {
    let dir = tempfile::tempdir().unwrap();
    let rules = Rules { iqn_prefix: Some("iqn.2026-01.net.example".into()) };
    let listed = Sources::Listed(vec!["127.0.0.1:1".into()]);
    let storage = service(&dir).under(rules.clone()).reading_from(listed);
    let machines = Sim { machines: vec!["m1".into()], ..Sim::default() };
    let vmm: Arc<dyn VmmDelegate> = Arc::new(SimCloud::new().vmm("storage-1", &machines));
    let key = SecretSource::File(dir.path().join("key"));
    let vmm = VmmService::new("storage-1", &key, vmm).unwrap().under(rules);
    let ask = async |of_machines: bool, verb: &str, body: &Value| {
        let life = if of_machines { vmm.door.replays.life() } else { storage.door.replays.life() };
        let request = request(life, verb, &body.to_string(), "storage-1", SECRET, wire::SERVICE);
        if of_machines { vmm.handle(request).await } else { storage.handle(request).await }
    };
    let mut cases = 0;
    let mut refused = |verb: &str, field: &str, value: &Value, answer: Response| {
        let start: String = value.to_string().chars().take(40).collect();
        let said = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{verb} {field} {start}: {said}");
        assert!(said.len() < 2000 && !said.contains("89abcdef"), "{verb} {field} {start}: {said}");
        cases += 1;
    };
    let long = "a".repeat(70_000);
    for (verb, good, fields) in calls() {
        let of_machines = good.pointer("/machine").or(good.pointer("/disk")).is_some();
        let call = |spec: &Value| json!({"generation": 1, "spec": spec});
        let answer = ask(of_machines, verb, &call(&good)).await;
        let said = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(answer.status != StatusCode::FORBIDDEN && !said.contains("is not one"), "{verb}: {said}");
        for (field, values) in &fields {
            for value in
                values.iter().copied().chain([&*long]).map(Value::from).chain([json!(7), json!(["x"]), json!(null)])
            {
                // No snapshot is a volume of zeros.
                if value.is_null() && verb == "ensure_volume" && field == "/snapshot" {
                    continue;
                }
                let mut bad = good.clone();
                *bad.pointer_mut(field).unwrap() = value.clone();
                refused(verb, field, &value, ask(of_machines, verb, &call(&bad)).await);
            }
        }
    }
    for name in NEVER.iter().chain(&TARGETS) {
        let body = json!({"generation": 1, "spec": "vol-0123abcd", "but": [name]});
        refused("ensure_not_exported", "but", &json!(name), ask(false, "ensure_not_exported", &body).await);
        let body = json!({"generation": 1, "spec": name});
        refused("ensure_no_volume", "", &json!(name), ask(false, "ensure_no_volume", &body).await);
    }
    for bytes in [json!(0), json!(u64::MAX), json!(-1), json!("4096"), json!(1.5)] {
        let body = json!({"generation": 1, "spec": {"volume": "vol-0123abcd", "size_bytes": bytes, "snapshot": null}});
        for verb in ["ensure_volume", "ensure_grown"] {
            refused(verb, "size_bytes", &bytes, ask(false, verb, &body).await);
        }
    }
    for machine in MACHINES {
        refused("initiator_iqn", "", &json!(machine), ask(true, "initiator_iqn", &json!(machine)).await);
    }
    println!("{cases} calls that no gateway makes were refused");
    assert!(cases > 1000, "{cases}");
}

fn with_grant(method: Method, target: &str, query: &str, header: (&'static str, &str)) -> Request {
    let mut headers = HeaderMap::from_iter([(HOST, "127.0.0.1:1".parse().unwrap())]);
    headers.insert(HeaderName::from_static(header.0), header.1.parse().unwrap());
    Request {
        method,
        uri: format!("{target}?{query}").parse().unwrap(),
        headers,
        body: "".into(),
        peer: ([127, 0, 0, 1], 1).into(),
        id: "id".into(),
    }
}

#[tokio::test]
async fn a_grant_is_good_for_reading_its_one_snapshot_and_for_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let service = service(&dir);
    let (volume, snapshot) = (VolumeId::generate(), SnapshotId::generate());
    let made = VolumeSpec { volume: volume.clone(), size_bytes: 4096, snapshot: None };
    service.delegate.ensure_volume(Generation(1), &made).await.unwrap();
    let cut = SnapshotSpec { snapshot: snapshot.clone(), volume, cut: false };
    service.delegate.ensure_snapshot(Generation(1), &cut).await.unwrap();
    let other = SnapshotId::generate();
    let own = format!("{}{snapshot}", reading::PATH);
    let status = async |method, target: &str, query: &str, header| {
        service.handle(with_grant(method, target, query, header)).await.status
    };
    let query = reading::query("storage-1", SECRET, "127.0.0.1:1", &snapshot).0;
    let read = ("x-vbs-read", "0");
    for header in [read, ("x-vbs-sum", "0")] {
        assert_eq!(status(Method::GET, &own, &query, header).await, StatusCode::OK);
    }
    for (question, expected) in [
        (("x-vbs-read", "4096"), StatusCode::UNPROCESSABLE_ENTITY),
        (("x-vbs-read", "-1"), StatusCode::BAD_REQUEST),
        (("x-other", "0"), StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(status(Method::GET, &own, &query, question).await, expected);
    }
    let elsewhere = format!("{}{other}", reading::PATH);
    for (method, target) in [(Method::GET, &*elsewhere), (Method::POST, &own), (Method::POST, "/v1/observe")] {
        assert_eq!(status(method, target, &query, read).await, StatusCode::FORBIDDEN, "{target}");
    }
    for bad in [query.replace("3600", "604800"), query.replace("Signature=", "Signature=0"), String::new()] {
        assert_eq!(status(Method::GET, &own, &bad, read).await, StatusCode::FORBIDDEN);
    }
    let of_another_node = reading::query("storage-2", SECRET, "127.0.0.1:1", &snapshot).0;
    assert_eq!(status(Method::GET, &own, &of_another_node, read).await, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn bad_bodies_and_unknown_verbs_are_refused_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let service = service(&dir);
    let life = service.door.replays.life();
    let signed = |verb, body| request(life, verb, body, "storage-1", SECRET, wire::SERVICE);
    let deep = "[".repeat(100_000);
    for (verb, body, expected) in [
        ("ensure_volume", "", StatusCode::UNPROCESSABLE_ENTITY),
        ("ensure_volume", deep.as_str(), StatusCode::UNPROCESSABLE_ENTITY),
        ("ensure_no_volume", r#"{"generation":1,"spec":"vol-../../x"}"#, StatusCode::UNPROCESSABLE_ENTITY),
        ("ensure_no_volume", r#"{"generation":1,"spec":"vol-0123abcd"}"#, StatusCode::OK),
        ("no_such", "null", StatusCode::SERVICE_UNAVAILABLE),
    ] {
        let answer = service.handle(signed(verb, body)).await;
        assert_eq!(answer.status, expected, "{verb}");
        assert!(serde_json::from_slice::<serde_json::Value>(&answer.body).is_ok());
    }
}
