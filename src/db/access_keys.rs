//! Access keys: who signs a request, and with what secret.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::schema::{access_keys, accounts, quotas};
use super::{Conn, Result};

/// An access key, its secret still sealed.
#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = access_keys, check_for_backend(diesel::pg::Pg))]
pub struct AccessKey {
    /// The access key id.
    pub id: String,
    /// Whose it is.
    pub account_id: String,
    /// See [`crate::seal`]; the row id is the access key id.
    pub sealed_secret: Vec<u8>,
    /// Whether it is accepted.
    pub enabled: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// Stores a new key.
pub async fn create(conn: &mut Conn, id: &str, account_id: &str, sealed_secret: &[u8]) -> Result<()> {
    diesel::insert_into(access_keys::table)
        .values((
            access_keys::id.eq(id),
            access_keys::account_id.eq(account_id),
            access_keys::sealed_secret.eq(sealed_secret),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// The key, if it and its account are enabled, and whether the account has quotas of its own.
pub async fn find_enabled(conn: &mut Conn, id: &str) -> Result<Option<(AccessKey, bool)>> {
    Ok(access_keys::table
        .inner_join(accounts::table)
        .left_join(quotas::table.on(quotas::account_id.eq(access_keys::account_id)))
        .filter(access_keys::id.eq(id).and(access_keys::enabled).and(accounts::enabled))
        .select((AccessKey::as_select(), quotas::account_id.nullable().is_not_null()))
        .first(conn)
        .await
        .optional()?)
}

/// The keys of an account, or all of them, oldest first.
pub async fn list(conn: &mut Conn, account_id: Option<&str>) -> Result<Vec<AccessKey>> {
    let mut query = access_keys::table.select(AccessKey::as_select()).order(access_keys::created_at).into_boxed();
    if let Some(account_id) = account_id {
        query = query.filter(access_keys::account_id.eq(account_id));
    }
    Ok(query.load(conn).await?)
}

/// Lets the key be accepted, or not. Tells whether there is such a key.
pub async fn set_enabled(conn: &mut Conn, id: &str, enabled: bool) -> Result<bool> {
    let rows = diesel::update(access_keys::table.find(id)).set(access_keys::enabled.eq(enabled)).execute(conn).await?;
    Ok(rows == 1)
}

/// Deletes the key. Tells whether there was one.
pub async fn delete(conn: &mut Conn, id: &str) -> Result<bool> {
    Ok(diesel::delete(access_keys::table.find(id)).execute(conn).await? == 1)
}

/// Asks to be told of changed keys and accounts, on a connection kept for that.
pub async fn listen(conn: &mut Conn) -> Result<()> {
    diesel::sql_query("LISTEN vbs_access_keys").execute(conn).await?;
    Ok(())
}
