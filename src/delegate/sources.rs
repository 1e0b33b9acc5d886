//! Where a storage node may be sent to read a snapshot of another's.
//!
//! The address comes in the call. Who has the node's key, or has got into a gateway, must not be able to make the node knock at
//! any door that it can reach: so an operator can name the nodes, and without that no address is gone to that
//! cannot be a storage node's. What is asked there is always a snapshot, and nothing that answers otherwise is kept or told.

use std::net::{IpAddr, SocketAddr};

use super::peer::Peer;
use super::source::Grant;
use super::{DelegateError, Result};

/// The longest address, authority or query that is taken, in bytes.
const LONGEST: usize = 64 << 10;

/// The nodes that snapshots may be read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sources {
    /// These, as `HOST:PORT`.
    Listed(Vec<String>),
    /// Any but addresses of one link, of many, or of none; on the loopback only when this node is there itself.
    Any {
        /// Whether the loopback counts.
        loopback: bool,
    },
}

impl Sources {
    /// The nodes that a node may read from that listens here, and whose configuration names these.
    pub fn of(named: Option<&[String]>, own: SocketAddr) -> Self {
        match named {
            Some(named) => Self::Listed(named.to_vec()),
            None => Self::Any { loopback: own.ip().is_loopback() },
        }
    }

    /// The node that a grant leads to, not connected to yet. Fatal when it is none that this one may be sent to.
    pub fn peer(&self, grant: &Grant) -> Result<Peer> {
        let longest = [&grant.url, &grant.query.0].into_iter().chain(&grant.trust.ca).chain(&grant.trust.pins);
        if longest.map(String::len).max() > Some(LONGEST) {
            return Err(DelegateError::fatal("the grant to read a snapshot is too long"));
        }
        let peer = Peer::new(&grant.url, &grant.trust).map_err(DelegateError::fatal)?;
        match self {
            Self::Listed(listed) if listed.iter().any(|source| source == peer.authority()) => Ok(peer),
            Self::Listed(_) => Err(DelegateError::fatal(format!(
                "{} is none of the nodes that snapshots are read from here",
                peer.authority()
            ))),
            Self::Any { loopback: true } => Ok(peer.only_at(may_be_here)),
            Self::Any { loopback: false } => Ok(peer.only_at(may_be_elsewhere)),
        }
    }
}

/// Whether a storage node may have this address.
fn may_be_elsewhere(address: IpAddr) -> bool {
    may_be_here(address) && !address.to_canonical().is_loopback()
}

/// The same where the loopback is a network like others.
fn may_be_here(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.octets()[0] == 0)
        }
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_unicast_link_local() || v6.is_multicast()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delegate::Secret;
    use crate::delegate::trust::Trust;

    fn grant(url: &str) -> Grant {
        Grant { url: url.into(), trust: Trust::default(), query: Secret("X-Amz-Signature=0".into()) }
    }

    #[test]
    fn what_is_listed_is_all_that_may_be_read_from() {
        let sources = Sources::of(Some(&["10.0.0.12:8774".into()]), ([10, 0, 0, 11], 8774).into());
        assert_eq!(sources.peer(&grant("http://10.0.0.12:8774")).unwrap().authority(), "10.0.0.12:8774");
        let long = format!("http://{}:1", "a".repeat(LONGEST));
        for other in
            ["http://10.0.0.12:22", "http://10.0.0.12", "http://10.0.0.13:8774", "http://10.0.0.12:8774/x", &long]
        {
            assert!(sources.peer(&grant(other)).is_err(), "{other}");
        }
    }

    #[test]
    fn without_a_list_only_what_can_be_a_node_is_gone_to() {
        for (address, elsewhere, here) in [
            ("10.0.0.12", true, true),
            ("2001:db8::1", true, true),
            ("fd00::1", true, true),
            ("127.0.0.1", false, true),
            ("::1", false, true),
            ("::ffff:127.0.0.1", false, true),
            ("169.254.169.254", false, false),
            ("::ffff:169.254.169.254", false, false),
            ("fe80::1", false, false),
            ("0.0.0.0", false, false),
            ("0.1.2.3", false, false),
            ("::", false, false),
            ("224.0.0.1", false, false),
            ("255.255.255.255", false, false),
            ("ff02::1", false, false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!((may_be_elsewhere(address), may_be_here(address)), (elsewhere, here), "{address}");
        }
        assert_eq!(Sources::of(None, ([127, 0, 0, 1], 1).into()), Sources::Any { loopback: true });
        assert_eq!(Sources::of(None, ([0, 0, 0, 0], 1).into()), Sources::Any { loopback: false });
    }
}
