//! Device names: which may be asked for, and which of them are the same place.
//!
//! The name is a label; what the guest calls the disk is the guest's affair. But one place must not be given twice, however
//! it is spelt: `/dev/sdf`, `xvdf` and `/dev/xvdf` are one. The answer shows the name as the caller wrote it.

use super::error::{ApiError, ApiResult};
use super::faults::{clip, invalid_value, missing};

/// A name that has passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// As the caller wrote it.
    pub name: String,
    /// The one form that all spellings share: the disk's letters and the partition's number.
    pub key: String,
}

impl Device {
    /// Reads a name in one of the forms of EC2: `sd`, `hd` or `xvd`, with or without `/dev/`, a letter (for `xvd` also two)
    /// and, but for `xvd`, perhaps a partition from 1 to 15.
    pub fn parse(name: Option<String>) -> ApiResult<Self> {
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Err(missing("device")) };
        if let Some(key) = key(&name) {
            return Ok(Self { key: key.to_owned(), name });
        }
        let shown = clip(&name);
        Err(invalid_value(format!(
            "Value ({shown}) for parameter device is invalid. {shown} is not a valid EBS device name."
        )))
    }

    /// Whether the machine's own root disk has this place; every machine has one, and it is not ours.
    pub fn is_root(&self) -> bool {
        matches!(self.key.as_str(), "a" | "a1")
    }

    /// The refusal of a place that is taken.
    pub fn taken(&self) -> ApiError {
        let name = &self.name;
        invalid_value(format!("Invalid value '{name}' for unixDevice. Attachment point {name} is already in use"))
    }
}

/// The key of a name; `None` when it is none.
pub fn key(name: &str) -> Option<&str> {
    let short = name.strip_prefix("/dev/").unwrap_or(name);
    if let Some(disk) = short.strip_prefix("xvd") {
        return match disk.as_bytes() {
            [b'a'..=b'z'] | [b'a'..=b'd', b'a'..=b'z'] => Some(disk),
            _ => None,
        };
    }
    let disk = short.strip_prefix("sd").or_else(|| short.strip_prefix("hd"))?;
    match disk.as_bytes() {
        [b'a'..=b'z'] | [b'a'..=b'z', b'1'..=b'9'] | [b'a'..=b'z', b'1', b'0'..=b'5'] => Some(disk),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_place_has_the_same_key() {
        for name in ["/dev/sdf", "sdf", "/dev/xvdf", "xvdf", "/dev/hdf"] {
            assert_eq!(key(name), Some("f"), "{name}");
        }
        assert_eq!(key("/dev/sdf15"), Some("f15"));
        assert_eq!(key("/dev/xvdba"), Some("ba"));
    }

    #[test]
    fn what_is_no_device_name_is_refused_as_ec2_does() {
        for name in [
            "/dev/sdZZ",
            "/dev/nvme1n1",
            "Disk_D",
            "/dev/sdf0",
            "/dev/sdf16",
            "/dev/sd",
            "/dev/xvdzz",
            "/dev/xvdf1",
            "/dev/../sdf",
            "sdf\0",
            "sdä",
        ] {
            assert_eq!(key(name), None, "{name}");
        }
        let error = Device::parse(Some("/dev/sdZZ".into())).unwrap_err();
        assert_eq!(
            error.message,
            "Value (/dev/sdZZ) for parameter device is invalid. /dev/sdZZ is not a valid EBS device name."
        );
        assert_eq!(Device::parse(None).unwrap_err().code, "MissingParameter");
    }

    #[test]
    fn a_taken_place_is_named_as_the_caller_spelt_it() {
        let device = Device::parse(Some("xvdh".into())).unwrap();
        assert_eq!(
            device.taken().message,
            "Invalid value 'xvdh' for unixDevice. Attachment point xvdh is already in use"
        );
        assert!(Device::parse(Some("/dev/sda1".into())).unwrap().is_root());
    }
}
