//! The nodes, over HTTP, with somebody at the gate who knows of each call which step of which workflow makes it, and may do
//! something to it.
//!
//! A call names its lease generation, and the database says whose that is and how far it has come: so what is struck is a
//! point of a workflow, however many calls came before it. A call for another life of its node has no effect whatever is done
//! to it, and is let through: its caller is told so, and signs it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use hyper::header::{HOST, HeaderValue};
use hyper::{HeaderMap, StatusCode};
use serde_json::Value;
use tokio::sync::watch;
use vbs::config::SecretSource;
use vbs::delegate::sim::{Fault as SimFault, FaultKind, SimCloud};
use vbs::delegate::{DelegateError, ErrorKind, replay, wire};
use vbs::server::{Request, Response};
use vbs::sigv4;

use super::at_work::{Asked, AtWork};
use super::rows::Rows;
use super::served::{Service, Up};
use super::verbs::{lie, name_thing, sim_verb};
use super::wire::{Answer, serve};

/// What injected errors say.
pub const INJECTED: &str = "injected";

/// Longer than the nodes' time-outs here.
const TOO_LONG: Duration = Duration::from_secs(4);

/// Where a workflow calls a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    pub kind: String,
    pub backward: bool,
    pub step: usize,
    pub verb: String,
    /// Which of the things that the step asks this of: its volumes, snapshots, disks or nodes, in the order of their first calls.
    pub nth: usize,
}

/// What is done to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// It fails, and nothing was done.
    Fails,
    /// It fails for good, each time, and nothing was done.
    FailsForGood,
    /// The same, but everything was done.
    DoneButFailsForGood,
    /// It is done, and the connection breaks.
    AnswerLost,
    /// It comes twice, each time signed by who has the key.
    Twice,
    /// It does not arrive before the gate is opened.
    Held,
    /// It is done, and its answer waits until the gate is opened.
    DoneThenHeld,
    /// The node is at it for longer than its caller waits.
    Slow,
    /// The node is at it until [`Gate::end_work`].
    AtWork,
    /// The node's tool says something that nobody understands.
    GarbageWords,
    /// The answer is not HTTP.
    GarbageHttp,
    /// The answer is no JSON.
    GarbageBody,
    /// Nothing is done, and the node says that all is well.
    Lie,
    /// The connection breaks, and nothing listens any more, until [`Gate::come_back`].
    Gone,
}

struct Armed {
    point: Point,
    strike: Strike,
    /// The first call that was struck: a connection that breaks has the same call sent again at once.
    first: Option<Bytes>,
    struck: u32,
}

#[derive(Default)]
struct State {
    watched: &'static str,
    /// The newest workflow that was there before.
    after: i64,
    armed: Vec<Armed>,
    seen: Vec<Point>,
    /// The things that were asked for, of each point whose number is 0.
    things: BTreeMap<Point, Vec<BTreeSet<String>>>,
    gone: bool,
    turned_away: u32,
    late: Vec<StatusCode>,
    twice: Vec<[StatusCode; 2]>,
    waiting: u32,
    at_work: Option<AtWork>,
}

/// The one at the gate of all nodes.
#[derive(Clone)]
pub struct Gate {
    pub sim: SimCloud,
    rows: Arc<Rows>,
    state: Arc<Mutex<State>>,
    open: watch::Sender<u64>,
    nodes: Arc<BTreeMap<&'static str, Node>>,
    key: SecretSource,
}

struct Node {
    url: String,
    up: Mutex<Up>,
}

const NODES: [&str; 4] = ["storage-a", "storage-b", "vmm-a", "vmm-b"];

impl Gate {
    /// Serves the four nodes of a cloud; `dir` gets their key.
    pub fn start(sim: &SimCloud, database_url: &str, dir: &Path) -> Self {
        let key = SecretSource::File(dir.join("key"));
        std::fs::write(dir.join("key"), "0123456789abcdef0123456789abcdef").unwrap();
        let listeners: Vec<_> = NODES
            .iter()
            .map(|name| {
                let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                listener.set_nonblocking(true).unwrap();
                (*name, tokio::net::TcpListener::from_std(listener).unwrap())
            })
            .collect();
        let node = |(name, listener): &(&'static str, tokio::net::TcpListener)| {
            let url = format!("http://{}", listener.local_addr().unwrap());
            (*name, Node { url, up: Mutex::new(Up::new(sim, name, &key)) })
        };
        let gate = Self {
            sim: sim.clone(),
            rows: Arc::new(Rows::of(database_url)),
            state: Arc::default(),
            open: watch::Sender::new(0),
            nodes: Arc::new(listeners.iter().map(node).collect()),
            key: key.clone(),
        };
        for (name, listener) in listeners {
            let gate = gate.clone();
            tokio::spawn(serve(listener, move |request| {
                let gate = gate.clone();
                async move { gate.pass(name, request).await }
            }));
        }
        gate
    }

    /// What a gateway's file says of the nodes. Calls have three seconds.
    pub fn configuration(&self, account: &str) -> String {
        let SecretSource::File(key) = &self.key else { unreachable!("it was put into a file") };
        let node = |(name, node): (&&str, &Node)| {
            let (kind, owner) = if name.starts_with("vmm") { ("vmm_node", account) } else { ("volume_node", "") };
            let owner = if owner.is_empty() { String::new() } else { format!("default_owner = \"{owner}\"") };
            format!(
                "[[{kind}]]\nname = \"{name}\"\nzone = \"us-east-1{}\"\n{owner}\n\
                 delegate = {{ remote = {{ url = \"{}\", key = {{ file = \"{}\" }}, timeout_s = 3, copy_timeout_s = 3 }} }}\n",
                &name[name.len() - 1..],
                node.url,
                key.display(),
            )
        };
        let nodes: Vec<String> = self.nodes.iter().map(node).collect();
        nodes.concat()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Forgets what was seen and armed, and looks at the calls of workflows of one kind from now on that come after another. A call of
    /// an earlier one may still be on its way.
    pub fn watch(&self, kind: &'static str, after: i64) {
        *self.state() = State { watched: kind, after, ..State::default() };
    }

    /// Where the workflow has called, in the order of the first calls.
    pub fn seen(&self) -> Vec<Point> {
        self.state().seen.clone()
    }

    /// Strikes the first call from a point; those that fail for good, all of them.
    pub fn arm(&self, point: &Point, strike: Strike) {
        self.state().armed.push(Armed { point: point.clone(), strike, first: None, struck: 0 });
    }

    /// How often a strike at the point has come down.
    pub fn struck(&self, point: &Point) -> u32 {
        self.state().armed.iter().filter(|armed| armed.point == *point).map(|armed| armed.struck).sum()
    }

    /// How many calls found nobody since the nodes are gone.
    pub fn turned_away(&self) -> u32 {
        self.state().turned_away
    }

    /// What calls that came twice were answered, each time.
    pub fn answered_twice(&self) -> Vec<[StatusCode; 2]> {
        self.state().twice.clone()
    }

    /// The nodes are there again, and know of no generation any more.
    pub fn come_back(&self) {
        for (name, node) in &*self.nodes {
            *node.up.lock().unwrap() = Up::new(&self.sim, name, &self.key);
        }
        self.state().gone = false;
    }

    /// Whether another worker waits for what a node is at.
    pub fn is_followed(&self) -> bool {
        self.state().at_work.as_ref().is_some_and(|work| work.is_followed)
    }

    /// Lets what a node is at have its effect.
    pub fn end_work(&self) {
        self.state().at_work.as_ref().expect("a node is at work").go_on.notify_one();
    }

    /// Strikes nobody any more.
    pub fn disarm(&self) {
        self.state().armed.clear();
    }

    /// Lets the calls in that were held, and gives what became of those that had not been done.
    pub async fn let_in(&self) -> Vec<StatusCode> {
        self.open.send_modify(|round| *round += 1);
        while self.state().waiting > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        std::mem::take(&mut self.state().late)
    }

    async fn pass(&self, name: &'static str, request: Request) -> Answer {
        let up = self.nodes[name].up.lock().unwrap().clone();
        let service = up.service.clone();
        let Some(verb) = request.path().strip_prefix(wire::PATH).filter(|verb| !verb.contains('/')) else {
            return Answer::Http(service.handle(request).await);
        };
        let verb =
            if name.starts_with("vmm") && verb == "ensure_grown" { "ensure_grown_disk" } else { verb }.to_owned();
        if self.is_gone() {
            return Answer::Nothing;
        }
        let request = match up.turn_away(request).await {
            Ok(request) => request,
            Err(answer) => return Answer::Http(answer),
        };
        let point = self.point(name, &verb, &request.body).await;
        if self.is_gone() {
            return Answer::Nothing;
        }
        let strike = point.and_then(|(point, asked)| self.state().strike(point, asked, &request.body));
        match strike {
            None => Answer::Http(service.handle(request).await),
            Some(strike) => self.strike(strike, name, &verb, service, request).await,
        }
    }

    /// Whether nobody listens; who comes then is counted.
    fn is_gone(&self) -> bool {
        let mut state = self.state();
        state.turned_away += u32::from(state.gone);
        state.gone
    }

    /// Whose call it is. One that only looks names no generation: it is taken for the watched workflow's while that runs.
    async fn point(&self, node: &'static str, verb: &str, body: &[u8]) -> Option<(Point, Asked)> {
        let (watched, after) = {
            let state = self.state();
            (state.watched, state.after)
        };
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let generation = body["generation"].as_i64();
        let rows = if let Some(generation) = generation {
            let whose = "SELECT kind, direction, step FROM workflows WHERE lease_generation = $1 AND id > $2";
            self.rows.query(whose, &[&generation, &after]).await
        } else {
            let live = "SELECT kind, direction, step FROM workflows \
                        WHERE kind = $1 AND id > $2 AND finished_at IS NULL AND lease_owner IS NOT NULL LIMIT 1";
            self.rows.query(live, &[&watched, &after]).await
        };
        let row = rows.first()?;
        let backward = row.get::<_, String>(1) == "backward";
        // The sweeper looks too, but not on the way back, nor while an audit is played.
        let kind: String = row.get(0);
        if kind != watched || (verb == "observe" && !backward && kind != "audit") {
            return None;
        }
        let step = usize::try_from(row.get::<_, i32>(2)).unwrap();
        let mut things = BTreeSet::new();
        name_thing(&body, &mut things);
        if things.is_empty() {
            things.insert(node.to_owned());
        }
        Some((Point { kind, backward, step, verb: verb.to_owned(), nth: 0 }, Asked { node, things, generation }))
    }

    async fn strike(&self, strike: Strike, name: &str, verb: &str, service: Service, request: Request) -> Answer {
        let fails = |kind| refusal(kind, &format!("{verb} failed ({INJECTED})"));
        // It is done though its caller may hang up.
        let done = async |request| {
            let service = service.clone();
            tokio::spawn(async move { service.handle(request).await }).await.unwrap()
        };
        match strike {
            Strike::Fails => fails(ErrorKind::Retry),
            Strike::FailsForGood => fails(ErrorKind::Fatal),
            Strike::DoneButFailsForGood => {
                done(request).await;
                fails(ErrorKind::Fatal)
            }
            Strike::AnswerLost => {
                done(request).await;
                Answer::Nothing
            }
            Strike::Twice => {
                let again = self.signed_anew(name, &request);
                let first = done(request).await;
                let second = done(again).await;
                self.state().twice.push([first.status, second.status]);
                Answer::Http(second)
            }
            Strike::Held => self.hold(service, Some(request), None).await,
            Strike::DoneThenHeld => {
                let answer = done(request).await;
                self.hold(service, None, Some(answer)).await
            }
            Strike::Slow => {
                if let Some(verb) = sim_verb(name, verb) {
                    self.sim.push_fault(SimFault::once(verb, FaultKind::Hang(TOO_LONG)));
                }
                Answer::Http(done(request).await)
            }
            Strike::AtWork => {
                let go_on = self.state().at_work.as_ref().map(|work| work.go_on.clone()).expect("it was just struck");
                if let Some(verb) = sim_verb(name, verb) {
                    self.sim.push_fault(SimFault::once(verb, FaultKind::HangUntil(go_on)));
                }
                Answer::Http(done(request).await)
            }
            Strike::GarbageWords => {
                let words = "\u{0}\u{1b}[31m\u{fffd}]]>&'\"\r\n".repeat(2_000);
                refusal(ErrorKind::Retry, &format!("{verb}: {words}"))
            }
            Strike::GarbageHttp => Answer::Noise,
            Strike::GarbageBody => Answer::Http(json(StatusCode::OK, &b"\xff{\"kind\": [[["[..])),
            Strike::Lie => Answer::Http(json(StatusCode::OK, lie(name, verb).to_string().into_bytes())),
            Strike::Gone => {
                self.state().gone = true;
                Answer::Nothing
            }
        }
    }

    /// The same call once more, as a caller sends it again whose first try was lost: a replay the node would not take.
    fn signed_anew(&self, node: &str, request: &Request) -> Request {
        let life = wire::life_of(request.query()).expect("a call names one");
        let query = wire::query(life, &replay::random_name());
        let signed = sigv4::Outgoing {
            method: request.method.as_str(),
            path: request.path(),
            query: &query,
            host: request.headers[HOST].to_str().unwrap(),
            body: &request.body,
            access_key_id: node,
            secret: &wire::key(&self.key).unwrap(),
            region: node,
            service: wire::SERVICE,
        };
        let mut headers: HeaderMap = request.headers.clone();
        for (name, value) in sigv4::sign(&signed, Utc::now()) {
            headers.insert(name, HeaderValue::from_str(&value).unwrap());
        }
        Request {
            method: request.method.clone(),
            uri: format!("{}?{query}", request.path()).parse().unwrap(),
            headers,
            body: request.body.clone(),
            peer: request.peer,
            id: request.id.clone(),
        }
    }

    /// Waits for the gate to open, also when the caller does not.
    async fn hold(&self, service: Service, request: Option<Request>, answer: Option<Response>) -> Answer {
        self.state().waiting += 1;
        let (gate, mut open) = (self.clone(), self.open.subscribe());
        let held = tokio::spawn(async move {
            let _ = open.changed().await;
            let answer = match request {
                Some(request) => {
                    let answer = service.handle(request).await;
                    gate.state().late.push(answer.status);
                    answer
                }
                None => answer.expect("one of the two"),
            };
            gate.state().waiting -= 1;
            answer
        });
        Answer::Http(held.await.unwrap())
    }
}

impl State {
    fn strike(&mut self, mut point: Point, asked: Asked, body: &Bytes) -> Option<Strike> {
        self.at_work.iter_mut().for_each(|work| work.see(&asked));
        let things = self.things.entry(point.clone()).or_default();
        point.nth = things.iter().position(|known| *known == asked.things).unwrap_or(things.len());
        if point.nth == things.len() {
            things.push(asked.things.clone());
        }
        if !self.seen.contains(&point) {
            self.seen.push(point.clone());
        }
        let armed = self.armed.iter_mut().find(|armed| armed.point == point)?;
        let always = matches!(armed.strike, Strike::FailsForGood | Strike::DoneButFailsForGood);
        let breaks = matches!(armed.strike, Strike::AnswerLost | Strike::GarbageHttp);
        let same = armed.first.as_ref().is_some_and(|first| first == body);
        if always || armed.struck == 0 || (breaks && same && armed.struck < 2) {
            armed.first.get_or_insert_with(|| body.clone());
            armed.struck += 1;
            if armed.strike == Strike::AtWork {
                self.at_work = Some(AtWork::new(asked));
            }
            return Some(armed.strike);
        }
        None
    }
}

fn refusal(kind: ErrorKind, message: &str) -> Answer {
    let error = DelegateError { kind, message: message.to_owned() };
    Answer::Http(json(wire::status(&error), serde_json::to_vec(&error).unwrap()))
}

fn json(status: StatusCode, body: impl Into<Bytes>) -> Response {
    Response::new(status, "application/json", body)
}
