//! Tags of volumes, snapshots and instances.

use std::collections::BTreeMap;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::schema::tags;
use super::{Conn, Result};

/// The tags of a resource, by key.
pub async fn of_resource(conn: &mut Conn, resource_id: &str) -> Result<BTreeMap<String, String>> {
    let found = tags::table.filter(tags::resource_id.eq(resource_id)).select((tags::key, tags::value));
    Ok(found.load::<(String, String)>(conn).await?.into_iter().collect())
}

/// Removes every tag of a resource that is gone.
pub async fn delete_of_resource(conn: &mut Conn, resource_id: &str) -> Result<()> {
    diesel::delete(tags::table.filter(tags::resource_id.eq(resource_id))).execute(conn).await?;
    Ok(())
}
