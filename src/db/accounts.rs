//! Accounts: whose a resource is.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::schema::accounts;
use super::{Conn, Result};

/// An account.
#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = accounts, check_for_backend(diesel::pg::Pg))]
pub struct Account {
    /// Twelve digits.
    pub id: String,
    /// What the operator calls it; unique.
    pub name: String,
    /// Whether its keys are accepted.
    pub enabled: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// Makes an account.
pub async fn create(conn: &mut Conn, id: &str, name: &str) -> Result<Account> {
    Ok(diesel::insert_into(accounts::table)
        .values((accounts::id.eq(id), accounts::name.eq(name)))
        .returning(Account::as_returning())
        .get_result(conn)
        .await?)
}

/// All accounts, by name.
pub async fn list(conn: &mut Conn) -> Result<Vec<Account>> {
    Ok(accounts::table.select(Account::as_select()).order(accounts::name).load(conn).await?)
}

/// Finds an account by its id or its name; where one account's name is another's id, the id counts.
pub async fn find(conn: &mut Conn, id_or_name: &str) -> Result<Option<Account>> {
    Ok(accounts::table
        .filter(accounts::id.eq(id_or_name).or(accounts::name.eq(id_or_name)))
        .order(accounts::id.eq(id_or_name).desc())
        .select(Account::as_select())
        .first(conn)
        .await
        .optional()?)
}

/// Lets the account's keys be accepted, or not. Tells whether there is such an account.
pub async fn set_enabled(conn: &mut Conn, id: &str, enabled: bool) -> Result<bool> {
    let rows = diesel::update(accounts::table.find(id)).set(accounts::enabled.eq(enabled)).execute(conn).await?;
    Ok(rows == 1)
}

/// Deletes an account that has no keys and no resources; foreign keys refuse any other.
pub async fn delete(conn: &mut Conn, id: &str) -> Result<bool> {
    Ok(diesel::delete(accounts::table.find(id)).execute(conn).await? == 1)
}
