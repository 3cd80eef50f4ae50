//! The HTTP face of the worker: the part of the OpenAI API that it serves, and its own state.

mod answer;
mod chat;
mod completion;
mod embedding;
mod fields;
mod foreign;
mod monitor;
mod options;
mod prompt;
mod refusal;
mod rerank;
mod shape;
mod status;
mod tools;

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU32, Ordering},
};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    routing::{get, post},
};
use serde_json::Value as Json;
use tokio::task::spawn_blocking;

use self::refusal::Refusal;
use super::{clock::unix_seconds, engine::Engine, grammar::Grammar, model::Purpose};

/// What the routes share. Made before the model is loaded.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) model_name: String,
    pub(super) model_path: String,
    pub(super) parallel: usize,
    started: u64,
    /// Hundredths of a per cent of the model that are loaded.
    progress: AtomicU32,
    engine: OnceLock<Arc<Engine>>,
}

/// The largest body that is read: a long prompt with its history.
const BODY_BYTES: usize = 64 << 20;

impl Served {
    pub(super) fn new(model_name: String, model_path: String, parallel: usize) -> Self {
        Self {
            model_name,
            model_path,
            parallel,
            started: unix_seconds(),
            progress: AtomicU32::new(0),
            engine: OnceLock::new(),
        }
    }

    /// Takes note of how much is loaded, in hundredths of a per cent.
    pub(super) fn set_progress(&self, progress: u32) {
        self.progress.store(progress, Ordering::Relaxed);
    }

    /// Opens the routes that need the model.
    pub(super) fn set_engine(&self, engine: Arc<Engine>) {
        // A second engine is never made.
        drop(self.engine.set(engine));
    }

    /// Gives the engine, or the refusal that all routes answer with while the model is loaded.
    fn engine(&self) -> Result<Arc<Engine>, Refusal> {
        self.engine.get().cloned().ok_or_else(|| {
            Refusal::loading(f64::from(self.progress.load(Ordering::Relaxed)) / 10_000.0)
        })
    }
}

/// Gives the routes.
pub(super) fn router(served: Arc<Served>) -> Router {
    Router::new()
        .route("/health", get(status::health))
        .route("/v1/health", get(status::health))
        .route("/props", get(monitor::props))
        .route("/slots", get(monitor::slots))
        .route("/metrics", get(monitor::metrics))
        .route("/models", get(status::models))
        .route("/v1/models", get(status::models))
        .route("/v1/models/{*id}", get(status::model))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completion::completion))
        .route("/v1/embeddings", post(embedding::embedding))
        .route("/embeddings", post(embedding::embedding))
        .route("/v1/rerank", post(rerank::rerank))
        .route("/rerank", post(rerank::rerank))
        .route("/v1/reranking", post(rerank::rerank))
        .route("/reranking", post(rerank::rerank))
        .fallback(async || Refusal::not_found("there is no such path", "not_found"))
        .method_not_allowed_fallback(async || Refusal::bad_method())
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(served)
}

/// Gives the engine if it writes text.
fn writer(served: &Served) -> Result<Arc<Engine>, Refusal> {
    let engine = served.engine()?;
    let only = match engine.purpose {
        Purpose::Text => return Ok(engine),
        Purpose::Vectors => "makes embeddings only, it writes no text",
        Purpose::Scores => "ranks documents only, it writes no text",
    };
    Err(Refusal::unsupported("model", only))
}

/// Gives the grammar of an answer's schema, with the field that asks for it.
async fn grammar(
    engine: &Arc<Engine>,
    asked: Option<(&str, Json)>,
) -> Result<Option<Grammar>, Refusal> {
    let Some((of, schema)) = asked else { return Ok(None) };
    let engine = Arc::clone(engine);
    let made = blocking(move || engine.grammars.json(&schema, &engine.vocabulary)).await?;
    let refused = |fault| Refusal::field(of, format!("cannot be kept to: {fault}"));
    made.map(Some).map_err(refused)
}

/// Runs what takes long for a long text off the threads that answer.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    spawn_blocking(work).await.map_err(|_| Refusal::internal("preparing the prompt panicked"))
}
