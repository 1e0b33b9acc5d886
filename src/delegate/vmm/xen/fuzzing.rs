//! What must hold of whatever xenstore says, whoever wrote it there: see [`crate::fuzzing`].

use futures_util::FutureExt;

use super::names::Place;
use super::store::Store;
use super::xenbus;

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

fn place(name: &str) {
    if let Some(place) = Place::parse(name) {
        assert_eq!(Place::parse(&place.to_string()), Some(place));
        assert!(place.clashes(place));
    }
}
