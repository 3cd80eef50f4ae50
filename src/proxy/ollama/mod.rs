//! Ollama's API, on a socket of its own: requests told to engines as OpenAI's, answers told back.
//!
//! Paths below `/api/` and the root are answered here; on any other path the endpoint's own API is
//! spoken, as at Ollama. What happens between the two tellings is the endpoint's: access, routes,
//! queues, engines that die. A stream that waits for its engine is held without a word: its lines have
//! no comments.
//!
//! ```text
//! /api/chat ─▶ request (OpenAI's) ─▶ forward ─▶ answer or lines (Ollama's) ─▶ client
//! ```
//!
//! Source: Ollama's `docs/api.md` and `api/types.go`.

mod answer;
mod embed;
mod lines;
mod listing;
mod load;
mod messages;
mod request;
mod work;

use std::sync::Arc;

use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE},
};
use serde_json::json;

use self::work::Kind;
use super::{
    Client, body,
    dialect::Dialect,
    listeners::WallClock,
    reply::{Body, Fault, insert, json_response, text},
    serve::Phase,
};
use crate::spec::SlotName;

/// The version of Ollama whose API this is: clients ask for it.
const VERSION: &str = "0.12.0";

/// Who asks, and what tells the time.
type Asker<'a> = (&'a Arc<Client>, WallClock);

/// Tells whether a path is one of this API.
pub(super) fn has(path: &str) -> bool {
    path == "/" || path == "/api" || path.starts_with("/api/")
}

/// What a path does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Act {
    Greet,
    Version,
    Tags,
    Ps,
    Show,
    Work(Kind),
    /// What slotd leaves to its operator.
    Manage,
}

impl Act {
    fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/" => Self::Greet,
            "/api/version" => Self::Version,
            "/api/tags" => Self::Tags,
            "/api/ps" => Self::Ps,
            "/api/show" => Self::Show,
            "/api/chat" => Self::Work(Kind::Chat),
            "/api/generate" => Self::Work(Kind::Generate),
            "/api/embed" => Self::Work(Kind::Embed),
            "/api/embeddings" => Self::Work(Kind::Embeddings),
            "/api/pull" | "/api/push" | "/api/create" | "/api/delete" | "/api/copy" => Self::Manage,
            _ if path.starts_with("/api/blobs/") => Self::Manage,
            _ => return None,
        })
    }

    fn methods(self) -> &'static str {
        match self {
            Self::Greet | Self::Version | Self::Tags | Self::Ps => "GET, HEAD",
            Self::Show | Self::Work(_) => "POST",
            Self::Manage => "GET, HEAD, POST, PUT, DELETE",
        }
    }
}

/// Answers a request of this API.
pub(super) async fn answer(
    asker: Asker<'_>,
    phase: Phase,
    request: Request<Incoming>,
) -> (Option<SlotName>, Response<Body>) {
    let path = request.uri().path();
    let Some(act) = Act::of(path) else {
        let path: String = path.chars().take(100).collect();
        let message = format!(
            "there is no `{path}`; there is /api/version, tags, ps, show, chat, generate, embed, embeddings"
        );
        return (None, told(&Fault::not_found("not_found", message)));
    };
    if *request.method() == Method::OPTIONS {
        let mut response = text(StatusCode::NO_CONTENT, "");
        response.headers_mut().remove(CONTENT_TYPE);
        insert(response.headers_mut(), ALLOW, &format!("{}, OPTIONS", act.methods()));
        return (None, response);
    }
    if !act.methods().split(", ").any(|method| method == request.method().as_str()) {
        let message = format!("`{path}` takes {}", act.methods());
        let status = StatusCode::METHOD_NOT_ALLOWED;
        let mut response = told(&Fault::refused(status, "method_not_allowed", message));
        insert(response.headers_mut(), ALLOW, act.methods());
        return (None, response);
    }
    if phase == Phase::Starting && !matches!(act, Act::Greet | Act::Version) {
        return (None, told(&Fault::starting()));
    }
    let (client, clock) = asker;
    let response = match act {
        Act::Greet => text(StatusCode::OK, "Ollama is running"),
        Act::Version => {
            let version = json!({"version": VERSION, "slotd": env!("CARGO_PKG_VERSION")});
            json_response(StatusCode::OK, &version)
        }
        Act::Tags => listing::tags(&client.shared.routes.load()),
        Act::Ps => listing::ps(&client.shared.routes.load(), clock()),
        Act::Show => show(client, request).await.unwrap_or_else(|fault| told(&fault)),
        Act::Work(kind) => return work::answer(asker, request, kind).await,
        Act::Manage => return (None, unmanaged(client, request).await),
    };
    (None, response)
}

async fn show(client: &Client, request: Request<Incoming>) -> Result<Response<Body>, Fault> {
    let (head, incoming) = request.into_parts();
    body::check_encoding(&head.headers)?;
    let bytes = body::collect(&head.headers, incoming, client.shared.limits.max_body).await?;
    listing::show(&client.shared.routes.load(), &bytes)
}

/// Says that models are not managed here.
async fn unmanaged(client: &Client, request: Request<Incoming>) -> Response<Body> {
    let (head, incoming) = request.into_parts();
    body::discard(&head.headers, incoming, client.shared.limits.max_body).await;
    let path: String = head.uri.path().chars().take(100).collect();
    let message = format!(
        "slotd does not do `{path}`: models and their names are what the profiles of this machine say; \
         `GET /api/tags` lists them"
    );
    told(&Fault::refused(StatusCode::NOT_IMPLEMENTED, "not_managed", message))
}

fn told(fault: &Fault) -> Response<Body> {
    fault.response_in(Dialect::Ollama)
}
