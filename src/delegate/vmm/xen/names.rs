//! The names of a guest's disks, and the numbers that Xen has for them.
//!
//! A number holds a Linux major and minor, of the days when a guest's disk posed as an IDE or SCSI one. `sdf` and `xvdf` have
//! different numbers, so that Xen takes both, and are the same `/dev/xvdf` to a PV guest, which then connects only the first.
//! So there is one family here: every name that a user may write becomes an `xvd` one, and two numbers that a guest has
//! one name for are one place. A name that does not end in letters `xl` takes as number -16, which no detach ever finds.

/// The highest disk of the API: `xvddz`.
const LAST: u32 = 129;

/// A place in a guest: the disk, counted from `a`, and the partition; 0 is the whole disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    disk: u32,
    partition: u32,
}

impl Place {
    /// Reads `/dev/sdf`, `sdf`, `sdf1`, `hdf`, `xvdf`, `/dev/xvdba`.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let short = name.strip_prefix("/dev/").unwrap_or(name);
        let rest = ["xvd", "sd", "hd"].iter().find_map(|family| short.strip_prefix(family))?;
        let (letters, digits) = rest.split_at(rest.bytes().take_while(u8::is_ascii_lowercase).count());
        let letter = |byte: &u8| u32::from(*byte - b'a');
        let disk = match letters.as_bytes() {
            [one] => letter(one),
            [first, second] => (letter(first) + 1) * 26 + letter(second),
            _ => return None,
        };
        let partition = match digits {
            "" => 0,
            digits if digits.starts_with('0') || digits.len() > 2 => return None,
            digits => digits.parse().ok()?,
        };
        (disk <= LAST && partition <= 15).then_some(Self { disk, partition })
    }

    /// The place of a number.
    pub(super) fn of(vdev: u32) -> Option<Self> {
        let (major, minor) = (vdev >> 8, vdev & 0xff);
        let place = |disk, partition| Some(Self { disk, partition });
        match major {
            // xvda to xvdp, and sda to sdp: sixteen disks of fifteen partitions.
            202 | 8 => place(minor >> 4, minor & 15),
            // hda to hdd.
            3 => place(minor >> 6, minor & 63),
            22 => place(2 + (minor >> 6), minor & 63),
            _ if vdev >> 28 == 1 => place((vdev >> 8) & 0xf_ffff, minor),
            _ => None,
        }
    }

    /// Whether a guest cannot have both.
    pub(super) fn clashes(self, other: Self) -> bool {
        let overlap = self.partition == other.partition || self.partition == 0 || other.partition == 0;
        self.disk == other.disk && overlap
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let letter = |n: u32| char::from(b'a' + u8::try_from(n % 26).unwrap_or(0));
        f.write_str("xvd")?;
        if self.disk >= 26 {
            write!(f, "{}", letter(self.disk / 26 - 1))?;
        }
        write!(f, "{}", letter(self.disk))?;
        if self.partition > 0 {
            write!(f, "{}", self.partition)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_place_is_one_xvd_disk() {
        for name in ["/dev/sdf", "sdf", "xvdf", "/dev/xvdf", "hdf"] {
            let place = Place::parse(name).unwrap();
            assert_eq!((place.to_string(), Place::of(51792)), ("xvdf".to_owned(), Some(place)), "{name}");
        }
        for (name, shown, vdev) in [
            ("/dev/sdb", "xvdb", 51728),
            ("sdf1", "xvdf1", 51793),
            ("sdq", "xvdq", 1 << 28 | 16 << 8),
            ("xvdaa", "xvdaa", 1 << 28 | 26 << 8),
            ("xvddz", "xvddz", 1 << 28 | 129 << 8),
        ] {
            let place = Place::parse(name).unwrap();
            assert_eq!((place.to_string(), Place::of(vdev)), (shown.to_owned(), Some(place)), "{name}");
        }
    }

    #[test]
    fn what_xen_would_take_and_never_give_back_is_no_name() {
        for name in
            ["xvd", "", "/dev/", "sd", "vdf", "xvdf01", "xvdf16", "xvdF", "xvdaaa", "xvdzz", "xvdf,w", "sdf\0", "sdé"]
        {
            assert_eq!(Place::parse(name), None, "{name:?}");
        }
    }

    #[test]
    fn places_clash_whatever_family_their_numbers_are_of() {
        let place = |name: &str| Place::parse(name).unwrap();
        assert!(place("sdf").clashes(Place::of(2128).unwrap()), "sdf as a SCSI disk");
        assert!(place("xvdc").clashes(Place::of(22 << 8).unwrap()), "hdc as an IDE disk");
        assert!(place("sdf").clashes(place("xvdf1")) && place("sdf1").clashes(place("xvdf")));
        assert!(!place("sdf1").clashes(place("sdf2")) && !place("sdf").clashes(place("sdg")));
        assert_eq!(Place::of(0), None);
        assert_eq!(Place::of(u32::MAX - 15), None);
    }
}
