//! What must hold of whatever `lvs` and `vgs` print: see [`crate::fuzzing`].

use serde_json::json;

use super::report::{self, Lv};

/// What is read is what would be read had LVM printed it as we have understood it; and what becomes a word of a command is one.
pub fn reported(text: &str) {
    if let Ok(lvs) = report::lvs(text) {
        let rows: Vec<_> = lvs.iter().map(row).collect();
        let printed = json!({ "report": [{ "lv": rows }] }).to_string();
        assert_eq!(report::lvs(&printed).as_ref(), Ok(&lvs));
        for lv in &lvs {
            let percents = [lv.data_percent, lv.metadata_percent];
            assert!(percents.into_iter().flatten().all(|percent| (0.0..=100.0).contains(&percent)));
            let _ = (
                lv.trouble(),
                lv.is_active(),
                lv.is_suspended(),
                lv.is_invalid(),
                lv.is_open(),
                lv.is_cow(),
                lv.is_pool(),
                lv.zeroes(),
                lv.has("vbs"),
                lv.tagged("x"),
            );
        }
    }
    if let Ok(groups) = report::vgs(text) {
        assert!(groups.iter().all(|(_, group)| group.extent > 0));
    }
    if let Ok(ranges) = report::ranges(text) {
        let is_range = |range: &String| range.starts_with('/') && !range.contains(char::is_whitespace);
        assert!(ranges.iter().all(is_range));
    }
}

fn row(lv: &Lv) -> serde_json::Value {
    let percent = |percent: Option<f64>| percent.map(|percent| percent.to_string()).unwrap_or_default();
    let (major, minor) = lv.device.map_or_else(Default::default, |(a, b)| (a.to_string(), b.to_string()));
    json!({
        "lv_name": lv.name,
        "lv_attr": lv.attr,
        "lv_size": lv.size.to_string(),
        "origin": lv.origin,
        "pool_lv": lv.pool,
        "data_percent": percent(lv.data_percent),
        "metadata_percent": percent(lv.metadata_percent),
        "lv_tags": lv.tags.join(","),
        "lv_kernel_major": major,
        "lv_kernel_minor": minor,
    })
}
