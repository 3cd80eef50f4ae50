//! Orders that come to the endpoint: handed to the control API, once an admin key has opened their path.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use hyper::{
    Request, Response,
    body::{Body as HttpBody, Incoming},
};

use super::reply::{Aborted, Body};

type Handler = dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<Body>> + Send + Sync;

/// Who answers orders.
#[derive(Clone)]
pub struct Control(Arc<Handler>);

impl Control {
    /// Lets `answer` answer orders. Who asks has been checked.
    pub fn new<F, B>(answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<B>> + Send + 'static,
        B: HttpBody<Data = Bytes> + Send + 'static,
    {
        Self(Arc::new(move |request| {
            let answered = answer(request);
            Box::pin(
                async move { answered.await.map(|body| body.map_err(|_| Aborted).boxed_unsync()) },
            )
        }))
    }

    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        (self.0)(request).await
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}
