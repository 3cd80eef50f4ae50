//! Downloads of models: asked for, watched, cancelled.

use std::{convert::Infallible, fmt, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::{Path, State as Extract, rejection::JsonRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream::BoxStream};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{refusal::Refusal, routes::App, serve::closed};

/// A pull at one moment: an element of `GET /v1/pulls`. The keys are stable.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct PullObject {
    /// What it is watched and cancelled by.
    pub id: u64,
    /// `org/repo`, `org/repo:QUANT`, either with `@REVISION`.
    pub model: String,
    /// `waiting` (another writes to the model), `asking` (the hub), `downloading`, `done`, `failed` or
    /// `cancelled`.
    pub stage: String,
    /// The commit, once it is known.
    pub commit: Option<String>,
    /// How much of it is there, 0 to 100, once its size is known.
    pub percent: Option<u8>,
    /// How many files belong to it.
    pub files: usize,
    /// How many of them are there.
    pub files_done: usize,
    /// What they all take.
    pub size_bytes: u64,
    /// How much of that is on the disk.
    pub done_bytes: u64,
    /// How much of that was there in the beginning.
    pub resumed_bytes: u64,
    /// What came over the network.
    pub fetched_bytes: u64,
    /// Who else writes to the model, while that is waited for.
    pub held_by: Option<String>,
    /// The last trouble that passed, or is waited out.
    pub trouble: Option<String>,
    /// Why it has failed.
    pub error: Option<String>,
    /// The code of that: `insufficient_disk`, `no_such_model`, `no_access`, `hub_unreachable`, …
    pub code: Option<String>,
    /// Where room on the disk is short: the numbers.
    pub shortage: Option<ShortageObject>,
}

/// How much room is short on the disk.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct ShortageObject {
    /// What is to be fetched.
    pub needed_bytes: u64,
    /// What is free.
    pub free_bytes: u64,
    /// What has to stay free.
    pub reserve_bytes: u64,
    /// What partial and unused files of the cache take.
    pub freeable_bytes: u64,
}

/// The body of `POST /v1/pulls`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// `org/repo`, `org/repo:QUANT`, either with `@REVISION`.
    pub model: String,
    /// The most bytes a second; no limit without it.
    #[serde(default)]
    pub limit_rate_bytes_per_s: u64,
    /// What has to stay free on the disk; 1 GiB without it, or a twentieth of a smaller disk.
    #[serde(default)]
    pub reserve_bytes: Option<u64>,
    /// Whether all of what is there is read, and what is damaged is fetched anew; without it only headers are
    /// looked at.
    #[serde(default)]
    pub verify: bool,
}

/// Starts a pull and answers once it is known what is to be fetched, or why it is not; with a sentence
/// where the model's name is none.
pub(super) type StartPull =
    Arc<dyn Fn(PullRequest) -> BoxFuture<'static, Result<PullObject, String>> + Send + Sync>;

/// Shows a pull at once and after each change, until its end; nothing of one that is not known.
pub(super) type WatchPull =
    Arc<dyn Fn(u64) -> Option<BoxStream<'static, PullObject>> + Send + Sync>;

/// The daemon's pulls; made by `runtime`.
#[derive(Clone)]
pub struct Pulls {
    /// Those that run and the last that ended, oldest first.
    pub list: Arc<dyn Fn() -> Vec<PullObject> + Send + Sync>,
    /// Starts one, or joins the one of the same model.
    pub start: StartPull,
    /// Shows one as it goes on.
    pub watch: WatchPull,
    /// Cancels one; says whether it is known.
    pub cancel: Arc<dyn Fn(u64) -> bool + Send + Sync>,
}

impl Pulls {
    /// Makes pulls for a daemon that has none.
    pub fn none() -> Self {
        Self {
            list: Arc::new(Vec::new),
            start: Arc::new(|_| Box::pin(async { Err("this daemon pulls no models".to_owned()) })),
            watch: Arc::new(|_| None),
            cancel: Arc::new(|_| false),
        }
    }

    /// Returns the pull of a model that is under way.
    pub(super) fn of(&self, model: Option<&str>) -> Option<PullObject> {
        let model = model?;
        let is_under_way =
            |pull: &PullObject| !["done", "failed", "cancelled"].contains(&&*pull.stage);
        (self.list)().into_iter().find(|pull| pull.model == model && is_under_way(pull))
    }
}

impl PullObject {
    /// Says why it has failed, as an answer to who asked for it.
    fn refused(&self) -> Option<(StatusCode, serde_json::Value)> {
        let status = match self.code.as_deref()? {
            "insufficient_disk" => StatusCode::INSUFFICIENT_STORAGE,
            "no_such_model" => StatusCode::NOT_FOUND,
            "no_access" => StatusCode::FORBIDDEN,
            "offline" | "cancelled" => StatusCode::CONFLICT,
            "hub_unreachable" | "bad_answer" | "bad_content" => StatusCode::BAD_GATEWAY,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut error = json!({
            "message": self.error,
            "type": "invalid_request_error",
            "param": "model",
            "code": self.code,
        });
        if let (Some(shortage), Some(fields)) = (&self.shortage, error.as_object_mut()) {
            fields.insert("shortage".to_owned(), json!(shortage));
        }
        Some((status, json!({ "error": error })))
    }
}

pub(super) async fn list(Extract(app): Extract<App>) -> Json<Vec<PullObject>> {
    Json((app.state.pulls.list)())
}

pub(super) async fn start(
    Extract(app): Extract<App>,
    request: Result<Json<PullRequest>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(request) = request.map_err(|fault| Refusal::BadBody(fault.body_text()))?;
    let begun = (app.state.pulls.start)(request).await.map_err(Refusal::BadBody)?;
    Ok(match begun.refused() {
        Some((status, body)) => (status, Json(body)).into_response(),
        None => (StatusCode::ACCEPTED, Json(begun)).into_response(),
    })
}

pub(super) async fn watch(
    Extract(app): Extract<App>,
    Path(typed): Path<String>,
) -> Result<Response, Refusal> {
    let found = typed.parse().ok().and_then(|id| (app.state.pulls.watch)(id));
    let steps = found.ok_or(Refusal::NoSuchPull(typed))?;
    let lines = steps.map(|step| {
        let mut line = serde_json::to_vec(&step).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(line))
    });
    let body = Body::from_stream(lines.take_until(closed(app.closing.clone())));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

pub(super) async fn cancel(
    Extract(app): Extract<App>,
    Path(typed): Path<String>,
) -> Result<Response, Refusal> {
    let id = typed.parse().ok().filter(|id| (app.state.pulls.cancel)(*id));
    let id: u64 = id.ok_or(Refusal::NoSuchPull(typed))?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "id": id }))).into_response())
}

impl fmt::Debug for Pulls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pulls").finish_non_exhaustive()
    }
}
