//! Xenstore's own protocol, over the socket of its daemon (xen/io/xs_wire.h): a header of four numbers, then the path or the
//! answer.
//!
//! `xenstore-ls` asks for one node after another, and for every node there is, so that a look takes the longer the more
//! machines a node has, and a driver that waits for a state looks often. Here only what is needed is asked for, and all
//! questions of a kind together: three round trips a look.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::store::{Store, VbdPaths};
use crate::delegate::{DelegateError, Result};

/// Kinds of messages.
const DIRECTORY: u32 = 1;
const READ: u32 = 2;
const ERROR: u32 = 16;

/// The most bytes of a message's content.
const MOST: u32 = 4096;

/// The longest path of a machine's own node that is followed, in bytes.
const LONGEST_VM: usize = 128;

/// The longest a look may take.
const LIMIT: Duration = Duration::from_secs(10);

const DOMAINS: &str = "/local/domain";
const BACKENDS: &str = "/local/domain/0/backend/vbd";

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ask {
    /// What is right below this path?
    Children(String),
    /// What does this node hold?
    Value(String),
}

/// Reads what there is of machines and disks.
pub(super) async fn look(socket: &Path) -> Result<Store> {
    let told = |e: &dyn std::fmt::Display| DelegateError::retry(format!("xenstore at {}: {e}", socket.display()));
    let reading = async {
        let mut stream = UnixStream::connect(socket).await?;
        read_all(&mut stream).await
    };
    match tokio::time::timeout(LIMIT, reading).await {
        Ok(store) => store.map_err(|e| told(&e)),
        Err(_) => Err(told(&"no answer in time")),
    }
}

async fn read_all(stream: &mut UnixStream) -> std::io::Result<Store> {
    let mut store = Store::default();
    let top = [Ask::Children(DOMAINS.into()), Ask::Children(BACKENDS.into())];
    let answers = ask(stream, &top).await?;
    let [domains, backends] =
        [0, 1].map(|n| answers.get(n).and_then(Option::as_deref).map(numbers).unwrap_or_default());
    // Domain 0 is always there.
    if domains.is_empty() {
        return Err(std::io::Error::other("it has no domains"));
    }
    let mut asks = Vec::new();
    for id in domains.iter().filter(|id| **id != 0) {
        let home = format!("{DOMAINS}/{id}");
        asks.extend(
            ["vm", "name", "memory/static-max", "memory/target"].map(|name| Ask::Value(format!("{home}/{name}"))),
        );
        asks.push(Ask::Children(format!("{home}/cpu")));
    }
    asks.extend(backends.iter().map(|id| Ask::Children(format!("{BACKENDS}/{id}"))));
    let mut next = Vec::new();
    for (asked, answer) in note(&mut store, asks, stream).await? {
        match asked {
            Ask::Value(path) if path.ends_with("/vm") && answer.starts_with(b"/vm/") && answer.len() < LONGEST_VM => {
                let vm = String::from_utf8_lossy(&answer);
                next.push(Ask::Value(format!("{vm}/start_time")));
            }
            Ask::Children(path) if path.starts_with(BACKENDS) => {
                let Ok(id) = path[BACKENDS.len() + 1..].parse() else { continue };
                let vdevs = numbers(&answer).into_iter();
                next.extend(vdevs.flat_map(|vdev| VbdPaths::new(id, vdev).all()).map(Ask::Value));
            }
            _ => {}
        }
    }
    note(&mut store, next, stream).await?;
    Ok(store)
}

/// Asks, puts the answers into the store, and gives them back. What is not there is left out.
async fn note(store: &mut Store, asks: Vec<Ask>, stream: &mut UnixStream) -> std::io::Result<Vec<(Ask, Vec<u8>)>> {
    let answers = ask(stream, &asks).await?;
    let mut found = Vec::new();
    for (asked, answer) in asks.into_iter().zip(answers) {
        let Some(answer) = answer else { continue };
        match &asked {
            Ask::Value(path) => store.put(path.clone(), String::from_utf8_lossy(&answer).into_owned()),
            Ask::Children(path) => {
                for name in numbers(&answer) {
                    store.put(format!("{path}/{name}"), String::new());
                }
            }
        }
        found.push((asked, answer));
    }
    Ok(found)
}

/// The children that are numbers, as those of machines, processors and disks are.
pub(super) fn numbers(children: &[u8]) -> Vec<u32> {
    children.split(|byte| *byte == 0).filter_map(|name| std::str::from_utf8(name).ok()?.parse().ok()).collect()
}

/// Asks all at once. The answers come in order; `None` is of a node that is not there.
async fn ask(stream: &mut UnixStream, asks: &[Ask]) -> std::io::Result<Vec<Option<Vec<u8>>>> {
    let mut questions = Vec::new();
    for (number, asked) in (1_u32..).zip(asks) {
        let (kind, path) = match asked {
            Ask::Children(path) => (DIRECTORY, path),
            Ask::Value(path) => (READ, path),
        };
        let content = [path.as_bytes(), &[0]].concat();
        for word in [kind, number, 0, u32::try_from(content.len()).unwrap_or(MOST)] {
            questions.extend(word.to_ne_bytes());
        }
        questions.extend(content);
    }
    let (mut from, mut to) = stream.split();
    // Both at once: xenstored stops reading while its answers are not read.
    let write = to.write_all(&questions);
    let read = async {
        let mut answers = Vec::with_capacity(asks.len());
        for number in (1_u32..).take(asks.len()) {
            answers.push(answer(&mut from, number).await?);
        }
        Ok(answers)
    };
    let ((), answers) = tokio::try_join!(write, read)?;
    Ok(answers)
}

pub(super) async fn answer(from: &mut (impl AsyncReadExt + Unpin), number: u32) -> std::io::Result<Option<Vec<u8>>> {
    let mut header = [0; 16];
    from.read_exact(&mut header).await?;
    let (words, _) = header.as_chunks::<4>();
    let [kind, answered, _, length] = [0, 1, 2, 3].map(|n| u32::from_ne_bytes(words[n]));
    if length > MOST || answered != number {
        return Err(std::io::Error::other("an answer that is none"));
    }
    let mut content = vec![0; usize::try_from(length).map_err(std::io::Error::other)?];
    from.read_exact(&mut content).await?;
    match kind {
        DIRECTORY | READ => Ok(Some(content)),
        ERROR if content.starts_with(b"ENOENT") => Ok(None),
        ERROR => Err(std::io::Error::other(String::from_utf8_lossy(&content).escape_debug().to_string())),
        _ => Err(std::io::Error::other(format!("an answer of kind {kind}"))),
    }
}

#[cfg(test)]
pub(super) mod fake {
    //! A xenstored that answers from a file of `PATH = "VALUE"` lines, which a test, or the program it runs in the place of
    //! `xl`, writes anew.

    use std::path::PathBuf;

    use tokio::net::UnixListener;

    use super::*;

    pub(crate) fn serve(socket: &Path, nodes: PathBuf) {
        let listener = UnixListener::bind(socket).unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                // A client hangs up in the middle of a question.
                while talk(&mut stream, &nodes).await.is_ok() {}
            }
        });
    }

    async fn talk(stream: &mut UnixStream, nodes: &Path) -> std::io::Result<()> {
        let mut words = [0_u32; 4];
        for word in &mut words {
            *word = stream.read_u32_le().await?;
        }
        let mut path = vec![0; usize::try_from(words[3]).unwrap()];
        stream.read_exact(&mut path).await?;
        let path = String::from_utf8(path).unwrap().trim_end_matches('\0').to_owned();
        let text = std::fs::read_to_string(nodes).unwrap();
        let all = text.lines().filter_map(|line| line.strip_suffix('"')?.split_once(" = \""));
        let mut found: Vec<u8> = Vec::new();
        let mut there = false;
        let mut seen = std::collections::BTreeSet::new();
        for (node, value) in all {
            let below = node.strip_prefix(&path);
            match (words[0], below) {
                (READ, Some("")) => (there, found) = (true, value.as_bytes().to_vec()),
                (DIRECTORY, Some(rest)) if rest.is_empty() || rest.starts_with('/') => {
                    there = true;
                    let child = rest.trim_start_matches('/').split('/').next().unwrap().to_owned();
                    if !child.is_empty() && seen.insert(child.clone()) {
                        found.extend(child.as_bytes());
                        found.push(0);
                    }
                }
                _ => {}
            }
        }
        let (kind, content) = if there { (words[0], found) } else { (ERROR, b"ENOENT\0".to_vec()) };
        for word in [kind, words[1], 0, u32::try_from(content.len()).unwrap()] {
            stream.write_u32_le(word).await?;
        }
        stream.write_all(&content).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_asked_for_is_read_and_what_is_not_there_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let nodes = dir.path().join("nodes");
        std::fs::write(&nodes, super::super::store::tests::printed()).unwrap();
        let socket = dir.path().join("socket");
        fake::serve(&socket, nodes.clone());
        let store = look(&socket).await.unwrap();
        super::super::store::tests::is_what_was_printed(&store);
        std::fs::write(&nodes, "/tool = \"\"\n").unwrap();
        look(&socket).await.expect_err("a xenstore without domain 0 is none");
    }

    #[tokio::test]
    async fn answers_that_are_none_are_refused() {
        for header in [[READ, 2, 0, 0], [READ, 1, 0, u32::MAX], [99, 1, 0, 0]] {
            let bytes: Vec<u8> = header.into_iter().flat_map(u32::to_ne_bytes).collect();
            answer(&mut &bytes[..], 1).await.expect_err("it would be taken for a node");
        }
        assert!(answer(&mut &b"short"[..], 1).await.is_err());
    }
}
