//! Reading a node's snapshots over the network: `GET /v1/snapshots/SNAPSHOT`, presigned (the query of a [`Grant`]), with the
//! offset in a header that the signature does not cover, as S3 has it with ranges.
//!
//! The answer is one line of JSON and then, for a piece that is not zeros, its bytes. With any other status than 200 it is a
//! [`DelegateError`] as everywhere.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::HeaderMap;
use hyper::{Method, Request, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::peer::{Peer, Problem};
use super::source::{CHUNK, Digest, Grant, Piece, SnapshotSource, Summary};
use super::sources::Sources;
use super::{DelegateError, Result, Secret, wire};
use crate::ids::SnapshotId;
use crate::sigv4;

/// What the path starts with; the snapshot follows.
pub const PATH: &str = "/v1/snapshots/";

/// The header with the offset to read from.
const READ: &str = "x-vbs-read";

/// The header with the offset to sum up from.
const SUM: &str = "x-vbs-sum";

/// For an answer: before it a node may have to read many zeros, from a disk that others use as well.
const ANSWER: Duration = Duration::from_secs(60);

/// How long a [`Grant`] is good for, in seconds. It is renewed long before, by each try to make the volume; the clocks of three
/// machines may differ.
const GRANTED_S: u32 = 3600;

/// The longest first line that is read, in bytes.
const MOST_HEAD: usize = 64 << 10;

/// What a piece says of itself.
#[derive(Serialize, Deserialize)]
struct Head {
    size_bytes: u64,
    end: u64,
    digest: Digest,
}

/// What is asked of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// [`SnapshotSource::read_snapshot`] from this offset on.
    Read(u64),
    /// [`SnapshotSource::sum_snapshot`] from this offset on.
    Sum(u64),
}

impl Question {
    /// The question that a request's headers ask.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let number = |name| headers.get(name)?.to_str().ok()?.parse().ok();
        match (number(READ), number(SUM)) {
            (Some(at), None) => Some(Self::Read(at)),
            (None, Some(from)) => Some(Self::Sum(from)),
            _ => None,
        }
    }

    fn header(self) -> (&'static str, String) {
        match self {
            Self::Read(at) => (READ, at.to_string()),
            Self::Sum(from) => (SUM, from.to_string()),
        }
    }
}

/// Answers a question.
pub async fn answer(source: &(impl SnapshotSource + ?Sized), snapshot: &SnapshotId, asked: Question) -> Result<Bytes> {
    let answer = match asked {
        Question::Sum(from) => serde_json::to_vec(&source.sum_snapshot(snapshot, from).await?),
        Question::Read(at) => packed(&source.read_snapshot(snapshot, at).await?),
    };
    Ok(answer.map_err(|e| DelegateError::fatal(format!("the answer cannot be written: {e}")))?.into())
}

/// A piece as it goes over the wire.
pub(super) fn packed(piece: &Piece) -> serde_json::Result<Vec<u8>> {
    let first = Head { size_bytes: piece.size_bytes, end: piece.end, digest: piece.digest };
    let mut out = serde_json::to_vec(&first)?;
    out.push(b'\n');
    out.extend_from_slice(&piece.bytes);
    Ok(out)
}

/// The way back. Whether the piece is what was asked for is for [`Piece::check`] to say.
pub(super) fn unpacked(mut answer: Bytes) -> Result<Piece, String> {
    let line = answer.iter().take(MOST_HEAD).position(|byte| *byte == b'\n').ok_or("an answer that is none")?;
    let Head { size_bytes, end, digest } = parsed(&answer[..line])?;
    Ok(Piece { size_bytes, end, bytes: answer.split_off(line + 1), digest })
}

/// Makes the query of a grant for a snapshot of the node of this name and key.
pub fn query(node: &str, key: &str, authority: &str, snapshot: &SnapshotId) -> Secret {
    let request = sigv4::Outgoing {
        method: "GET",
        path: &format!("{PATH}{snapshot}"),
        query: "",
        host: authority,
        body: &[],
        access_key_id: node,
        secret: key,
        region: node,
        service: wire::SERVICE,
    };
    Secret(sigv4::presign(&request, GRANTED_S, chrono::Utc::now()))
}

/// Asks a node for what a snapshot holds from an offset on.
pub async fn read(peer: &Peer, query: &Secret, snapshot: &SnapshotId, at: u64) -> Result<Piece> {
    unpacked(ask(peer, query, snapshot, Question::Read(at)).await?).map_err(|why| lost(peer, why))
}

/// Asks a node for the digest of what a snapshot holds from an offset on.
pub async fn sum(peer: &Peer, query: &Secret, snapshot: &SnapshotId, from: u64) -> Result<Summary> {
    parsed(&ask(peer, query, snapshot, Question::Sum(from)).await?).map_err(|why| lost(peer, why))
}

async fn ask(peer: &Peer, query: &Secret, snapshot: &SnapshotId, question: Question) -> Result<Bytes> {
    let target = format!("{PATH}{snapshot}?{}", query.0);
    let (name, value) = question.header();
    let make = || -> Result<_, Problem> {
        Ok(Request::builder().method(Method::GET).uri(&target).header(name, &value).body(Full::default())?)
    };
    // No error of these shows the target.
    let most = usize::try_from(CHUNK).unwrap_or(0) + MOST_HEAD;
    let (status, answer) = tokio::time::timeout(ANSWER, peer.exchange(make, most))
        .await
        .map_err(|_| lost(peer, format!("no answer after {ANSWER:?}")))?
        .map_err(|e| lost(peer, e))?;
    if status == StatusCode::OK {
        return Ok(answer);
    }
    let answer = &answer[..answer.len().min(MOST_HEAD)];
    Err(serde_json::from_slice(answer).unwrap_or_else(|_| lost(peer, status)))
}

fn parsed<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    serde_json::from_slice(text).map_err(|e| format!("an answer that is none: {e}"))
}

fn lost(peer: &Peer, why: impl std::fmt::Display) -> DelegateError {
    DelegateError::retry(format!("reading a snapshot at {}: {why}", peer.authority()))
}

/// The source that a grant opens.
pub struct Granted {
    peer: Peer,
    query: Secret,
}

impl Granted {
    /// Connects to nobody yet. Fatal when it leads to none of the nodes that may be read from.
    pub fn new(grant: &Grant, sources: &Sources) -> Result<Self> {
        Ok(Self { peer: sources.peer(grant)?, query: grant.query.clone() })
    }

    /// `HOST:PORT` of the node.
    #[cfg(any(test, fuzzing))]
    pub fn authority(&self) -> &str {
        self.peer.authority()
    }
}

#[async_trait]
impl SnapshotSource for Granted {
    async fn read_snapshot(&self, snapshot: &SnapshotId, at: u64) -> Result<Piece> {
        read(&self.peer, &self.query, snapshot, at).await
    }

    async fn sum_snapshot(&self, snapshot: &SnapshotId, from: u64) -> Result<Summary> {
        sum(&self.peer, &self.query, snapshot, from).await
    }

    /// Never: what was granted is not passed on.
    fn grant(&self, _: &SnapshotId) -> Result<Grant> {
        Err(DelegateError::fatal("a grant is not passed on"))
    }
}
