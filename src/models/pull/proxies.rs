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

use hyper::{Uri, header::HeaderValue, http::uri::Authority};
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

/// Stands in the matcher where a value cannot be used, so that `NO_PROXY` is asked about its hosts, too.
const UNUSABLE: &str = "http://unusable.invalid";

/// Which proxy stands before which host. Its `Debug` shows no user and no password.
#[derive(Clone, Debug)]
pub(super) struct Proxies {
    matcher: Arc<Matcher>,
    /// Why the variable cannot be used that counts for hosts with TLS.
    https: Option<String>,
    /// The same of hosts without.
    http: Option<String>,
}

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
    /// Reads the environment. What cannot be used in it is a fault where it would be used.
    ///
    /// Source: `getproxies_environment` of Python's `urllib.request`; curl's manual, "Environment".
    pub(super) fn of_environment(text: &dyn Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&'static str]| {
            names.iter().find_map(|name| Some((*name, text(name)?.trim().to_owned())))
        };
        let [https, http, all] = VARIABLES.map(|names| {
            let (name, value) = first(&names).filter(|(_, value)| !value.is_empty())?;
            Some(usable(name, value))
        });
        let [https, http] = [https, http].map(|own| match own.or_else(|| all.clone()) {
            Some(Ok(value)) => (value, None),
            Some(Err(fault)) => (UNUSABLE.to_owned(), Some(fault)),
            None => (String::new(), None),
        });
        let (_, no) = first(&EXCEPTIONS).unwrap_or_default();
        let matcher = Matcher::builder().https(https.0).http(http.0).no(no).build();
        Self { matcher: Arc::new(matcher), https: https.1, http: http.1 }
    }

    /// Returns the proxy before a host.
    ///
    /// # Errors
    /// [`PullFault::Environment`] where the variable that counts for the host cannot be used; its text
    /// holds no value, for that may be a password.
    pub(super) fn before(&self, uri: &Uri) -> Result<Option<Proxy>, PullFault> {
        let Some(found) = self.matcher.intercept(uri) else { return Ok(None) };
        let is_tunnel = uri.scheme_str() == Some("https");
        match if is_tunnel { &self.https } else { &self.http } {
            Some(fault) => Err(PullFault::Environment(fault.clone())),
            None => Ok(Some(Proxy { found, is_tunnel })),
        }
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
        let authority = self.found.uri().authority().map_or("", Authority::as_str);
        after_user(authority).to_owned()
    }

    /// Returns what a request has to show that the proxy reads itself.
    pub(super) fn credentials(&self) -> Option<HeaderValue> {
        self.found.basic_auth().filter(|_| !self.is_tunnel && !self.is_socks()).cloned()
    }

    fn is_socks(&self) -> bool {
        self.found.uri().scheme_str().is_some_and(|scheme| scheme.starts_with("socks"))
    }
}

/// Returns the value as the matcher takes it, or what is wrong with that of variable `name`.
fn usable(name: &str, value: String) -> Result<String, String> {
    // As desktops write it, who try version 5 first.
    let value = match value.strip_prefix("socks://") {
        Some(rest) => format!("socks5://{rest}"),
        None => value,
    };
    let any = Uri::from_static("http://host.invalid");
    let found = Matcher::builder().all(value.clone()).build().intercept(&any);
    let authority = found.as_ref().filter(|proxy| {
        // SOCKS 4 knows no names of hosts.
        let is_known =
            matches!(proxy.uri().scheme_str(), Some("http" | "https" | "socks5" | "socks5h"));
        is_known && proxy.uri().host().is_some_and(|host| !host.is_empty())
    });
    match authority.and_then(|proxy| proxy.uri().authority()) {
        None => Err(format!(
            "`{name}` is no address of a proxy that slotd knows, such as `http://HOST:PORT`, \
             `https://…` or `socks5://…`"
        )),
        // What was found for its host begins within the password, or is the user.
        Some(authority) if value.contains('@') && !is_host_of(authority.as_str(), &value) => {
            Err(format!(
                "`{name}` has a character in its user or password that ends them there; write `@` as \
                 `%40`, `/` as `%2F`, `?` as `%3F` and `#` as `%23`"
            ))
        }
        Some(_) => Ok(value),
    }
}

/// Tells whether `host` is what stands after the last `@`.
fn is_host_of(host: &str, value: &str) -> bool {
    after_user(value).split(['/', '?', '#']).next() == Some(host)
}

fn after_user(text: &str) -> &str {
    text.rsplit_once('@').map_or(text, |(_, host)| host)
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
        let proxy = match self.proxies.before(&uri) {
            Ok(Some(proxy)) => proxy,
            Ok(None) => {
                let connecting = self.direct.call(uri);
                return Box::pin(async move {
                    Ok(Link {
                        stream: MaybeHttpsStream::Http(connecting.await?),
                        is_read_by_proxy: false,
                    })
                });
            }
            Err(fault) => return Box::pin(async move { Err(fault.into()) }),
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

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        Proxies::of_environment(&|name| variables.get(name).map(|value| (*value).to_owned()))
    }

    fn before(variables: &[(&str, &str)], url: &str) -> Option<String> {
        let proxy = proxies(variables).before(&url.parse().unwrap()).unwrap()?;
        Some(proxy.name())
    }

    fn fault(variables: &[(&str, &str)], url: &str) -> String {
        let proxies = proxies(variables);
        let Err(fault) = proxies.before(&url.parse().unwrap()) else {
            panic!("a proxy is found for {url}")
        };
        format!("{fault}{}", if format!("{proxies:?}").contains("canary") { "canary" } else { "" })
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
        let found = proxies(&variables);
        let before = |url| found.before(&Uri::from_static(url)).unwrap().unwrap();
        let plain = before("http://hub");
        assert_eq!(plain.credentials().unwrap(), "Basic YWRhOmNhbmFyeQ==");
        assert!(plain.credentials().unwrap().is_sensitive());
        let tunnel = before("https://hub");
        assert_eq!(tunnel.credentials(), None, "they go with the order of the tunnel");
        let shown = format!("{found:?} {} {}", plain.name(), tunnel.name());
        assert!(!shown.contains("canary") && !shown.contains("YWRh"), "{shown}");
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_its_value() {
        let fault = |value| fault(&[("HTTPS_PROXY", value)], "https://hub");
        insta::assert_snapshot!(fault("ftp://ada:canary@p:1"), @"`HTTPS_PROXY` is no address of a proxy that slotd knows, such as `http://HOST:PORT`, `https://…` or `socks5://…`");
        assert_eq!(fault("socks4://p:1"), fault("http://"));
        assert_eq!(fault("http://a b:canary@p"), fault("ftp://ada:canary@p:1"));
    }

    #[test]
    fn no_part_of_a_password_is_taken_for_the_proxys_host() {
        let fault = |value| fault(&[("ALL_PROXY", value)], "https://hub");
        let said = fault("http://ada:p@canary@proxy:3128");
        insta::assert_snapshot!(said, @"`ALL_PROXY` has a character in its user or password that ends them there; write `@` as `%40`, `/` as `%2F`, `?` as `%3F` and `#` as `%23`");
        for value in [
            "ada:p@canary@proxy:3128",
            "http://canary:1/2@proxy",
            "http://canary:1?2@proxy",
            "http://canary:1#2@proxy",
            "socks5://ada:p@canary@proxy:3128/",
        ] {
            assert_eq!(fault(value), said, "{value}");
        }
        let written = [("ALL_PROXY", "http://ada:p%40canary@proxy:3128/")];
        let proxy = proxies(&written).before(&Uri::from_static("http://hub")).unwrap().unwrap();
        assert_eq!(proxy.name(), "proxy:3128");
        assert_eq!(proxy.credentials().unwrap(), "Basic YWRhOnBAY2FuYXJ5");
    }

    #[test]
    fn a_variable_that_cannot_be_used_stops_only_what_would_use_it() {
        let both = [("HTTPS_PROXY", "http://p:1"), ("ALL_PROXY", "ftp://q:2")];
        assert_eq!(before(&both, "https://hub").as_deref(), Some("p:1"));
        assert!(fault(&both, "http://hub").starts_with("`ALL_PROXY` is no address"));
        let own = [("https_proxy", "ftp://q:2"), ("ALL_PROXY", "http://p:1")];
        assert_eq!(before(&own, "http://hub").as_deref(), Some("p:1"));
        assert!(fault(&own, "https://hub").starts_with("`https_proxy` is no address"));
        let excepted = [("ALL_PROXY", "ftp://q:2"), ("NO_PROXY", "hub")];
        assert_eq!(before(&excepted, "https://hub"), None);
        assert!(fault(&excepted, "https://cdn").starts_with("`ALL_PROXY` is no address"));
        let desktop = [("ALL_PROXY", "socks://q:2/")];
        assert_eq!(before(&desktop, "https://hub").as_deref(), Some("q:2"));
    }
}
