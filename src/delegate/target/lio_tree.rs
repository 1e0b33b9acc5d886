//! The tree of directories that the kernel's target is driven by: `mkdir` makes a part, `rmdir` ends it, files in it are its
//! settings, links join parts. See `Documentation/target/tcm_mod_builder.rst` and `configfs.rst` of Linux.
//!
//! A plain directory does not do that: in configfs the files come and go with their directory, and each text that is written
//! means something. So what the driver needs of it is the trait [`Tree`], and tests have one of their own.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::FlockOperation;

/// What a file may hold; configfs gives a page at most.
const MOST: u64 = 64 << 10;

/// A tree. Paths are from its root, without a slash at either end. All of it blocks.
pub trait Tree: Send + Sync {
    /// Keeps every other driver of the same tree out, in whatever process, for as long as what it gives lives.
    fn lock(&self) -> io::Result<Option<File>>;
    /// Makes a part.
    fn make(&self, dir: &str) -> io::Result<()>;
    /// Makes a part that listens on the network.
    fn make_portal(&self, dir: &str) -> io::Result<()> {
        self.make(dir)
    }
    /// Ends a part.
    fn end(&self, dir: &str) -> io::Result<()>;
    /// The names of the parts in a directory.
    fn parts(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Writes a setting, in one write.
    fn write(&self, file: &str, text: &str) -> io::Result<()>;
    /// Reads a setting.
    fn read(&self, file: &str) -> io::Result<String>;
    /// Makes a link to a part.
    fn link(&self, to: &str, at: &str) -> io::Result<()>;
    /// Ends a link.
    fn unlink(&self, at: &str) -> io::Result<()>;
    /// The links in a directory: their names, and the parts they lead to.
    fn links(&self, dir: &str) -> io::Result<Vec<(String, String)>>;
}

/// The kernel's own.
pub struct Configfs {
    root: PathBuf,
}

impl Configfs {
    /// The tree at this directory, `/sys/kernel/config/target`.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn entries(&self, dir: &str, wanted: fn(&fs::FileType) -> bool) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.root.join(dir))? {
            let entry = entry?;
            if wanted(&entry.file_type()?)
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

impl Tree for Configfs {
    fn lock(&self) -> io::Result<Option<File>> {
        let dir = File::open(&self.root)?;
        rustix::fs::flock(&dir, FlockOperation::LockExclusive)?;
        Ok(Some(dir))
    }

    fn make(&self, dir: &str) -> io::Result<()> {
        fs::create_dir(self.root.join(dir))
    }

    /// By a program of its own, which no signal to this one reaches. For the first portal at an address the kernel opens a
    /// socket and starts a thread, and when its caller is killed just then it gives up the thread and forgets the socket
    /// (`iscsit_add_np` of Linux 6.1): the address stays taken until the host starts anew.
    fn make_portal(&self, dir: &str) -> io::Result<()> {
        let mut command = Command::new("env");
        command.args(["--ignore-signal=HUP,INT,TERM", "mkdir", "--"]).arg(self.root.join(dir)).env("LC_ALL", "C");
        let done = command.process_group(0).stdin(Stdio::null()).output()?;
        if done.status.success() || self.root.join(dir).is_dir() {
            return Ok(());
        }
        Err(io::Error::other(String::from_utf8_lossy(&done.stderr).trim().to_owned()))
    }

    fn end(&self, dir: &str) -> io::Result<()> {
        fs::remove_dir(self.root.join(dir))
    }

    fn parts(&self, dir: &str) -> io::Result<Vec<String>> {
        self.entries(dir, fs::FileType::is_dir)
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        let mut file = File::options().write(true).open(self.root.join(file))?;
        // A second write would be another setting.
        match file.write(text.as_bytes())? {
            all if all == text.len() => Ok(()),
            part => Err(io::Error::other(format!("{part} of {} bytes were taken", text.len()))),
        }
    }

    fn read(&self, file: &str) -> io::Result<String> {
        let mut bytes = Vec::new();
        File::open(self.root.join(file))?.take(MOST).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn link(&self, to: &str, at: &str) -> io::Result<()> {
        std::os::unix::fs::symlink(self.root.join(to), self.root.join(at))
    }

    fn unlink(&self, at: &str) -> io::Result<()> {
        fs::remove_file(self.root.join(at))
    }

    fn links(&self, dir: &str) -> io::Result<Vec<(String, String)>> {
        let root = self.root.canonicalize()?;
        let names = self.entries(dir, fs::FileType::is_symlink)?;
        let leads = |name: String| {
            let to = self.root.join(dir).join(&name).canonicalize()?;
            Ok((name, to.strip_prefix(&root).unwrap_or(Path::new("")).to_string_lossy().into_owned()))
        };
        names.into_iter().map(leads).collect()
    }
}

/// What is not there is fine: it was to be gone.
pub fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// What is there already is fine.
pub fn there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// What is not there has nothing in it.
pub fn or_nothing<T: Default>(result: io::Result<T>) -> io::Result<T> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        done => done,
    }
}
