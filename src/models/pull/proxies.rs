//! The proxies that the environment names, as curl and `huggingface_hub` take them: `HTTPS_PROXY` for
//! hubs with TLS, `HTTP_PROXY` for those without, `ALL_PROXY` for either, `NO_PROXY` for hosts that are reached
//! without one. Of two spellings the one in lower case counts.
//!
//! Over TLS a proxy sees the host and nothing else: it is asked for a tunnel. Nothing here prints what a
//! proxy's address has before its `@`.

use std::{
    error::Error,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use hyper::{Uri, header::HeaderValue};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::{
        legacy::connect::{
            Connected, Connection, HttpConnector,
            proxy::{SocksV5, Tunnel},
        },
        proxy::matcher::{Intercept, Matcher},
    },
    rt::TokioIo,
};
use tokio::net::TcpStream;
use tower_service::Service;

use super::fault::PullFault;

/// Each with its other spelling, the one that counts first.
const VARIABLES: [[&str; 2]; 3] =
    [["https_proxy", "HTTPS_PROXY"], ["http_proxy", "HTTP_PROXY"], ["all_proxy", "ALL_PROXY"]];
const EXCEPTIONS: [&str; 2] = ["no_proxy", "NO_PROXY"];

/// Which proxy stands before which host. Its `Debug` shows no user and no password.
#[derive(Clone, Debug)]
pub(super) struct Proxies(Arc<Matcher>);

/// Connects to hosts, or to the proxies before them.
#[derive(Clone)]
pub(super) struct Way {
    pub(super) proxies: Proxies,
    pub(super) direct: HttpConnector,
    /// A proxy may want TLS for itself.
    pub(super) to_proxy: HttpsConnector<HttpConnector>,
}

/// A connection to a host, or to the proxy that is asked in its place.
pub(super) struct Link {
    stream: MaybeHttpsStream<TokioIo<TcpStream>>,
    /// The proxy reads requests itself, and wants whole addresses in them.
    is_read_by_proxy: bool,
}

type Failed = Box<dyn Error + Send + Sync>;

impl Proxies {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`PullFault::Environment`]; its text holds no value, for that may be a password.
    /// Source: `getproxies_environment` of Python's `urllib.request`; curl's manual, "Environment".
    pub(super) fn of_environment(text: &dyn Fn(&str) -> Option<String>) -> Result<Self, PullFault> {
        let first = |names: &[&'static str]| {
            names.iter().find_map(|name| Some((*name, text(name)?.trim().to_owned())))
        };
        let mut values = Vec::new();
        for names in &VARIABLES {
            let (name, value) = first(names).unwrap_or_default();
            if !value.is_empty() && !is_proxy(&value) {
                return Err(PullFault::Environment(format!(
                    "`{name}` is no address of a proxy that slotd knows, such as `http://HOST:PORT`, \
                     `https://…` or `socks5://…`"
                )));
            }
            values.push(value);
        }
        let [https, http, all] = values.try_into().unwrap_or_default();
        let (_, no) = first(&EXCEPTIONS).unwrap_or_default();
        let matcher = Matcher::builder().https(https).http(http).all(all).no(no).build();
        Ok(Self(Arc::new(matcher)))
    }

    /// Returns the proxy before a host.
    pub(super) fn before(&self, uri: &Uri) -> Option<Proxy> {
        let found = self.0.intercept(uri)?;
        Some(Proxy { found, is_tunnel: uri.scheme_str() == Some("https") })
    }
}

/// The proxy before one host.
pub(super) struct Proxy {
    found: Intercept,
    /// The host is spoken to over TLS.
    is_tunnel: bool,
}

impl Proxy {
    /// Returns its host and port, as people are told of it.
    pub(super) fn name(&self) -> String {
        self.found.uri().authority().map(ToString::to_string).unwrap_or_default()
    }

    /// Returns what a request has to show that the proxy reads itself.
    pub(super) fn credentials(&self) -> Option<HeaderValue> {
        self.found.basic_auth().filter(|_| !self.is_tunnel && !self.is_socks()).cloned()
    }

    fn is_socks(&self) -> bool {
        self.found.uri().scheme_str().is_some_and(|scheme| scheme.starts_with("socks"))
    }
}

/// SOCKS 4 knows no names of hosts.
fn is_proxy(value: &str) -> bool {
    let any = Uri::from_static("http://host.invalid");
    let found = Matcher::builder().all(value.to_owned()).build().intercept(&any);
    found.is_some_and(|proxy| {
        let is_known =
            matches!(proxy.uri().scheme_str(), Some("http" | "https" | "socks5" | "socks5h"));
        is_known && proxy.uri().host().is_some_and(|host| !host.is_empty())
    })
}

impl Service<Uri> for Way {
    type Response = Link;
    type Error = Failed;
    type Future = Pin<Box<dyn Future<Output = Result<Link, Failed>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        ready!(self.direct.poll_ready(context))?;
        self.to_proxy.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Some(proxy) = self.proxies.before(&uri) else {
            let connecting = self.direct.call(uri);
            return Box::pin(async move {
                Ok(Link {
                    stream: MaybeHttpsStream::Http(connecting.await?),
                    is_read_by_proxy: false,
                })
            });
        };
        let place = proxy.found.uri().clone();
        if proxy.is_socks() {
            let mut socks = SocksV5::new(place, self.direct.clone());
            if let Some((user, password)) = proxy.found.raw_auth() {
                socks = socks.with_auth(user.to_owned(), password.to_owned());
            }
            let connecting = socks.call(uri);
            return Box::pin(async move {
                Ok(Link {
                    stream: MaybeHttpsStream::Http(connecting.await?),
                    is_read_by_proxy: false,
                })
            });
        }
        if proxy.is_tunnel {
            let mut tunnel = Tunnel::new(place, self.to_proxy.clone());
            if let Some(credentials) = proxy.found.basic_auth() {
                tunnel = tunnel.with_auth(credentials.clone());
            }
            let connecting = tunnel.call(uri);
            return Box::pin(async move {
                Ok(Link { stream: connecting.await?, is_read_by_proxy: false })
            });
        }
        let connecting = self.to_proxy.call(place);
        Box::pin(async move { Ok(Link { stream: connecting.await?, is_read_by_proxy: true }) })
    }
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        self.stream.connected().proxy(self.is_read_by_proxy)
    }
}

impl hyper::rt::Read for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Result<Proxies, PullFault> {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        Proxies::of_environment(&|name| variables.get(name).map(|value| (*value).to_owned()))
    }

    fn before(variables: &[(&str, &str)], url: &str) -> Option<String> {
        let proxy = proxies(variables).unwrap().before(&url.parse().unwrap())?;
        Some(proxy.name())
    }

    #[test]
    fn each_scheme_has_its_proxy_and_all_has_the_rest() {
        let both = [("HTTPS_PROXY", "http://p:1"), ("all_proxy", "q:2")];
        assert_eq!(before(&both, "https://hub/x").as_deref(), Some("p:1"));
        assert_eq!(before(&both, "http://hub/x").as_deref(), Some("q:2"), "no scheme is HTTP");
        let http = [("http_proxy", "https://s:3"), ("HTTP_PROXY", "http://other")];
        assert_eq!(before(&http, "http://hub").as_deref(), Some("s:3"), "lower case counts");
        assert_eq!(before(&http, "https://hub"), None);
        assert_eq!(
            before(&[("ALL_PROXY", "socks5h://t:4")], "https://hub").as_deref(),
            Some("t:4")
        );
        let emptied = [("https_proxy", ""), ("HTTPS_PROXY", "http://p:1")];
        assert_eq!(before(&emptied, "https://hub"), None, "set to nothing is none");
        assert_eq!(before(&[], "https://hub"), None);
    }

    #[test]
    fn hosts_that_are_excepted_have_no_proxy() {
        let but = |no| [("ALL_PROXY", "http://p:1"), ("NO_PROXY", no)];
        assert_eq!(before(&but("example.com, .hub.co"), "https://cdn.hub.co/x"), None);
        assert!(before(&but("hub.co"), "https://nohub.co/x").is_some());
        assert_eq!(before(&but("10.0.0.0/8,127.0.0.1"), "http://10.1.2.3:80/x"), None);
        assert_eq!(before(&but("*"), "https://hub"), None);
        let lower = [("ALL_PROXY", "http://p:1"), ("no_proxy", "hub")];
        assert_eq!(before(&lower, "https://hub"), None);
    }

    #[test]
    fn credentials_are_shown_to_a_proxy_that_reads_the_request_and_printed_nowhere() {
        let variables = [("ALL_PROXY", "http://ada:canary@p:1")];
        let found = proxies(&variables).unwrap();
        let plain = found.before(&Uri::from_static("http://hub")).unwrap();
        assert_eq!(plain.credentials().unwrap(), "Basic YWRhOmNhbmFyeQ==");
        assert!(plain.credentials().unwrap().is_sensitive());
        let tunnel = found.before(&Uri::from_static("https://hub")).unwrap();
        assert_eq!(tunnel.credentials(), None, "they go with the order of the tunnel");
        let shown = format!("{found:?} {} {}", plain.name(), tunnel.name());
        assert!(!shown.contains("canary") && !shown.contains("YWRh"), "{shown}");
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_its_value() {
        let fault = |value| proxies(&[("HTTPS_PROXY", value)]).unwrap_err().to_string();
        insta::assert_snapshot!(fault("ftp://ada:canary@p:1"), @"`HTTPS_PROXY` is no address of a proxy that slotd knows, such as `http://HOST:PORT`, `https://…` or `socks5://…`");
        assert_eq!(fault("socks4://p:1"), fault("http://"));
        assert_eq!(fault("http://a b:canary@p"), fault("ftp://ada:canary@p:1"));
    }
}
