//! A look at the rows past every gateway, also after the database has been away.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row};

/// How long the database may be away.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Rows {
    url: String,
    client: Mutex<Option<Client>>,
}

impl Rows {
    pub fn of(url: &str) -> Self {
        Self { url: url.to_owned(), client: Mutex::default() }
    }

    /// What a query finds. It is asked again while the database is away.
    pub async fn query(&self, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        let begun = Instant::now();
        let mut kept = self.client.lock().await;
        loop {
            if let Some(client) = &*kept {
                match client.query(query, parameters).await {
                    Ok(rows) => return rows,
                    Err(error) if begun.elapsed() > PATIENCE => panic!("{query}: {error:?}"),
                    Err(_) => {}
                }
            }
            *kept = None;
            match tokio_postgres::connect(&self.url, NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    *kept = Some(client);
                }
                Err(error) if begun.elapsed() > PATIENCE => panic!("{error:?}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}
