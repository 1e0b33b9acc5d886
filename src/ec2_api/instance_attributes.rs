//! DescribeInstanceAttribute and ModifyInstanceAttribute.
//!
//! What may be changed of an instance is whether its volumes go with it: `blockDeviceMapping` with DeleteOnTermination. The
//! rest is the hypervisor's to say, and is refused by name.

use diesel_async::AsyncConnection;

use crate::db::attachments::{self, Attachment};
use crate::db::instances::{self, Instance};
use crate::ids::InstanceId;
use crate::state::State;

use super::device;
use super::error::{ApiError, ApiResult};
use super::faults::{clip, clip_each, invalid_combination, invalid_value, missing, no_instance, not_a, unsupported};
use super::query::{DeviceParam, Params};
use super::resource_id::{self, Dialect};
use super::xml::Xml;
use super::{Api, Call, instance_types};

const MAPPING: &str = "blockDeviceMapping";

/// The attributes that EC2 has.
const ATTRIBUTES: [&str; 16] = [
    MAPPING,
    "disableApiStop",
    "disableApiTermination",
    "ebsOptimized",
    "enaSupport",
    "enclaveOptions",
    "groupSet",
    "instanceInitiatedShutdownBehavior",
    "instanceType",
    "kernel",
    "productCodes",
    "ramdisk",
    "rootDeviceName",
    "sourceDestCheck",
    "sriovNetSupport",
    "userData",
];

/// How ModifyInstanceAttribute names those that it changes on EC2 and not here.
const UNCHANGEABLE: [&str; 14] = [
    "DisableApiStop.Value",
    "DisableApiTermination.Value",
    "EbsOptimized.Value",
    "EnaSupport.Value",
    "EnclaveOptions.Enabled",
    "InstanceInitiatedShutdownBehavior.Value",
    "InstanceType.Value",
    "Kernel.Value",
    "ProductCodes.Value",
    "Ramdisk.Value",
    "RootDeviceName.Value",
    "SourceDestCheck.Value",
    "SriovNetSupport.Value",
    "UserData.Value",
];

/// DescribeInstanceAttribute.
pub async fn describe(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let (id, attribute) = (params.text("InstanceId"), params.filled("Attribute"));
    params.finish()?;
    call.stop_if_dry_run()?;
    let id: InstanceId = resource_id::required(id.as_deref(), Dialect::Instance)?;
    let attribute = known(&attribute.ok_or_else(|| missing("attribute"))?)?;
    let account = &*call.caller.account_id;
    let mut conn = api.pool.get().await?;
    let row = instances::find(&mut conn, &id).await?.filter(|row| row.account_id.as_deref() == Some(account));
    let row = row.ok_or_else(|| no_instance(&id))?;
    let mut xml = call.answer();
    xml.plain("instanceId", &id);
    match attribute {
        MAPPING => {
            let live = attachments::live_of_instance(&mut conn, &id).await?;
            xml.set(MAPPING, &live, mapping);
        }
        _ => show(&mut xml, attribute, &row)?,
    }
    Ok(xml.finish())
}

fn known(attribute: &str) -> ApiResult<&'static str> {
    ATTRIBUTES.iter().copied().find(|known| *known == attribute).ok_or_else(|| {
        let asked = clip(attribute);
        invalid_value(format!("Value ({asked}) for parameter attribute is invalid. Unknown attribute."))
    })
}

/// An attribute with its value. Machines are stopped and ended by who runs them, never by this API.
fn show(xml: &mut Xml, attribute: &'static str, row: &Instance) -> ApiResult<()> {
    let value = match attribute {
        "disableApiStop" | "disableApiTermination" => "true",
        "ebsOptimized" | "enaSupport" => "false",
        "instanceInitiatedShutdownBehavior" => "stop",
        "instanceType" => &instance_types::name(row.shape()),
        "rootDeviceName" => "/dev/sda1",
        "enclaveOptions" => {
            xml.element(attribute, |xml| {
                xml.plain("enabled", false);
            });
            return Ok(());
        }
        "groupSet" | "kernel" | "productCodes" | "ramdisk" | "sriovNetSupport" | "userData" => {
            xml.text(attribute, "");
            return Ok(());
        }
        _ => return Err(refused(attribute)),
    };
    xml.element(attribute, |xml| {
        xml.text("value", value);
    });
    Ok(())
}

fn refused(attribute: &str) -> ApiError {
    unsupported(format!("The instance attribute {attribute} is not supported here."))
}

fn mapping(xml: &mut Xml, row: &Attachment) {
    xml.text("deviceName", &row.device).element("ebs", |xml| {
        xml.plain("volumeId", &row.volume_id)
            .text("status", super::instances::attachment_status(row.state.text()))
            .second("attachTime", row.attached_at)
            .plain("deleteOnTermination", row.delete_on_termination);
    });
}

/// A volume of the instance, by its device, and whether it is to go with the instance.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    device: String,
    volume: Option<String>,
    delete: bool,
}

/// ModifyInstanceAttribute, in the two forms that clients send: the attribute's own parameters, or `Attribute` and `Value`.
pub async fn modify(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let id = params.text("InstanceId");
    let changes = changes(&mut params)?;
    params.finish()?;
    let id: InstanceId = resource_id::required(id.as_deref(), Dialect::Instance)?;
    let account = &*call.caller.account_id;
    let mut conn = api.pool.get().await?;
    super::attachments::find_instance(&mut conn, account, &id).await?;
    call.stop_if_dry_run()?;
    if changes.is_empty() {
        return Err(invalid_combination("No attributes specified."));
    }
    conn.transaction(async |conn| {
        // So that it does not change hands, nor end, meanwhile.
        let held = instances::hold(conn, &id).await?;
        super::attachments::owned(held, account).ok_or_else(|| no_instance(&id))?;
        let live = attachments::live_of_instance(conn, &id).await?;
        let mut missing = Vec::new();
        for change in &changes {
            let key = device::key(&change.device);
            let named = |row: &&Attachment| key.is_some() && device::key(&row.device) == key;
            let same = |row: &&Attachment| change.volume.as_ref().is_none_or(|id| id == row.volume_id.as_str());
            match live.iter().find(|row| named(row) && same(row)) {
                Some(row) => attachments::set_delete_on_termination(conn, row.id, change.delete).await?,
                None => missing.push(change.device.as_str()),
            }
        }
        if missing.is_empty() { Ok::<_, ApiError>(()) } else { Err(unmapped(&missing)) }
    })
    .await?;
    Ok(call.done())
}

fn unmapped(devices: &[&str]) -> ApiError {
    let text = format!("No device is currently mapped at {}", clip_each(devices));
    ApiError::new("InvalidInstanceAttributeValue", text)
}

fn changes(params: &mut Params) -> ApiResult<Vec<Change>> {
    if let Some(name) = UNCHANGEABLE.iter().find(|name| params.text(name).is_some()) {
        let attribute = name.split('.').next().unwrap_or(name);
        return Err(refused(&super::faults::lower_first(attribute)));
    }
    if !params.list("GroupId")?.is_empty() {
        return Err(refused("groupSet"));
    }
    let mut changes = params.devices()?.into_iter().map(read).collect::<ApiResult<Vec<_>>>()?;
    let value = params.text("Value");
    match (params.filled("Attribute"), value) {
        (None, None) => {}
        (None, Some(_)) => return Err(missing("attribute")),
        (Some(attribute), value) => {
            let attribute = known(&attribute)?;
            if attribute != MAPPING {
                return Err(refused(attribute));
            }
            if let Some(value) = value {
                // As boto spells it: the device, and after an equals sign true or false.
                let (device, flag) = value.split_once('=').unwrap_or((&value, "true"));
                changes.push(Change { device: device.to_owned(), volume: None, delete: boolean(flag)? });
            }
        }
    }
    Ok(changes)
}

fn read(param: DeviceParam) -> ApiResult<Change> {
    let DeviceParam { device, volume, delete_on_termination: delete } = param;
    let device = device.filter(|device| !device.is_empty()).ok_or_else(|| missing("deviceName"))?;
    // EC2's documentation: "If no value is specified […], the default is true."
    Ok(Change { device, volume: volume.filter(|volume| !volume.is_empty()), delete: delete.unwrap_or(true) })
}

fn boolean(text: &str) -> ApiResult<bool> {
    text.to_ascii_lowercase().parse().map_err(|_| not_a(text, "Value", "boolean"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ec2_api::query::Query;

    fn read(form: &str) -> ApiResult<Vec<Change>> {
        let mut params = Query::decode(b"", form.as_bytes()).unwrap().params;
        let changes = changes(&mut params)?;
        params.finish().map(|()| changes)
    }

    fn change(device: &str, volume: Option<&str>, delete: bool) -> Change {
        Change { device: device.into(), volume: volume.map(Into::into), delete }
    }

    #[test]
    fn both_forms_mean_the_same_and_without_a_word_the_volume_goes() {
        let own = "BlockDeviceMapping.1.DeviceName=%2Fdev%2Fsdf&BlockDeviceMapping.1.Ebs.DeleteOnTermination=false";
        assert_eq!(read(own).unwrap(), [change("/dev/sdf", None, false)]);
        let named = format!("Attribute=blockDeviceMapping&{own}");
        assert_eq!(read(&named).unwrap(), [change("/dev/sdf", None, false)]);
        let value = "Attribute=blockDeviceMapping&Value=%2Fdev%2Fsdf%3Dfalse";
        assert_eq!(read(value).unwrap(), [change("/dev/sdf", None, false)]);
        let more = "BlockDeviceMapping.1.DeviceName=sdf&BlockDeviceMapping.2.DeviceName=sdg\
                    &BlockDeviceMapping.2.Ebs.VolumeId=vol-0123abcd&BlockDeviceMapping.2.Ebs.DeleteOnTermination=TRUE";
        assert_eq!(read(more).unwrap(), [change("sdf", None, true), change("sdg", Some("vol-0123abcd"), true)]);
    }

    #[test]
    fn what_cannot_be_changed_is_refused_by_name() {
        for (form, text) in [
            ("InstanceType.Value=m5.large", "The instance attribute instanceType is not supported here."),
            ("Attribute=userData&Value=x", "The instance attribute userData is not supported here."),
            ("GroupId.1=sg-1", "The instance attribute groupSet is not supported here."),
            ("Attribute=colour&Value=red", "Value (colour) for parameter attribute is invalid. Unknown attribute."),
            ("Value=red", "The request must contain the parameter attribute"),
            (
                "Attribute=blockDeviceMapping&Value=sdf%3Dmaybe",
                "Value (maybe) for parameter value is invalid. Value must be a boolean.",
            ),
            ("BlockDeviceMapping.1.Colour=red", "The parameter BlockDeviceMapping.N.Colour is not recognized"),
        ] {
            assert_eq!(read(form).unwrap_err().message, text, "{form}");
        }
    }
}
