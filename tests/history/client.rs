//! What a client sends and hears. Every try is written down, with the answer or that there was none.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use rand::Rng;
use rand::rngs::StdRng;
use vbs::sigv4::{Outgoing, sign};

use crate::record::{Action, Outcome, SeenVolume, What};
use crate::world::{GATEWAYS, World};

/// How long a client waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How often an SDK tries (`max_attempts`).
const TRIES: u32 = 3;

/// A client's connection to vbs: which gateway it talks to now, and what its retries depend on.
pub struct Client<'a> {
    pub name: String,
    pub world: &'a World,
    pub rng: StdRng,
    gateway: usize,
}

/// What became of a try.
enum Try {
    Answer(u16, String),
    /// It never left.
    NotSent(String),
    Lost(String),
}

impl<'a> Client<'a> {
    pub fn new(name: String, world: &'a World, mut rng: StdRng) -> Self {
        let gateway = rng.random_range(0..GATEWAYS);
        Self { name, world, rng, gateway }
    }

    /// Calls as an SDK does: again, at another gateway, with the same parameters and token, when there was no answer or one
    /// that says that the service is to blame. Gives the last outcome.
    pub async fn call(&mut self, action: &Action, parameters: &[(&str, &str)]) -> Outcome {
        let mut outcome = Outcome::Refused("never tried".into());
        for attempt in 0..TRIES {
            let begun = self.world.record.now();
            let who = format!("{} by gateway {}", self.name, self.gateway + 1);
            let (again, what) = match self.send(action, parameters).await {
                Try::Answer(200, body) => (false, action.read(&body)),
                Try::Answer(500.., body) => (true, Outcome::Unknown(code(&body))),
                Try::Answer(_, body) => (false, Outcome::Refused(code(&body))),
                Try::NotSent(why) => (true, Outcome::Refused(why)),
                Try::Lost(why) => (true, Outcome::Unknown(why)),
            };
            self.world.count_call();
            self.world.record.add(begun, who, What::Called(action.clone(), what.clone()));
            outcome = what;
            if !again {
                break;
            }
            self.elsewhere(attempt).await;
        }
        outcome
    }

    /// Turns to another gateway, after a while.
    async fn elsewhere(&mut self, attempt: u32) {
        self.gateway = (self.gateway + 1) % GATEWAYS;
        let pause = self.rng.random_range(0..100 << attempt);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    /// Lists all volumes, each page as an SDK does, from whichever gateway. All pages are one event: what is there all the time
    /// must be among them.
    pub async fn list_volumes(&mut self) {
        let (begun, mut listed, mut token) = (self.world.record.now(), BTreeSet::new(), None::<String>);
        let mut attempt = 0;
        let outcome = loop {
            let mut parameters = vec![("MaxResults", "40")];
            parameters.extend(token.as_deref().map(|token| ("NextToken", token)));
            let page = self.send(&Action::ListVolumes, &parameters).await;
            self.world.count_call();
            let why = match page {
                Try::Answer(200, body) => {
                    attempt = 0;
                    listed.extend(all(&body, "volumeId"));
                    token = all(&body, "nextToken").into_iter().next();
                    if token.is_none() {
                        break Outcome::Listed(listed);
                    }
                    continue;
                }
                Try::Answer(500.., body) => code(&body),
                Try::Answer(_, body) => break Outcome::Refused(code(&body)),
                Try::NotSent(why) | Try::Lost(why) => why,
            };
            attempt += 1;
            if attempt == TRIES {
                break Outcome::Unknown(why);
            }
            self.elsewhere(attempt).await;
        };
        self.world.record.add(begun, &self.name, What::Called(Action::ListVolumes, outcome));
    }

    async fn send(&self, action: &Action, parameters: &[(&str, &str)]) -> Try {
        let pairs = [("Action", action.name()), ("Version", "2016-11-15")];
        let form = form_urlencoded(pairs.iter().chain(parameters));
        let address = self.world.address(self.gateway);
        let key = match action {
            Action::DescribeShared { .. } => &self.world.other_key,
            _ => &self.world.key,
        };
        let host = address.to_string();
        let outgoing = Outgoing {
            method: "POST",
            path: "/",
            query: "",
            host: &host,
            body: form.as_bytes(),
            access_key_id: &key.id,
            secret: &key.secret,
            region: "us-east-1",
            service: "ec2",
        };
        let mut request =
            Request::post("/").header("host", &host).header("content-type", "application/x-www-form-urlencoded");
        for (name, value) in sign(&outgoing, Utc::now()) {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::from(form))).unwrap();
        let stream = match tokio::net::TcpStream::connect(address).await {
            Ok(stream) => stream,
            Err(error) => return Try::NotSent(error.to_string()),
        };
        let exchange = async {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let connection = tokio::spawn(connection);
            let response = sender.send_request(request).await?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await?.to_bytes();
            connection.abort();
            Ok::<_, hyper::Error>((status, String::from_utf8_lossy(&body).into_owned()))
        };
        match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(Ok((status, body))) => Try::Answer(status, body),
            Ok(Err(error)) => Try::Lost(error.to_string()),
            Err(_) => Try::Lost("no answer in time".into()),
        }
    }
}

impl Action {
    pub fn name(&self) -> &'static str {
        match self {
            Self::CreateVolume { .. } => "CreateVolume",
            Self::DeleteVolume { .. } => "DeleteVolume",
            Self::AttachVolume { .. } => "AttachVolume",
            Self::DetachVolume { .. } => "DetachVolume",
            Self::CreateSnapshot { .. } => "CreateSnapshot",
            Self::DeleteSnapshot { .. } => "DeleteSnapshot",
            Self::DescribeVolume { .. } | Self::ListVolumes => "DescribeVolumes",
            Self::DescribeSnapshot { .. } | Self::DescribeShared { .. } => "DescribeSnapshots",
            Self::CopyVolume { .. } => "CopyVolumes",
            Self::ModifyVolume { .. } => "ModifyVolume",
            Self::Tag { value: Some(_), .. } => "CreateTags",
            Self::Tag { value: None, .. } => "DeleteTags",
            Self::CopySnapshot { .. } => "CopySnapshot",
            Self::Share { .. } => "ModifySnapshotAttribute",
        }
    }

    /// What a success says.
    fn read(&self, body: &str) -> Outcome {
        match self {
            Self::CreateVolume { .. } | Self::CopyVolume { .. } => {
                Outcome::Volume(text(body, "volumeId"), text(body, "status").parse().unwrap())
            }
            Self::CreateSnapshot { .. } | Self::CopySnapshot { .. } => Outcome::Snapshot(text(body, "snapshotId")),
            Self::DescribeVolume { .. } => Outcome::SeenVolume(seen_volume(body)),
            Self::DescribeSnapshot { .. } | Self::DescribeShared { .. } => {
                let progress = text(body, "progress");
                let progress = progress.trim_end_matches('%').parse().unwrap_or(0);
                Outcome::SeenSnapshot(text(body, "status").parse().unwrap(), progress)
            }
            _ => Outcome::Done,
        }
    }
}

fn seen_volume(body: &str) -> SeenVolume {
    let (before, set) = body.split_once("<attachmentSet>").unwrap_or((body, ""));
    let (set, after) = set.split_once("</attachmentSet>").unwrap_or(("", before));
    let attachments = all(set, "instanceId").into_iter().zip(all(set, "status"));
    SeenVolume {
        state: text(before, "status").parse().unwrap(),
        gib: text(before, "size").parse().unwrap(),
        tags: all(after, "key").into_iter().zip(all(after, "value")).collect(),
        multi_attach: text(after, "multiAttachEnabled") == "true",
        attachments: attachments.map(|(instance, state)| (instance, state.parse().unwrap())).collect(),
    }
}

/// The code of an error document.
fn code(body: &str) -> String {
    all(body, "Code").into_iter().next().unwrap_or_else(|| "an answer that is none".into())
}

fn text(body: &str, element: &str) -> String {
    all(body, element).into_iter().next().unwrap_or_else(|| panic!("no <{element}> in {body}"))
}

/// The texts of all elements of this name; none of those that are looked for needs an escape.
pub fn all(body: &str, element: &str) -> Vec<String> {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let parts = body.split(&open).skip(1);
    parts.filter_map(|rest| rest.split_once(&close)).map(|(text, _)| text.to_owned()).collect()
}

fn form_urlencoded<'a>(pairs: impl Iterator<Item = &'a (&'a str, &'a str)>) -> String {
    let encode =
        |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
    let pairs: Vec<_> = pairs.map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    pairs.join("&")
}
