//! What `lvs` and `vgs` print with `--reportformat json --units b --nosuffix` (lvmreport(7)).
//!
//! Every value is a JSON string, and an empty one where LVM does not know. Warnings go to stderr, but a plugin or another
//! version may put lines before the JSON: what comes before the first brace is passed over. Nothing here trusts its input.

use serde::Deserialize;
use serde_json::Value;

/// The columns of `lvs` that [`lvs`] reads.
pub const LV_COLUMNS: &str = "lv_name,lv_attr,lv_size,origin,pool_lv,data_percent,metadata_percent,lv_tags,\
                              lv_kernel_major,lv_kernel_minor";

/// The columns of `vgs` that [`vgs`] reads.
pub const VG_COLUMNS: &str = "vg_name,vg_size,vg_free,vg_extent_size";

/// A logical volume as `lvs` shows it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lv {
    /// Its name, without its group's.
    pub name: String,
    /// Ten letters, see lvs(8) "lv_attr".
    pub attr: String,
    /// Its size in bytes.
    pub size: u64,
    /// The volume that it is a snapshot of; empty for one that is of none, or whose origin is gone.
    pub origin: String,
    /// The thin pool that it lies in, or empty.
    pub pool: String,
    /// How full it is, in per cent: a pool, a thin volume, a snapshot's copy on write. Unknown while it is not active.
    pub data_percent: Option<f64>,
    /// How full a pool's metadata is, in per cent.
    pub metadata_percent: Option<f64>,
    /// Its tags.
    pub tags: Vec<String>,
    /// The device number that the kernel knows it by while it is active.
    pub device: Option<(u32, u32)>,
}

impl Lv {
    fn letter(&self, at: usize) -> u8 {
        self.attr.as_bytes().get(at).copied().unwrap_or(b'-')
    }

    /// Whether the kernel has it with a table to serve it by.
    pub fn is_active(&self) -> bool {
        !matches!(self.letter(4), b'-' | b'X' | b'd' | b'i')
    }

    /// Whether its I/O is held up: a command that was to go on with it has died.
    pub fn is_suspended(&self) -> bool {
        matches!(self.letter(4), b's' | b'S')
    }

    /// Whether something has its device open.
    pub fn is_open(&self) -> bool {
        self.letter(5) == b'o'
    }

    /// Whether it is a snapshot by copy on write, and not a volume that was to become one.
    pub fn is_cow(&self) -> bool {
        self.letter(0) == b's' && !self.origin.is_empty()
    }

    /// Whether a snapshot by copy on write overflowed, or lost its device: what it held is lost.
    pub fn is_invalid(&self) -> bool {
        matches!(self.letter(4), b'I' | b'S')
    }

    /// Whether it is a thin pool.
    pub fn is_pool(&self) -> bool {
        self.letter(0) == b't'
    }

    /// Whether a pool zeroes what it gives out.
    pub fn zeroes(&self) -> bool {
        self.letter(7) == b'z'
    }

    /// A pool's trouble, when it is in any.
    pub fn trouble(&self) -> Option<Trouble> {
        match (self.letter(8), self.letter(4)) {
            (b'F', _) => Some(Trouble::Failed),
            (b'M', _) | (_, b'c' | b'C') => Some(Trouble::Metadata),
            (b'D', _) => Some(Trouble::Full),
            _ => None,
        }
    }

    /// Whether it has this tag.
    pub fn has(&self, tag: &str) -> bool {
        self.tags.iter().any(|has| has == tag)
    }

    /// What a tag `KEY=…` says.
    pub fn tagged(&self, key: &str) -> Option<&str> {
        self.tags.iter().find_map(|tag| tag.strip_prefix(key)?.strip_prefix('='))
    }
}

/// What can be wrong with a thin pool (lvs(8), lvmthin(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// There is no room for data: writes wait, then fail.
    Full,
    /// The metadata is full or damaged, and read-only.
    Metadata,
    /// The kernel gave the pool up.
    Failed,
}

/// A volume group as `vgs` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vg {
    /// Its size in bytes.
    pub size: u64,
    /// The bytes of it that no logical volume has.
    pub free: u64,
    /// The size of an extent in bytes; every logical volume is whole extents.
    pub extent: u64,
}

#[derive(Deserialize)]
struct Printed {
    report: Vec<Value>,
}

/// The logical volumes that `lvs -o LV_COLUMNS` has printed.
pub fn lvs(printed: &str) -> Result<Vec<Lv>, String> {
    rows(printed, "lv")?.iter().map(lv).collect()
}

/// The volume groups that `vgs -o VG_COLUMNS` has printed, with their names.
pub fn vgs(printed: &str) -> Result<Vec<(String, Vg)>, String> {
    let vg = |row: &Value| {
        let number = |key| text(row, key)?.parse().map_err(|_| format!("{key} of a group is not a number"));
        let extent = number("vg_extent_size")?;
        if extent == 0 {
            return Err("a group with extents of no size".to_owned());
        }
        let vg = Vg { size: number("vg_size")?, free: number("vg_free")?, extent };
        Ok((text(row, "vg_name")?.to_owned(), vg))
    };
    rows(printed, "vg")?.iter().map(vg).collect()
}

/// Where a logical volume lies, as `lvs -o seg_pe_ranges` prints it, a row a segment: `DEVICE:FIRST-LAST` each.
pub fn ranges(printed: &str) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for row in rows(printed, "lv")? {
        for range in text(&row, "seg_pe_ranges")?.split_whitespace() {
            let (device, extents) = range.rsplit_once(':').ok_or("a range of no device")?;
            let number = |text: &str| text.parse::<u64>().is_ok();
            let is_range = extents.split_once('-').is_some_and(|(first, last)| number(first) && number(last));
            if !device.starts_with('/') || !is_range {
                return Err(format!("{range:?} is not a range of extents"));
            }
            all.push(range.to_owned());
        }
    }
    Ok(all)
}

fn rows(printed: &str, kind: &str) -> Result<Vec<Value>, String> {
    let from = printed.find('{').ok_or("no JSON")?;
    let printed: Printed = serde_json::from_str(&printed[from..]).map_err(|e| e.to_string())?;
    let mut rows = Vec::new();
    for mut report in printed.report {
        match report.get_mut(kind).map(Value::take) {
            Some(Value::Array(more)) => rows.extend(more),
            _ => return Err(format!("a report without {kind}")),
        }
    }
    Ok(rows)
}

fn lv(row: &Value) -> Result<Lv, String> {
    let name = text(row, "lv_name")?.to_owned();
    let size = text(row, "lv_size")?.parse().map_err(|_| format!("the size of {name} is not a number"))?;
    let number = |key| text(row, key).ok().and_then(|value| value.parse::<u32>().ok());
    Ok(Lv {
        attr: text(row, "lv_attr")?.to_owned(),
        size,
        origin: text(row, "origin")?.to_owned(),
        pool: text(row, "pool_lv")?.to_owned(),
        data_percent: percent(row, "data_percent"),
        metadata_percent: percent(row, "metadata_percent"),
        tags: text(row, "lv_tags")?
            .split(',')
            .map(str::trim)
            .filter(|tag| !tag.is_empty())
            .map(str::to_owned)
            .collect(),
        device: number("lv_kernel_major").zip(number("lv_kernel_minor")),
        name,
    })
}

fn text<'a>(row: &'a Value, key: &str) -> Result<&'a str, String> {
    row.get(key).and_then(Value::as_str).map(str::trim).ok_or_else(|| format!("no {key}"))
}

fn percent(row: &Value, key: &str) -> Option<f64> {
    text(row, key).ok()?.parse().ok().filter(|percent: &f64| (0.0..=100.0).contains(percent))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// LVM 2.03.16 with a thin volume, a snapshot of one that is gone, a linear volume and its copy on write.
    const SHOWN: &str = r#"  {
      "report": [
          {
              "lv": [
                  {"lv_name":"pool", "lv_attr":"twi-aotz--", "lv_size":"8589934592", "origin":"", "pool_lv":"", "data_percent":"0.00", "metadata_percent":"10.22", "lv_tags":"", "lv_kernel_major":"253", "lv_kernel_minor":"2"},
                  {"lv_name":"snap-00000001", "lv_attr":"Vri---tz-k", "lv_size":"1073741824", "origin":"", "pool_lv":"pool", "data_percent":"", "metadata_percent":"", "lv_tags":"snap-00000001,vbs,vbs.data=0,vbs.of=vol-00000001", "lv_kernel_major":"-1", "lv_kernel_minor":"-1"},
                  {"lv_name":"snap-00000003-cow", "lv_attr":"swi-a-s---", "lv_size":"71303168", "origin":"vol-00000003", "pool_lv":"", "data_percent":"0.00", "metadata_percent":"", "lv_tags":"snap-00000003,vbs", "lv_kernel_major":"253", "lv_kernel_minor":"8"},
                  {"lv_name":"vol-00000002", "lv_attr":"Vwi-a-tz--", "lv_size":"1115684864", "origin":"snap-00000001", "pool_lv":"pool", "data_percent":"0.00", "metadata_percent":"", "lv_tags":"vbs,vol-00000002", "lv_kernel_major":"253", "lv_kernel_minor":"5"},
                  {"lv_name":"vol-00000003", "lv_attr":"owi-a-s---", "lv_size":"67108864", "origin":"", "pool_lv":"", "data_percent":"", "metadata_percent":"", "lv_tags":"vbs,vbs.unfinished,vol-00000003", "lv_kernel_major":"253", "lv_kernel_minor":"4"}
              ]
          }
      ]
  }"#;

    #[test]
    fn what_lvs_shows_is_read_with_its_states() {
        let seen =
            lvs(&format!("  WARNING: Sum of all thin volume sizes exceeds the size of thin pool.\n{SHOWN}")).unwrap();
        let [pool, snapshot, cow, thin, linear] = &seen[..] else { panic!("{seen:?}") };
        assert!(pool.is_pool() && pool.zeroes() && pool.is_active() && pool.is_open() && pool.trouble().is_none());
        assert_eq!((pool.data_percent, pool.metadata_percent, pool.device), (Some(0.0), Some(10.22), Some((253, 2))));
        assert!(!snapshot.is_active() && snapshot.has("vbs") && snapshot.tagged("vbs.of") == Some("vol-00000001"));
        assert_eq!((snapshot.data_percent, snapshot.device), (None, None));
        assert!(cow.is_cow() && !cow.is_invalid() && cow.origin == "vol-00000003");
        assert!(thin.is_active() && !thin.is_cow() && !thin.is_suspended());
        assert!(linear.has("vbs.unfinished") && !linear.is_open() && linear.size == 64 << 20);
        let with = |attr: &str| Lv { attr: attr.into(), origin: "vol-00000003".into(), ..Lv::default() };
        assert!(with("swi-I-s---").is_invalid() && with("swi-S-s---").is_invalid());
        assert!(with("owi-s-s---").is_suspended() && with("").attr.is_empty() && !with("").is_active());
        let troubles = ["twi-aotzD-", "twi-aotzM-", "twi-cotz--", "twi-aotzF-"].map(|attr| with(attr).trouble());
        let expected = [Trouble::Full, Trouble::Metadata, Trouble::Metadata, Trouble::Failed];
        assert_eq!(troubles, expected.map(Some));
    }

    #[test]
    fn what_vgs_shows_and_where_a_volume_lies_is_read() {
        let shown = r#" {"report": [ {"vg": [
            {"vg_name":"vbs", "vg_size":"25765609472", "vg_free":"17108566016", "vg_extent_size":"4194304"} ] } ] }"#;
        let expected = Vg { size: 25_765_609_472, free: 17_108_566_016, extent: 4 << 20 };
        assert_eq!(vgs(shown), Ok(vec![("vbs".to_owned(), expected)]));
        let shown = r#"{"report":[{"lv":[{"seg_pe_ranges":"/dev/vdb:2064-2079 /dev/vdc:0-3"},{"seg_pe_ranges":"/dev/vdd:7-7"}]}]}"#;
        assert_eq!(
            ranges(shown),
            Ok(["/dev/vdb:2064-2079", "/dev/vdc:0-3", "/dev/vdd:7-7"].map(str::to_owned).to_vec())
        );
        for hostile in ["--yes", "/dev/vdb", "/dev/vdb:1", "pool_tdata:0-3", "/dev/vdb:-1-2"] {
            let shown = format!(r#"{{"report":[{{"lv":[{{"seg_pe_ranges":"{hostile}"}}]}}]}}"#);
            assert!(ranges(&shown).is_err(), "{hostile}");
        }
    }

    #[test]
    fn whatever_else_is_printed_is_an_error_and_no_panic() {
        let empty = r#"{"report": [ {"lv": [ ] } ] }"#;
        assert_eq!(lvs(empty), Ok(vec![]));
        for end in 0..SHOWN.len() {
            assert!(lvs(&SHOWN[..end]).is_err());
        }
        for (from, to) in
            [("\"67108864\"", "67108864"), ("67108864", "-1"), ("lv_attr", "attr"), ("8589934592", "8.00g")]
        {
            assert!(lvs(&SHOWN.replace(from, to)).is_err(), "{to}");
        }
        for odd in ["", "{", "null", "{}", "[]", r#"{"report":3}"#, "\u{0}{\u{ffff}", r#"{"report":[{"lv":[7]}]}"#] {
            assert!(lvs(odd).is_err() && ranges(odd).is_err() && vgs(odd).is_err(), "{odd}");
        }
        let extreme = r#"{"report":[{"vg":[{"vg_name":"a","vg_size":"0","vg_free":"0","vg_extent_size":"0"}]}]}"#;
        assert!(vgs(extreme).is_err());
        let percent = SHOWN.replace("10.22", "NaN");
        assert_eq!(lvs(&percent).unwrap()[0].metadata_percent, None);
    }
}
