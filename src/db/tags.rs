//! Tags of volumes, snapshots and instances.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::schema::tags;
use super::{Conn, Result};

/// Removes every tag of a resource that is gone.
pub async fn delete_of_resource(conn: &mut Conn, resource_id: &str) -> Result<()> {
    diesel::delete(tags::table.filter(tags::resource_id.eq(resource_id))).execute(conn).await?;
    Ok(())
}
