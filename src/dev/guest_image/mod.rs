//! The kernel and the initial file system of the small test guests that `vbs dev` starts.
//!
//! Nothing is downloaded and nothing needs root: a Debian kernel package, unpacked, gives the kernel and the virtio modules,
//! and a static busybox everything else. What is made is kept in a directory and made again when one of the inputs changes.
//!
//! The guest boots the uncompressed kernel, through QEMU's PVH entry: under emulation that takes a third of the time that
//! the kernel takes to unpack itself.

mod cpio;
mod init;
mod modules;
mod vmlinux;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use sha2::{Digest, Sha256};

/// The longest that a decompressor may take over a kernel.
const UNPACK_LIMIT: Duration = Duration::from_secs(120);

/// What a guest boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestImage {
    /// The kernel, as QEMU's `-kernel` takes it.
    pub kernel: PathBuf,
    /// The initial file system, as QEMU's `-initrd` takes it.
    pub initrd: PathBuf,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is no guest kernel in any of the places it is looked for.
    #[error("no guest kernel with its modules in {0}: run scripts/setup, or set VBS_GUEST_KERNEL_DIR")]
    NoKernel(String),
    /// There is no static busybox.
    #[error("no statically linked busybox: install Debian's busybox-static, or run scripts/setup")]
    NoBusybox,
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A decompressor is missing or fails.
    #[error("{0}")]
    Tool(String),
}

/// The files an image is made of.
struct Inputs {
    vmlinuz: PathBuf,
    busybox: PathBuf,
    modules: PathBuf,
}

/// Makes the image in `dir`, or finds it there, made of the same inputs.
///
/// # Errors
/// When an input is missing ([`ImageError`] says what to do), or a file cannot be read or written.
pub async fn ensure(dir: &Path) -> Result<GuestImage, ImageError> {
    let (dir, runtime) = (dir.to_owned(), tokio::runtime::Handle::current());
    // Nearly all of it is reading and writing of files.
    let work = tokio::task::spawn_blocking(move || runtime.block_on(find_or_make(&dir)));
    work.await.unwrap_or_else(|e| Err(ImageError::Tool(format!("making the guest's image: {e}"))))
}

async fn find_or_make(dir: &Path) -> Result<GuestImage, ImageError> {
    let inputs = Inputs::find()?;
    let image = GuestImage { kernel: dir.join("kernel"), initrd: dir.join("initrd") };
    let stamp_file = dir.join("stamp");
    let stamp = inputs.stamp()?;
    let kept = std::fs::read_to_string(&stamp_file).is_ok_and(|s| s == stamp);
    if kept && image.kernel.exists() && image.initrd.exists() {
        return Ok(image);
    }
    std::fs::create_dir_all(dir).map_err(at(dir))?;
    // Built beside, then moved into place, so that two who build at once do each other no harm.
    let scratch = dir.join(format!("new-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).map_err(at(&scratch))?;
    let made = make(&inputs, &scratch).await;
    let moved = made.and_then(|made| {
        std::fs::rename(&made.kernel, &image.kernel).map_err(at(&image.kernel))?;
        std::fs::rename(&made.initrd, &image.initrd).map_err(at(&image.initrd))?;
        let new_stamp = scratch.join("stamp");
        std::fs::write(&new_stamp, stamp).map_err(at(&new_stamp))?;
        std::fs::rename(&new_stamp, &stamp_file).map_err(at(&stamp_file))
    });
    std::fs::remove_dir_all(&scratch).map_err(at(&scratch))?;
    moved.map(|()| image)
}

async fn make(inputs: &Inputs, scratch: &Path) -> Result<GuestImage, ImageError> {
    let vmlinuz = std::fs::read(&inputs.vmlinuz).map_err(at(&inputs.vmlinuz))?;
    let kernel = scratch.join("kernel");
    let unpacked = match vmlinux::payload(&vmlinuz) {
        Some(payload) => unpack(payload, scratch).await.ok().filter(|k| vmlinux::is_elf(k)),
        None => None,
    };
    // A kernel that keeps its payload in another way boots as it is, only slower.
    let bytes = unpacked.unwrap_or(vmlinuz);
    std::fs::write(&kernel, bytes).map_err(at(&kernel))?;

    let mut modules = Vec::new();
    let files = modules::index(&inputs.modules);
    let mut wanted = modules::Order::new(["virtio_pci", "virtio_blk"]);
    while let Some(name) = wanted.next() {
        // What has no file is built in.
        let Some(path) = files.get(&name) else {
            wanted.built_in(&name);
            continue;
        };
        let bytes = std::fs::read(path).map_err(at(path))?;
        let bytes = if vmlinux::is_elf(&bytes) { bytes } else { unpack(&bytes, scratch).await? };
        if wanted.resolve(&name, &modules::depends(&bytes)) {
            modules.push((name, bytes));
        }
    }
    let busybox = std::fs::read(&inputs.busybox).map_err(at(&inputs.busybox))?;
    let initrd = scratch.join("initrd");
    std::fs::write(&initrd, init::archive(&busybox, &modules)).map_err(at(&initrd))?;
    Ok(GuestImage { kernel, initrd })
}

/// Unpacks what a known compressor has packed, by the tool of its name.
async fn unpack(packed: &[u8], scratch: &Path) -> Result<Vec<u8>, ImageError> {
    let tool = vmlinux::compressor(packed).ok_or_else(|| ImageError::Tool("an unknown compression".into()))?;
    let (from, to) = (scratch.join("packed"), scratch.join("unpacked"));
    std::fs::write(&from, packed).map_err(at(&from))?;
    let stdin = std::fs::File::open(&from).map_err(at(&from))?;
    let stdout = std::fs::File::create(&to).map_err(at(&to))?;
    let mut command = tokio::process::Command::new(tool);
    command.arg("-dc").env("LC_ALL", "C").stdin(stdin).stdout(stdout).stderr(Stdio::null()).kill_on_drop(true);
    let status = tokio::time::timeout(UNPACK_LIMIT, command.status())
        .await
        .map_err(|_| ImageError::Tool(format!("{tool} -dc: no end in time")))?
        .map_err(|e| ImageError::Tool(format!("{tool} -dc: {e}")))?;
    let bytes = std::fs::read(&to).map_err(at(&to))?;
    if status.success() { Ok(bytes) } else { Err(ImageError::Tool(format!("{tool} -dc: {status}"))) }
}

impl Inputs {
    /// Looks in `VBS_GUEST_KERNEL_DIR`, in the cache directory that scripts/setup fills, and at the installed system.
    fn find() -> Result<Self, ImageError> {
        let given = std::env::var_os("VBS_GUEST_KERNEL_DIR").map(PathBuf::from);
        let cache = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
            .map(|dir| dir.join("vbs/guest-kernel"));
        let places: Vec<PathBuf> = match given {
            Some(dir) => vec![dir],
            None => cache.into_iter().chain([PathBuf::from("/")]).collect(),
        };
        for place in &places {
            let Some((vmlinuz, modules)) = newest_kernel(place) else { continue };
            let busybox = [place.join("bin/busybox"), PathBuf::from("/bin/busybox")];
            let busybox = busybox.into_iter().find(|b| std::fs::read(b).is_ok_and(|elf| vmlinux::is_static(&elf)));
            return Ok(Self { vmlinuz, modules, busybox: busybox.ok_or(ImageError::NoBusybox)? });
        }
        let places: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
        Err(ImageError::NoKernel(places.join(" or ")))
    }

    /// Names the inputs as they are now, and what we add to them.
    fn stamp(&self) -> Result<String, ImageError> {
        let mut text = init::FINGERPRINT.to_owned();
        for path in [&self.vmlinuz, &self.busybox, &self.modules] {
            let meta = std::fs::metadata(path).map_err(at(path))?;
            let modified = meta.modified().map_err(at(path))?;
            let _ = write!(text, "\n{} {} {modified:?}", path.display(), meta.len());
        }
        Ok(hex::encode(Sha256::digest(text)))
    }
}

/// The newest kernel under a root directory that has its modules beside it.
fn newest_kernel(root: &Path) -> Option<(PathBuf, PathBuf)> {
    let entries = std::fs::read_dir(root.join("boot")).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let kernels = names.filter_map(|name| {
        let version = name.strip_prefix("vmlinuz-")?;
        let modules = root.join("lib/modules").join(version).join("kernel");
        // Numbers in a version sort as numbers.
        let digits = version.split(|c: char| !c.is_ascii_digit()).filter_map(|d| d.parse::<u64>().ok());
        modules.is_dir().then(|| (digits.collect::<Vec<_>>(), root.join("boot").join(&name), modules))
    });
    kernels.max().map(|(_, vmlinuz, modules)| (vmlinuz, modules))
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::File { path, source }
}
