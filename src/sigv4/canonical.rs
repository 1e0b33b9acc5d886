//! The one spelling of a request that both sides hash: percent-encoding, paths, parameters and headers.

use std::borrow::Cow;

use hyper::HeaderMap;

use super::{AuthError, incomplete};

/// Name and value of a parameter, decoded: any bytes at all.
pub(super) type Pair<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

const HEX: &[u8; 16] = b"0123456789ABCDEF";

fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Appends `bytes`, percent-encoded as RFC 3986 section 2.3 has it: all but unreserved characters, and those in `also`.
fn encode_into(out: &mut Vec<u8>, bytes: &[u8], also: Option<u8>) {
    for &byte in bytes {
        if unreserved(byte) || Some(byte) == also {
            out.push(byte);
        } else {
            out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

fn decode(bytes: &[u8]) -> Result<Cow<'_, [u8]>, AuthError> {
    if !bytes.iter().any(|b| matches!(b, b'%' | b'+')) {
        return Ok(Cow::Borrowed(bytes));
    }
    let digit = |byte: Option<&u8>| byte.and_then(|b| char::from(*b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter();
    while let Some(&byte) = rest.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => match (digit(rest.next()), digit(rest.next())) {
                (Some(high), Some(low)) => out.push(high << 4 | low),
                _ => return incomplete("a parameter has a percent sign without two hexadecimal digits"),
            },
            _ => out.push(byte),
        }
    }
    Ok(Cow::Owned(out))
}

/// Decodes a query or a form. A parameter without `=` has an empty value.
pub(super) fn pairs(raw: &[u8]) -> Result<Vec<Pair<'_>>, AuthError> {
    raw.split(|&b| b == b'&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let split = part.iter().position(|&b| b == b'=');
            let (name, value) = split.map_or((part, &[][..]), |at| (&part[..at], &part[at + 1..]));
            Ok((decode(name)?, decode(value)?))
        })
        .collect()
}

/// The value of a parameter that may be there once at most, and is text.
pub(super) fn single<'a>(pairs: &[Pair<'a>], name: &str) -> Result<Option<Cow<'a, str>>, AuthError> {
    let mut found = pairs.iter().filter(|(n, _)| n.as_ref() == name.as_bytes());
    let Some((_, value)) = found.next() else { return Ok(None) };
    if found.next().is_some() {
        return incomplete(format!("the parameter {name} is given twice"));
    }
    let text = match value {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes.clone()).ok().map(Cow::Owned),
    };
    text.map_or_else(|| incomplete(format!("the parameter {name} is not text")), |text| Ok(Some(text)))
}

/// The value of a header that may be there once at most, and is text.
pub(super) fn single_header<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, AuthError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return incomplete(format!("the header {name} is given twice"));
    }
    value.to_str().map_or_else(|_| incomplete(format!("the header {name} is not text")), |text| Ok(Some(text)))
}

/// The parameters of a query but for the one named `without`, sorted by their encoded names and values (`SigV4`).
pub(super) fn query_v4(raw: &str, without: Option<&str>) -> Result<Vec<u8>, AuthError> {
    if raw.is_empty() {
        return Ok(Vec::new());
    }
    let encoded = |bytes: &[u8]| {
        let mut out = Vec::with_capacity(bytes.len() + 8);
        encode_into(&mut out, bytes, None);
        out
    };
    let mut pairs: Vec<_> = pairs(raw.as_bytes())?
        .iter()
        .filter(|(name, _)| without.is_none_or(|without| name.as_ref() != without.as_bytes()))
        .map(|(name, value)| (encoded(name), encoded(value)))
        .collect();
    pairs.sort_unstable();
    let mut out = Vec::with_capacity(raw.len() + 8);
    for (name, value) in pairs {
        if !out.is_empty() {
            out.push(b'&');
        }
        out.extend_from_slice(&name);
        out.push(b'=');
        out.extend_from_slice(&value);
    }
    Ok(out)
}

/// The parameters but for the one named `without`, sorted by name before they are encoded (`SigV2`).
pub(super) fn query_v2(pairs: &[Pair<'_>], without: &str) -> Vec<u8> {
    let mut sorted: Vec<_> = pairs.iter().filter(|(name, _)| name.as_ref() != without.as_bytes()).collect();
    sorted.sort_unstable();
    let mut out = Vec::new();
    for (name, value) in sorted {
        if !out.is_empty() {
            out.push(b'&');
        }
        encode_into(&mut out, name, None);
        out.push(b'=');
        encode_into(&mut out, value, None);
    }
    out
}

/// The path once more percent-encoded, as every service but S3 has it: `%20` becomes `%2520`.
pub(super) fn path(raw: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len() + 8);
    encode_into(&mut out, if raw.is_empty() { b"/" } else { raw.as_bytes() }, Some(b'/'));
    out
}

/// The path without dot segments (RFC 3986, 5.2.4) and without doubled slashes; one at the end stays.
pub(super) fn normalised(raw: &str) -> Cow<'_, str> {
    if !raw.contains("//") && !raw.contains("/.") {
        return Cow::Borrowed(raw);
    }
    let mut kept = Vec::new();
    for segment in raw.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            _ => kept.push(segment),
        }
    }
    let ends_open = ["/", "/.", "/.."].iter().any(|end| raw.ends_with(end)) && !kept.is_empty();
    Cow::Owned(format!("/{}{}", kept.join("/"), if ends_open { "/" } else { "" }))
}

/// Appends `name:value` of the header for each name of the list, with `host` as given.
///
/// # Errors
/// [`AuthError::Incomplete`] when a signed header is not there.
pub(super) fn headers_into(out: &mut Vec<u8>, headers: &HeaderMap, names: &str, host: &[u8]) -> Result<(), AuthError> {
    for name in names.split(';') {
        out.extend_from_slice(name.as_bytes());
        out.push(b':');
        if name == "host" {
            out.extend_from_slice(host);
        } else {
            let mut values = headers.get_all(name).iter().peekable();
            if values.peek().is_none() {
                return incomplete(format!("the signed header {name} is not in the request"));
            }
            while let Some(value) = values.next() {
                one_blank_into(out, value.as_bytes());
                if values.peek().is_some() {
                    out.push(b',');
                }
            }
        }
        out.push(b'\n');
    }
    Ok(())
}

/// Appends a header's value without blanks around it, and with one blank where several are.
fn one_blank_into(out: &mut Vec<u8>, value: &[u8]) {
    let mut words = value.split(|b| matches!(b, b' ' | b'\t')).filter(|word| !word.is_empty());
    out.extend_from_slice(words.next().unwrap_or_default());
    for word in words {
        out.push(b' ');
        out.extend_from_slice(word);
    }
}

/// The forms of the host that a client may have signed: as received, and with or without a default port, which HTTP
/// libraries drop or add behind the signer's back.
///
/// # Errors
/// [`AuthError::Incomplete`] when there is no host.
pub(super) fn hosts(headers: &HeaderMap) -> Result<Vec<Cow<'_, [u8]>>, AuthError> {
    let Some(host) = single_header(headers, "host")? else {
        return incomplete("the request has no Host header");
    };
    let host = host.trim();
    let mut forms = vec![Cow::Borrowed(host.as_bytes())];
    if let Some(bare) = host.strip_suffix(":80").or_else(|| host.strip_suffix(":443")) {
        forms.push(Cow::Borrowed(bare.as_bytes()));
    } else if !has_port(host) {
        forms.extend(["80", "443"].map(|port| Cow::Owned(format!("{host}:{port}").into_bytes())));
    }
    Ok(forms)
}

/// Whether a host ends in a port; the colons of an IPv6 address stand in brackets.
pub(super) fn has_port(host: &str) -> bool {
    host.rsplit(']').next().is_some_and(|end| end.contains(':'))
}
