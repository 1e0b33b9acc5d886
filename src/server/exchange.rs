//! One request and its answer.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, EXPECT, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Uri};
use tokio::sync::watch;
use tracing::Instrument;

use super::connection::{Clock, Phase};
use super::crowd::{Crowd, SMALL_BODY};
use super::{Handler, MAX_BODY, Refusal, Request, Response, Stage};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// How much of a body that is too large is read and thrown away. Most clients look for an answer only when they have sent all,
/// and lose it when the connection is closed under them before.
pub(super) const MAX_DISCARDED: usize = 16 * MAX_BODY;

/// A request that has been taken on. It is logged as answered, or, when it is dropped before that, as broken off: its client
/// has hung up, or the server ends before it. Must not leave its request's span.
struct Taken {
    method: Method,
    uri: Uri,
    start: Instant,
    answered: bool,
}

impl Taken {
    fn answered(mut self, status: StatusCode) {
        self.answered = true;
        let (method, path) = (&self.method, self.uri.path());
        tracing::info!(%method, path, status = status.as_u16(), ms = self.ms(), "answered");
    }

    fn ms(&self) -> f64 {
        self.start.elapsed().as_secs_f64() * 1e3
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.answered {
            tracing::info!(method = %self.method, path = self.uri.path(), ms = self.ms(), "broken off");
        }
    }
}

/// Reads the request, has it answered, and logs one line.
pub(super) async fn run<H: Handler>(
    handler: &H,
    crowd: &Crowd,
    clock: &Clock,
    peer: SocketAddr,
    request: hyper::Request<Incoming>,
    stage: &watch::Receiver<Stage>,
) -> hyper::Response<Full<Bytes>> {
    if !clock.is(Phase::Head) {
        // It came together with one before: who asks for much at once gets one answer each time it is its turn.
        tokio::task::yield_now().await;
    }
    clock.enter(Phase::Body);
    let start = Instant::now();
    let id = new_id();
    // Of the highest level: a line of whatever level in it must have the id.
    let span = tracing::error_span!("request", request_id = id);
    let answer = async {
        let (head, body) = request.into_parts();
        let taken = Taken { method: head.method.clone(), uri: head.uri.clone(), start, answered: false };
        let waits = head.headers.contains_key(EXPECT);
        let mut large = None;
        let hold = || {
            large = large.take().or_else(|| crowd.hold_large_body());
            large.is_some()
        };
        let body = tokio::time::timeout(crowd.limits().read, read(body, waits, hold)).await;
        let body = body.unwrap_or(Err(Refusal::Timeout));
        clock.enter(Phase::Serving);
        let (answer, whole) = match body {
            Ok(body) => {
                let hyper::http::request::Parts { method, uri, headers, .. } = head;
                let request = Request { method, uri, headers, body, peer, id: id.clone() };
                // The future is not looked at again after a panic, and handlers share nothing that one could leave half changed
                // but behind locks and transactions of their own.
                let answer = AssertUnwindSafe(async { handler.handle(request).await }).catch_unwind().await;
                (answer.unwrap_or_else(|_| handler.refuse(&id, Refusal::Internal)), true)
            }
            Err(refusal) => (handler.refuse(&id, refusal), false),
        };
        taken.answered(answer.status);
        finish(answer, &id, whole && *stage.borrow() == Stage::Serving)
    }
    .instrument(span.clone())
    .await;
    clock.enter(Phase::Answering);
    answer
}

/// The answer, as it goes over the wire, to a request whose head hyper could not read. hyper's own answer to it, `head`, says
/// why by its status.
pub(super) fn refuse_unread<H: Handler>(handler: &H, head: &[u8]) -> Bytes {
    let refusal = match head.split(|byte| *byte == b' ').nth(1) {
        Some(b"414") => Refusal::TargetTooLong,
        Some(b"431") => Refusal::HeadTooLarge,
        _ => Refusal::Unreadable,
    };
    let id = new_id();
    let Response { status, headers, body } = handler.refuse(&id, refusal);
    tracing::info!(request_id = id, status = status.as_u16(), "a request's head could not be read");
    // RFC 9110, section 5.6.7.
    let date = chrono::Utc::now().format("%a, %d %b %Y %H:%M:%S GMT");
    let mut out = format!("HTTP/1.1 {status}\r\ndate: {date}\r\n{REQUEST_ID}: {id}\r\n").into_bytes();
    for (name, value) in &headers {
        out.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    out.extend_from_slice(format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len()).as_bytes());
    out.extend_from_slice(&body);
    out.into()
}

fn new_id() -> String {
    uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string()
}

/// Reads a body to its end, if it is not small only as far as `hold` lets it. One that came in one piece is not copied.
async fn read(mut body: Incoming, client_waits: bool, mut hold: impl FnMut() -> bool) -> Result<Bytes, Refusal> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let announced = body.size_hint().lower();
    if announced > if client_waits { MAX_BODY } else { MAX_DISCARDED } as u64 {
        return Err(Refusal::TooLarge);
    }
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    let mut seen = 0usize;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Refusal::BadRequest)?.into_data() else { continue };
        seen = seen.saturating_add(data.len());
        if announced > MAX_BODY as u64 || seen > MAX_BODY {
            whole = BytesMut::new();
            if seen > MAX_DISCARDED {
                break;
            }
        } else if seen.max(usize::try_from(announced).unwrap_or(usize::MAX)) > SMALL_BODY && !hold() {
            return Err(Refusal::Busy);
        } else if first.is_empty() {
            first = data;
        } else {
            if whole.is_empty() {
                whole.reserve(usize::try_from(announced).unwrap_or(0).max(first.len() + data.len()));
                whole.extend_from_slice(&first);
            }
            whole.extend_from_slice(&data);
        }
    }
    match seen {
        _ if seen > MAX_BODY => Err(Refusal::TooLarge),
        _ if whole.is_empty() => Ok(first),
        _ => Ok(whole.freeze()),
    }
}

fn finish(answer: Response, id: &str, keep: bool) -> hyper::Response<Full<Bytes>> {
    let Response { status, mut headers, body } = answer;
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, id);
    }
    if !keep {
        // What is left of a request that was not read cannot be told from a next one; and who drains wants no next one.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let mut response = hyper::Response::new(Full::new(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
