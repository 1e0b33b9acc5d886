//! Modifications as a describe shows them.

use diesel_async::RunQueryDsl;

use super::modifications::Modification;
use super::schema::volume_modifications;
use super::statement::{Condition, Rows, Statement};
use super::{Conn, Result};
use crate::ids::VolumeId;

/// Nothing looks at tags here; conditions use the alias `m` (volume_modifications).
const TAGS: &str = "false";

/// Of a volume that is being deleted nothing is shown.
const SELECT: &str = "SELECT m.* FROM volume_modifications m JOIN volumes v ON v.id = m.volume_id \
    WHERE v.state NOT IN ('deleting', 'deleted') AND m.account_id = ";

/// The latest modifications of those of these volumes that the account has and that were ever modified.
pub async fn by_ids(
    conn: &mut Conn,
    account_id: &str,
    ids: &[VolumeId],
    conditions: &[Condition],
) -> Result<Vec<Modification>> {
    let query: Statement<volume_modifications::SqlType> = Statement::new(SELECT)
        .text(account_id)
        .sql(" AND m.volume_id")
        .one_of(ids)
        .conditions(conditions, TAGS)
        .sql(" ORDER BY m.volume_id");
    Ok(query.load(conn).await?)
}

/// The latest modifications of the account's volumes behind `after`, at most `limit`.
pub async fn page<'a>(
    conn: &'a mut Conn,
    account_id: &str,
    after: Option<&str>,
    limit: i64,
    conditions: &[Condition],
) -> Result<Rows<'a, Modification>> {
    let query: Statement<volume_modifications::SqlType> = Statement::new(SELECT)
        .text(account_id)
        .sql(" AND m.volume_id > ")
        .text(after.unwrap_or_default())
        // Said of both, so that no plan walks through one of them from its beginning.
        .sql(" AND v.id > ")
        .text(after.unwrap_or_default())
        .conditions(conditions, TAGS)
        .sql(" ORDER BY m.volume_id LIMIT ")
        .number(limit);
    query.rows(conn).await
}
