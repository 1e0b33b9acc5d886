//! Pages by keyset: a page starts behind the last key of the one before it, so that it costs the same wherever it is and
//! nothing is shown twice or skipped while others create and delete.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::{Stream, StreamExt};

use super::error::{ApiError, ApiResult};
use super::faults::{clip, invalid_combination, invalid_value};
use super::query::Params;
use super::xml::Xml;

/// The most items of one page, whatever is asked for.
const MOST: i32 = 1_000;
/// The most items of an answer to a caller who asked for no pages: beyond it even that caller gets a token. boto 2 and
/// many scripts know no tokens, so it is high; but an answer must have an end.
const MOST_UNASKED: i32 = 20_000;
/// About how long an answer may become, in bytes: room for more than ten thousand volumes with a few tags each. With the most
/// and longest tags a row has a hundred thousand bytes; such a page ends early.
const MOST_BYTES: usize = 16 << 20;
/// The most rows of one statement: a page of any length takes one, an answer to a caller who asked for no pages several, so that
/// not many are read in vain when it ends early.
const CHUNK: i32 = MOST;

/// `MaxResults` and `NextToken` as they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageParams {
    max_results: Option<i32>,
    next_token: Option<String>,
}

/// How an action words its refusals.
#[derive(Debug, Clone, Copy)]
pub struct PageRules {
    /// The name of the list of ids in texts (`volumeIdsSet`).
    pub ids_set: &'static str,
    /// What a token of this action starts with, so that it fits no other.
    pub kind: &'static str,
    /// Whether `MaxResults=0` means none (the EBS CSI driver sends it to DescribeSnapshots).
    pub zero_is_none: bool,
}

/// How an action words its refusals of the two parameters themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Words {
    /// As most do.
    Usual,
    /// As DescribeVolumesModifications does.
    Modifications,
}

/// Where a page starts and how long it may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The last key of the page before.
    pub after: Option<String>,
    left: i32,
    kind: &'static str,
}

impl PageParams {
    /// Takes both parameters.
    pub fn take(params: &mut Params) -> ApiResult<Self> {
        Ok(Self { max_results: params.integer("MaxResults")?, next_token: params.filled("NextToken") })
    }

    /// Judges them. Ids and pages exclude one another.
    pub fn check(self, rules: PageRules, with_ids: bool) -> ApiResult<Page> {
        self.check_in(Words::Usual, rules, with_ids)
    }

    /// The same in other words.
    pub fn check_in(self, words: Words, rules: PageRules, with_ids: bool) -> ApiResult<Page> {
        let max_results = self.max_results.filter(|max| !(rules.zero_is_none && *max == 0));
        let exclude = |name: &str| {
            Err(invalid_combination(format!(
                "The parameter {} cannot be used with the parameter {name}",
                rules.ids_set
            )))
        };
        if with_ids && max_results.is_some() {
            return exclude("maxResults");
        }
        if with_ids && self.next_token.is_some() {
            return exclude("nextToken");
        }
        if let Some(max) = max_results.filter(|max| *max < 5) {
            let name = if words == Words::Usual { "maxResults" } else { "MaxResults" };
            return Err(invalid_value(format!(
                "Value ( {max} ) for parameter {name} is invalid. Expecting a value greater than 5."
            )));
        }
        let refuse = |token: &str| match words {
            Words::Usual => invalid_value("Unable to parse pagination token"),
            Words::Modifications => invalid_value(format!(
                "Value ( {} ) for parameter NextToken is invalid. The token is Invalid.",
                clip(token)
            )),
        };
        let after = match self.next_token {
            Some(token) => Some(read(&token, rules.kind).ok_or_else(|| refuse(&token))?),
            None => None,
        };
        Ok(Page { after, left: max_results.map_or(MOST_UNASKED, |max| max.min(MOST)), kind: rules.kind })
    }
}

impl Page {
    /// How many rows to ask the database for: one more than will be shown, which tells whether there is more.
    pub fn fetch(&self) -> i64 {
        i64::from(self.left.min(CHUNK)) + 1
    }

    /// Writes the `item`s of the rows as they come, as many as the page has room for, and moves behind the last one. Tells how
    /// it goes on.
    pub async fn write<R, E>(
        &mut self,
        xml: &mut Xml,
        mut rows: impl Stream<Item = Result<R, E>> + Unpin,
        key: impl Fn(&R) -> String,
        mut item: impl FnMut(&mut Xml, &R),
    ) -> ApiResult<Onward>
    where
        ApiError: From<E>,
    {
        let end = self.left - self.left.min(CHUNK);
        let (mut last, mut more) = (None, false);
        while let Some(row) = rows.next().await {
            let row = row?;
            if self.left <= end {
                more = true;
                break;
            }
            xml.items([&row], &mut item);
            self.left = if xml.len() < MOST_BYTES { self.left - 1 } else { 0 };
            last = Some(row);
        }
        if let Some(last) = last {
            self.after = Some(key(&last));
        }
        Ok(match &self.after {
            Some(after) if more && self.left <= 0 => Onward::Token(write(after, self.kind)),
            _ if more => Onward::Fetch,
            _ => Onward::End,
        })
    }
}

/// What follows rows that were fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Onward {
    /// Nothing.
    End,
    /// More rows of the same page.
    Fetch,
    /// Another page; this is the token for it.
    Token(String),
}

/// A token is the kind and the key, encoded so that nobody builds on its form.
pub(super) fn write(key: &str, kind: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("1:{kind}:{key}"))
}

pub(super) fn read(token: &str, kind: &str) -> Option<String> {
    if token.len() > 1024 {
        return None;
    }
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    let key = text.strip_prefix("1:")?.strip_prefix(kind)?.strip_prefix(':')?;
    (!key.is_empty() && key.chars().all(super::xml::legal)).then(|| key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    const RULES: PageRules = PageRules { ids_set: "volumeIdsSet", kind: "volume", zero_is_none: false };

    fn page(max_results: Option<i32>, next_token: Option<&str>, with_ids: bool) -> Result<Page, String> {
        let params = PageParams { max_results, next_token: next_token.map(Into::into) };
        params.check(RULES, with_ids).map_err(|error| error.message)
    }

    /// Reads a table of `rows` numbers page by page, as a client does.
    async fn walk(rows: u32, max_results: Option<i32>) -> Vec<Vec<u32>> {
        walk_long(rows, max_results, "").await
    }

    /// The same, when every row has this text too.
    async fn walk_long(rows: u32, max_results: Option<i32>, text: &str) -> Vec<Vec<u32>> {
        let (mut pages, mut token) = (Vec::new(), None);
        loop {
            let mut page = page(max_results, token.as_deref(), false).unwrap();
            let mut xml = Xml::answer("A", "v", "r");
            let mut shown = Vec::new();
            token = loop {
                let start = page.after.as_ref().map_or(0, |after| after.parse::<u32>().unwrap() + 1);
                let fetched = (start..rows).take(usize::try_from(page.fetch()).unwrap()).map(Ok::<_, ApiError>);
                let onward = page.write(&mut xml, stream::iter(fetched), u32::to_string, |xml, row| {
                    shown.push(*row);
                    xml.text("text", text);
                });
                match onward.await.unwrap() {
                    Onward::Fetch => {}
                    Onward::End => break None,
                    Onward::Token(token) => break Some(token),
                }
            };
            pages.push(shown);
            if token.is_none() {
                return pages;
            }
        }
    }

    #[tokio::test]
    async fn walking_the_pages_shows_every_row_once() {
        for rows in [0, 1, 4, 5, 6, 10, 11, 999, 1_000, 1_001, 2_500] {
            for max in [None, Some(5), Some(7), Some(1_000), Some(5_000)] {
                let pages = walk(rows, max).await;
                assert_eq!(pages.concat(), (0..rows).collect::<Vec<_>>(), "{rows} by {max:?}");
                let most = usize::try_from(max.unwrap_or(20_000).min(20_000)).unwrap();
                assert!(pages.iter().all(|page| page.len() <= most));
                assert!(pages.len() == 1 || pages.iter().all(|page| !page.is_empty()), "no page for nothing");
            }
        }
    }

    #[tokio::test]
    async fn an_answer_without_max_results_has_an_end() {
        assert_eq!(walk(20_001, None).await.iter().map(Vec::len).collect::<Vec<_>>(), [20_000, 1]);
    }

    #[tokio::test]
    async fn rows_with_much_text_make_pages_shorter_but_none_is_lost() {
        let text = "x".repeat(1 << 20);
        for max in [None, Some(1_000)] {
            let pages = walk_long(40, max, &text).await;
            assert_eq!(pages.concat(), (0..40).collect::<Vec<_>>());
            assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [16, 16, 8]);
        }
        assert_eq!(walk_long(16, None, &text).await.len(), 1, "no token for nothing");
    }

    #[test]
    fn pages_are_refused_in_the_words_of_ec2() {
        for (found, text) in [
            (
                page(Some(4), None, false),
                "Value ( 4 ) for parameter maxResults is invalid. Expecting a value greater than 5.",
            ),
            (page(Some(4), None, true), "The parameter volumeIdsSet cannot be used with the parameter maxResults"),
            (page(None, Some("x"), true), "The parameter volumeIdsSet cannot be used with the parameter nextToken"),
        ] {
            assert_eq!(found.unwrap_err(), text);
        }
        assert!(page(Some(5), None, false).is_ok());
    }

    #[test]
    fn modifications_have_words_of_their_own() {
        let text = |max_results, next_token: Option<&str>| {
            let params = PageParams { max_results, next_token: next_token.map(Into::into) };
            params.check_in(Words::Modifications, RULES, false).unwrap_err().message
        };
        assert_eq!(
            text(Some(4), None),
            "Value ( 4 ) for parameter MaxResults is invalid. Expecting a value greater than 5."
        );
        assert_eq!(
            text(None, Some("invalid")),
            "Value ( invalid ) for parameter NextToken is invalid. The token is Invalid."
        );
    }

    #[test]
    fn tokens_of_others_and_broken_ones_are_refused() {
        for token in [
            "invalid",
            "AAAA",
            "",
            &write("x", "snapshot"),
            &write("", "volume"),
            &write("\0", "volume"),
            &"A".repeat(4096),
        ] {
            assert_eq!(page(None, Some(token), false), Err("Unable to parse pagination token".into()), "{token}");
        }
        assert_eq!(page(None, Some(&write("vol-1", "volume")), false).unwrap().after.as_deref(), Some("vol-1"));
    }
}
