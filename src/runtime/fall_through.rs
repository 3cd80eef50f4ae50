//! The way to the fall-through upstream: its key and the roots it is trusted by, read from files.

use std::{fs, path::Path, sync::Arc};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::task::spawn_blocking;
use tracing::{debug, error, warn};

use crate::{
    config::{
        Fault,
        daemon::{FallThrough as Setting, Scheme},
        keys,
    },
    proxy::FallThrough,
};

/// The upstream, and the setting that names it.
#[derive(Clone, Debug)]
pub(super) struct Below {
    setting: Setting,
    upstream: Arc<FallThrough>,
}

impl Below {
    /// Makes the way there. Blocks on the disk.
    ///
    /// # Errors
    /// The fault of a file that a setting names.
    pub(super) fn open(setting: &Setting) -> Result<Self, Box<Fault>> {
        if !setting.url.is_private() {
            warn!(
                host = setting.url.authority,
                "fall-through is not encrypted: prompts and key go there in the clear"
            );
        }
        let roots = match (&setting.ca_file, setting.url.scheme) {
            (_, Scheme::Http) => RootCertStore::empty(),
            (Some(file), Scheme::Https) => read_roots(file)?,
            (None, Scheme::Https) => roots_of_system(),
        };
        let upstream = FallThrough::new(setting.clone(), roots).map_err(|error| {
            let hint = "this is a bug in slotd".to_owned();
            Box::new(fault(None, format!("no TLS for the fall-through upstream: {error}"), hint))
        })?;
        let below = Self { setting: setting.clone(), upstream: Arc::new(upstream) };
        below.read_key()?;
        Ok(below)
    }

    /// Returns the upstream.
    pub(super) fn upstream(&self) -> Arc<FallThrough> {
        Arc::clone(&self.upstream)
    }

    /// Returns the file that is read again when it changes.
    pub(super) fn key_file(&self) -> Option<&Path> {
        self.setting.key_file.as_deref()
    }

    /// Reads the key. Blocks on the disk. A fault leaves the one before in force.
    fn read_key(&self) -> Result<(), Box<Fault>> {
        const HINT: &str = "`key_file` of `fall_through` names a file of one line, the key";
        let Some(file) = self.key_file() else { return Ok(()) };
        let said = |message: &str| Box::new(fault(Some(file), message.to_owned(), HINT.to_owned()));
        let text = keys::read_secret(file)?.ok_or_else(|| said("there is no such file"))?;
        let key = text.trim();
        if key.is_empty() || !self.upstream.set_key(key) {
            return Err(said("is not one line with a key"));
        }
        Ok(())
    }

    /// Reads the key again; says what is wrong with it, unless that was `told`. Returns what has been
    /// told then.
    pub(super) async fn read_key_again(self, told: Option<Box<Fault>>) -> Option<Box<Fault>> {
        // Reading may hang on a dead mount: not on the driver's threads.
        let read = spawn_blocking(move || self.read_key()).await;
        let fault = read.ok()?.err()?;
        if told.as_ref() != Some(&fault) {
            error!(%fault, "fall-through key not applied, the one before stays");
        }
        Some(fault)
    }
}

fn fault(file: Option<&Path>, message: String, hint: String) -> Fault {
    let file = file.map(Path::to_owned);
    Fault { file, line: None, column: None, key: None, message, hint: Some(hint) }
}

fn read_roots(file: &Path) -> Result<RootCertStore, Box<Fault>> {
    let said = |message: String| {
        let hint = "`ca_file` of `fall_through` names a file of PEM certificates".to_owned();
        Box::new(fault(Some(file), message, hint))
    };
    let text =
        fs::read(file).map_err(|error| said(format!("cannot read the file: {}", error.kind())))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let added = certificate.map(|certificate| roots.add(certificate).is_ok());
        if !added.is_ok_and(|was_added| was_added) {
            return Err(said("has a certificate that cannot be read".to_owned()));
        }
    }
    if roots.is_empty() {
        return Err(said("there is no PEM certificate in it".to_owned()));
    }
    Ok(roots)
}

/// Those that cannot be read are left out: the others may do.
fn roots_of_system() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        debug!(%error, "root certificates not read");
    }
    let mut roots = RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    debug!(added, ignored, "root certificates of the system read");
    if added == 0 {
        warn!(
            "this system has no root certificates: the fall-through upstream is not trusted without `ca_file`"
        );
    }
    roots
}
