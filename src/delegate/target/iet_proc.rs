//! Reads what the kernel part of IET shows in `/proc/net/iet/volume` and `/proc/net/iet/session`. `name:`, `path:` and
//! `initiator:` end their lines and may hold blanks; all else is `key:value`, and later releases have more keys than earlier
//! ones. What is not known is let be.

/// A target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// Its number.
    pub tid: u32,
    /// Its name.
    pub name: String,
    /// Its units.
    pub units: Vec<Unit>,
    /// The initiators that are logged in.
    pub sessions: Vec<String>,
}

/// A logical unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unit {
    /// Its number.
    pub lun: u32,
    /// Whether it answers. One that was deleted under a session is shown, and does not.
    pub running: bool,
    /// `fileio` or `blockio`.
    pub kind: String,
    /// The file or device behind it.
    pub path: String,
}

/// Reads both files.
pub fn targets(volume: &str, session: &str) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    for line in volume.lines() {
        if let Some(target) = head(line) {
            targets.push(target);
        } else if let (Some(unit), Some(target)) = (unit(line), targets.last_mut()) {
            target.units.push(unit);
        }
    }
    let mut at = None;
    for line in session.lines() {
        if let Some(shown) = head(line) {
            at = targets.iter().position(|target| target.tid == shown.tid && target.name == shown.name);
            // It came between the two looks. That somebody is logged in must not be lost.
            if at.is_none() {
                targets.push(shown);
                at = Some(targets.len() - 1);
            }
        } else if let (Some(index), Some(initiator)) = (at, initiator(line)) {
            targets[index].sessions.push(initiator.to_owned());
        }
    }
    targets
}

fn head(line: &str) -> Option<Target> {
    let (tid, name) = line.strip_prefix("tid:")?.split_once(" name:")?;
    Some(Target { tid: tid.parse().ok()?, name: name.to_owned(), ..Target::default() })
}

fn unit(line: &str) -> Option<Unit> {
    let (keys, path) = line.strip_prefix('\t')?.split_once(" path:").unwrap_or((&line[1..], ""));
    let value = |key: &str| keys.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix(':'));
    Some(Unit {
        lun: value("lun")?.parse().ok()?,
        running: value("state") == Some("0"),
        kind: value("iotype").unwrap_or_default().to_owned(),
        path: path.to_owned(),
    })
}

fn initiator(line: &str) -> Option<&str> {
    Some(line.strip_prefix("\tsid:")?.split_once(" initiator:")?.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: &str = "\
tid:7 name:iqn.2026-01.net.example:vol-00000002.1
\tlun:1 state:0 iotype:blockio iomode:wt blocks:8192 blocksize:512 path:/dev/vbs/vol-00000002
tid:3 name:iqn.2026-01.net.example:by hand
\tlun:0 state:1 iotype:fileio iomode:ro path:/srv/a b
\tlun:2 state:0 iotype:nullio iomode:wt sectors:100
";
    const SESSION: &str = "\
tid:7 name:iqn.2026-01.net.example:vol-00000002.1
\tsid:282574492336640 initiator:iqn.2026-01.net.example:h1
\t\tcid:0 ip:127.0.0.1 state:active hd:none dd:none
tid:3 name:iqn.2026-01.net.example:by hand
tid:9 name:iqn.2026-01.net.example:new
\tsid:5 initiator:somebody else
";

    #[test]
    fn targets_are_read_with_their_units_and_sessions() {
        let found = targets(VOLUME, SESSION);
        let unit = |lun, running, kind: &str, path: &str| Unit { lun, running, kind: kind.into(), path: path.into() };
        assert_eq!(found[0].units, [unit(1, true, "blockio", "/dev/vbs/vol-00000002")]);
        assert_eq!((found[0].tid, &found[0].sessions[..]), (7, &["iqn.2026-01.net.example:h1".to_owned()][..]));
        assert_eq!(found[1].name, "iqn.2026-01.net.example:by hand");
        assert_eq!(found[1].units, [unit(0, false, "fileio", "/srv/a b"), unit(2, true, "nullio", "")]);
        assert!(found[1].sessions.is_empty());
        assert_eq!((found[2].tid, &found[2].sessions[..]), (9, &["somebody else".to_owned()][..]));
    }

    #[test]
    fn a_text_cut_off_anywhere_or_turned_to_garbage_is_read_without_harm() {
        for end in 0..VOLUME.len() {
            targets(&VOLUME[..end], SESSION);
        }
        for garbage in
            ["", "\n\t\n", "\tlun:1 state:0 path:/x", "tid:x name:y", "tid:99999999999 name:y", "\t path:\t:"]
        {
            assert!(targets(garbage, garbage).is_empty(), "{garbage:?}");
        }
    }
}
