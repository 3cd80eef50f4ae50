//! TLS of the endpoint: a certificate and its key, read from PEM, and the handshake.

use std::{io, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Says why a certificate and a key cannot be served.
#[derive(Debug, Error)]
pub enum TlsFault {
    /// The file has no certificate that can be read.
    #[error("there is no PEM certificate in it")]
    NoCertificate,
    /// The file has no key that can be read.
    #[error("there is no PEM private key in it")]
    NoKey,
    /// The two do not belong together, or are of a kind that is not served.
    #[error("the certificate and the key do not go together: {0}")]
    Unfit(rustls::Error),
}

/// What the endpoint shows its clients.
#[derive(Clone, Debug)]
pub struct Certificate {
    config: Arc<ServerConfig>,
}

impl Certificate {
    /// Reads a chain and its private key, both PEM. HTTP/1.1 is what is spoken then.
    ///
    /// # Errors
    /// [`TlsFault`], each variant as it says.
    pub fn read(chain: &[u8], key: &[u8]) -> Result<Self, TlsFault> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|_| TlsFault::NoCertificate)?;
        if chain.is_empty() {
            return Err(TlsFault::NoCertificate);
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsFault::NoKey)?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(TlsFault::Unfit)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config) })
    }

    /// Shakes hands on a connection.
    pub(super) async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        TlsAcceptor::from(Arc::clone(&self.config)).accept(stream).await
    }
}
