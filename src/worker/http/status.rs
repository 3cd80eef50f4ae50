//! What the worker tells about itself: health and models.

use std::sync::Arc;

use axum::extract::{Path, State, rejection::PathRejection};
use serde_json::{Value as Json, json};

use super::{Served, refusal::Refusal};

/// `GET /health`: 503 with the progress while the model is loaded, then 200.
pub(super) async fn health(State(served): State<Arc<Served>>) -> Result<axum::Json<Json>, Refusal> {
    served.engine()?;
    Ok(axum::Json(json!({ "status": "ok" })))
}

/// `GET /v1/models`.
pub(super) async fn models(State(served): State<Arc<Served>>) -> Result<axum::Json<Json>, Refusal> {
    Ok(axum::Json(json!({ "object": "list", "data": [entry(&served)?] })))
}

/// `GET /v1/models/{id}`; an id may hold slashes.
pub(super) async fn model(
    State(served): State<Arc<Served>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<axum::Json<Json>, Refusal> {
    let Path(id) = id.map_err(|fault| Refusal::request(fault.body_text()))?;
    let entry = entry(&served)?;
    if id == served.model_name {
        return Ok(axum::Json(entry));
    }
    let message = format!("there is no model `{id}`, this engine serves `{}`", served.model_name);
    Err(Refusal::not_found(message, "model_not_found"))
}

fn entry(served: &Served) -> Result<Json, Refusal> {
    let engine = served.engine()?;
    Ok(json!({
        "id": served.model_name,
        "object": "model",
        "created": served.started,
        "owned_by": "slotd",
        "meta": {
            "n_ctx": engine.context,
            "n_ctx_train": engine.trained_context,
            "n_embd": engine.width,
            "n_vocab": engine.vocabulary.len(),
            "size": engine.model_bytes,
        },
    }))
}
