//! Every secret that is stored sealed (see [`crate::seal`]), wherever it is: for a change of the master key.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::schema::{access_keys, attachments};
use super::{Conn, Result};

/// Secrets looked at in one statement.
const PAGE: i64 = 500;

/// Whose secret it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// An access key, by its id.
    AccessKey(String),
    /// An attachment, by its id; the secret is that of its initiator.
    Attachment(Uuid),
}

/// A sealed secret.
#[derive(Debug, Clone)]
pub struct SealedSecret {
    /// Whose it is.
    pub owner: Owner,
    /// The secret.
    pub sealed: Vec<u8>,
}

impl Owner {
    /// What it was sealed for.
    pub fn row_id(&self) -> String {
        match self {
            Self::AccessKey(id) => id.clone(),
            Self::Attachment(id) => id.to_string(),
        }
    }
}

/// The secrets that come next, in the order of access keys, then attachments, each by id; none after the last.
pub async fn next(conn: &mut Conn, after: Option<&Owner>) -> Result<Vec<SealedSecret>> {
    let keys: Vec<(String, Vec<u8>)> = match after {
        Some(Owner::Attachment(_)) => Vec::new(),
        Some(Owner::AccessKey(id)) => page_of_keys(conn, id).await?,
        None => page_of_keys(conn, "").await?,
    };
    if !keys.is_empty() {
        let secret = |(id, sealed)| SealedSecret { owner: Owner::AccessKey(id), sealed };
        return Ok(keys.into_iter().map(secret).collect());
    }
    let last = match after {
        Some(Owner::Attachment(id)) => *id,
        _ => Uuid::nil(),
    };
    let rows: Vec<(Uuid, Vec<u8>)> = attachments::table
        .filter(attachments::id.gt(last))
        .select((attachments::id, attachments::sealed_chap_secret))
        .order(attachments::id)
        .limit(PAGE)
        .load(conn)
        .await?;
    Ok(rows.into_iter().map(|(id, sealed)| SealedSecret { owner: Owner::Attachment(id), sealed }).collect())
}

async fn page_of_keys(conn: &mut Conn, after: &str) -> Result<Vec<(String, Vec<u8>)>> {
    Ok(access_keys::table
        .filter(access_keys::id.gt(after))
        .select((access_keys::id, access_keys::sealed_secret))
        .order(access_keys::id)
        .limit(PAGE)
        .load(conn)
        .await?)
}

/// Stores a secret that was sealed anew. `false`, and nothing done, when it is another by now or its owner is gone.
pub async fn replace(conn: &mut Conn, secret: &SealedSecret, renewed: &[u8]) -> Result<bool> {
    let rows = match &secret.owner {
        Owner::AccessKey(id) => {
            diesel::update(access_keys::table.find(id).filter(access_keys::sealed_secret.eq(&secret.sealed)))
                .set(access_keys::sealed_secret.eq(renewed))
                .execute(conn)
                .await?
        }
        Owner::Attachment(id) => {
            diesel::update(attachments::table.find(id).filter(attachments::sealed_chap_secret.eq(&secret.sealed)))
                .set(attachments::sealed_chap_secret.eq(renewed))
                .execute(conn)
                .await?
        }
    };
    Ok(rows == 1)
}
