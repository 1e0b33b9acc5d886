//! The attributes of a volume that no describe of volumes shows.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::schema::volumes;
use super::{Conn, Result};
use crate::ids::VolumeId;

/// Whether I/O shall go on by itself after the volume's data may have become inconsistent.
pub async fn auto_enable_io(conn: &mut Conn, id: &VolumeId) -> Result<bool> {
    Ok(volumes::table.find(id).select(volumes::auto_enable_io).first(conn).await.optional()?.unwrap_or(false))
}

/// Changes that.
pub async fn set_auto_enable_io(conn: &mut Conn, id: &VolumeId, value: bool) -> Result<()> {
    diesel::update(volumes::table.find(id)).set(volumes::auto_enable_io.eq(value)).execute(conn).await?;
    Ok(())
}
