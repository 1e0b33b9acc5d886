//! DescribeVolumeAttribute, ModifyVolumeAttribute and EnableVolumeIO.
//!
//! `autoEnableIO` says what shall be done with a volume whose data may have become inconsistent. vbs never takes a volume's
//! I/O away, so it is kept and shown, and there is never anything to enable.

use crate::db::volume_attributes as rows;
use crate::ids::VolumeId;

use super::error::{ApiError, ApiResult};
use super::faults::{clip, invalid_combination, invalid_value};
use super::query::Params;
use super::resource_id::{self, Dialect};
use super::{Api, Call, volumes};

fn no_attributes() -> ApiError {
    invalid_combination("No attributes specified.")
}

/// DescribeVolumeAttribute: the one that is asked for.
pub async fn describe(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let (id, attribute) = (params.text("VolumeId"), params.filled("Attribute"));
    params.finish()?;
    call.stop_if_dry_run()?;
    let id: VolumeId = resource_id::required(id.as_deref(), Dialect::Volume)?;
    let attribute = attribute.ok_or_else(no_attributes)?;
    if !matches!(attribute.as_str(), "autoEnableIO" | "productCodes") {
        let text = format!("Value ({}) for parameter attribute is invalid. Unknown attribute.", clip(&attribute));
        return Err(invalid_value(text));
    }
    let mut conn = api.pool.get().await?;
    volumes::find(&mut conn, &call.caller.account_id, &id).await?;
    let mut xml = call.answer();
    xml.plain("volumeId", &id);
    if attribute == "autoEnableIO" {
        let value = rows::auto_enable_io(&mut conn, &id).await?;
        xml.element("autoEnableIO", |xml| {
            xml.plain("value", value);
        });
    } else {
        xml.text("productCodes", "");
    }
    Ok(xml.finish())
}

/// ModifyVolumeAttribute.
pub async fn modify(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let id = params.text("VolumeId");
    let auto_enable_io = params.boolean("AutoEnableIO.Value")?;
    params.finish()?;
    call.stop_if_dry_run()?;
    let id: VolumeId = resource_id::required(id.as_deref(), Dialect::VolumeAttribute)?;
    let value = auto_enable_io.ok_or_else(no_attributes)?;
    let mut conn = api.pool.get().await?;
    volumes::find(&mut conn, &call.caller.account_id, &id).await?;
    rows::set_auto_enable_io(&mut conn, &id, value).await?;
    Ok(call.done())
}

/// EnableVolumeIO.
pub async fn enable_io(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let id = params.text("VolumeId");
    params.finish()?;
    call.stop_if_dry_run()?;
    let id: VolumeId = resource_id::required(id.as_deref(), Dialect::Volume)?;
    volumes::find(&mut *api.pool.get().await?, &call.caller.account_id, &id).await?;
    Ok(call.done())
}
