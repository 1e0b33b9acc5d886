//! Volumes in files of a source that does what a test tells it; [`crate::delegate::volume::lvm`] has its own.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;

use super::*;
use crate::delegate::SnapshotSpec;
use crate::delegate::source::{CHUNK, Grant, Summary};
use crate::delegate::volume::file_driver::FileDriver;
use crate::ids::SnapshotId;

const MIB: u64 = 1 << 20;

/// Some bytes in each chunk but every third.
pub fn scattered(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    for (number, chunk) in bytes.chunks_mut(1 << 20).enumerate().filter(|(number, _)| number % 3 != 2) {
        chunk[number + 5] = u8::try_from(number % 251).unwrap() + 1;
    }
    bytes
}

/// A snapshot somewhere else.
pub struct Scripted {
    file: File,
    size: u64,
    reads: Mutex<Vec<u64>>,
    fails_from: AtomicU64,
    hangs: AtomicBool,
    tears: AtomicU64,
    sums_wrong: AtomicBool,
}

impl Scripted {
    pub fn of(bytes: &[u8]) -> Arc<Self> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(Self {
            file,
            size: bytes.len() as u64,
            reads: Mutex::default(),
            fails_from: AtomicU64::new(u64::MAX),
            hangs: AtomicBool::default(),
            tears: AtomicU64::default(),
            sums_wrong: AtomicBool::default(),
        })
    }

    /// From now on what is at this offset or after it cannot be read.
    pub fn fails_from(&self, at: u64) {
        self.fails_from.store(at, Ordering::SeqCst);
    }

    /// All can be read again, and no read was counted.
    pub fn recovers(&self) {
        self.fails_from(u64::MAX);
        self.reads.lock().unwrap().clear();
    }

    /// The offsets that were read.
    pub fn reads(&self) -> Vec<u64> {
        self.reads.lock().unwrap().clone()
    }
}

#[async_trait]
impl SnapshotSource for Scripted {
    async fn read_snapshot(&self, _: &SnapshotId, at: u64) -> Result<Piece> {
        self.reads.lock().unwrap().push(at);
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if at >= self.fails_from.load(Ordering::SeqCst) {
            return Err(DelegateError::retry("the source is away"));
        }
        let mut piece = pieces::read(&self.file, self.size, at).unwrap();
        let torn = self.tears.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if torn.is_ok() {
            piece.bytes = vec![1; piece.bytes.len()].into();
        }
        Ok(piece)
    }

    async fn sum_snapshot(&self, _: &SnapshotId, from: u64) -> Result<Summary> {
        let at = if self.sums_wrong.load(Ordering::SeqCst) { CHUNK } else { from };
        Ok(Summary { end: self.size, ..pieces::sum(&self.file, self.size, at).unwrap() })
    }

    fn grant(&self, _: &SnapshotId) -> Result<Grant> {
        Err(DelegateError::fatal("it is read in process"))
    }
}

/// A node of files.
struct Node {
    dir: tempfile::TempDir,
    restores: Option<Restores>,
    spec: RestoreSpec,
}

impl Node {
    async fn new(size_bytes: u64) -> Self {
        let spec = RestoreSpec { volume: VolumeId::generate(), size_bytes, snapshot: SnapshotId::generate() };
        let mut node = Self { dir: tempfile::tempdir().unwrap(), restores: None, spec };
        node.restart().await;
        node
    }

    /// Ends what is at work where it stands, and opens the same files again.
    async fn restart(&mut self) {
        self.restores = None;
        let driver = FileDriver::open(self.dir.path(), &CancellationToken::new()).await.unwrap();
        self.restores = Some(Restores::new(Arc::new(driver), &CancellationToken::new()));
    }

    async fn ask(&self, source: &Arc<Scripted>) -> Result<u8> {
        self.restores.as_ref().unwrap().ensure(&self.spec, source.clone()).await
    }

    async fn whole(&self, source: &Arc<Scripted>) -> Result<()> {
        let mut before = 0;
        loop {
            let percent = self.ask(source).await?;
            assert!(percent >= before, "{percent} after {before}");
            before = percent;
            if percent == 100 {
                return Ok(());
            }
        }
    }

    async fn remove(&self) {
        let restores = self.restores.as_ref().unwrap();
        restores.end(&self.spec.volume).await.unwrap();
        restores.driver.ensure_no_volume(&self.spec.volume).await.unwrap();
    }

    fn volume(&self) -> Option<Vec<u8>> {
        std::fs::read(self.dir.path().join("volumes").join(self.spec.volume.as_str())).ok()
    }

    /// What there is of copies that are not done.
    fn begun(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path().join("restores")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

#[tokio::test]
async fn a_volume_is_of_the_sources_bytes_and_zeros_after_them_and_holes_stay_holes() {
    let node = Node::new(9 * MIB).await;
    let bytes = scattered(7 << 20);
    let source = Scripted::of(&bytes);
    node.whole(&source).await.unwrap();
    let volume = node.volume().unwrap();
    assert!(volume[..7 << 20] == bytes && volume[7 << 20..].iter().all(|byte| *byte == 0), "other bytes");
    let file = File::open(node.dir.path().join("volumes").join(node.spec.volume.as_str())).unwrap();
    assert!(super::super::copy::allocated(&file).unwrap() <= MIB, "zeros were written");
    assert!(node.begun().is_empty(), "{:?}", node.begun());
    // It is there: nobody is asked any more.
    source.recovers();
    source.fails_from(0);
    assert_eq!(node.ask(&source).await, Ok(100));
    assert!(source.reads().is_empty());
}

#[tokio::test]
async fn a_copy_that_was_broken_off_goes_on_where_it_was_after_a_restart_too() {
    let mut node = Node::new(12 * MIB).await;
    let source = Scripted::of(&scattered(12 << 20));
    for (fails_from, restarts) in [(4 * MIB, false), (7 * MIB, true)] {
        source.fails_from(fails_from);
        let error = node.whole(&source).await.unwrap_err();
        assert_eq!((error.kind, node.volume()), (ErrorKind::Retry, None), "{error}");
        if restarts {
            node.restart().await;
        }
        source.recovers();
        source.fails_from(fails_from + MIB);
        assert_eq!(node.whole(&source).await.unwrap_err().kind, ErrorKind::Retry);
        assert!(source.reads().iter().all(|at| *at >= fails_from), "{:?}", source.reads());
    }
    source.recovers();
    node.whole(&source).await.unwrap();
    assert!(node.volume().unwrap() == scattered(12 << 20), "other bytes");
}

#[tokio::test]
async fn what_is_not_there_any_more_or_is_not_known_to_be_is_copied_again() {
    for damage in ["the file", "the state"] {
        let mut node = Node::new(4 * MIB).await;
        let source = Scripted::of(&scattered(4 << 20));
        source.fails_from(3 * MIB);
        node.whole(&source).await.unwrap_err();
        node.restart().await;
        let state = |name: &String| std::path::Path::new(name).extension().is_some();
        let name = node.begun().into_iter().find(|name| state(name) == (damage == "the state")).unwrap();
        let path = node.dir.path().join("restores").join(name);
        if damage == "the file" { std::fs::remove_file(path) } else { std::fs::write(path, "{}") }.unwrap();
        source.recovers();
        node.whole(&source).await.unwrap();
        assert_eq!(source.reads()[0], 0, "{damage}");
        assert!(node.volume().unwrap() == scattered(4 << 20), "other bytes without {damage}");
        assert!(node.begun().is_empty(), "{:?}", node.begun());
    }
}

#[tokio::test]
async fn a_torn_piece_is_asked_for_again_and_never_written() {
    let node = Node::new(4 * MIB).await;
    let source = Scripted::of(&scattered(4 << 20));
    source.tears.store(u64::from(TRIES), Ordering::SeqCst);
    let refused = node.whole(&source).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Retry && refused.message.contains("digest"), "{refused}");
    assert_eq!(node.volume(), None);
    source.tears.store(1, Ordering::SeqCst);
    node.whole(&source).await.unwrap();
    assert!(node.volume().unwrap() == scattered(4 << 20), "other bytes");
}

#[tokio::test]
async fn a_volume_that_is_not_what_the_source_has_in_the_end_is_never_there() {
    let node = Node::new(4 * MIB).await;
    let source = Scripted::of(&scattered(4 << 20));
    source.sums_wrong.store(true, Ordering::SeqCst);
    let refused = node.whole(&source).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Fatal && refused.message.contains("differ"), "{refused}");
    assert_eq!(node.volume(), None);
    node.remove().await;
    assert!(node.begun().is_empty(), "{:?}", node.begun());
    let large = Scripted::of(&scattered(5 << 20));
    assert_eq!(node.whole(&large).await.unwrap_err().kind, ErrorKind::Fatal, "it has more than the volume");
}

#[tokio::test]
async fn a_source_that_says_nothing_is_an_error_and_does_not_keep_the_volume_from_being_removed() {
    let mut node = Node::new(4 * MIB).await;
    node.restores.as_mut().unwrap().patience = Duration::from_millis(100);
    let source = Scripted::of(&scattered(4 << 20));
    source.hangs.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        assert_eq!(node.ask(&source).await.unwrap_err().kind, ErrorKind::Retry);
    }
    node.remove().await;
    assert!(node.begun().is_empty(), "{:?}", node.begun());
}

#[tokio::test]
async fn more_copies_than_may_run_at_once_wait_without_an_error() {
    let node = Node::new(MIB).await;
    let restores = node.restores.as_ref().unwrap();
    let places = Arc::clone(&restores.places).acquire_many_owned(u32::try_from(AT_ONCE).unwrap()).await.unwrap();
    let source = Scripted::of(&scattered(1 << 20));
    assert_eq!(node.ask(&source).await.unwrap_err().kind, ErrorKind::Busy);
    drop(places);
    node.whole(&source).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_of_a_restored_volume_is_one_like_others() {
    let node = Node::new(2 * MIB).await;
    node.whole(&Scripted::of(&scattered(2 << 20))).await.unwrap();
    let driver = &node.restores.as_ref().unwrap().driver;
    let snapshot = SnapshotId::generate();
    let spec = SnapshotSpec { snapshot: snapshot.clone(), volume: node.spec.volume.clone(), cut: false };
    driver.ensure_snapshot(&spec).await.unwrap();
    assert_eq!(driver.ready_snapshot(&snapshot).await.unwrap().size_bytes, 2 * MIB);
    node.remove().await;
    assert_eq!(driver.contents().await.unwrap().volumes, []);
}
