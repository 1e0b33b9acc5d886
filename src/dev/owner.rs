//! Whose everything is in `vbs dev`: one account with one access key, made at the first start and kept.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use zeroize::Zeroizing;

use super::{DevError, write_atomically};
use crate::config::Config;
use crate::credentials;
use crate::db::{self, Pool, access_keys, accounts};
use crate::seal::Sealer;

/// The account's id.
pub(super) const ACCOUNT: &str = "100000000001";
const ACCOUNT_NAME: &str = "dev";

/// The access key.
pub(super) struct Key {
    id: String,
    secret: Zeroizing<String>,
}

/// Makes `DIR/master.key`, the account and the access key where they are missing. The key's secret is kept in
/// `DIR/access-key`, for `DIR/env` to be written from.
pub(super) async fn ensure(dir: &Path, config: &Config, pool: &Pool) -> Result<Key, DevError> {
    let failed = |e: db::Error| DevError::new(e.to_string());
    let master_key = dir.join("master.key");
    if !master_key.exists() {
        write_atomically(&master_key, Sealer::generate_master_key().as_bytes(), 0o600)?;
    }
    let sealer = Sealer::of(config).map_err(|e| DevError::new(e.to_string()))?;

    let mut conn = pool.get().await.map_err(failed)?;
    if accounts::find(&mut conn, ACCOUNT).await.map_err(failed)?.is_none() {
        accounts::create(&mut conn, ACCOUNT, ACCOUNT_NAME).await.map_err(failed)?;
    }
    let path = dir.join("access-key");
    if let Some(key) = read(&path)?
        && access_keys::find_enabled(&mut conn, &key.id).await.map_err(failed)?.is_some()
    {
        return Ok(key);
    }
    let made = credentials::create(&mut conn, &sealer, ACCOUNT).await.map_err(failed)?;
    let text = Zeroizing::new(format!("{} {}\n", made.id, made.secret.as_str()));
    write_atomically(&path, text.as_bytes(), 0o600)?;
    Ok(Key { id: made.id, secret: made.secret })
}

fn read(path: &Path) -> Result<Option<Key>, DevError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => Zeroizing::new(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(DevError::io(path, &e)),
    };
    let mut words = text.split_whitespace();
    let key = words.next().zip(words.next());
    Ok(key.map(|(id, secret)| Key { id: id.to_owned(), secret: Zeroizing::new(secret.to_owned()) }))
}

/// Writes `DIR/env`, for a shell to read; the account's secret is in it.
pub(super) fn write_env(dir: &Path, address: SocketAddr, key: &Key, instances: &[String]) -> Result<(), DevError> {
    let config = dir.join("vbs.toml");
    let lines = [
        ("AWS_ENDPOINT_URL", endpoint(address)),
        ("AWS_ACCESS_KEY_ID", key.id.clone()),
        ("AWS_SECRET_ACCESS_KEY", key.secret.to_string()),
        ("AWS_DEFAULT_REGION", "us-east-1".to_owned()),
        ("VBS_INSTANCES", instances.join(",")),
        ("VBS_CONFIG", config.to_string_lossy().into_owned()),
    ];
    let lines = lines.map(|(name, value)| format!("export {name}={}\n", quoted(&value)));
    write_atomically(&dir.join("env"), Zeroizing::new(lines.concat()).as_bytes(), 0o600)
}

/// Takes `DIR/env` away, which is there only while it is true.
pub(super) fn remove_env(dir: &Path) -> Result<(), DevError> {
    let path = dir.join("env");
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(DevError::io(&path, &e)),
        _ => Ok(()),
    }
}

/// Where a client on this machine reaches the gateway.
pub(super) fn endpoint(address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, address.port()))
}

/// A value that a POSIX shell reads as it is. Quotes only where they are needed, for those who read the file by other means.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,+=".contains(c);
    if value.chars().all(plain) { value.to_owned() } else { format!("'{}'", value.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_goes_through_a_shell_unchanged() {
        assert_eq!(quoted("http://127.0.0.1:8773"), "http://127.0.0.1:8773");
        assert_eq!(quoted("it's; $HOME"), r"'it'\''s; $HOME'");
    }

    #[test]
    fn the_endpoint_is_one_that_can_be_connected_to() {
        assert_eq!(endpoint("0.0.0.0:1".parse().unwrap()), "http://127.0.0.1:1");
        assert_eq!(endpoint("[::]:1".parse().unwrap()), "http://[::1]:1");
        assert_eq!(endpoint("192.0.2.7:1".parse().unwrap()), "http://192.0.2.7:1");
    }
}
