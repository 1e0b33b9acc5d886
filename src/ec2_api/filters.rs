//! The filters of the describe actions: which there are, and what a value selects.
//!
//! Filters narrow one another, the values of one filter widen it, `*` is any run of characters, `?` any one, a backslash takes the next
//! character as it is. The database evaluates them ([`crate::db::select`]), so that a page is full and exact and no table
//! is read into memory; [`Glob::matches`] is for the few sets that are no tables. A filter that is not known is an error: to ignore
//! one would select everything.

use crate::db::statement::Values;

use super::error::{ApiError, ApiResult};
use super::faults::{clip, invalid_value};
use super::query::FilterParam;

/// The most values in all filters of a request.
const MAX_VALUES: usize = 200;
/// The most filters of a request.
const MAX_FILTERS: usize = 50;
/// The most bytes of a value; a tag's value may have 256 characters of up to four bytes, each escaped.
const MAX_LENGTH: usize = 2_048;

/// A filter whose name is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// `Filter.N.Name`
    pub name: String,
    /// What its values select.
    pub globs: Vec<Glob>,
}

/// A value of a filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(Vec<Token>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Char(char),
    AnyChar,
    AnyRun,
}

/// Judges the filters of a request. `known` has the names of the action; with `tag:` among them, `tag:KEY` is a name.
pub fn check(params: Vec<FilterParam>, known: &[&str]) -> ApiResult<Vec<Filter>> {
    let limit = |most, what| {
        let text = format!("The maximum number of {what} specified on a single call is {most}");
        Err(ApiError::new("FilterLimitExceeded", text))
    };
    if params.len() > MAX_FILTERS {
        return limit(MAX_FILTERS, "filters");
    }
    if params.iter().map(|param| param.values.len()).sum::<usize>() > MAX_VALUES {
        return limit(MAX_VALUES, "filter values");
    }
    params.into_iter().map(|param| one(param, known)).collect()
}

fn one(param: FilterParam, known: &[&str]) -> ApiResult<Filter> {
    let FilterParam { name, values } = param;
    let is_known = match name.strip_prefix("tag:") {
        Some(key) => !key.is_empty() && known.contains(&"tag:"),
        None => known.contains(&name.as_str()),
    };
    if !is_known {
        return Err(invalid_value(format!("The filter '{}' is invalid", clip(&name))));
    }
    if let Some(long) = values.iter().find(|value| value.len() > MAX_LENGTH) {
        return Err(invalid_value(format!("Filter value '{}' is too long", clip(long))));
    }
    Ok(Filter { globs: values.iter().map(|value| Glob::parse(value)).collect(), name })
}

impl Filter {
    /// The values as the database wants them: those without a wildcard may use an index.
    pub fn values(&self) -> Values {
        let (exact, like): (Vec<_>, Vec<_>) = self.globs.iter().partition(|glob| glob.is_exact());
        Values {
            exact: exact.into_iter().map(Glob::literal).collect(),
            like: like.into_iter().map(Glob::to_like).collect(),
        }
    }

    /// Whether one of the values selects the text.
    pub fn matches(&self, text: &str) -> bool {
        self.globs.iter().any(|glob| glob.matches(text))
    }
}

impl Glob {
    /// Reads a value. A backslash at the end stands for itself.
    pub fn parse(value: &str) -> Self {
        let mut tokens = Vec::with_capacity(value.len());
        let mut chars = value.chars();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' => Token::AnyRun,
                '?' => Token::AnyChar,
                '\\' => Token::Char(chars.next().unwrap_or('\\')),
                other => Token::Char(other),
            });
        }
        // Two stars in a row select what one does, and cost more.
        tokens.dedup_by(|a, b| (*a, *b) == (Token::AnyRun, Token::AnyRun));
        Self(tokens)
    }

    fn is_exact(&self) -> bool {
        self.0.iter().all(|token| matches!(token, Token::Char(_)))
    }

    fn literal(&self) -> String {
        let chars = self.0.iter().filter_map(|token| if let Token::Char(c) = token { Some(*c) } else { None });
        chars.collect()
    }

    /// The same as a pattern of SQL's LIKE.
    fn to_like(&self) -> String {
        let mut like = String::with_capacity(self.0.len() + 8);
        for token in &self.0 {
            match token {
                Token::AnyRun => like.push('%'),
                Token::AnyChar => like.push('_'),
                Token::Char(c) => {
                    if matches!(c, '%' | '_' | '\\') {
                        like.push('\\');
                    }
                    like.push(*c);
                }
            }
        }
        like
    }

    /// Whether it selects the text. Takes at most length times length steps, whatever the pattern.
    pub fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let (mut at, mut token) = (0, 0);
        let mut last_run: Option<(usize, usize)> = None;
        while at < text.len() {
            match self.0.get(token) {
                Some(Token::AnyRun) => {
                    last_run = Some((token, at));
                    token += 1;
                }
                Some(Token::AnyChar) => (at, token) = (at + 1, token + 1),
                Some(Token::Char(c)) if *c == text[at] => (at, token) = (at + 1, token + 1),
                _ => match last_run {
                    // Let the last run swallow one more, and go on behind it.
                    Some((run, swallowed)) => {
                        last_run = Some((run, swallowed + 1));
                        (at, token) = (swallowed + 1, run + 1);
                    }
                    None => return false,
                },
            }
        }
        self.0[token..].iter().all(|token| *token == Token::AnyRun)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    fn glob(pattern: &str, text: &str) -> bool {
        Glob::parse(pattern).matches(text)
    }

    #[test]
    fn stars_question_marks_and_backslashes_mean_what_ec2_says() {
        for (pattern, text) in [
            ("", ""),
            ("*", ""),
            ("*", "anything"),
            ("a*c", "ac"),
            ("a*c", "abcbc"),
            ("?b?", "abc"),
            (r"\*amazon\?\\", r"*amazon?\"),
            (r"x\", r"x\"),
            ("*a*b*", "xxaxxbxx"),
            ("ä?", "äö"),
        ] {
            assert!(glob(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("", "a"), ("?", ""), ("a*c", "ab"), ("A", "a"), (r"\*", "x"), ("a?", "a"), ("*b", "ba")]
        {
            assert!(!glob(pattern, text), "{pattern} {text}");
        }
    }

    /// The definition itself, as slow as it may be.
    fn by_definition(pattern: &[Token], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (None, Some(_)) | (Some((Token::Char(_) | Token::AnyChar, _)), None) => false,
            (Some((Token::AnyRun, rest)), None) => by_definition(rest, text),
            (Some((Token::AnyRun, rest)), Some((_, tail))) => by_definition(rest, text) || by_definition(pattern, tail),
            (Some((Token::AnyChar, rest)), Some((_, tail))) => by_definition(rest, tail),
            (Some((Token::Char(c), rest)), Some((head, tail))) => c == head && by_definition(rest, tail),
        }
    }

    #[test]
    fn matching_agrees_with_the_definition_on_random_patterns() {
        let mut random = rand::rng();
        let mut draw = |letters: &[char], most: usize| -> String {
            let length = random.random_range(0..=most);
            (0..length).map(|_| letters[random.random_range(0..letters.len())]).collect()
        };
        for _ in 0..20_000 {
            let pattern = draw(&['a', 'b', '*', '?', '\\'], 8);
            let text = draw(&['a', 'b', '*', '\\'], 8);
            let parsed = Glob::parse(&pattern);
            let chars: Vec<char> = text.chars().collect();
            assert_eq!(parsed.matches(&text), by_definition(&parsed.0, &chars), "{pattern:?} on {text:?}");
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_exponential_time() {
        let start = std::time::Instant::now();
        assert!(!glob(&"*a".repeat(500), &"a".repeat(499)));
        assert!(!glob(&format!("{}b", "a*".repeat(500)), &"a".repeat(2000)));
        assert!(start.elapsed().as_secs() < 5);
    }

    #[test]
    fn values_are_parted_into_exact_ones_and_patterns_of_like() {
        let values = ["vol-1", r"a\*b", "50%_*?", r"x*\\"].map(str::to_owned).to_vec();
        let filters = check(vec![FilterParam { name: "status".into(), values }], &["status"]).unwrap();
        let values = filters[0].values();
        assert_eq!(values.exact, ["vol-1", "a*b"]);
        assert_eq!(values.like, [r"50\%\_%_", r"x%\\"]);
    }

    #[test]
    fn unknown_filters_and_too_many_values_are_refused() {
        let filter = |name: &str, values: usize| FilterParam { name: name.into(), values: vec![String::new(); values] };
        let text = |params| check(params, &["status", "tag:"]).unwrap_err().message;
        assert_eq!(text(vec![filter("bad-filter", 1)]), "The filter 'bad-filter' is invalid");
        assert_eq!(text(vec![filter("tag:", 1)]), "The filter 'tag:' is invalid");
        assert_eq!(text(vec![filter("Status", 1)]), "The filter 'Status' is invalid");
        assert_eq!(
            text(vec![filter("status", 100), filter("tag:Name", 101)]),
            "The maximum number of filter values specified on a single call is 200"
        );
        assert!(check(vec![filter("status", 100), filter("tag:Name", 100)], &["status", "tag:"]).is_ok());
    }
}
