//! The schema itself: what it would cost later.

use tokio_postgres::NoTls;

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
