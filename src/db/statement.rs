//! Statements that diesel's own language cannot say: describes, which are put together at run time from ids, a page and any
//! filters, and a few that do much in one round trip.
//!
//! The text of a statement is made of literals of this program only; whatever a caller sent is a bound value. So nothing
//! can be injected, and a statement without filters is always the same text, prepared once a connection. (diesel's
//! `sql_query` is parsed and planned anew each time, for a second round trip.)

use std::marker::PhantomData;
use std::pin::Pin;

use chrono::{DateTime, NaiveDateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Double, Text, Timestamptz};
use diesel_async::RunQueryDsl;
use diesel_async::methods::LoadQuery;
use futures_util::{Stream, StreamExt};

use super::{Conn, Error, Result};
use crate::ids::{Id, Kind};

/// Rows as they come from the database, so that a page of any length never is in memory twice.
pub type Rows<'a, T> = Pin<Box<dyn Stream<Item = Result<T>> + Send + 'a>>;

/// A statement under construction; its rows have the SQL type `R`.
#[derive(Debug)]
pub struct Statement<R> {
    pieces: Vec<Piece>,
    cached: bool,
    row: PhantomData<fn() -> R>,
}

#[derive(Debug)]
enum Piece {
    Sql(&'static str),
    Text(String),
    Texts(Vec<String>),
    Times(Vec<DateTime<Utc>>),
    Number(i64),
    Fraction(f64),
}

/// The values of a filter: a text is selected by one that equals it or is a pattern of LIKE that fits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values {
    /// Texts as they are.
    pub exact: Vec<String>,
    /// Patterns: `%`, `_`, and a backslash that takes the next character as it is.
    pub like: Vec<String>,
}

/// What a filter looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// An expression whose text is compared.
    Expression(&'static str),
    /// Several such expressions: that one of them is selected is enough.
    Any(&'static [&'static str]),
    /// The same of an attachment, alias `b`: one of the live ones that a condition, which comes first, tells to be of the
    /// resource.
    Attachment(&'static str, &'static str),
    /// The same of an attachment, alias `b`: one of the live ones of the volume `v`.
    VolumeAttachment(&'static str),
    /// An instant of the volume `v`.
    Instant(Instant),
    /// An instant of an attachment, alias `b`: of one of the live ones of the volume `v`.
    VolumeAttachmentInstant(Instant),
    /// The tag `g` that is listed itself: its key must be this, its value is compared.
    ListedTag(String),
    /// The value of the tag with this key.
    Tag(String),
    /// The key of any tag.
    AnyTagKey,
    /// The value of any tag.
    AnyTagValue,
}

/// An instant that is shown as a text, `2026-01-31T12:00:00.000Z`. Texts are dear to make: where whole ones are asked for, instants
/// are compared, and patterns are tried on the text that Postgres makes by itself, which costs a third of one in that form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instant {
    /// The expression of the instant as it is shown, to the millisecond.
    pub at: &'static str,
    /// The expression of Postgres's text of the microsecond after it in UTC, which always has all digits:
    /// `2026-01-31 12:00:00.000001`.
    pub text: &'static str,
}

/// A filter: what must be one of these values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// What it looks at.
    pub subject: Subject,
    /// What that may be.
    pub values: Values,
}

impl<R> Statement<R> {
    /// Starts a statement.
    pub fn new(sql: &'static str) -> Self {
        Self { pieces: vec![Piece::Sql(sql)], cached: true, row: PhantomData }
    }

    /// Goes on with more of its text.
    #[must_use]
    pub fn sql(mut self, sql: &'static str) -> Self {
        self.pieces.push(Piece::Sql(sql));
        self
    }

    /// Goes on with a value.
    #[must_use]
    pub fn text(mut self, value: impl Into<String>) -> Self {
        self.pieces.push(Piece::Text(value.into()));
        self
    }

    /// Goes on with an array of values.
    #[must_use]
    pub fn texts<S: Into<String>>(mut self, values: impl IntoIterator<Item = S>) -> Self {
        self.pieces.push(Piece::Texts(values.into_iter().map(Into::into).collect()));
        self
    }

    /// Goes on with a comparison to ids.
    #[must_use]
    pub fn one_of<K: Kind>(self, ids: &[Id<K>]) -> Self {
        self.sql(" = ANY(").texts(ids.iter().map(Id::as_str)).sql(")")
    }

    /// Goes on with a number.
    #[must_use]
    pub fn number(mut self, value: i64) -> Self {
        self.pieces.push(Piece::Number(value));
        self
    }

    /// Goes on with a number that need not be whole.
    #[must_use]
    pub fn fraction(mut self, value: f64) -> Self {
        self.pieces.push(Piece::Fraction(value));
        self
    }

    /// Adds `AND …` for each condition. `tags` tells which tags `t` are those of the resource.
    #[must_use]
    pub fn conditions(mut self, conditions: &[Condition], tags: &'static str) -> Self {
        for condition @ Condition { subject, values } in conditions {
            // Callers choose the mix of filters; remembering each would fill the connection's memory.
            self.cached = false;
            self = match subject {
                Subject::Expression(expression) => self.sql(" AND ").any(expression, values),
                Subject::Any(expressions) => expressions
                    .iter()
                    .fold(self.sql(" AND (false"), |this, expression| this.sql(" OR ").any(expression, values))
                    .sql(")"),
                Subject::Attachment(of, expression) => self
                    .sql(" AND EXISTS (SELECT FROM attachments b WHERE b.state <> 'detached' AND ")
                    .sql(of)
                    .sql(" AND ")
                    .any(expression, values)
                    .sql(")"),
                Subject::VolumeAttachment(_) | Subject::VolumeAttachmentInstant(_) => self
                    .sql(
                        " AND EXISTS (SELECT FROM attachments b WHERE b.account_id = v.account_id AND b.volume_id = v.id \
                         AND b.state <> 'detached' AND ",
                    )
                    .of_attachment(condition)
                    .sql(")"),
                Subject::Instant(instant) => self.sql(" AND ").instant(*instant, values),
                Subject::ListedTag(key) => self.sql(" AND g.key = ").text(key).sql(" AND ").any("g.value", values),
                Subject::Tag(_) | Subject::AnyTagKey | Subject::AnyTagValue => self
                    .sql(" AND EXISTS (SELECT FROM tags t WHERE ")
                    .sql(tags)
                    .sql(" AND ")
                    .of_tag(condition)
                    .sql(")"),
            };
        }
        self
    }

    /// What a condition on attachments says of `b`.
    #[must_use]
    pub fn of_attachment(mut self, condition: &Condition) -> Self {
        self.cached = false;
        match &condition.subject {
            Subject::VolumeAttachment(expression) => self.any(expression, &condition.values),
            Subject::VolumeAttachmentInstant(instant) => self.instant(*instant, &condition.values),
            _ => self.sql("false"),
        }
    }

    /// What a condition on tags says of `t`.
    #[must_use]
    pub fn of_tag(mut self, condition: &Condition) -> Self {
        self.cached = false;
        match &condition.subject {
            Subject::Tag(key) => self.sql("t.key = ").text(key).sql(" AND ").any("t.value", &condition.values),
            Subject::AnyTagKey => self.any("t.key", &condition.values),
            Subject::AnyTagValue => self.any("t.value", &condition.values),
            _ => self.sql("false"),
        }
    }

    /// An instant that one of the values selects. A text that no instant is shown as selects none.
    fn instant(self, instant: Instant, values: &Values) -> Self {
        let times = values.exact.iter().filter_map(|text| read_time(text)).collect();
        let exact = |mut this: Self| {
            this = this.sql(instant.at).sql(" = ANY(");
            this.pieces.push(Piece::Times(times));
            this.sql(")")
        };
        if values.like.is_empty() {
            return exact(self);
        }
        let like = values.like.iter().flat_map(|pattern| of_postgres(pattern)).collect();
        let like = Values { exact: Vec::new(), like };
        exact(self.sql("(")).sql(" OR ").any(instant.text, &like).sql(")")
    }

    /// A text that one of the values selects.
    #[must_use]
    pub fn any(self, expression: &'static str, values: &Values) -> Self {
        let exact = |this: Self| match &values.exact[..] {
            // An index that goes by this first then gives its rows in the order that it goes by next.
            [only] => this.sql(expression).sql(" = ").text(only),
            several => this.sql(expression).sql(" = ANY(").texts(several).sql(")"),
        };
        let like = |this: Self| match &values.like[..] {
            // An array would be taken apart for each row.
            [only] => this.sql(expression).sql(" LIKE ").text(only),
            several => this.sql(expression).sql(" LIKE ANY(").texts(several).sql(")"),
        };
        match (values.exact.is_empty(), values.like.is_empty()) {
            (true, true) => self.sql("false"),
            (false, true) => exact(self),
            (true, false) => like(self),
            (false, false) => like(exact(self.sql("(")).sql(" OR ")).sql(")"),
        }
    }
}

/// Lets the joins of all further statements of the transaction be merges. Each side is read once then, by an index in the order of
/// the ids. How much a caller's values select a planner does not know: it would take one side for short, and look into the other
/// for each row of it.
pub async fn merge_joins(conn: &mut Conn) -> Result<()> {
    let set = "SELECT set_config('enable_nestloop', 'off', true), set_config('enable_hashjoin', 'off', true)";
    diesel::sql_query(set).execute(conn).await?;
    Ok(())
}

impl<R: 'static> Statement<R> {
    /// Runs it and gives its rows as they come.
    pub async fn rows<'a, T>(self, conn: &'a mut Conn) -> Result<Rows<'a, T>>
    where
        Self: LoadQuery<'static, Conn, T>,
        T: 'a,
    {
        Ok(self.load_stream(conn).await?.map(|row| row.map_err(Error::from)).boxed())
    }
}

/// Reads an instant as it is shown.
fn read_time(text: &str) -> Option<DateTime<Utc>> {
    const SHOWN: &str = "%Y-%m-%dT%H:%M:%S%.3fZ";
    let time = NaiveDateTime::parse_from_str(text, SHOWN).ok()?;
    (time.format(SHOWN).to_string() == text).then(|| time.and_utc())
}

/// Patterns that fit Postgres's text of an instant, of which one does when this one fits the instant as it is shown. The texts differ
/// in two places. Between date and time Postgres has a blank and no `T`; a blank in the pattern, which then fits nothing, must not
/// fit it. And for the `Z` at the end it has three digits, which only what fits the `Z` may be tried on.
fn of_postgres(pattern: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            'T' => " ".to_owned(),
            ' ' => "T".to_owned(),
            '\\' => c.to_string() + &chars.next().map(String::from).unwrap_or_default(),
            _ => c.to_string(),
        });
    }
    let mut patterns = Vec::new();
    while let Some(last) = tokens.pop() {
        let before = tokens.concat();
        match last.as_str() {
            // It takes the Z and what it takes before; or what is before it has taken the Z.
            "%" => patterns.push(before + "%___"),
            "_" | "Z" => {
                patterns.push(before + "___");
                break;
            }
            _ => break,
        }
    }
    patterns
}

impl<R> Query for Statement<R> {
    type SqlType = R;
}

impl<R> QueryId for Statement<R> {
    type QueryId = ();
    // No static id: diesel's cache then goes by the text.
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<R> QueryFragment<Pg> for Statement<R> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        if !self.cached {
            out.unsafe_to_cache_prepared();
        }
        for piece in &self.pieces {
            match piece {
                Piece::Sql(sql) => out.push_sql(sql),
                Piece::Text(value) => out.push_bind_param::<Text, _>(value)?,
                Piece::Texts(values) => out.push_bind_param::<Array<Text>, _>(values)?,
                Piece::Times(values) => out.push_bind_param::<Array<Timestamptz>, _>(values)?,
                Piece::Number(value) => out.push_bind_param::<BigInt, _>(value)?,
                Piece::Fraction(value) => out.push_bind_param::<Double, _>(value)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(conditions: &[Condition]) -> String {
        let query: Statement<BigInt> =
            Statement::new("SELECT 1 FROM volumes v WHERE true").conditions(conditions, "t.resource_id = v.id");
        diesel::debug_query::<Pg, _>(&query).to_string()
    }

    #[test]
    fn what_a_caller_sent_is_always_bound() {
        let values = Values { exact: vec!["'; DROP".into()], like: vec!["%".into()] };
        let text = sql(&[
            Condition { subject: Subject::Expression("v.state"), values: values.clone() },
            Condition { subject: Subject::Tag("k'".into()), values },
        ]);
        let (statement, _binds) = text.split_once(" -- binds").unwrap();
        assert_eq!(
            statement,
            "SELECT 1 FROM volumes v WHERE true AND (v.state = $1 OR v.state LIKE $2) \
             AND EXISTS (SELECT FROM tags t WHERE t.resource_id = v.id AND t.key = $3 AND (t.value = $4 OR t.value LIKE $5))"
        );
    }

    /// Whether a pattern of LIKE fits, by its definition.
    fn fits(pattern: &[char], text: &[char]) -> bool {
        match pattern {
            [] => text.is_empty(),
            ['%', rest @ ..] => (0..=text.len()).any(|n| fits(rest, &text[n..])),
            ['_', rest @ ..] => !text.is_empty() && fits(rest, &text[1..]),
            ['\\', c, rest @ ..] | [c, rest @ ..] => text.first() == Some(c) && fits(rest, &text[1..]),
        }
    }

    #[test]
    fn a_pattern_fits_the_text_of_postgres_when_it_fits_the_text_that_is_shown() {
        const PIECES: [&str; 12] = ["2", "0", "1", "-", " ", "T", "Z", ":", "%", "_", "2026-01-3", ".00"];
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        let shown = chars("2026-01-31T12:00:00.001Z");
        let of_its_own = chars("2026-01-31 12:00:00.001001");
        let mut fitting = 0;
        let wholes =
            ["2026-01-31T12:00:00.001Z", "%-__T12:%", "2026-01-31 12%", "%001", "%00_Z", "%0__", "%1%", "\\%%Z"];
        let made = (0..PIECES.len().pow(4)).map(|n| {
            let at = |place| PIECES[n / PIECES.len().pow(place) % PIECES.len()];
            format!("{}%{}{}{}", at(0), at(1), at(2), at(3))
        });
        for pattern in wholes.map(String::from).into_iter().chain(made) {
            let expected = fits(&chars(&pattern), &shown);
            let found = of_postgres(&pattern).iter().any(|pattern| fits(&chars(pattern), &of_its_own));
            assert_eq!(found, expected, "{pattern}");
            fitting += usize::from(expected);
        }
        assert!(fitting > 100, "{fitting}");
    }

    #[test]
    fn of_several_expressions_one_is_enough() {
        let values = Values { exact: vec!["a".into()], like: vec![] };
        let text = sql(&[Condition { subject: Subject::Any(&["v.state", "v.zone"]), values }]);
        let wanted = "SELECT 1 FROM volumes v WHERE true AND (false OR v.state = $1 OR v.zone = $2) --";
        assert!(text.starts_with(wanted), "{text}");
    }

    #[test]
    fn a_filter_without_values_selects_nothing() {
        let text = sql(&[Condition { subject: Subject::Expression("v.state"), values: Values::default() }]);
        assert!(text.starts_with("SELECT 1 FROM volumes v WHERE true AND false"), "{text}");
    }
}
