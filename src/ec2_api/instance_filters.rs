//! The filters of DescribeInstances.
//!
//! EC2 knows far more of an instance than a block store does. The names it documents for attributes that no machine here has are
//! known all the same, and match nothing, as they do on EC2 for an instance without the attribute.

use crate::db::statement::{Condition, Subject, Values};

use super::filters::Filter;
use super::region::Region;
use super::tags;

/// Where an attachment is looked for: at each of the instance's live ones.
const PREFIX: &str = "block-device-mapping.";

/// Every filter of the action.
pub fn known() -> Vec<&'static str> {
    [PRESENT.as_slice(), ABSENT.as_slice()].concat()
}

/// What a filter looks at.
pub fn condition(filter: &Filter, region: &Region) -> Condition {
    let name = filter.name.as_str();
    if let Some(column) = name.strip_prefix(PREFIX) {
        let column = match column {
            "attach-time" => r#"to_char(b.attached_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS".000Z"')"#,
            "delete-on-termination" => "b.delete_on_termination::text",
            "device-name" => "b.device",
            "status" => "CASE b.state WHEN 'busy' THEN 'detaching' ELSE b.state END",
            _ => "b.volume_id",
        };
        return Condition { subject: Subject::Attachment("b.instance_id = i.id", column), values: filter.values() };
    }
    let expression = match name {
        "architecture" => "'x86_64'::text",
        "availability-zone" => "i.zone",
        "availability-zone-id" => {
            let zones = region.zones.iter().filter(|zone| filter.matches(&zone.id)).map(|zone| zone.name.clone());
            let values = Values { exact: zones.collect(), like: Vec::new() };
            return Condition { subject: Subject::Expression("i.zone"), values };
        }
        "ebs-optimized" | "operator.managed" => "'false'::text",
        "hypervisor" => "'xen'::text",
        "instance-id" => "i.id",
        "instance-state-code" => "CASE i.state WHEN 'running' THEN '16' WHEN 'stopped' THEN '80' ELSE '48' END",
        "instance-state-name" => "i.state",
        "instance-type" => "'vbs.' || i.vcpus || 'x' || i.memory_mib",
        "launch-index" => "'0'::text",
        "launch-time" => r#"to_char(i.launched_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"#,
        "monitoring-state" => "'disabled'::text",
        "owner-id" => "i.account_id",
        "private-dns-name" => "i.machine",
        "reservation-id" => "'r-' || substr(i.id, 3)",
        "root-device-name" => "'/dev/sda1'::text",
        "root-device-type" => "'instance-store'::text",
        "tenancy" => "'default'::text",
        "virtualization-type" => "'hvm'::text",
        _ if ABSENT.contains(&name) => "NULL::text",
        _ => return tags::condition(filter),
    };
    Condition { subject: Subject::Expression(expression), values: filter.values() }
}

const PRESENT: [&str; 28] = [
    "architecture",
    "availability-zone",
    "availability-zone-id",
    "block-device-mapping.attach-time",
    "block-device-mapping.delete-on-termination",
    "block-device-mapping.device-name",
    "block-device-mapping.status",
    "block-device-mapping.volume-id",
    "ebs-optimized",
    "hypervisor",
    "instance-id",
    "instance-state-code",
    "instance-state-name",
    "instance-type",
    "launch-index",
    "launch-time",
    "monitoring-state",
    "operator.managed",
    "owner-id",
    "private-dns-name",
    "reservation-id",
    "root-device-name",
    "root-device-type",
    "tag-key",
    "tag-value",
    "tag:",
    "tenancy",
    "virtualization-type",
];

const ABSENT: [&str; 109] = [
    "affinity",
    "boot-mode",
    "capacity-reservation-id",
    "capacity-reservation-specification.capacity-reservation-preference",
    "capacity-reservation-specification.capacity-reservation-target.capacity-reservation-id",
    "capacity-reservation-specification.capacity-reservation-target.capacity-reservation-resource-group-arn",
    "client-token",
    "current-instance-boot-mode",
    "dns-name",
    "ena-support",
    "enclave-options.enabled",
    "hibernation-options.configured",
    "host-id",
    "iam-instance-profile.arn",
    "iam-instance-profile.id",
    "image-id",
    "instance-lifecycle",
    "instance.group-id",
    "instance.group-name",
    "ip-address",
    "ipv6-address",
    "kernel-id",
    "key-name",
    "maintenance-options.auto-recovery",
    "metadata-options.http-endpoint",
    "metadata-options.http-protocol-ipv4",
    "metadata-options.http-protocol-ipv6",
    "metadata-options.http-put-response-hop-limit",
    "metadata-options.http-tokens",
    "metadata-options.instance-metadata-tags",
    "metadata-options.state",
    "network-interface.addresses.association.allocation-id",
    "network-interface.addresses.association.association-id",
    "network-interface.addresses.association.carrier-ip",
    "network-interface.addresses.association.customer-owned-ip",
    "network-interface.addresses.association.ip-owner-id",
    "network-interface.addresses.association.public-dns-name",
    "network-interface.addresses.association.public-ip",
    "network-interface.addresses.primary",
    "network-interface.addresses.private-dns-name",
    "network-interface.addresses.private-ip-address",
    "network-interface.association.allocation-id",
    "network-interface.association.association-id",
    "network-interface.association.carrier-ip",
    "network-interface.association.customer-owned-ip",
    "network-interface.association.ip-owner-id",
    "network-interface.association.public-dns-name",
    "network-interface.association.public-ip",
    "network-interface.attachment.attach-time",
    "network-interface.attachment.attachment-id",
    "network-interface.attachment.delete-on-termination",
    "network-interface.attachment.device-index",
    "network-interface.attachment.instance-id",
    "network-interface.attachment.instance-owner-id",
    "network-interface.attachment.network-card-index",
    "network-interface.attachment.status",
    "network-interface.availability-zone",
    "network-interface.deny-all-igw-traffic",
    "network-interface.description",
    "network-interface.group-id",
    "network-interface.group-name",
    "network-interface.ipv4-prefixes.ipv4-prefix",
    "network-interface.ipv6-address",
    "network-interface.ipv6-addresses.ipv6-address",
    "network-interface.ipv6-addresses.is-primary-ipv6",
    "network-interface.ipv6-native",
    "network-interface.ipv6-prefixes.ipv6-prefix",
    "network-interface.mac-address",
    "network-interface.network-interface-id",
    "network-interface.operator.managed",
    "network-interface.operator.principal",
    "network-interface.outpost-arn",
    "network-interface.owner-id",
    "network-interface.private-dns-name",
    "network-interface.private-ip-address",
    "network-interface.public-dns-name",
    "network-interface.requester-id",
    "network-interface.requester-managed",
    "network-interface.status",
    "network-interface.source-dest-check",
    "network-interface.subnet-id",
    "network-interface.tag-key",
    "network-interface.tag-value",
    "network-interface.vpc-id",
    "network-performance-options.bandwidth-weighting",
    "operator.principal",
    "outpost-arn",
    "placement-group-name",
    "placement-partition-number",
    "platform",
    "platform-details",
    "private-dns-name-options.enable-resource-name-dns-a-record",
    "private-dns-name-options.enable-resource-name-dns-aaaa-record",
    "private-dns-name-options.hostname-type",
    "private-ip-address",
    "product-code",
    "product-code.type",
    "ramdisk-id",
    "reason",
    "requester-id",
    "source-dest-check",
    "spot-instance-request-id",
    "state-reason-code",
    "state-reason-message",
    "subnet-id",
    "tpm-support",
    "usage-operation",
    "usage-operation-update-time",
    "vpc-id",
];
