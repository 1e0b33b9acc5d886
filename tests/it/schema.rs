//! The schema itself: what it would cost later.

use diesel::sql_types::BigInt;
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use tokio_postgres::NoTls;
use vbs::db::{self, Conn, workflows};

use crate::support::postgres;

/// A row that is deleted looks for what goes with it, each time. Without an index that is a walk through the whole other table, and
/// forgetting what was deleted a day ago would one day take longer than a statement may.
#[tokio::test]
async fn what_goes_with_another_row_is_found_by_an_index() {
    const WITHOUT: &str = "SELECT conname::text FROM pg_constraint c WHERE contype = 'f' AND confdeltype = 'c' \
        AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.conrelid AND i.indpred IS NULL \
            AND i.indkey[0] = ANY (c.conkey))";
    let (client, connection) = tokio_postgres::connect(&postgres::database().await, NoTls).await.unwrap();
    tokio::spawn(connection);
    let names: Vec<String> = client.query(WITHOUT, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(names, Vec::<String>::new());
}

/// A planner that has last seen no live workflows takes any index that holds only those for as good as the one that a query is about.
/// On a bad day it then reads all that are live, for each one that it claims.
#[tokio::test]
async fn a_workflow_is_claimed_and_ended_without_reading_all_others() {
    const CLAIMED: usize = 64;
    let pool = db::Pool::new(&postgres::database().await, 1).unwrap();
    let mut conn = pool.get().await.unwrap();
    conn.batch_execute(
        "ALTER TABLE workflows SET (autovacuum_enabled = false); \
         INSERT INTO workflows (kind, lock_key, volume_id, lane, params, outcome, finished_at) \
         SELECT 'create_volume', 'vol-' || n, 'vol-' || n, 'storage', '{}', 'succeeded', now() FROM generate_series(1, 20000) n; \
         ANALYZE workflows; \
         INSERT INTO workflows (kind, lock_key, volume_id, lane, params) \
         SELECT 'create_volume', 'vol-' || n, 'vol-' || n, 'storage', '{}' FROM generate_series(1, 20000) n; BEGIN",
    )
    .await
    .unwrap();
    let claimed = workflows::claim(&mut conn, "me", 30, CLAIMED, &[]).await.unwrap();
    assert_eq!(claimed.len(), CLAIMED);
    let read = rows_read(&mut conn).await;
    assert!(read <= 8 * i64::try_from(CLAIMED).unwrap(), "{read} rows for {CLAIMED}");
    let one = &claimed[0];
    assert!(workflows::finish(&mut conn, one.id, one.lease_generation, "succeeded", "").await.unwrap());
    let more = rows_read(&mut conn).await - read;
    assert!(more <= 8, "{more} rows for the end of one");
}

/// Rows of workflows that this transaction has read.
async fn rows_read(conn: &mut Conn) -> i64 {
    #[derive(diesel::QueryableByName)]
    struct Read {
        #[diesel(sql_type = BigInt)]
        rows: i64,
    }
    const ROWS: &str =
        "SELECT seq_tup_read + idx_tup_fetch AS rows FROM pg_stat_xact_user_tables WHERE relname = 'workflows'";
    diesel::sql_query(ROWS).get_result::<Read>(conn).await.unwrap().rows
}
