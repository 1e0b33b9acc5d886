//! Whose certificates a node may show: those of one authority, single ones that are pinned, or what is both.
//!
//! A pin is the SHA-256 of a certificate, as `openssl x509 -noout -fingerprint -sha256` prints it. A certificate that is pinned
//! needs no authority, and neither its names nor its dates matter then: it is this one. The handshake proves that the node has
//! its key.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsConnector;

/// What a node's certificate must be, with `https`. Without either there is nothing that it may show.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// The only authority whose certificates are accepted, in PEM.
    #[serde(default)]
    pub ca: Option<String>,
    /// The only certificates that are accepted: SHA-256 in hexadecimal, with or without colons. Two of them while one is
    /// replaced by the other.
    #[serde(default)]
    pub pins: Vec<String>,
}

impl Trust {
    /// Whether it says nothing.
    pub fn is_none(&self) -> bool {
        self.ca.is_none() && self.pins.is_empty()
    }

    /// Connects by TLS to who fulfils it. The error says what is wrong with the authority or a pin.
    pub fn connector(&self) -> Result<TlsConnector, String> {
        let provider = Arc::new(ring::default_provider());
        let pinned = Pinned {
            pins: self.pins.iter().map(|pin| read_pin(pin)).collect::<Result<_, _>>()?,
            authority: self.ca.as_deref().map(|ca| authority(ca, &provider)).transpose()?,
            algorithms: provider.signature_verification_algorithms,
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(pinned))
            .with_no_client_auth();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

fn read_pin(text: &str) -> Result<[u8; 32], String> {
    let mut pin = [0; 32];
    hex::decode_to_slice(text.replace(':', ""), &mut pin)
        .map_err(|_| format!("the pin {text:?} is not a SHA-256 in hexadecimal"))?;
    Ok(pin)
}

fn authority(pem: &str, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, String> {
    let cannot = |e: &dyn std::fmt::Display| format!("the ca cannot be used: {e}");
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(|e| cannot(&e))?).map_err(|e| cannot(&e))?;
    }
    if roots.is_empty() {
        return Err(cannot(&"it holds no certificate"));
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build().map_err(|e| cannot(&e))
}

/// Believes a certificate that fulfils all that is asked of it. Made of a [`Trust`] that says something.
#[derive(Debug)]
struct Pinned {
    pins: Vec<[u8; 32]>,
    authority: Option<Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown: [u8; 32] = Sha256::digest(end_entity).into();
        let is_pinned = self.pins.contains(&shown);
        match &self.authority {
            _ if !is_pinned && !self.pins.is_empty() => Err(CertificateError::ApplicationVerificationFailure.into()),
            Some(authority) => authority.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
            None if is_pinned => Ok(ServerCertVerified::assertion()),
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_read_as_openssl_prints_it_and_nothing_else_is_one() {
        let colons = vec!["AB"; 32].join(":");
        assert_eq!(read_pin(&colons), Ok([0xab; 32]));
        assert_eq!(read_pin(&"ab".repeat(32)), Ok([0xab; 32]));
        for other in ["", "ab", &"ab".repeat(33), &"xy".repeat(32)] {
            assert!(read_pin(other).is_err(), "{other}");
        }
    }
}
