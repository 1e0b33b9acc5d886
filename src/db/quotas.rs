//! Quotas: what an account may have, and what it has.
//!
//! What an account has is counted when somebody asks, which for an account without a quota nobody does. A quota is held under
//! any number of creates at once: whoever takes of one holds the account's quotas from before the look until the transaction
//! ends.
//!
//! Whoever holds rows too takes those first: nobody who holds an account's quotas waits for anything else.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel_async::RunQueryDsl;

use super::schema::quotas;
use super::statement::Statement;
use super::{Conn, Result};
use crate::config;

/// A number for each thing that there is a quota of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Volumes.
    pub volumes: i64,
    /// GiB of volumes.
    pub gib: i64,
    /// IOPS of io1 and io2 volumes.
    pub iops: i64,
    /// Snapshots.
    pub snapshots: i64,
}

/// The most of each thing; `None` is no end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Queryable, Selectable, AsChangeset)]
#[diesel(table_name = quotas, check_for_backend(diesel::pg::Pg), treat_none_as_null = true)]
#[allow(missing_docs, reason = "the fields are those of Counts")]
pub struct Most {
    pub volumes: Option<i64>,
    pub gib: Option<i64>,
    pub iops: Option<i64>,
    pub snapshots: Option<i64>,
}

/// A quota that is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The number of volumes, with the most there may be.
    Volumes(i64),
    /// Their GiB.
    Gib(i64),
    /// The IOPS of io1 and io2 volumes.
    Iops(i64),
    /// The number of snapshots.
    Snapshots(i64),
}

impl From<&config::Quotas> for Most {
    fn from(quotas: &config::Quotas) -> Self {
        Self {
            volumes: quotas.volumes.map(i64::from),
            gib: quotas.gib.map(i64::from),
            iops: quotas.iops.map(i64::from),
            snapshots: quotas.snapshots.map(i64::from),
        }
    }
}

impl Most {
    /// Where the account has a number of its own that counts, elsewhere this.
    fn unless(self, own: Self) -> Self {
        Self {
            volumes: own.volumes.or(self.volumes),
            gib: own.gib.or(self.gib),
            iops: own.iops.or(self.iops),
            snapshots: own.snapshots.or(self.snapshots),
        }
    }

    /// The first quota that has no room for what is wanted beside what there is. What is not wanted needs no room.
    fn full(&self, used: Counts, wanted: Counts) -> Option<Full> {
        let over = |used: i64, wanted: i64, most: Option<i64>| most.filter(|most| wanted > 0 && used + wanted > *most);
        over(used.volumes, wanted.volumes, self.volumes)
            .map(Full::Volumes)
            .or_else(|| over(used.gib, wanted.gib, self.gib).map(Full::Gib))
            .or_else(|| over(used.iops, wanted.iops, self.iops).map(Full::Iops))
            .or_else(|| over(used.snapshots, wanted.snapshots, self.snapshots).map(Full::Snapshots))
    }
}

/// Takes of an account's quotas, in the transaction that makes what is wanted: tells which is full, if one is.
pub async fn take(conn: &mut Conn, account_id: &str, default: Most, wanted: Counts) -> Result<Option<Full>> {
    let most = default.unless(own(conn, account_id).await?);
    if most == Most::default() {
        return Ok(None);
    }
    hold(conn, account_id).await?;
    Ok(most.full(used(conn, account_id).await?, wanted))
}

/// Keeps everybody else from taking of the account's quotas until the transaction ends. What is read in the statements after
/// this one is younger than the lock.
pub async fn hold(conn: &mut Conn, account_id: &str) -> Result<()> {
    diesel::sql_query("SELECT hold_quotas($1)").bind::<Text, _>(account_id).execute(conn).await?;
    Ok(())
}

/// What was set for this account alone.
pub async fn own(conn: &mut Conn, account_id: &str) -> Result<Most> {
    let row = quotas::table.find(account_id).select(Most::as_select()).first(conn).await.optional()?;
    Ok(row.unwrap_or_default())
}

/// Sets what is for this account alone.
pub async fn set_own(conn: &mut Conn, account_id: &str, most: Most) -> Result<()> {
    diesel::insert_into(quotas::table)
        .values((
            quotas::account_id.eq(account_id),
            quotas::volumes.eq(most.volumes),
            quotas::gib.eq(most.gib),
            quotas::iops.eq(most.iops),
            quotas::snapshots.eq(most.snapshots),
        ))
        .on_conflict(quotas::account_id)
        .do_update()
        .set(most)
        .execute(conn)
        .await?;
    Ok(())
}

/// What an account has; of a volume that is being modified, what it shall be.
pub async fn used(conn: &mut Conn, account_id: &str) -> Result<Counts> {
    let statement: Statement<(BigInt, BigInt, BigInt, BigInt)> = Statement::new(
        "SELECT count(*), coalesce(sum(coalesce(target_size_gib, size_gib)), 0)::bigint, \
         coalesce(sum(coalesce(target_iops, iops)) \
            FILTER (WHERE coalesce(target_type, volume_type) IN ('io1', 'io2')), 0)::bigint, \
         (SELECT count(*) FROM snapshots WHERE account_id = ",
    )
    .text(account_id)
    .sql(
        ") FROM volumes LEFT JOIN volume_modifications m ON m.volume_id = volumes.id AND m.state = 'modifying' \
         WHERE volumes.state <> 'deleted' AND volumes.account_id = ",
    )
    .text(account_id);
    let (volumes, gib, iops, snapshots) = statement.get_result(conn).await?;
    Ok(Counts { volumes, gib, iops, snapshots })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Counts = Counts { volumes: 1, gib: 10, iops: 0, snapshots: 0 };

    #[test]
    fn the_last_one_fits_and_one_more_does_not() {
        let most = Most { volumes: Some(5), gib: Some(100), ..Most::default() };
        let used = |volumes, gib| Counts { volumes, gib, ..Counts::default() };
        assert_eq!(most.full(used(4, 90), ONE), None);
        assert_eq!(most.full(used(5, 0), ONE), Some(Full::Volumes(5)));
        assert_eq!(most.full(used(0, 91), ONE), Some(Full::Gib(100)));
        assert_eq!(Most::default().full(used(i64::MAX - 100, 1 << 60), ONE), None);
    }

    #[test]
    fn who_is_over_a_quota_that_was_lowered_may_still_have_what_it_is_not_of() {
        let most = Most { volumes: Some(5), snapshots: Some(1), ..Most::default() };
        let used = Counts { volumes: 9, ..Counts::default() };
        assert_eq!(most.full(used, Counts { snapshots: 1, ..Counts::default() }), None);
    }

    #[test]
    fn an_accounts_own_number_counts_before_that_of_all() {
        let all = Most { volumes: Some(5), gib: Some(100), ..Most::default() };
        let own = Most { volumes: Some(7), ..Most::default() };
        assert_eq!(all.unless(own), Most { volumes: Some(7), gib: Some(100), ..Most::default() });
    }
}
