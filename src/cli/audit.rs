//! `vbs audit`

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::ConfigFile;
use crate::db::Conn;
use crate::db::workflows::{self, DIFFERENCE};
use crate::workers::audit;

/// How long a gateway may take to take an audit up.
const TAKEN_UP: Duration = Duration::from_secs(20);
/// How long an audit may take.
const DONE: Duration = Duration::from_secs(120);
/// The pause between two looks at the database.
const LOOK: Duration = Duration::from_millis(200);

/// Compare what the nodes have with what the database says.
#[derive(clap::Args)]
pub struct Audit {
    /// Have repaired at once what can be, wait for that, and look again
    #[arg(long)]
    repair: bool,
    /// How long to wait for repairs, in seconds
    #[arg(long, default_value_t = 60)]
    wait: u64,
    #[command(flatten)]
    file: ConfigFile,
}

impl Audit {
    /// Runs it.
    pub async fn run(self) -> super::Result {
        let mut conn = self.file.connect().await?;
        let mut found = look(&mut conn, self.repair).await?;
        print(&found);
        if self.repair && !found.is_empty() {
            let end = Instant::now() + Duration::from_secs(self.wait);
            while Instant::now() < end && workflows::any_repair(&mut conn).await? {
                sleep(LOOK).await;
            }
            found = look(&mut conn, false).await?;
            println!("after the repair:");
            print(&found);
        }
        match found.len() {
            0 => Ok(()),
            1 => Err("1 difference".into()),
            count => Err(format!("{count} differences").into()),
        }
    }
}

fn print(found: &[String]) {
    for line in found {
        println!("{line}");
    }
}

/// Has a gateway look, and waits for what it found.
async fn look(conn: &mut Conn, repair: bool) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let key = audit::enqueue(conn, repair).await?;
    workflows::notify(conn).await?;
    let begun = Instant::now();
    loop {
        sleep(LOOK).await;
        let Some(row) = workflows::find_by_lock_key(conn, &key).await? else {
            return Err("somebody has removed the audit".into());
        };
        if row.finished_at.is_some() {
            if row.outcome.as_deref() != Some("succeeded") {
                return Err(row.reason.unwrap_or_else(|| "the audit has failed".into()).into());
            }
            let (_, events) = workflows::show(conn, row.id).await?.ok_or("somebody has removed the audit")?;
            return Ok(events.into_iter().filter(|event| event.event == DIFFERENCE).map(|e| e.detail).collect());
        }
        if begun.elapsed() > TAKEN_UP && workflows::withdraw(conn, row.id).await? {
            return Err(
                format!("no gateway has taken the audit up within {} s: is one running?", TAKEN_UP.as_secs()).into()
            );
        }
        if begun.elapsed() > DONE {
            return Err(format!("the audit is still under way: vbs workflow show {}", row.id).into());
        }
    }
}
