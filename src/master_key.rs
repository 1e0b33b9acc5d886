//! The change of a master key while gateways run: every stored secret is encrypted anew under the first of the keys at hand.

use std::collections::BTreeMap;

use crate::db::sealed_secrets::{self, Owner, SealedSecret};
use crate::db::{self, Conn};
use crate::seal::{self, SealError, Sealer};

/// What a rotation did.
#[derive(Debug, Default)]
pub struct Rotated {
    /// Secrets that were encrypted anew.
    pub renewed: usize,
    /// Those that none of the keys opens, and why. They stay as they are.
    pub unopened: Vec<(Owner, SealError)>,
}

/// Encrypts anew what is not encrypted under the sealer's first key. Broken off, it goes on where it was.
pub async fn rotate(conn: &mut Conn, sealer: &Sealer) -> db::Result<Rotated> {
    let mut done = Rotated::default();
    let mut page = sealed_secrets::next(conn, None).await?;
    while let Some(SealedSecret { owner: last, .. }) = page.last().cloned() {
        for secret in page {
            match sealer.renew(&secret.sealed, &secret.owner.row_id()) {
                Ok(None) => {}
                // One that is another by now was sealed by a gateway, under the key which that gateway has.
                Ok(Some(anew)) => {
                    done.renewed += usize::from(sealed_secrets::replace(conn, &secret, &anew).await?);
                }
                Err(error) => done.unopened.push((secret.owner, error)),
            }
        }
        page = sealed_secrets::next(conn, Some(&last)).await?;
    }
    Ok(done)
}

/// How many secrets are encrypted under each key, by its name.
pub async fn count(conn: &mut Conn) -> db::Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    let mut page = sealed_secrets::next(conn, None).await?;
    while let Some(last) = page.last() {
        for secret in &page {
            *counts.entry(seal::key_name(&secret.sealed).unwrap_or_default()).or_default() += 1;
        }
        page = sealed_secrets::next(conn, Some(&last.owner)).await?;
    }
    Ok(counts)
}
