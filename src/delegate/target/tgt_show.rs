//! Reads what `tgtadm --op show` prints. It has no form for machines, so this takes the lines it knows, by their words and
//! not by their columns, and lets all others be; a text it can make nothing of is a state without targets.

/// A target as tgtd has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// Its number.
    pub tid: u32,
    /// Its name.
    pub name: String,
    /// The initiators that are logged in.
    pub sessions: Vec<String>,
    /// Its units, the controller (0) included.
    pub units: Vec<Unit>,
    /// The CHAP users bound to it.
    pub accounts: Vec<String>,
    /// Who may log in: names and addresses.
    pub acl: Vec<String>,
}

/// A logical unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unit {
    /// Its number.
    pub lun: u32,
    /// Its serial number.
    pub serial: String,
    /// The file behind it.
    pub path: String,
    /// Whether it answers.
    pub online: bool,
    /// Whether a write is on the medium when it is answered.
    pub sync: bool,
}

/// The part of a target that a line is in.
#[derive(Clone, Copy, PartialEq)]
enum Section {
    Other,
    Sessions,
    Units,
    Accounts,
    Acl,
}

/// Reads the output of `tgtadm --mode target --op show`.
pub fn targets(text: &str) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    let mut section = Section::Other;
    for line in text.lines() {
        let words = line.trim();
        if !line.starts_with(' ') {
            let head = words.strip_prefix("Target ").and_then(|rest| rest.split_once(": "));
            if let Some((Ok(tid), name)) = head.map(|(tid, name)| (tid.parse(), name)) {
                targets.push(Target { tid, name: name.to_owned(), ..Target::default() });
            }
            section = Section::Other;
            continue;
        }
        let Some(target) = targets.last_mut() else { continue };
        section = match words {
            "System information:" => Section::Other,
            "I_T nexus information:" => Section::Sessions,
            "LUN information:" => Section::Units,
            "Account information:" => Section::Accounts,
            "ACL information:" => Section::Acl,
            _ => {
                read_line(target, section, words);
                section
            }
        };
    }
    targets
}

fn read_line(target: &mut Target, section: Section, words: &str) {
    match section {
        Section::Other => {}
        Section::Accounts => target.accounts.push(words.to_owned()),
        Section::Acl => target.acl.push(words.to_owned()),
        Section::Sessions => {
            if let Some(rest) = words.strip_prefix("Initiator: ") {
                target.sessions.push(rest.split(" alias: ").next().unwrap_or(rest).to_owned());
            }
        }
        Section::Units => {
            // A key may come without a value, and then without the blank behind its colon: `Backing store flags:`.
            let Some((key, value)) = words.split_once(':') else { return };
            let value = value.trim_start();
            if key == "LUN" {
                if let Ok(lun) = value.parse() {
                    target.units.push(Unit { lun, ..Unit::default() });
                }
            } else if let Some(unit) = target.units.last_mut() {
                match key {
                    "SCSI SN" => value.clone_into(&mut unit.serial),
                    "Backing store path" => value.clone_into(&mut unit.path),
                    "Online" => unit.online = value == "Yes",
                    "Backing store flags" => unit.sync = value.split_whitespace().any(|flag| flag == "sync"),
                    _ => {}
                }
            }
        }
    }
}

/// Reads the output of `tgtadm --mode account --op show`.
pub fn accounts(text: &str) -> Vec<String> {
    let listed = text.lines().skip_while(|line| line.trim() != "Account list:").skip(1);
    listed.filter(|line| line.starts_with(' ')).map(|line| line.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What tgt 1.0.85 prints for a target in use and one that has just been made.
    const SHOWN: &str = "\
Target 1: iqn.2026-01.net.example:vol-00000001.x
    System information:
        Driver: iscsi
        State: ready
    I_T nexus information:
        I_T nexus: 1
            Initiator: iqn.2026-01.net.example:h1 alias: none
            Connection: 0
                IP Address: 127.0.0.1
    LUN information:
        LUN: 0
            Type: controller
            SCSI ID: IET     00010000
            SCSI SN: beaf10
            Size: 0 MB, Block size: 1
            Online: Yes
            Removable media: No
            Backing store type: null
            Backing store path: None
            Backing store flags: 
        LUN: 1
            Type: disk
            SCSI ID: IETvol00000001
            SCSI SN: vol00000001
            Size: 17 MB, Block size: 512
            Online: Yes
            Thin-provisioning: Yes
            Backing store type: rdwr
            Backing store path: /data/with: a colon/f.img
            Backing store flags: sync
    Account information:
        u1
    ACL information:
        10.0.0.0/8
        iqn.2026-01.net.example:h1
Target 5: iqn.2026-01.net.example:vol-00000002.x
    System information:
        Driver: iscsi
        State: ready
    I_T nexus information:
    LUN information:
        LUN: 0
            Type: controller
            Online: No
    Account information:
    ACL information:
";

    #[test]
    fn every_layer_of_a_target_is_read() {
        let targets = targets(SHOWN);
        assert_eq!(targets.len(), 2);
        let first = &targets[0];
        assert_eq!((first.tid, first.name.as_str()), (1, "iqn.2026-01.net.example:vol-00000001.x"));
        assert_eq!(first.sessions, ["iqn.2026-01.net.example:h1"]);
        assert_eq!(first.accounts, ["u1"]);
        assert_eq!(first.acl, ["10.0.0.0/8", "iqn.2026-01.net.example:h1"]);
        let disk = Unit {
            lun: 1,
            serial: "vol00000001".into(),
            path: "/data/with: a colon/f.img".into(),
            online: true,
            sync: true,
        };
        assert_eq!(first.units[1], disk);
        assert!(!first.units[0].sync);
        let second = &targets[1];
        assert_eq!((second.tid, second.units.len(), second.units[0].online), (5, 1, false));
        assert!(second.sessions.is_empty() && second.accounts.is_empty() && second.acl.is_empty());
    }

    #[test]
    fn a_text_cut_off_anywhere_or_turned_to_garbage_is_read_without_harm() {
        for end in 0..SHOWN.len() {
            targets(&SHOWN[..end]);
        }
        for garbage in
            ["", "\n\n", "    LUN: 1\n", "Target x: y\n    LUN information:\n", "Target 1:\n", "\0\u{fffd}:::\n    :\n"]
        {
            assert!(targets(garbage).is_empty(), "{garbage:?}");
        }
        let huge = targets("Target 1: a\n    LUN information:\n        LUN: 99999999999\n            SCSI SN: x\n");
        assert!(huge[0].units.is_empty());
    }

    #[test]
    fn accounts_are_listed() {
        assert_eq!(accounts("Account list:\n    u1\n    u2\n"), ["u1", "u2"]);
        assert!(accounts("Account list:\n").is_empty() && accounts("    u1\n").is_empty());
    }
}
