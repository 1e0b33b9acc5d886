//! The highest generation that was seen of each resource, kept on disk: a delegate that was restarted must still refuse the
//! worker that was overtaken before.
//!
//! The file `generations` is a log of lines `NAME GENERATION`, appended and synced before the call goes on, and only when a
//! generation is new. Calls that come together share one sync. The log is written anew, without what is outdated, at the
//! start; a last line that a crash cut short was of a call that never began. Resources that are gone stay in it, some forty
//! bytes each: a ghost must not bring a deleted volume back.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use tokio::sync::Mutex;

use super::{DelegateError, Generation, Result};

/// The generations seen.
pub struct Fence {
    seen: StdMutex<Seen>,
    /// Held while the log is written: who waits for it finds most often that its line is on disk already.
    writer: Mutex<()>,
    log: Option<Arc<File>>,
}

#[derive(Default)]
struct Seen {
    highest: HashMap<String, Generation>,
    /// Lines that are not on disk yet, and how many were ever given out and ever synced.
    pending: String,
    given: u64,
    synced: u64,
}

impl Fence {
    /// A fence that is forgotten when the process ends.
    pub fn in_memory() -> Self {
        Self { seen: StdMutex::default(), writer: Mutex::default(), log: None }
    }

    /// The fence that is kept in a directory.
    pub async fn open(data_dir: &Path) -> Result<Self> {
        let path = data_dir.join("generations");
        let opened = tokio::task::spawn_blocking(move || {
            load(&path).and_then(|highest| Ok((rewrite(&path, &highest)?, highest)))
        });
        let (log, highest) = opened
            .await
            .map_err(io::Error::other)
            .and_then(|opened| opened)
            .map_err(|e| DelegateError::fatal(format!("cannot read the generations seen: {e}")))?;
        let seen = Seen { highest, ..Seen::default() };
        Ok(Self { seen: StdMutex::new(seen), writer: Mutex::default(), log: Some(Arc::new(log)) })
    }

    /// Lets a generation pass that is no older than the newest of the resource, and remembers it.
    pub async fn pass(&self, name: &str, generation: Generation) -> Result<()> {
        let ticket = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            match seen.highest.get(name) {
                Some(highest) if *highest > generation => return Err(DelegateError::stale(*highest, generation)),
                Some(highest) if *highest == generation => {}
                _ => {
                    seen.highest.insert(name.to_owned(), generation);
                    seen.pending.push_str(&line(name, generation));
                    seen.given += 1;
                }
            }
            seen.given
        };
        let Some(log) = &self.log else { return Ok(()) };
        self.sync(log, ticket).await.map_err(|e| DelegateError::retry(format!("cannot note the generation: {e}")))
    }

    /// Waits until the first `ticket` lines are on disk.
    async fn sync(&self, log: &Arc<File>, ticket: u64) -> io::Result<()> {
        if self.is_synced(ticket) {
            return Ok(());
        }
        let _writer = self.writer.lock().await;
        if self.is_synced(ticket) {
            return Ok(());
        }
        let (lines, upto) = {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            (seen.pending.clone(), seen.given)
        };
        let (file, length) = (Arc::clone(log), lines.len());
        let write = move || (&*file).write_all(lines.as_bytes()).and_then(|()| file.sync_data());
        let written = tokio::task::spawn_blocking(write).await.map_err(io::Error::other).and_then(|written| written);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(e) = written {
            // Its lines are written again next time, after an end for the line it may have been cut short in.
            seen.pending.insert(0, '\n');
            return Err(e);
        }
        seen.pending.drain(..length);
        seen.synced = upto;
        Ok(())
    }

    fn is_synced(&self, ticket: u64) -> bool {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).synced >= ticket
    }
}

fn load(path: &Path) -> io::Result<HashMap<String, Generation>> {
    let text = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(e),
    };
    let mut highest: HashMap<String, Generation> = HashMap::new();
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        if let Some((name, Ok(number))) = line.split_once(' ').map(|(name, number)| (name, number.parse())) {
            let entry = highest.entry(name.to_owned()).or_insert(Generation(number));
            *entry = (*entry).max(Generation(number));
        }
    }
    Ok(highest)
}

fn line(name: &str, generation: Generation) -> String {
    format!("{name} {}\n", generation.0)
}

/// Writes the log anew and leaves it open for more.
fn rewrite(path: &Path, highest: &HashMap<String, Generation>) -> io::Result<File> {
    let temporary: PathBuf = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    let lines: Vec<String> = highest.iter().map(|(name, generation)| line(name, *generation)).collect();
    file.write_all(lines.concat().as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delegate::ErrorKind;

    #[tokio::test]
    async fn what_was_seen_before_a_restart_is_still_refused_after_it() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..3 {
            let fence = Fence::open(dir.path()).await.unwrap();
            fence.pass("a", Generation(10 + round)).await.unwrap();
            fence.pass("b", Generation(3)).await.unwrap();
            let old = fence.pass("a", Generation(9 + round)).await.unwrap_err();
            assert_eq!(old.kind, ErrorKind::Stale);
        }
        assert_eq!(std::fs::read_to_string(dir.path().join("generations")).unwrap().lines().count(), 3, "compacted");
    }

    #[tokio::test]
    async fn a_line_cut_short_and_garbage_in_the_log_do_not_stop_the_start() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("generations"), b"a 7\nnonsense\n\xff\xff 3\nb x\nc 1").unwrap();
        let fence = Fence::open(dir.path()).await.unwrap();
        assert!(fence.pass("a", Generation(6)).await.is_err());
        fence.pass("c", Generation(0)).await.unwrap();
    }

    #[tokio::test]
    async fn calls_that_come_together_are_all_on_disk_before_they_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let fence = Arc::new(Fence::open(dir.path()).await.unwrap());
        let calls = (0..50).map(|n| {
            let (fence, log) = (Arc::clone(&fence), dir.path().join("generations"));
            tokio::spawn(async move {
                fence.pass(&format!("vol-{n}"), Generation(n)).await.unwrap();
                assert!(std::fs::read_to_string(log).unwrap().contains(&format!("vol-{n} {n}\n")));
            })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap();
        }
    }
}
