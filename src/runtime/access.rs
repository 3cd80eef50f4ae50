//! Files that say who may speak to the endpoint: read at start, and again when they change.
//!
//! A file that cannot be read again leaves in force what was read before, and says so once.

use std::{
    convert::Infallible,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::spawn_blocking,
};
use tracing::{debug, error, info};

use super::{fall_through::Below, start::StartFault};
use crate::{
    config::{
        Fault,
        daemon::{KeysFile, Settings, TlsFiles},
        keys::{self, Keys, Role},
        watch::Watch,
    },
    proxy::{Access, Certificate, FallThrough, TlsFault},
};

/// The files and what they said.
#[derive(Clone, Debug)]
pub(super) struct Doors {
    keys_file: KeysFile,
    keys: Arc<ArcSwap<Keys>>,
    tls: Option<(TlsFiles, Arc<ArcSwap<Certificate>>)>,
    below: Option<Below>,
}

impl Doors {
    /// Reads the files. Called once, before anything listens.
    ///
    /// # Errors
    /// [`StartFault::Access`] when a file has faults, or is missing though a setting names it.
    pub(super) fn open(settings: &Settings) -> Result<Self, StartFault> {
        let keys = read(&settings.keys).map_err(StartFault::Access)?;
        let tls = match &settings.tls {
            None => None,
            Some(files) => {
                let certificate =
                    certify(files).map_err(|fault| StartFault::Access(vec![*fault]))?;
                Some((files.clone(), Arc::new(ArcSwap::from_pointee(certificate))))
            }
        };
        let below = settings.fall_through.as_ref().map(Below::open).transpose();
        let below = below.map_err(|fault| StartFault::Access(vec![*fault]))?;
        let keys = Arc::new(ArcSwap::from_pointee(keys));
        Ok(Self { keys_file: settings.keys.clone(), keys, tls, below })
    }

    /// Refuses to listen where other machines can come without a key.
    ///
    /// # Errors
    /// [`StartFault::NoKeys`].
    pub(super) fn may_listen(&self, address: SocketAddr) -> Result<(), StartFault> {
        let keys = self.keys.load();
        let is_guarded = keys.count(Role::Infer) + keys.count(Role::Admin) > 0;
        if address.ip().is_loopback() || is_guarded {
            return Ok(());
        }
        Err(StartFault::NoKeys { address, file: self.keys_file.path().to_owned() })
    }

    /// Returns what the endpoint goes by.
    pub(super) fn access(&self, settings: &Settings) -> Arc<Access> {
        Arc::new(Access {
            keys: Arc::clone(&self.keys),
            hosts: settings.allowed_hosts.clone(),
            origins: settings.cors_origins.clone(),
            max_in_flight: settings.max_in_flight,
            turns: Arc::default(),
            certificate: self.tls.as_ref().map(|(_, certificate)| Arc::clone(certificate)),
        })
    }

    /// Returns where requests go that name a model of nobody's here.
    pub(super) fn fall_through(&self) -> Option<Arc<FallThrough>> {
        self.below.as_ref().map(Below::upstream)
    }

    /// Reads the files again when they change or on `SIGHUP`.
    pub(super) async fn keep(self) -> Infallible {
        let (look_again, mut looks) = mpsc::channel(1);
        let watch = Watch::start_on_files(self.files(), look_again.clone());
        if let Err(fault) = &watch {
            error!(%fault, "keys are not watched, `SIGHUP` reads them again");
        }
        let mut hang_up = signal(SignalKind::hangup()).ok();
        let (mut told, mut told_of_tls, mut told_of_key) = (Vec::new(), None, None);
        // The first look misses nothing that changed before the watch was set.
        let mut is_due = true;
        loop {
            if is_due {
                self.read_again(&mut told).await;
                self.certify_again(&mut told_of_tls).await;
                if let Some(below) = self.below.clone() {
                    told_of_key = below.read_key_again(told_of_key).await;
                }
            }
            is_due = tokio::select! {
                look = looks.recv() => look.is_some(),
                asked = next(hang_up.as_mut()) => asked.is_some(),
            };
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.keys_file.path().to_owned()];
        if let Some((tls, _)) = &self.tls {
            files.extend([tls.cert.clone(), tls.key.clone()]);
        }
        files.extend(self.below.iter().filter_map(Below::key_file).map(Path::to_owned));
        files
    }

    async fn read_again(&self, told: &mut Vec<Fault>) {
        let (file, was_asked) = (self.keys_file.clone(), **self.keys.load() != Keys::Unasked);
        // Reading may hang on a dead mount: not on the driver's threads.
        let reading = spawn_blocking(move || match read(&file) {
            // Taking the file away opens nothing.
            Ok(Keys::Unasked) if was_asked => Err(vec![gone(file.path())]),
            read => read,
        });
        let Ok(read) = reading.await else { return };
        match read {
            Ok(keys) if keys == **self.keys.load() => told.clear(),
            Ok(keys) => {
                told.clear();
                let (infer, admin) = (keys.count(Role::Infer), keys.count(Role::Admin));
                self.keys.store(Arc::new(keys));
                info!(infer, admin, "keys read again");
            }
            Err(faults) if faults == *told => {}
            Err(faults) => {
                for fault in &faults {
                    error!(%fault, "keys not applied, those before stay");
                }
                *told = faults;
            }
        }
    }

    async fn certify_again(&self, told: &mut Option<Box<Fault>>) {
        let Some((files, certificate)) = &self.tls else { return };
        let files = files.clone();
        match spawn_blocking(move || certify(&files)).await {
            Ok(Ok(read)) => {
                *told = None;
                certificate.store(Arc::new(read));
                debug!("certificate read again");
            }
            Ok(Err(fault)) if Some(&fault) != told.as_ref() => {
                error!(%fault, "certificate not applied, the one before stays");
                *told = Some(fault);
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

/// Reads a certificate and its key. Blocks on the disk.
fn certify(files: &TlsFiles) -> Result<Certificate, Box<Fault>> {
    let chain = fs::read(&files.cert).map_err(|error| Box::new(unread(&files.cert, &error)))?;
    let key = fs::read(&files.key).map_err(|error| Box::new(unread(&files.key, &error)))?;
    Certificate::read(&chain, &key).map_err(|fault| {
        let file = match fault {
            TlsFault::NoKey => &files.key,
            TlsFault::NoCertificate | TlsFault::Unfit(_) => &files.cert,
        };
        let hint = "`tls_cert` and `tls_key` name two PEM files of one pair";
        Box::new(of_file(file, fault.to_string(), hint))
    })
}

fn unread(file: &Path, error: &io::Error) -> Fault {
    let message = format!("cannot read the file: {}", error.kind());
    of_file(file, message, "`tls_cert` or `tls_key` names it; slotd's user needs to read it")
}

fn of_file(file: &Path, message: String, hint: &str) -> Fault {
    let (file, hint) = (Some(file.to_owned()), Some(hint.to_owned()));
    Fault { file, line: None, column: None, key: None, message, hint }
}

fn read(file: &KeysFile) -> Result<Keys, Vec<Fault>> {
    match (keys::read(file.path())?, file) {
        (Some(keys), _) => Ok(Keys::Asked(keys)),
        (None, KeysFile::Usual(_)) => Ok(Keys::Unasked),
        (None, KeysFile::Named(path)) => Err(vec![gone(path)]),
    }
}

fn gone(file: &Path) -> Fault {
    let message = "there is no such file of keys".to_owned();
    of_file(file, message, "`slotd key new NAME` makes it; an empty file lets nobody in")
}

/// Waits for the next signal; for ever where there is none to wait for.
async fn next(signals: Option<&mut Signal>) -> Option<()> {
    match signals {
        Some(signals) => signals.recv().await,
        None => std::future::pending().await,
    }
}
