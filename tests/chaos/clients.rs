//! Clients of all kinds, and whether each of their requests ended in exactly one proper way.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Random, Shared};

const CLIENTS: usize = 10;
/// Longer than any queue and any load here.
const LIMIT: Duration = Duration::from_mins(1);

/// Clients that ask until they are told to end.
pub(crate) struct Clients {
    tasks: JoinSet<()>,
    end: CancellationToken,
}

impl Clients {
    pub(crate) fn start(random: &mut Random, shared: &Arc<Shared>, slots: &[String]) -> Self {
        let (mut tasks, end) = (JoinSet::new(), CancellationToken::new());
        for _ in 0..CLIENTS {
            let asking = Asking {
                random: Random::new(random.next()),
                shared: Arc::clone(shared),
                slots: slots.to_vec(),
                client: reqwest::Client::builder().no_proxy().build().unwrap(),
            };
            tasks.spawn(asking.run(end.clone()));
        }
        Self { tasks, end }
    }

    /// Lets each finish what it asks; false if one does not.
    pub(crate) async fn end(self) -> bool {
        self.end.cancel();
        timeout(LIMIT * 2, self.tasks.join_all()).await.is_ok()
    }
}

struct Asking {
    random: Random,
    shared: Arc<Shared>,
    slots: Vec<String>,
    client: reqwest::Client,
}

impl Asking {
    async fn run(mut self, end: CancellationToken) {
        while !end.is_cancelled() {
            let life = self.shared.life();
            let kind = self.random.below(10);
            let slot = self.random.of(&self.slots).clone();
            let asked = timeout(LIMIT, self.ask(kind, &slot)).await;
            let was_disturbed = life.is_multiple_of(2) || self.shared.life() != life;
            let ended = match asked {
                Ok(Ok(end)) => end,
                Ok(Err(_)) | Err(_) if was_disturbed => "lost with the daemon",
                Ok(Err(what)) => {
                    self.shared.broke(format!("I9: {slot}: {what}"));
                    "improper"
                }
                Err(_) => {
                    self.shared.broke(format!("I9: {slot}: no end of a request (kind {kind})"));
                    "endless"
                }
            };
            *self.shared.ends.lock().unwrap().entry(ended).or_default() += 1;
            sleep(Duration::from_millis(self.random.below(60))).await;
        }
    }

    async fn ask(&mut self, kind: u64, slot: &str) -> Result<&'static str, String> {
        let url = format!("{}/v1/chat/completions", self.shared.url.lock().unwrap());
        let tokens = 1 + self.random.below(40);
        let stream = kind >= 4;
        let body = json!({"model": slot, "stream": stream, "messages": [{"role": "user", "content": "x"}], "max_tokens": tokens});
        if kind == 0 {
            // Leaves before there is an answer.
            let patience = Duration::from_millis(self.random.below(200));
            let asked = timeout(patience, self.client.post(url).json(&body).send()).await;
            return Ok(if asked.is_ok() { "left after the head" } else { "left before the head" });
        }
        let answer = self.client.post(url).json(&body).send().await;
        let answer = answer.map_err(|error| format!("no head: {error:?}"))?;
        if !answer.status().is_success() {
            return refused(answer).await;
        }
        if !stream {
            let whole: Value = answer.json().await.map_err(|error| format!("cut: {error:?}"))?;
            let has_choice = whole.pointer("/choices/0").is_some();
            return has_choice.then_some("whole").ok_or_else(|| format!("odd: {whole}"));
        }
        let pause = if kind == 9 { 30 } else { 0 };
        let leave_after = if kind == 8 { self.random.below(5) } else { u64::MAX };
        stream_end(answer, pause, leave_after).await
    }
}

async fn refused(answer: reqwest::Response) -> Result<&'static str, String> {
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.map_err(|error| format!("{status}: {error:?}"))?;
    let error = &body["error"];
    let has_keys = ["message", "type", "param", "code"].iter().all(|key| error.get(key).is_some());
    let text = error["message"].as_str().unwrap_or_default();
    if !has_keys || text.contains("Loading model") {
        return Err(format!("{status}: {body}"));
    }
    match status {
        404 => Ok("404"),
        429 => Ok("429"),
        500 => Ok("500"),
        502 => Ok("502"),
        503 => Ok("503"),
        504 => Ok("504"),
        _ => Err(format!("{status}: {body}")),
    }
}

async fn stream_end(
    mut answer: reqwest::Response,
    pause: u64,
    leave_after: u64,
) -> Result<&'static str, String> {
    let (mut text, mut chunks) = (Vec::new(), 0);
    let is_clean = loop {
        if chunks == leave_after {
            return Ok("left in the stream");
        }
        match answer.chunk().await {
            Ok(Some(chunk)) => text.extend_from_slice(&chunk),
            Ok(None) => break true,
            Err(_) => break false,
        }
        chunks += 1;
        sleep(Duration::from_millis(pause)).await;
    };
    let text = String::from_utf8_lossy(&text);
    let last = text.trim_end().lines().last().unwrap_or_default();
    let is_done = last == "data: [DONE]";
    let is_error = last.starts_with("data: {\"error\"");
    match (is_clean, is_done, is_error) {
        (true, true, _) => Ok("whole stream"),
        (false, false, true) => Ok("stream with error event"),
        _ => Err(format!("stream: clean {is_clean}, {chunks} chunks, last `{last}`")),
    }
}
