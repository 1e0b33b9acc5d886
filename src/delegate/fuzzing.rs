//! What must hold of whatever a gateway, another node, a command or the kernel says to a delegate: see [`crate::fuzzing`].

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::HeaderValue;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::reading::{self, Question};
use super::source::{CHUNK, Grant, Piece, Summary};
use super::sources::Sources;
use super::wire::{Call, DetachSpec, EndExports, GrowSpec, RestoreCall};
use super::{
    ConnectSpec, CopySpec, DelegateError, Detach, DiskSpec, ExportSpec, Growth, Pause, PauseSpec, Portal,
    SnapshotMethod, SnapshotReport, SnapshotSpec, StorageObservation, VmmObservation, VolumeSpec, target, vmm, volume,
};
use crate::ids::VolumeId;

/// A body of a call or of an answer, or the numbers and bytes of a piece. What is read is written and read again as the same; a piece
/// that passes is within its snapshot, and not larger than a chunk.
///
/// # Panics
/// When that does not hold.
pub fn delegate(data: &[u8]) {
    again::<Call<VolumeSpec>>(data);
    again::<Call<VolumeId>>(data);
    again::<Call<SnapshotSpec>>(data);
    again::<Call<CopySpec>>(data);
    again::<Call<ExportSpec>>(data);
    again::<EndExports>(data);
    again::<Call<ConnectSpec>>(data);
    again::<Call<DiskSpec>>(data);
    again::<Call<DetachSpec>>(data);
    again::<Call<GrowSpec>>(data);
    again::<Call<PauseSpec>>(data);
    again::<StorageObservation>(data);
    again::<VmmObservation>(data);
    again::<SnapshotReport>(data);
    again::<Portal>(data);
    again::<DelegateError>(data);
    again::<Summary>(data);
    again::<SnapshotMethod>(data);
    again::<Growth>(data);
    again::<Detach>(data);
    again::<Pause>(data);
    again::<String>(data);
    if let Some(call) = again::<Call<RestoreCall>>(data) {
        is_sound(&call.spec.from);
    }
    question(data);
    if let Ok(piece) = reading::unpacked(Bytes::copy_from_slice(data)) {
        is_within(&piece, 0);
    }
    if let Some(([at, end, size], bytes)) = numbers(data) {
        let piece = Piece::new(at, end, size, Bytes::copy_from_slice(bytes));
        is_within(&piece, at);
        let packed = reading::packed(&piece).expect("a piece can be written");
        assert_eq!(reading::unpacked(packed.into()), Ok(piece));
    }
}

/// Texts, apart by a NUL: what `tgtadm`, IET, the kernel's target and LVM show.
pub fn storage(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (first, second) = text.split_once('\0').unwrap_or((&text, ""));
    target::fuzzing::shown(first, second);
    volume::lvm::fuzzing::reported(&text);
}

/// What QEMU's monitor says, a JSON text a line, and what open-iscsi, the kernel (also of what a disk is held to) and xenstore say.
pub fn hypervisor(data: &[u8]) {
    vmm::fuzzing::monitored(data);
    vmm::open_iscsi::fuzzing::shown(data);
    vmm::xen::fuzzing::stored(data);
    vmm::xen::fuzzing::throttled(data);
}

fn again<T: Serialize + DeserializeOwned>(data: &[u8]) -> Option<T> {
    let read: T = serde_json::from_slice(data).ok()?;
    let written = serde_json::to_vec(&read).expect("what was read can be written");
    let second: T = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(serde_json::to_vec(&second).expect("what was read can be written"), written);
    Some(read)
}

/// Whatever stands in a grant, its reader either refuses it or knows whom to ask, and shows nobody the signature.
fn is_sound(grant: &Grant) {
    assert_eq!(format!("{:?}", grant.query), "<secret>");
    if let Ok(source) = reading::Granted::new(grant, &Sources::Any { loopback: true }) {
        let authority = source.authority();
        assert!(authority.parse::<hyper::http::uri::Authority>().is_ok(), "{authority:?}");
    }
}

/// The first line is what the header says.
fn question(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data.split(|b| *b == b'\n').next().unwrap_or_default()) else { return };
    for name in ["x-vbs-read", "x-vbs-sum"] {
        let headers = HeaderMap::from_iter([(hyper::header::HeaderName::from_static(name), value.clone())]);
        if let Some(asked) = Question::of(&headers) {
            let (Question::Read(at) | Question::Sum(at)) = asked;
            assert!(value.to_str().is_ok_and(|text| text.trim_start_matches(['+', '0']).len() <= 20), "{at}");
            assert_eq!(matches!(asked, Question::Read(_)), name == "x-vbs-read");
        }
    }
}

fn is_within(piece: &Piece, at: u64) {
    if piece.check(at).is_ok() {
        assert!(at < piece.end && piece.end <= piece.size_bytes);
        assert!(piece.is_zeros() || (piece.bytes.len() as u64 == piece.end - at && piece.end - at <= CHUNK));
    }
}

fn numbers(data: &[u8]) -> Option<([u64; 3], &[u8])> {
    let (head, rest) = data.split_first_chunk::<24>()?;
    let (words, _) = head.as_chunks::<8>();
    Some(([0, 1, 2].map(|n| u64::from_be_bytes(words[n])), rest))
}
