//! Writes the XML of answers into one growing string.
//!
//! EC2's answers are flat: elements, text and `item` lists, no attributes but the namespace. A serializer would hide
//! which elements stay when they are empty and which are left out, and clients depend on just that, so every element
//! is written by name.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};

use chrono::{DateTime, SecondsFormat, SubsecRound, Utc};

/// What every document starts with.
pub const DECLARATION: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";

/// Escapes a text for an element. Characters that XML 1.0 cannot hold at all become U+FFFD, and a carriage return, which
/// a parser would turn into a line feed, becomes a reference.
pub fn escape(text: &str) -> Cow<'_, str> {
    let escaped = quick_xml::escape::partial_escape(text);
    if text.chars().all(|c| legal(c) && c != '\r') {
        return escaped;
    }
    let mut out = String::with_capacity(escaped.len() + 8);
    for c in escaped.chars() {
        match c {
            '\r' => out.push_str("&#13;"),
            c if legal(c) => out.push(c),
            _ => out.push('\u{FFFD}'),
        }
    }
    Cow::Owned(out)
}

/// Whether XML 1.0 can hold the character (its production `Char`).
pub fn legal(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..)
}

/// The body of an answer while it grows.
#[derive(Debug)]
pub struct Xml {
    out: String,
    root: String,
}

impl Xml {
    /// Starts `<ActionResponse>` in the namespace of the API version that the caller sent. The slash at the end matters:
    /// libcloud finds nothing without it.
    pub fn answer(action: &str, version: &str, request_id: &str) -> Self {
        let root = format!("{action}Response");
        let mut out = String::with_capacity(1024);
        out.push_str(DECLARATION);
        let _ = write!(out, "<{root} xmlns=\"http://ec2.amazonaws.com/doc/{version}/\">");
        let mut xml = Self { out, root };
        xml.text("requestId", request_id);
        xml
    }

    /// Ends the document.
    pub fn finish(mut self) -> String {
        let _ = write!(self.out, "</{}>", self.root);
        self.out
    }

    /// How many bytes it has so far.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// An element with text; an empty text gives `<name/>`.
    pub fn text(&mut self, name: &str, text: &str) -> &mut Self {
        if text.is_empty() {
            return self.raw(&["<", name, "/>"]);
        }
        self.raw(&["<", name, ">", &escape(text), "</", name, ">"])
    }

    /// An element with text, or no element.
    pub fn optional(&mut self, name: &str, text: Option<&str>) -> &mut Self {
        match text {
            Some(text) => self.text(name, text),
            None => self,
        }
    }

    /// An element with a number, a boolean or an id: something whose text needs no escape.
    pub fn plain(&mut self, name: &str, value: impl Display) -> &mut Self {
        let _ = write!(self.out, "<{name}>{value}</{name}>");
        self
    }

    /// The same, or no element: a number that does not apply is left out, never empty.
    pub fn optional_plain(&mut self, name: &str, value: Option<impl Display>) -> &mut Self {
        match value {
            Some(value) => self.plain(name, value),
            None => self,
        }
    }

    /// A point in time, in milliseconds and UTC.
    pub fn time(&mut self, name: &str, at: DateTime<Utc>) -> &mut Self {
        self.text(name, &time_text(at))
    }

    /// A point in time of which EC2 tells only the second; it still writes milliseconds, all of them 0.
    pub fn second(&mut self, name: &str, at: DateTime<Utc>) -> &mut Self {
        self.time(name, at.trunc_subsecs(0))
    }

    /// An element with elements in it.
    pub fn element(&mut self, name: &str, inner: impl FnOnce(&mut Self)) -> &mut Self {
        self.raw(&["<", name, ">"]);
        let start = self.out.len();
        inner(self);
        if self.out.len() == start {
            self.out.truncate(start - 1);
            return self.raw(&["/>"]);
        }
        self.raw(&["</", name, ">"])
    }

    /// A set: `<name><item>…</item>…</name>`, and `<name/>` when there is nothing in it.
    pub fn set<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        item: impl FnMut(&mut Self, T),
    ) -> &mut Self {
        self.element(name, |xml| {
            xml.items(items, item);
        })
    }

    /// Begins an element that is written piece by piece.
    pub fn open(&mut self, name: &str) -> &mut Self {
        self.raw(&["<", name, ">"])
    }

    /// Ends it.
    pub fn close(&mut self, name: &str) -> &mut Self {
        self.raw(&["</", name, ">"])
    }

    /// The `item`s of a set.
    pub fn items<T>(&mut self, items: impl IntoIterator<Item = T>, mut item: impl FnMut(&mut Self, T)) -> &mut Self {
        for each in items {
            self.element("item", |xml| item(xml, each));
        }
        self
    }

    fn raw(&mut self, parts: &[&str]) -> &mut Self {
        for part in parts {
            self.out.push_str(part);
        }
        self
    }
}

/// A time as EC2 writes it; filters on times compare with this text.
pub fn time_text(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_carries_the_callers_version_and_the_request_id() {
        let mut xml = Xml::answer("DescribeVolumes", "2014-10-01", "r-1");
        xml.set("volumeSet", [1, 2], |xml, n| {
            xml.plain("size", n).text("snapshotId", "");
        });
        xml.set("tagSet", None::<u8>, |_, _| ());
        assert_eq!(
            xml.finish(),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<DescribeVolumesResponse xmlns=\"http://ec2.amazonaws.com/doc/2014-10-01/\">\
             <requestId>r-1</requestId><volumeSet><item><size>1</size><snapshotId/></item><item><size>2</size><snapshotId/></item>\
             </volumeSet><tagSet/></DescribeVolumesResponse>"
        );
    }

    #[test]
    fn hostile_text_cannot_break_the_document() {
        assert_eq!(escape("</value><x>&\"'"), "&lt;/value&gt;&lt;x&gt;&amp;\"'");
        assert_eq!(escape("a\0b\u{FFFF}c\rd\ne"), "a\u{FFFD}b\u{FFFD}c&#13;d\ne");
    }

    #[test]
    fn times_have_milliseconds_and_a_z() {
        let at = DateTime::from_timestamp(1_769_860_800, 5_000_000).unwrap();
        assert_eq!(time_text(at), "2026-01-31T12:00:00.005Z");
        let mut xml = Xml::answer("A", "v", "r");
        xml.second("t", at);
        assert!(xml.finish().contains("<t>2026-01-31T12:00:00.000Z</t>"));
    }
}
