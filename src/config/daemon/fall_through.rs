//! `[fall_through]`: where requests go that name a model of nobody's here.

use std::{net::IpAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use hyper::Uri;
use serde::Serialize;

use super::{
    super::{
        walk::{At, MayBeEmpty, Walk},
        words::cut,
    },
    file::Folder,
    whole,
};

const KEYS: [&str; 5] = ["url", "key_file", "ca_file", "timeout", "models"];
const EXAMPLE: &str = "write the base URL as clients are given it: `https://api.openai.com/v1`";
const TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);
const USUAL_TIMEOUT: Duration = Duration::from_mins(10);

/// Where requests go that name a model of nobody's here.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct FallThrough {
    /// Where that is.
    pub url: BaseUrl,
    /// The file that holds the key to show there, if it takes one.
    pub key_file: Option<PathBuf>,
    /// PEM certificates to trust in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// How long a request may take there, its answer included.
    pub timeout: Duration,
    /// The only names that go there; one that ends with `*` stands for all that begin so. Every name
    /// goes there where this is empty.
    pub models: Vec<String>,
}

/// A base URL of OpenAI's API.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct BaseUrl {
    /// Whether TLS is spoken there.
    pub scheme: Scheme,
    /// The host, and the port if it is not the scheme's own.
    pub authority: String,
    /// The path that stands in the place of `/v1`; without a slash at its end.
    pub path: String,
}

/// How a URL is spoken to.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// In the clear.
    Http,
    /// Over TLS.
    Https,
}

impl BaseUrl {
    /// Reads a URL; a host alone stands for its `/v1`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|_| format!("`{}` is not a URL", cut(text)))?;
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            Some(_) | None => {
                return Err(format!("`{}` is neither `https://…` nor `http://…`", cut(text)));
            }
        };
        let Some(authority) = uri.authority().filter(|authority| !authority.host().is_empty())
        else {
            return Err(format!("`{}` names no host", cut(text)));
        };
        // Not said again: it may be a password.
        if authority.as_str().contains('@') {
            return Err("a user or a password has no place in it".to_owned());
        }
        if uri.query().is_some() {
            return Err("a query has no place in it".to_owned());
        }
        let path = match uri.path().trim_end_matches('/') {
            "" => "/v1",
            path => path,
        };
        let (authority, path) = (authority.as_str().to_ascii_lowercase(), path.to_owned());
        Ok(Self { scheme, authority, path })
    }

    /// Tells whether what is said there stays on this machine, or is encrypted.
    pub fn is_private(&self) -> bool {
        let host = self.authority.rsplit_once(':').map_or(&*self.authority, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let is_loopback = host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        self.scheme == Scheme::Https || is_loopback || host == "localhost"
    }
}

pub(super) fn take(walk: &mut Walk<'_>, folder: Folder<'_>) -> Option<FallThrough> {
    walk.take_table("fall_through", |walk| {
        walk.refuse_unknown(&KEYS, better_key);
        let url = walk.take_text("url");
        if url.is_none() && walk.offset_of_key("url").is_none() {
            walk.refuse_here("has no `url`, which says where requests go", EXAMPLE);
        }
        let key_file = folder.take(walk, "key_file");
        let ca_file = folder.take(walk, "ca_file");
        let timeout = walk.take_duration("timeout", &TIMEOUT).unwrap_or(USUAL_TIMEOUT);
        let models = walk.take_texts("models", MayBeEmpty::No).unwrap_or_default();
        let models = models.into_iter().filter_map(|name| name_of(walk, name)).collect();
        let url = url.and_then(|url| {
            let refused = |message| walk.refuse_value(&url, message, EXAMPLE);
            BaseUrl::read(&url.value).map_err(refused).ok()
        })?;
        Some(FallThrough { url, key_file, ca_file, timeout, models })
    })
    .flatten()
}

impl FallThrough {
    pub(super) fn whole(self) -> Self {
        let key_file = self.key_file.map(|path| whole(&path));
        let ca_file = self.ca_file.map(|path| whole(&path));
        Self { key_file, ca_file, ..self }
    }
}

fn name_of(walk: &mut Walk<'_>, name: At<String>) -> Option<String> {
    let is_pattern = name.value.strip_suffix('*').unwrap_or(&name.value).contains('*');
    if is_pattern || name.value.len() > 256 {
        let message = format!("`{}` is no name of a model", cut(&name.value));
        walk.refuse_value(&name, message, "`*` stands at the end of a name alone: `gpt-*`");
        return None;
    }
    Some(name.value)
}

/// Knows where people would write the key itself.
fn better_key(typed: &str) -> Option<String> {
    matches!(typed, "key" | "api_key" | "token").then(|| {
        "write the key into a file of its own (mode 600) and name it: `key_file = \"…\"`".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_is_what_clients_are_given() {
        let read = |text: &str| {
            let url = BaseUrl::read(text).unwrap();
            (url.is_private(), format!("{}{}", url.authority, url.path))
        };
        let is = |private, text: &str| (private, text.to_owned());
        assert_eq!(read("https://api.openai.com"), is(true, "api.openai.com/v1"));
        assert_eq!(read("https://OpenRouter.ai/api/v1/"), is(true, "openrouter.ai/api/v1"));
        assert_eq!(read("http://127.0.0.1:80"), is(true, "127.0.0.1:80/v1"));
        assert_eq!(read("http://[::1]:80/v1"), is(true, "[::1]:80/v1"));
        assert_eq!(read("http://gpu.lan:7568/v1"), is(false, "gpu.lan:7568/v1"));
    }

    #[test]
    fn what_is_no_base_url_is_told_without_its_password() {
        let said = |text: &str| BaseUrl::read(text).unwrap_err();
        assert_eq!(
            said("api.openai.com"),
            "`api.openai.com` is neither `https://…` nor `http://…`"
        );
        assert_eq!(said("https://user:pass@host/v1"), "a user or a password has no place in it");
        assert_eq!(said("https://host/v1?key=canary"), "a query has no place in it");
        assert_eq!(said("a b"), "`a b` is not a URL");
    }
}
