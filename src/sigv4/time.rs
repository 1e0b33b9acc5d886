//! The forms in which signed requests write the time.

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, Timelike, Utc};

/// Reads `YYYYMMDDTHHMMSSZ`, the form of `X-Amz-Date`.
pub(super) fn basic(text: &str) -> Option<DateTime<Utc>> {
    let bytes = text.as_bytes();
    if bytes.len() != 16 || bytes[8] != b'T' || bytes[15] != b'Z' {
        return None;
    }
    let number = |range: std::ops::Range<usize>| {
        bytes[range].iter().try_fold(0u32, |sum, b| b.is_ascii_digit().then(|| sum * 10 + u32::from(b - b'0')))
    };
    let date = NaiveDate::from_ymd_opt(i32::try_from(number(0..4)?).ok()?, number(4..6)?, number(6..8)?)?;
    Some(date.and_hms_opt(number(9..11)?, number(11..13)?, number(13..15)?)?.and_utc())
}

/// Writes the form of `X-Amz-Date`.
pub(super) fn to_basic(time: DateTime<Utc>) -> String {
    let (year, month, day) = (time.year(), time.month(), time.day());
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", time.hour(), time.minute(), time.second())
}

/// Reads a `Date` header: the form of HTTP (RFC 9110, 5.6.7), or the one of `X-Amz-Date`.
pub(super) fn http(text: &str) -> Option<DateTime<Utc>> {
    basic(text).or_else(|| Some(DateTime::parse_from_rfc2822(text).ok()?.to_utc()))
}

/// Reads `2026-01-31T12:00:00`, with or without fraction and zone; without one it is UTC. The form of `SigV2`.
pub(super) fn extended(text: &str) -> Option<DateTime<Utc>> {
    match DateTime::parse_from_rfc3339(text) {
        Ok(time) => Some(time.to_utc()),
        Err(_) => Some(NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f").ok()?.and_utc()),
    }
}
