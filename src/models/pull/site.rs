//! Where the hub is, who asks, and where the cache is: from the variables that `huggingface_hub` reads.

use std::{ffi::OsString, fmt, fs, io, path::PathBuf, time::Duration};

use hyper::{Uri, header::HeaderValue};

use super::{fault::PullFault, proxies::Proxies};
use crate::models::hub_cache_dir;

const USUAL_ENDPOINT: &str = "https://huggingface.co";
/// How long a connection may be silent where nothing else is said.
const USUAL_SILENCE: Duration = Duration::from_secs(30);

/// How the hub is reached, and where what comes is kept.
#[derive(Clone, Debug)]
pub struct Site {
    /// Its base URL without a slash at the end; a path may be in it.
    pub(super) endpoint: String,
    /// Who asks.
    pub(super) token: Option<Token>,
    /// What stands between.
    pub(super) proxies: Proxies,
    /// The folder of the cache.
    pub(super) cache: PathBuf,
    /// Nothing is to be asked of the network.
    pub(super) is_offline: bool,
    /// How long a connection may be silent.
    pub(super) silence: Duration,
}

/// A token as the header that shows it. Nothing prints it.
#[derive(Clone)]
pub(super) struct Token(pub(super) HeaderValue);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Site {
    /// Reads the environment and the token's file.
    ///
    /// # Errors
    /// [`PullFault::Environment`] and [`PullFault::Io`].
    /// Source: `constants.py` and `utils/_auth.py` of `huggingface_hub` 2.4.0.
    pub fn of_environment(
        environment: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, PullFault> {
        let text = |name: &str| {
            let value = environment(name).filter(|value| !value.is_empty())?;
            value.into_string().ok()
        };
        let is_set = |name: &str| text(name).is_some_and(|value| is_true(&value));
        let cache = hub_cache_dir(environment).ok_or_else(|| {
            let said = "there is no place for models: set `HF_HUB_CACHE`, `HF_HOME` or `HOME`";
            PullFault::Environment(said.to_owned())
        })?;
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| USUAL_ENDPOINT.to_owned());
        let endpoint = checked_endpoint(endpoint.trim_end_matches('/'))?;
        let seconds = text("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|value| value.parse().ok());
        let silence = seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs);
        let token = if is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            None
        } else {
            match text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")) {
                Some(token) => Some(token),
                None => token_of_file(environment)?,
            }
        };
        Ok(Self {
            endpoint,
            token: token.as_deref().and_then(cleaned).map(header).transpose()?,
            proxies: Proxies::of_environment(&|name| environment(name)?.into_string().ok()),
            cache,
            is_offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
            silence: silence.unwrap_or(USUAL_SILENCE),
        })
    }

    /// Returns the folder of the cache.
    pub fn cache(&self) -> &PathBuf {
        &self.cache
    }
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
}

fn checked_endpoint(text: &str) -> Result<String, PullFault> {
    let fault = |what: &str| PullFault::Environment(format!("`HF_ENDPOINT` {what}"));
    let uri: Uri = text.parse().map_err(|_| fault("is not a URL"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(fault("is neither `https://…` nor `http://…`"));
    }
    let authority = uri.authority().filter(|authority| !authority.host().is_empty());
    match authority {
        None => Err(fault("names no host")),
        // Not said again: it may be a password.
        Some(authority) if authority.as_str().contains('@') => {
            Err(fault("has a user or a password in it, which has no place there; set `HF_TOKEN`"))
        }
        Some(_) if uri.query().is_some() => Err(fault("has a query, which has no place in it")),
        Some(_) => Ok(text.to_owned()),
    }
}

fn token_of_file(
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Option<String>, PullFault> {
    const PLACES: [(&str, &str); 4] = [
        ("HF_TOKEN_PATH", ""),
        ("HF_HOME", "token"),
        ("XDG_CACHE_HOME", "huggingface/token"),
        ("HOME", ".cache/huggingface/token"),
    ];
    let place = PLACES.iter().find_map(|(name, inside)| {
        let place = PathBuf::from(environment(name).filter(|value| !value.is_empty())?);
        Some(if inside.is_empty() { place } else { place.join(inside) })
    });
    let Some(path) = place else { return Ok(None) };
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        // A directory of somebody else's may hide it; then there is none for us.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok(None)
        }
        Err(source) => Err(PullFault::Io { path, source }),
    }
}

fn cleaned(token: &str) -> Option<&str> {
    Some(token.trim()).filter(|token| !token.is_empty())
}

fn header(token: &str) -> Result<Token, PullFault> {
    let fault = |_| PullFault::Environment("the hub's token is not one line of plain text".into());
    let mut header = HeaderValue::from_str(&format!("Bearer {token}")).map_err(fault)?;
    header.set_sensitive(true);
    Ok(Token(header))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn site(variables: &[(&str, &str)]) -> Result<Site, PullFault> {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        Site::of_environment(&|name| variables.get(name).map(Into::into))
    }

    fn token(site: &Site) -> Option<&str> {
        site.token.as_ref().map(|token| token.0.to_str().unwrap())
    }

    #[test]
    fn what_is_set_is_used() {
        let usual = site(&[("HOME", "/nowhere")]).unwrap();
        assert_eq!(usual.endpoint, "https://huggingface.co");
        assert_eq!(usual.cache, PathBuf::from("/nowhere/.cache/huggingface/hub"));
        assert!(!usual.is_offline && usual.token.is_none());
        let other = site(&[
            ("HF_HUB_CACHE", "/c"),
            ("HF_ENDPOINT", "http://127.0.0.1:8/"),
            ("HF_TOKEN", " hf_x\n"),
            ("HF_HUB_OFFLINE", "yes"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "3"),
        ]);
        let other = other.unwrap();
        assert_eq!(
            (other.endpoint.as_str(), token(&other)),
            ("http://127.0.0.1:8", Some("Bearer hf_x"))
        );
        assert!(other.is_offline && other.silence == Duration::from_secs(3));
    }

    #[test]
    fn a_token_is_found_in_its_file_and_shown_to_nobody() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("token"), "hf_canary\n").unwrap();
        let home = folder.path().to_str().unwrap();
        let found = site(&[("HF_HOME", home)]).unwrap();
        assert_eq!(token(&found), Some("Bearer hf_canary"));
        assert!(!format!("{found:?}").contains("canary"));
        let hidden = site(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).unwrap();
        assert_eq!(token(&hidden), None);
    }

    #[test]
    fn what_cannot_be_used_is_said_without_what_is_secret_in_it() {
        let fault = |endpoint: &str| {
            site(&[("HOME", "/h"), ("HF_ENDPOINT", endpoint)]).unwrap_err().to_string()
        };
        insta::assert_snapshot!(fault("ftp://x"), @"`HF_ENDPOINT` is neither `https://…` nor `http://…`");
        insta::assert_snapshot!(fault("https://ada:canary@h"), @"`HF_ENDPOINT` has a user or a password in it, which has no place there; set `HF_TOKEN`");
        insta::assert_snapshot!(site(&[]).unwrap_err(), @"there is no place for models: set `HF_HUB_CACHE`, `HF_HOME` or `HOME`");
        let token = site(&[("HOME", "/h"), ("HF_TOKEN", "can\nary")]).unwrap_err().to_string();
        assert!(!token.contains("ary"), "{token}");
    }
}
