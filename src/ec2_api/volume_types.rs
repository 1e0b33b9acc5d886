//! The volume types and what each allows: size, IOPS, throughput, and how they must fit together.
//!
//! vbs keeps and reports the numbers as EC2 does, so that tools which choose them work unchanged; how fast a volume is
//! depends on the storage node. Numbers and texts are those of the 2016-11-15 API in late 2026, and they are judged in
//! its order: the EBS CSI driver finds a type's limit by asking for too much with DryRun.

use super::error::{ApiError, ApiResult};
use super::faults::{invalid_combination, invalid_value};

/// A volume type's rules.
#[derive(Debug, PartialEq)]
struct Rules {
    name: &'static str,
    size_gib: (i32, i32),
    iops: Option<Iops>,
}

/// The rules of a type whose IOPS are chosen by the caller.
#[derive(Debug, PartialEq)]
struct Iops {
    least: i32,
    most: i32,
    per_gib: i32,
}

const TYPES: [Rules; 7] = [
    Rules { name: "gp2", size_gib: (1, 16_384), iops: None },
    Rules { name: "gp3", size_gib: (1, 65_536), iops: Some(Iops { least: 100, most: 80_000, per_gib: 500 }) },
    Rules { name: "io1", size_gib: (4, 16_384), iops: Some(Iops { least: 100, most: 64_000, per_gib: 50 }) },
    Rules { name: "io2", size_gib: (4, 65_536), iops: Some(Iops { least: 100, most: 256_000, per_gib: 1_000 }) },
    Rules { name: "st1", size_gib: (125, 16_384), iops: None },
    Rules { name: "sc1", size_gib: (125, 16_384), iops: None },
    Rules { name: "standard", size_gib: (1, 1_024), iops: None },
];

/// What gp3 gives without being asked, and what a volume gets that is changed to a type with IOPS and asks for none.
const GP3_IOPS: i32 = 3_000;
/// The same in MiB/s.
const GP3_THROUGHPUT: i32 = 125;
/// The most that gp3 gives, in MiB/s.
const GP3_MOST_THROUGHPUT: i32 = 2_000;

/// What a caller asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    /// `VolumeType`; absent or empty is gp2. Case does not matter.
    pub volume_type: Option<&'a str>,
    /// `Size` in GiB.
    pub size_gib: Option<i32>,
    /// `Iops`
    pub iops: Option<i32>,
    /// `Throughput` in MiB/s.
    pub throughput: Option<i32>,
}

/// What a volume is that shall become another.
#[derive(Debug, Clone, Copy)]
pub struct Existing<'a> {
    /// The type's name.
    pub volume_type: &'a str,
    /// In GiB.
    pub size_gib: i32,
    /// Where the type has them.
    pub iops: Option<i32>,
    /// In MiB/s, where the type has it.
    pub throughput: Option<i32>,
}

/// What the volume will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// The type's name.
    pub volume_type: &'static str,
    /// In GiB; `None` when only the snapshot, which is not looked up yet, can tell.
    pub size_gib: Option<i32>,
    /// IOPS that were chosen or are the type's own.
    iops: Option<i32>,
    /// IOPS as they were asked for: what the ratio to the size is judged on.
    asked_iops: Option<i32>,
    /// In MiB/s.
    pub throughput: Option<i32>,
}

impl Shape {
    /// The IOPS to report of a volume of this size: gp2's follow from it, and the types of spinning disks have none.
    pub fn iops(&self, size_gib: i32) -> Option<i32> {
        if self.volume_type == "gp2" { Some((size_gib.saturating_mul(3)).clamp(100, 16_000)) } else { self.iops }
    }
}

/// Judges what was asked of a volume that is there. What is left out stays as it is; with another type IOPS and throughput are
/// those that the type gives without being asked.
pub fn check_change(asked: Asked<'_>, existing: Existing<'_>) -> ApiResult<Shape> {
    let size = asked.size_gib.unwrap_or(existing.size_gib);
    if (0..existing.size_gib).contains(&size) {
        return Err(invalid_value("New size cannot be smaller than existing size"));
    }
    let volume_type = asked.volume_type.unwrap_or(existing.volume_type);
    let stays = volume_type.eq_ignore_ascii_case(existing.volume_type);
    let rules = TYPES.iter().find(|rules| rules.name.eq_ignore_ascii_case(volume_type));
    let left_out = |own| if stays { own } else { Some(GP3_IOPS) };
    let iops = rules.and_then(|rules| rules.iops.as_ref()).and_then(|_| left_out(existing.iops));
    let throughput = existing.throughput.filter(|_| stays);
    check(Asked {
        volume_type: Some(volume_type),
        size_gib: Some(size),
        iops: asked.iops.or(iops),
        throughput: asked.throughput.or(throughput),
    })
}

/// Judges what was asked. The size of a volume from a snapshot may be absent; judge again with [`check_size`] once it is
/// known.
pub fn check(asked: Asked<'_>) -> ApiResult<Shape> {
    let wanted = asked.volume_type.filter(|name| !name.is_empty()).unwrap_or("gp2").to_ascii_lowercase();
    let Some(rules) = TYPES.iter().find(|rules| rules.name == wanted) else {
        let shown = super::faults::clip(asked.volume_type.unwrap_or_default());
        return Err(ApiError::new(
            "UnknownVolumeType",
            format!("Unsupported volume type '{shown}' for volume creation. "),
        ));
    };
    let numbers = [("size", asked.size_gib), ("iops", asked.iops), ("throughput", asked.throughput)];
    for (name, value) in numbers.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        if value < 0 {
            return Err(invalid_value(format!(
                "Value ({value}) for parameter {name} is invalid. Value must be a positive integer."
            )));
        }
    }
    if let Some(size) = asked.size_gib {
        rules.check_size(size)?;
    }
    let iops = rules.check_iops(asked.iops, asked.size_gib)?;
    let throughput = rules.check_throughput(asked.throughput, iops)?;
    Ok(Shape { volume_type: rules.name, size_gib: asked.size_gib, iops, asked_iops: asked.iops, throughput })
}

/// Refuses Multi-Attach to the types that do not have it.
pub fn check_multi_attach(asked: Option<bool>, volume_type: &str) -> ApiResult<()> {
    if asked == Some(true) && !matches!(volume_type, "io1" | "io2") {
        return Err(invalid_combination(format!(
            "The parameter multi-attach-enabled is not supported for {volume_type} volumes."
        )));
    }
    Ok(())
}

/// Judges a size that a snapshot decided.
pub fn check_size(shape: &Shape, size_gib: i32) -> ApiResult<()> {
    TYPES.iter().find(|rules| rules.name == shape.volume_type).map_or(Ok(()), |rules| {
        rules.check_size(size_gib)?;
        rules.check_ratio(shape.asked_iops, size_gib)
    })
}

impl Rules {
    fn check_size(&self, size: i32) -> ApiResult<()> {
        let (name, (least, most)) = (self.name, self.size_gib);
        if size < least {
            return Err(invalid_value(format!(
                "The volume size is invalid for {name} volumes: {size} GiB. {name} volumes must be at least {least} GiB in \
                 size. Please specify a volume size above the minimum limit."
            )));
        }
        if size > most {
            return Err(invalid_value(format!(
                "Volume of {size}GiB is too large for volume type {name}; maximum is {most}GiB"
            )));
        }
        Ok(())
    }

    /// gp3 accepts less than it gives anyway, and gives 3000; but the ratio is judged on what was asked.
    fn check_iops(&self, asked: Option<i32>, size: Option<i32>) -> ApiResult<Option<i32>> {
        let name = self.name;
        let Some(rules) = &self.iops else {
            return match asked {
                Some(_) => Err(invalid_combination(format!("The parameter iops is not supported for {name} volumes."))),
                None => Ok(None),
            };
        };
        let Some(asked) = asked else {
            return match name {
                "gp3" => Ok(Some(GP3_IOPS)),
                _ => Err(invalid_combination(format!("The parameter iops must be specified for {name} volumes."))),
            };
        };
        if asked < rules.least {
            return Err(invalid_value(format!("Volume iops of {asked} is too low; minimum is {}.", rules.least)));
        }
        if asked > rules.most {
            return Err(invalid_value(format!("Volume iops of {asked} is too high; maximum is {}.", rules.most)));
        }
        if let Some(size) = size {
            self.check_ratio(Some(asked), size)?;
        }
        Ok(Some(if name == "gp3" { asked.max(GP3_IOPS) } else { asked }))
    }

    fn check_ratio(&self, iops: Option<i32>, size: i32) -> ApiResult<()> {
        let (Some(rules), Some(iops)) = (&self.iops, iops) else { return Ok(()) };
        let given_anyway = self.name == "gp3" && iops == GP3_IOPS;
        if given_anyway || i64::from(iops) <= i64::from(rules.per_gib) * i64::from(size) {
            return Ok(());
        }
        Err(invalid_value(format!(
            "Iops to volume size ratio of {:.6} is too high; maximum is {}",
            f64::from(iops) / f64::from(size.max(1)),
            rules.per_gib
        )))
    }

    fn check_throughput(&self, asked: Option<i32>, iops: Option<i32>) -> ApiResult<Option<i32>> {
        if self.name != "gp3" {
            return match asked {
                Some(_) => Err(invalid_combination(format!(
                    "The throughput parameter is not supported for {} volumes.",
                    self.name
                ))),
                None => Ok(None),
            };
        }
        let throughput = asked.unwrap_or(GP3_THROUGHPUT).max(GP3_THROUGHPUT);
        if throughput > GP3_MOST_THROUGHPUT {
            return Err(invalid_value(format!(
                "Volume throughput of {throughput} is too high; maximum is {GP3_MOST_THROUGHPUT}."
            )));
        }
        let iops = iops.unwrap_or(GP3_IOPS);
        if throughput.saturating_mul(4) > iops {
            return Err(invalid_value(format!(
                "Throughput (MiBps) to iops ratio of {:.6} is too high; maximum is 0.250000 MiBps per iops",
                f64::from(throughput) / f64::from(iops)
            )));
        }
        Ok(Some(throughput))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(volume_type: &str, size: i32, iops: Option<i32>, throughput: Option<i32>) -> Result<Shape, String> {
        let asked = Asked { volume_type: Some(volume_type), size_gib: Some(size), iops, throughput };
        check(asked).map_err(|error| error.message)
    }

    #[test]
    fn the_default_is_gp2_whose_iops_follow_from_its_size() {
        let shape = check(Asked { size_gib: Some(1), ..Asked::default() }).unwrap();
        assert_eq!((shape.volume_type, shape.iops(1), shape.throughput), ("gp2", Some(100), None));
        assert_eq!((shape.iops(100), shape.iops(16_384)), (Some(300), Some(16_000)));
        assert_eq!(ask("standard", 1, None, None).unwrap().iops(1), None);
    }

    #[test]
    fn gp3_gives_at_least_3000_iops_and_125_mib() {
        for (iops, throughput) in [(None, None), (Some(100), Some(0)), (Some(500), Some(124)), (Some(3000), Some(125))]
        {
            let shape = ask("GP3", 1, iops, throughput).unwrap();
            assert_eq!((shape.iops(1), shape.throughput), (Some(3000), Some(125)), "{iops:?} {throughput:?}");
        }
    }

    #[test]
    fn limits_are_refused_in_the_words_that_clients_search() {
        for (found, text) in [
            (
                ask("gp3", 0, None, None),
                "The volume size is invalid for gp3 volumes: 0 GiB. gp3 volumes must be at least 1 GiB in size. Please specify a volume size above the minimum limit.",
            ),
            (ask("gp3", -1, None, None), "Value (-1) for parameter size is invalid. Value must be a positive integer."),
            (
                ask("gp2", 16_385, None, None),
                "Volume of 16385GiB is too large for volume type gp2; maximum is 16384GiB",
            ),
            (ask("io1", 4, None, None), "The parameter iops must be specified for io1 volumes."),
            (ask("gp2", 1, Some(100), None), "The parameter iops is not supported for gp2 volumes."),
            (ask("gp2", 1, None, Some(125)), "The throughput parameter is not supported for gp2 volumes."),
            (ask("io1", 4, Some(99), None), "Volume iops of 99 is too low; minimum is 100."),
            (ask("gp3", 4, Some(i32::MAX), None), "Volume iops of 2147483647 is too high; maximum is 80000."),
            (ask("io1", 4, Some(201), None), "Iops to volume size ratio of 50.250000 is too high; maximum is 50"),
            (ask("gp3", 1, Some(2999), None), "Iops to volume size ratio of 2999.000000 is too high; maximum is 500"),
            (ask("gp3", 1, None, Some(2001)), "Volume throughput of 2001 is too high; maximum is 2000."),
            (
                ask("gp3", 1, None, Some(751)),
                "Throughput (MiBps) to iops ratio of 0.250333 is too high; maximum is 0.250000 MiBps per iops",
            ),
            (ask("bad", 1, None, None), "Unsupported volume type 'bad' for volume creation. "),
        ] {
            assert_eq!(found.unwrap_err(), text);
        }
    }

    #[test]
    fn what_a_change_leaves_out_stays_unless_the_type_changes() {
        let gp3 = Existing { volume_type: "gp3", size_gib: 100, iops: Some(6_000), throughput: Some(500) };
        let change = |asked, existing: Existing<'_>| {
            let shape = check_change(asked, existing).map_err(|error| error.message)?;
            let size = shape.size_gib.unwrap();
            Ok::<_, String>((shape.volume_type, size, shape.iops(size), shape.throughput))
        };
        let to = |volume_type| Asked { volume_type: Some(volume_type), ..Asked::default() };
        let grown = Asked { size_gib: Some(200), ..Asked::default() };
        assert_eq!(change(grown, gp3), Ok(("gp3", 200, Some(6_000), Some(500))));
        assert_eq!(change(to("GP3"), gp3), Ok(("gp3", 100, Some(6_000), Some(500))));
        assert_eq!(change(to("io2"), gp3), Ok(("io2", 100, Some(3_000), None)));
        assert_eq!(change(to("gp2"), gp3), Ok(("gp2", 100, Some(300), None)));
        let gp2 = Existing { volume_type: "gp2", size_gib: 100, iops: Some(300), throughput: None };
        assert_eq!(change(grown, gp2), Ok(("gp2", 200, Some(600), None)));
        assert_eq!(change(to("gp3"), gp2), Ok(("gp3", 100, Some(3_000), Some(125))));
        let io1 = Existing { volume_type: "io1", size_gib: 10, iops: Some(500), throughput: None };
        assert_eq!(change(Asked { size_gib: Some(11), ..Asked::default() }, io1), Ok(("io1", 11, Some(500), None)));
    }

    #[test]
    fn a_change_is_held_to_the_limits_of_what_the_volume_would_be() {
        let gp2 = Existing { volume_type: "gp2", size_gib: 2_000, iops: Some(6_000), throughput: None };
        for (asked, text) in [
            (Asked { size_gib: Some(1_999), ..Asked::default() }, "New size cannot be smaller than existing size"),
            (Asked { size_gib: Some(0), ..Asked::default() }, "New size cannot be smaller than existing size"),
            (
                Asked { size_gib: Some(-1), ..Asked::default() },
                "Value (-1) for parameter size is invalid. Value must be a positive integer.",
            ),
            (Asked { iops: Some(3_000), ..Asked::default() }, "The parameter iops is not supported for gp2 volumes."),
            (
                Asked { volume_type: Some("standard"), ..Asked::default() },
                "Volume of 2000GiB is too large for volume type standard; maximum is 1024GiB",
            ),
            (
                Asked { volume_type: Some("bad"), ..Asked::default() },
                "Unsupported volume type 'bad' for volume creation. ",
            ),
            (
                Asked { volume_type: Some("io1"), iops: Some(64_001), ..Asked::default() },
                "Volume iops of 64001 is too high; maximum is 64000.",
            ),
        ] {
            assert_eq!(check_change(asked, gp2).unwrap_err().message, text);
        }
    }

    #[test]
    fn a_size_that_comes_from_a_snapshot_is_judged_later() {
        let asked = Asked { volume_type: Some("io1"), iops: Some(200), ..Asked::default() };
        let shape = check(asked).unwrap();
        assert!(check_size(&shape, 1).is_err(), "io1 starts at 4 GiB");
        assert!(check_size(&shape, 4).is_ok());
        let shape = check(Asked { iops: Some(201), ..asked }).unwrap();
        assert!(check_size(&shape, 4).is_err(), "the ratio");
        for (iops, good) in
            [(None, true), (Some(500), true), (Some(501), false), (Some(2_999), false), (Some(3_000), true)]
        {
            let shape = check(Asked { volume_type: Some("gp3"), iops, ..Asked::default() }).unwrap();
            assert_eq!(check_size(&shape, 1).is_ok(), good, "{iops:?}");
        }
    }
}
