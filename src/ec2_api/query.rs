//! Decodes the form of a request and hands its parameters out by type.
//!
//! Everything in it is hostile: its size is bounded before, its count here; names are never taken for a structure of
//! their own making (no index allocates, no depth recurses), and what no handler has taken by the end is an error, so
//! that a misspelt filter cannot silently select everything.

use std::collections::BTreeMap;

use percent_encoding::percent_decode;

use super::error::ApiResult;
use super::{faults, xml};

/// The most parameters of one request. A batch of 1,000 ids or of 1,000 resources with 50 tags for all stays far below.
const MAX_PARAMETERS: usize = 20_000;

/// The API version that is assumed when the caller sends none.
pub const DEFAULT_VERSION: &str = "2016-11-15";

/// The parameters of a request that are not taken yet.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Params(BTreeMap<String, String>);

/// A decoded request: what to do, in which dialect, with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// `Action`, when there is one.
    pub action: Option<String>,
    /// `Version`: echoed in the answer's namespace.
    pub version: String,
    /// The rest, without the parameters of the protocol itself.
    pub params: Params,
}

/// A tag as asked for. DeleteTags tells a value that is absent from one that is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagParam {
    /// `Tag.N.Key`
    pub key: Option<String>,
    /// `Tag.N.Value`
    pub value: Option<String>,
}

/// One `TagSpecification.N`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagSpecification {
    /// `TagSpecification.N.ResourceType`
    pub resource_type: Option<String>,
    /// `TagSpecification.N.Tag.M`, in the order of M.
    pub tags: Vec<TagParam>,
}

/// One `BlockDeviceMapping.N` of ModifyInstanceAttribute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceParam {
    /// `BlockDeviceMapping.N.DeviceName`
    pub device: Option<String>,
    /// `BlockDeviceMapping.N.Ebs.VolumeId`
    pub volume: Option<String>,
    /// `BlockDeviceMapping.N.Ebs.DeleteOnTermination`
    pub delete_on_termination: Option<bool>,
}

/// One `Filter.N`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilterParam {
    /// `Filter.N.Name`
    pub name: String,
    /// `Filter.N.Value.M`, in the order of M; none matches nothing.
    pub values: Vec<String>,
}

/// One item of a change of who may use a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PermissionParam {
    /// `CreateVolumePermission.Add.N.UserId`
    pub user_id: Option<String>,
    /// `CreateVolumePermission.Add.N.Group`
    pub group: Option<String>,
}

impl Query {
    /// Decodes the query string and the body of a request; a parameter may stand in either, but only once.
    pub fn decode(query: &[u8], body: &[u8]) -> ApiResult<Self> {
        let mut params = BTreeMap::new();
        for pair in query.split(|b| *b == b'&').chain(body.split(|b| *b == b'&')).filter(|pair| !pair.is_empty()) {
            let split = pair.iter().position(|b| *b == b'=').unwrap_or(pair.len());
            let name = decode(&pair[..split])?;
            let value = decode(pair.get(split + 1..).unwrap_or_default())?;
            if name.is_empty() {
                return Err(faults::malformed_query("a parameter has no name"));
            }
            if !value.chars().all(xml::legal) {
                return Err(faults::control_characters(&name));
            }
            if let Some(twin) = params.insert(name, value) {
                drop(twin);
                return Err(faults::duplicate_parameter());
            }
            if params.len() > MAX_PARAMETERS {
                return Err(faults::malformed_query("it has too many parameters"));
            }
        }
        let action = params.remove("Action");
        let version = params.remove("Version");
        params.retain(|name, _| !is_protocol(name));
        let version = match version {
            None => DEFAULT_VERSION.to_owned(),
            Some(version) if is_version(&version) => version,
            Some(version) => return Err(faults::no_such_version(&version)),
        };
        Ok(Self { action, version, params: Params(params) })
    }
}

/// The way back, for what must hold of all queries ([`crate::fuzzing`]).
#[cfg(any(test, fuzzing))]
impl Query {
    /// A form that is decoded to this.
    pub fn form(&self) -> String {
        let action = self.action.as_ref().map(|action| ("Action", action));
        let named = action.into_iter().chain([("Version", &self.version)]);
        let all = named.chain(self.params.0.iter().map(|(name, value)| (name.as_str(), value)));
        let encoded = |text| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC);
        all.map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect::<Vec<_>>().join("&")
    }
}

#[cfg(any(test, fuzzing))]
impl Params {
    /// The bytes of all names and values.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

/// Undoes the form encoding. A lone `%` is an error here, not a percent sign: a client that sends one has lost bytes.
fn decode(raw: &[u8]) -> ApiResult<String> {
    for (at, _) in raw.iter().enumerate().filter(|(_, byte)| **byte == b'%') {
        if !raw.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return Err(faults::malformed_query("its percent-encoding is broken"));
        }
    }
    let spaced: Vec<u8> = raw.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    String::from_utf8(percent_decode(&spaced).collect()).map_err(|_| faults::malformed_query("it is not UTF-8"))
}

/// Whether the parameter belongs to the signature, not to the action (SigV2 in the query, presigned SigV4).
fn is_protocol(name: &str) -> bool {
    const NAMES: [&str; 7] =
        ["AWSAccessKeyId", "Signature", "SignatureMethod", "SignatureVersion", "Timestamp", "Expires", "SecurityToken"];
    NAMES.contains(&name) || name.starts_with("X-Amz-")
}

/// A version is a date; it goes into a namespace, so nothing else may pass.
fn is_version(text: &str) -> bool {
    text.len() == 10
        && text
            .bytes()
            .enumerate()
            .all(|(at, byte)| if at == 4 || at == 7 { byte == b'-' } else { byte.is_ascii_digit() })
}

/// A list index as it is written: decimal, no leading zero, so that two names never mean the same element.
fn index(text: &str) -> Option<u64> {
    let canonical = text == "0" || (text.len() <= 18 && !text.starts_with('0'));
    if canonical && text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

impl Params {
    /// Takes a text; absent is `None`, empty is a text.
    pub fn text(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// Takes a text; empty counts as absent.
    pub fn filled(&mut self, name: &str) -> Option<String> {
        self.text(name).filter(|text| !text.is_empty())
    }

    /// Takes a boolean.
    pub fn boolean(&mut self, name: &str) -> ApiResult<Option<bool>> {
        match self.filled(name) {
            None => Ok(None),
            Some(text) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(text) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(text) => Err(faults::not_a(&text, name, "boolean")),
        }
    }

    /// Takes an integer. EC2's are 32 bits wide.
    pub fn integer(&mut self, name: &str) -> ApiResult<Option<i32>> {
        match self.filled(name) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| faults::not_a(&text, name, "integer")),
        }
    }

    /// Takes the list `name.1`, `name.2`, … in the order of the indexes; they may start at 0 and have gaps.
    pub fn list(&mut self, name: &str) -> ApiResult<Vec<String>> {
        let mut list = Vec::new();
        for (_, fields) in self.indexed(name) {
            for (rest, value) in fields {
                match rest.as_str() {
                    "" => list.push(value),
                    _ => return Err(faults::unknown_parameter(&format!("{name}.N.{rest}"))),
                }
            }
        }
        Ok(list)
    }

    /// Takes `Filter.N`.
    pub fn filters(&mut self) -> ApiResult<Vec<FilterParam>> {
        let mut filters = Vec::new();
        for (_, fields) in self.indexed("Filter") {
            let mut fields = Self(fields);
            let name = fields.text("Name").unwrap_or_default();
            filters.push(FilterParam { name, values: fields.list("Value")? });
            fields.finish_inside("Filter.N.")?;
        }
        Ok(filters)
    }

    /// Takes `TagSpecification.N`.
    pub fn tag_specifications(&mut self) -> ApiResult<Vec<TagSpecification>> {
        let mut specifications = Vec::new();
        for (_, fields) in self.indexed("TagSpecification") {
            let mut fields = Self(fields);
            let resource_type = fields.text("ResourceType");
            specifications.push(TagSpecification { resource_type, tags: fields.tags()? });
            fields.finish_inside("TagSpecification.N.")?;
        }
        Ok(specifications)
    }

    /// Takes `Tag.N`.
    pub fn tags(&mut self) -> ApiResult<Vec<TagParam>> {
        let mut tags = Vec::new();
        for (_, fields) in self.indexed("Tag") {
            let mut fields = Self(fields);
            tags.push(TagParam { key: fields.text("Key"), value: fields.text("Value") });
            fields.finish_inside("Tag.N.")?;
        }
        Ok(tags)
    }

    /// Takes `BlockDeviceMapping.N`. Its `VirtualName` and `NoDevice` are about disks that no machine here has.
    pub fn devices(&mut self) -> ApiResult<Vec<DeviceParam>> {
        let mut devices = Vec::new();
        for (_, fields) in self.indexed("BlockDeviceMapping") {
            let mut fields = Self(fields);
            for name in ["VirtualName", "NoDevice"] {
                if fields.text(name).is_some() {
                    return Err(faults::unsupported(format!("BlockDeviceMapping.N.{name} is not supported here.")));
                }
            }
            devices.push(DeviceParam {
                device: fields.text("DeviceName"),
                volume: fields.text("Ebs.VolumeId"),
                delete_on_termination: fields.boolean("Ebs.DeleteOnTermination")?,
            });
            fields.finish_inside("BlockDeviceMapping.N.")?;
        }
        Ok(devices)
    }

    /// Takes `CreateVolumePermission.Add.N`, or of another such name.
    pub fn permissions(&mut self, name: &str) -> ApiResult<Vec<PermissionParam>> {
        let mut permissions = Vec::new();
        for (_, fields) in self.indexed(name) {
            let mut fields = Self(fields);
            permissions.push(PermissionParam { user_id: fields.text("UserId"), group: fields.text("Group") });
            fields.finish_inside(&format!("{name}.N."))?;
        }
        Ok(permissions)
    }

    /// Refuses what nobody has taken. Handlers call it when they have taken all they know, before anything else.
    pub fn finish(self) -> ApiResult<()> {
        self.finish_inside("")
    }

    fn finish_inside(self, path: &str) -> ApiResult<()> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(faults::unknown_parameter(&format!("{path}{name}"))),
        }
    }

    /// Takes everything named `name.INDEX` or `name.INDEX.rest`: for each index, the rests with their values. Names whose
    /// second part is no index stay, to be refused by [`Params::finish`].
    fn indexed(&mut self, name: &str) -> BTreeMap<u64, BTreeMap<String, String>> {
        // '/' follows '.', so these two bounds hold all names that start with `name.`.
        let range = format!("{name}.")..format!("{name}/");
        let taken: Vec<(String, u64, String)> = self
            .0
            .range(range)
            .filter_map(|(full, _)| {
                let (first, rest) = match full[name.len() + 1..].split_once('.') {
                    Some((first, rest)) if !rest.is_empty() => (first, rest),
                    Some(_) => return None,
                    None => (&full[name.len() + 1..], ""),
                };
                Some((full.clone(), index(first)?, rest.to_owned()))
            })
            .collect();
        let mut groups: BTreeMap<u64, BTreeMap<String, String>> = BTreeMap::new();
        for (full, index, rest) in taken {
            if let Some(value) = self.0.remove(&full) {
                groups.entry(index).or_default().insert(rest, value);
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(form: &str) -> Params {
        Query::decode(b"", form.as_bytes()).unwrap().params
    }

    fn code(query: &[u8], body: &[u8]) -> &'static str {
        Query::decode(query, body).unwrap_err().code
    }

    #[test]
    fn query_and_body_are_read_together_without_the_parameters_of_the_protocol() {
        let form = b"Version=2014-10-01&VolumeId.1=a+b%2A&X-Amz-Date=x&Signature=y&AWSAccessKeyId=z";
        let mut query = Query::decode(b"Action=DescribeVolumes&", form).unwrap();
        assert_eq!((query.action.as_deref(), query.version.as_str()), (Some("DescribeVolumes"), "2014-10-01"));
        assert_eq!(query.params.list("VolumeId").unwrap(), ["a b*"]);
        query.params.finish().unwrap();
    }

    #[test]
    fn broken_encodings_and_twins_are_refused() {
        for broken in ["a=%", "a=%4", "a=%zz", "%=1", "a=%ff", "=1", "a=%c3%28"] {
            assert_eq!(code(b"", broken.as_bytes()), "MalformedQueryString", "{broken}");
        }
        assert_eq!(code(b"", b"a=\xff"), "MalformedQueryString");
        assert_eq!(code(b"", b"a=b%00c"), "InvalidParameterValue");
        assert_eq!(code(b"Size=1", b"Size=1"), "InvalidQueryParameter");
        assert_eq!(code(b"", b"Version=2016-11-15%22%3E"), "NoSuchVersion");
    }

    #[test]
    fn a_million_parameters_are_refused() {
        let form = (0..30_000).map(|n| format!("a{n}=")).collect::<Vec<_>>().join("&");
        assert_eq!(code(b"", form.as_bytes()), "MalformedQueryString");
        assert_eq!(code(b"", "a&".repeat(500_000).as_bytes()), "InvalidQueryParameter");
    }

    #[test]
    fn lists_come_in_the_order_of_their_numbers_from_any_start_with_gaps() {
        let mut params = params("V.10=c&V.2=b&V.0=a&V.999999999=d");
        assert_eq!(params.list("V").unwrap(), ["a", "b", "c", "d"]);
    }

    #[test]
    fn a_name_that_is_no_clean_index_stays_and_is_an_unknown_parameter() {
        for name in ["V.01", "V.-1", "V.x", "V.", "V", "V.1.", "V.99999999999999999999", "V..1", "W.1"] {
            let mut params = params(&format!("{name}=a"));
            assert_eq!(params.list("V").unwrap(), [""; 0], "{name}");
            let error = params.finish().unwrap_err();
            assert_eq!(error.message, format!("The parameter {name} is not recognized"));
        }
    }

    #[test]
    fn a_thousand_deep_index_is_harmless() {
        let deep = format!("Filter{}=x", ".1".repeat(1000));
        assert_eq!(params(&deep).filters().unwrap_err().code, "UnknownParameter");
        assert_eq!(params(&deep).finish().unwrap_err().code, "UnknownParameter");
    }

    #[test]
    fn filters_and_tags_are_read_with_their_fields() {
        let mut params = params(
            "Filter.1.Name=status&Filter.1.Value.2=b&Filter.1.Value.1=a&TagSpecification.1.ResourceType=volume\
             &TagSpecification.1.Tag.1.Key=k&TagSpecification.1.Tag.2.Value=v&Filter.2.Name=size",
        );
        assert_eq!(
            params.filters().unwrap(),
            [
                FilterParam { name: "status".into(), values: vec!["a".into(), "b".into()] },
                FilterParam { name: "size".into(), values: vec![] }
            ]
        );
        let specification = &params.tag_specifications().unwrap()[0];
        assert_eq!(specification.tags[0], TagParam { key: Some("k".into()), value: None });
        assert_eq!(specification.tags[1], TagParam { key: None, value: Some("v".into()) });
        params.finish().unwrap();
    }

    #[test]
    fn numbers_and_booleans_are_what_they_say_or_refused() {
        let mut params = params("a=true&b=TRUE&c=yes&d=12&e=-1&f=2147483648&g=1.5&h=");
        assert_eq!(params.boolean("a").unwrap(), Some(true));
        assert_eq!(params.boolean("b").unwrap(), Some(true));
        assert!(params.boolean("c").is_err());
        assert_eq!(params.integer("d").unwrap(), Some(12));
        assert_eq!(params.integer("e").unwrap(), Some(-1));
        assert!(params.integer("f").is_err());
        assert!(params.integer("g").is_err());
        assert_eq!(params.integer("h").unwrap(), None);
    }
}
