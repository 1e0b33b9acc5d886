//! TLS, when a certificate and its key are configured.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::ServerError;
use crate::config;

/// Reads the certificate and the key, in a thread of their own since files block.
pub(super) async fn acceptor(config: &config::Server) -> Result<Option<TlsAcceptor>, ServerError> {
    match (config.tls_cert.clone(), config.tls_key.clone()) {
        (None, None) => Ok(None),
        (Some(cert), Some(key)) => tokio::task::spawn_blocking(move || load(&cert, &key))
            .await
            .map_err(|error| ServerError::Tls(error.to_string()))?
            .map(Some),
        _ => Err(ServerError::Tls("tls_cert and tls_key are given together or not at all".into())),
    }
}

fn load(cert: &Path, key: &Path) -> Result<TlsAcceptor, ServerError> {
    let cannot = |path: &Path, error: rustls::pki_types::pem::Error| {
        ServerError::Tls(format!("cannot use {}: {error}", path.display()))
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| cannot(cert, error))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| cannot(key, error))?;
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| ServerError::Tls(error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
