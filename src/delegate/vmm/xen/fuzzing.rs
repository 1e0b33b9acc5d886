//! What must hold of whatever xenstore says, whoever wrote it there, and of what the kernel shows of threads and limits: see
//! [`crate::fuzzing`].

use futures_util::FutureExt;

use super::names::Place;
use super::store::Store;
use super::throttle::{self, KERNEL_THREAD};
use super::xenbus;
use crate::delegate::Limits;

/// Bytes of xenstored's socket, lines `PATH VALUE` of what it holds, or the name of a disk.
pub fn stored(data: &[u8]) {
    let mut rest = data;
    for number in 1.. {
        match xenbus::answer(&mut rest, number).now_or_never() {
            Some(Ok(content)) => assert!(content.is_none_or(|content| content.len() <= 4096)),
            Some(Err(_)) => break,
            None => panic!("what is there is read at once"),
        }
    }
    assert!(xenbus::numbers(data).len() <= data.len());
    let text = String::from_utf8_lossy(data);
    let mut store = Store::default();
    for (path, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        store.put(path.to_owned(), value.to_owned());
    }
    let domains = store.domains();
    assert!(domains.is_sorted_by(|a, b| a.id < b.id), "a machine is there once");
    assert!(domains.iter().all(|domain| domain.id != 0 && domain.uuid.len() == 36));
    for vbd in store.vbds() {
        assert!(!vbd.connected() || vbd.held());
        assert!(vbd.complaint.is_none_or(|words| words.len() <= 2048 && !words.contains(char::is_control)));
    }
    place(text.trim());
    if let Some(number) = data.first_chunk::<4>() {
        let _ = Place::of(u32::from_be_bytes(*number)).map(|place| place.to_string());
    }
}

/// A process's `stat`, or its name; a group's `io.max`, or the numbers of a device and of what it is held to.
pub fn throttled(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if throttle::is_kernels(&text) {
        assert!(text.contains(')'), "what has no name is no thread");
    }
    // Whatever a process calls itself, only the kernel sets its flags.
    for flags in [KERNEL_THREAD, 64] {
        let stat = format!("7 ({text}) S 2 0 0 0 -1 {flags} 0 0\n");
        assert_eq!(throttle::is_kernels(&stat), flags == KERNEL_THREAD);
    }
    let number =
        |at: usize| data.get(at..at + 4).map_or(0, |word| word.iter().fold(0, |n, byte| n << 8 | u32::from(*byte)));
    let limits = Limits { iops: number(8), bytes_per_second: u64::from(number(12)) << 10 };
    let line = throttle::line((number(0), number(4)), limits);
    assert!(!throttle::holds(&text, &line) || text.contains(&line));
    assert!(throttle::holds(&format!("{text}\n{line}\n"), &line), "others' lines do not hide a device's");
    assert!(!throttle::holds(&format!("{line}0"), &line), "a longer number is another limit");
    let other = throttle::line((number(0), number(4)), Limits { iops: limits.iops ^ 1, ..limits });
    assert!(!throttle::holds(&other, &line), "another limit is another line");
}

fn place(name: &str) {
    if let Some(place) = Place::parse(name) {
        assert_eq!(Place::parse(&place.to_string()), Some(place));
        assert!(place.clashes(place));
    }
}
