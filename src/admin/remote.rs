//! The same API for who comes over the endpoint: whether they may, the endpoint has decided.

use axum::{Router, body::Body};
use hyper::{Request, Response, body::Incoming, service::Service};
use hyper_util::service::TowerToHyperService;
use tokio::sync::watch;

use super::{
    State,
    routes::{App, router},
};

/// The control API without a socket of its own.
#[derive(Clone, Debug)]
pub struct Remote(Router);

impl Remote {
    /// Makes it ready to answer. Streams end once `closing` becomes true.
    pub fn new(state: State, closing: watch::Receiver<bool>) -> Self {
        Self(router(App { state, closing }))
    }

    /// Answers one request.
    pub async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        match TowerToHyperService::new(self.0).call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}
