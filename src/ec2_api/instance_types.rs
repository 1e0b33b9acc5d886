//! DescribeInstanceTypes: the shapes of the account's machines, as types of their own.
//!
//! A machine of two processors and 4 GiB is a `vbs.2x4096`; there are as many types as the machines have shapes. Clients ask
//! for how many volumes fit (`maximumEbsAttachments`), so that is what is told beside processors and memory.

use futures_util::stream;

use crate::db::instances::{self, Shape};

use super::error::{ApiError, ApiResult};
use super::faults::{clip, invalid_value};
use super::filters::{self, Filter};
use super::paging::{Onward, PageParams, PageRules};
use super::query::Params;
use super::xml::Xml;
use super::{Api, Call};

const PAGES: PageRules = PageRules { ids_set: "instanceTypes", kind: "instance-type", zero_is_none: false };
/// The most types of one request, as on EC2.
const MOST_TYPES: usize = 100;

/// DescribeInstanceTypes.
pub async fn describe(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let names = params.list("InstanceType")?;
    let filters = params.filters()?;
    let page = PageParams::take(&mut params)?;
    params.boolean("IncludeUnsupportedInRegion")?;
    params.finish()?;
    call.stop_if_dry_run()?;
    let mut page = page.check(PAGES, !names.is_empty())?;
    if names.len() > MOST_TYPES {
        return Err(invalid_value(format!("At most {MOST_TYPES} instance types can be specified on a single call.")));
    }
    let filters = filters::check(filters, &FILTERS)?;
    let shapes = instances::shapes(&mut *api.pool.get().await?, &call.caller.account_id).await?;
    let mut types: Vec<(String, Shape)> = shapes.into_iter().map(|shape| (name(shape), shape)).collect();
    types.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let unknown: Vec<&str> =
        names.iter().filter(|asked| types.iter().all(|(name, _)| name != *asked)).map(|asked| clip(asked)).collect();
    if !unknown.is_empty() {
        let text = format!("The following supplied instance types do not exist: [{}]", unknown.join(", "));
        return Err(ApiError::new("InvalidInstanceType", text));
    }
    let most = api.quotas.attachments;
    types.retain(|(name, shape)| {
        (names.is_empty() || names.contains(name)) && filters.iter().all(|filter| selects(filter, name, *shape, most))
    });
    let mut xml = call.answer();
    xml.open("instanceTypeSet");
    let token = loop {
        let behind = types.partition_point(|(name, _)| page.after.as_ref().is_some_and(|after| name <= after));
        let fetch = usize::try_from(page.fetch()).unwrap_or(usize::MAX);
        let rows = stream::iter(types[behind..].iter().take(fetch).map(Ok::<_, ApiError>));
        let onward =
            page.write(&mut xml, rows, |row| row.0.clone(), |xml, (name, shape)| item(xml, name, *shape, most));
        match onward.await? {
            Onward::Fetch => {}
            Onward::End => break None,
            Onward::Token(token) => break Some(token),
        }
    };
    xml.close("instanceTypeSet").optional("nextToken", token.as_deref());
    Ok(xml.finish())
}

/// The type of a machine of this shape.
pub fn name(shape: Shape) -> String {
    format!("vbs.{}x{}", shape.vcpus, shape.memory_mib)
}

/// Whether a filter selects the type. What is not told of a type matches nothing.
fn selects(filter: &Filter, name: &str, shape: Shape, attachments: u16) -> bool {
    let any = |texts: &[&str]| texts.iter().any(|text| filter.matches(text));
    match filter.name.as_str() {
        "auto-recovery-supported"
        | "bare-metal"
        | "burstable-performance-supported"
        | "dedicated-hosts-supported"
        | "free-tier-eligible"
        | "hibernation-supported"
        | "instance-storage-supported" => any(&["false"]),
        "current-generation" => any(&["true"]),
        "ebs-info.attachment-limit-type" => any(&["dedicated"]),
        "ebs-info.maximum-ebs-attachments" => any(&[&attachments.to_string()]),
        "ebs-info.ebs-optimized-support"
        | "ebs-info.encryption-support"
        | "ebs-info.nvme-support"
        | "nitro-enclaves-support"
        | "nitro-tpm-support" => any(&["unsupported"]),
        "hypervisor" => any(&["xen"]),
        "instance-type" => any(&[name]),
        "memory-info.size-in-mib" => any(&[&shape.memory_mib.to_string()]),
        "processor-info.supported-architecture" => any(&["x86_64"]),
        "supported-root-device-type" => any(&["instance-store"]),
        "supported-usage-class" => any(&["on-demand"]),
        "supported-virtualization-type" => any(&["hvm"]),
        "vcpu-info.default-cores" | "vcpu-info.default-vcpus" => any(&[&shape.vcpus.to_string()]),
        "vcpu-info.default-threads-per-core" => any(&["1"]),
        _ => false,
    }
}

fn item(xml: &mut Xml, name: &str, shape: Shape, attachments: u16) {
    let one = |xml: &mut Xml, list: &str, text: &str| {
        xml.element(list, |xml| {
            xml.text("item", text);
        });
    };
    xml.text("instanceType", name).plain("currentGeneration", true).plain("freeTierEligible", false);
    one(xml, "supportedUsageClasses", "on-demand");
    one(xml, "supportedRootDeviceTypes", "instance-store");
    one(xml, "supportedVirtualizationTypes", "hvm");
    xml.plain("bareMetal", false).text("hypervisor", "xen");
    xml.element("processorInfo", |xml| one(xml, "supportedArchitectures", "x86_64"));
    xml.element("vCpuInfo", |xml| {
        xml.plain("defaultVCpus", shape.vcpus).plain("defaultCores", shape.vcpus).plain("defaultThreadsPerCore", 1);
    });
    xml.element("memoryInfo", |xml| {
        xml.plain("sizeInMiB", shape.memory_mib);
    });
    xml.plain("instanceStorageSupported", false);
    xml.element("ebsInfo", |xml| {
        xml.text("ebsOptimizedSupport", "unsupported")
            .text("encryptionSupport", "unsupported")
            .text("nvmeSupport", "unsupported")
            .plain("maximumEbsAttachments", attachments)
            .text("attachmentLimitType", "dedicated")
            .plain("maximumEbsCards", 1)
            .set("ebsCardSet", [0], |xml, card| {
                xml.plain("ebsCardIndex", card);
            });
    });
    xml.plain("hibernationSupported", false)
        .plain("burstablePerformanceSupported", false)
        .plain("dedicatedHostsSupported", false)
        .plain("autoRecoverySupported", false)
        .text("nitroEnclavesSupport", "unsupported")
        .text("nitroTpmSupport", "unsupported")
        .plain("supportedInRegion", true);
}

const FILTERS: [&str; 56] = [
    "auto-recovery-supported",
    "bare-metal",
    "burstable-performance-supported",
    "current-generation",
    "dedicated-hosts-supported",
    "ebs-info.attachment-limit-type",
    "ebs-info.ebs-optimized-info.baseline-bandwidth-in-mbps",
    "ebs-info.ebs-optimized-info.baseline-iops",
    "ebs-info.ebs-optimized-info.baseline-throughput-in-mbps",
    "ebs-info.ebs-optimized-info.maximum-bandwidth-in-mbps",
    "ebs-info.ebs-optimized-info.maximum-iops",
    "ebs-info.ebs-optimized-info.maximum-throughput-in-mbps",
    "ebs-info.ebs-optimized-support",
    "ebs-info.encryption-support",
    "ebs-info.maximum-ebs-attachments",
    "ebs-info.nvme-support",
    "free-tier-eligible",
    "hibernation-supported",
    "hypervisor",
    "instance-storage-info.disk.count",
    "instance-storage-info.disk.size-in-gb",
    "instance-storage-info.disk.type",
    "instance-storage-info.encryption-support",
    "instance-storage-info.nvme-support",
    "instance-storage-info.total-size-in-gb",
    "instance-storage-supported",
    "instance-type",
    "memory-info.size-in-mib",
    "network-info.bandwidth-weightings",
    "network-info.efa-info.maximum-efa-interfaces",
    "network-info.efa-supported",
    "network-info.ena-support",
    "network-info.encryption-in-transit-supported",
    "network-info.flexible-ena-queues-support",
    "network-info.ipv4-addresses-per-interface",
    "network-info.ipv6-addresses-per-interface",
    "network-info.ipv6-supported",
    "network-info.maximum-network-cards",
    "network-info.maximum-network-interfaces",
    "network-info.network-performance",
    "nitro-enclaves-support",
    "nitro-tpm-info.supported-versions",
    "nitro-tpm-support",
    "processor-info.supported-architecture",
    "processor-info.supported-features",
    "processor-info.sustained-clock-speed-in-ghz",
    "reboot-migration-support",
    "supported-boot-mode",
    "supported-root-device-type",
    "supported-usage-class",
    "supported-virtualization-type",
    "vcpu-info.default-cores",
    "vcpu-info.default-threads-per-core",
    "vcpu-info.default-vcpus",
    "vcpu-info.valid-cores",
    "vcpu-info.valid-threads-per-core",
];
