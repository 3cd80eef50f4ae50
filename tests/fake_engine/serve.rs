//! The OpenAI API, with made-up tokens.

use std::{fs::File, io, sync::atomic::Ordering, time::Duration};

use nix::sys::signal::{Signal, raise};
use serde_json::{Value, json};

use crate::{
    Engine, append,
    http::{self, Connection, Request, respond},
    misbehave::cpu_time,
    pause,
    script::{AllocAt, Health, Wedge},
    wait_for_ever,
};

impl Engine {
    pub(crate) fn answer(&self, request: &Request, to: &mut Connection) -> io::Result<()> {
        let path = request.path.split('?').next().unwrap_or_default();
        if path == "/health" {
            return self.answer_health(to);
        }
        if self.is_poisoned_by(request) {
            // Rust's own handler takes the first one, and makes the next one deadly.
            raise(Signal::SIGSEGV)?;
            raise(Signal::SIGSEGV)?;
        }
        if request.method == "POST" && self.script.wedge.is_some() {
            self.wedge();
        }
        if let Some(done) = self.answer_wedged(to) {
            return done;
        }
        if !self.is_ready.load(Ordering::SeqCst) {
            return respond(to, 503, &fault(503, "Loading model", "unavailable_error"));
        }
        let id = request
            .id
            .clone()
            .unwrap_or_else(|| format!("{}", self.next_id.fetch_add(1, Ordering::Relaxed)));
        self.log_request(&format!("{} {path} {id}\n", request.method))?;
        let result = self.answer_ready(request, path, to);
        if result.is_err() {
            self.log_request(&format!("cancelled {id}\n"))?;
        }
        result
    }

    fn answer_ready(&self, request: &Request, path: &str, to: &mut Connection) -> io::Result<()> {
        match (request.method.as_str(), path) {
            ("GET", "/v1/models") => {
                let model = json!({"id": self.script.alias, "object": "model", "created": 0, "owned_by": "fake"});
                respond(to, 200, &json!({"object": "list", "data": [model]}).to_string())
            }
            ("POST", "/v1/chat/completions") => self.complete(Shape::Chat, request, to),
            ("POST", "/v1/completions") => self.complete(Shape::Text, request, to),
            ("POST", "/v1/embeddings") => self.embed(request, to),
            _ => respond(to, 404, &fault(404, "File Not Found", "not_found_error")),
        }
    }

    fn answer_health(&self, to: &mut Connection) -> io::Result<()> {
        if !self.is_ready.load(Ordering::SeqCst) {
            return respond(to, 503, &fault(503, "Loading model", "unavailable_error"));
        }
        if self.is_wedged.load(Ordering::SeqCst) && self.script.wedge == Some(Wedge::Spin) {
            wait_for_ever();
        }
        match self.script.health {
            Health::Ok => respond(to, 200, r#"{"status":"ok"}"#),
            Health::Garbage => io::Write::write_all(to, b"\0\xff this is no HTTP\r\n\r\n"),
            Health::Status(status) => respond(to, status, &fault(status, "scripted", "scripted")),
            Health::Hang => wait_for_ever(),
            Health::Busy => {
                while self.prompts.load(Ordering::SeqCst) > 0 {
                    pause(Duration::from_millis(10));
                }
                respond(to, 200, r#"{"status":"ok"}"#)
            }
        }
    }

    fn is_poisoned_by(&self, request: &Request) -> bool {
        let Some(poison) = &self.script.poison else { return false };
        request.body.windows(poison.len()).any(|part| part == poison.as_bytes())
    }

    /// Falls into what the script says, unless another process did before.
    fn wedge(&self) {
        let is_first = |once| File::create_new(once).is_ok();
        if self.script.once.as_deref().is_none_or(is_first) {
            self.is_wedged.store(true, Ordering::SeqCst);
        }
    }

    /// Does what a wedged engine does; `None` if it answers all the same.
    fn answer_wedged(&self, to: &mut Connection) -> Option<io::Result<()>> {
        if !self.is_wedged.load(Ordering::SeqCst) {
            return None;
        }
        match self.script.wedge? {
            Wedge::Spin => spin(),
            Wedge::Stall => wait_for_ever(),
            Wedge::Deaf => None,
            Wedge::Fail(status) => {
                let body = fault(status, "Compute error.", "server_error");
                Some(respond(to, status, &body))
            }
        }
    }

    /// Tells whether it takes no more connections.
    pub(crate) fn is_deaf(&self) -> bool {
        self.script.wedge == Some(Wedge::Deaf) && self.is_wedged.load(Ordering::SeqCst)
    }

    /// Uses the CPU for as long as the prompt takes.
    fn work_on_prompt(&self) -> io::Result<()> {
        if self.script.prompt.is_zero() {
            return Ok(());
        }
        self.prompts.fetch_add(1, Ordering::SeqCst);
        let end = cpu_time()? + self.script.prompt;
        while cpu_time()? < end {
            std::hint::spin_loop();
        }
        self.prompts.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    fn log_request(&self, line: &str) -> io::Result<()> {
        self.script.log_requests.as_deref().map_or(Ok(()), |log| append(log, line))
    }

    fn complete(&self, shape: Shape, request: &Request, to: &mut Connection) -> io::Result<()> {
        if self.script.alloc_at == AllocAt::Request {
            self.alloc();
        }
        self.work_on_prompt()?;
        let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
            return respond(to, 400, &fault(400, "the body is no JSON", "invalid_request_error"));
        };
        let asked = body.get("max_tokens").and_then(Value::as_u64).map(usize::try_from);
        let tokens = self.script.tokens.min(asked.and_then(Result::ok).unwrap_or(usize::MAX));
        let usage =
            json!({"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1});
        let frame = |choice: Value, object: &str| {
            json!({
                "id": "fake-1", "object": object, "created": 0, "model": self.script.alias,
                "choices": [choice],
            })
        };
        if body.get("stream").and_then(Value::as_bool) != Some(true) {
            let mut text = String::new();
            for token in 0..tokens {
                self.make_token(token, to)?;
                text.push_str(&word(token));
            }
            let mut whole = frame(shape.whole(&text), shape.object());
            put(&mut whole, "usage", usage);
            return respond(to, 200, &whole.to_string());
        }
        http::begin_events(to)?;
        for token in 0..tokens {
            self.make_token(token, to)?;
            let piece = frame(shape.piece(&word(token), token), shape.piece_object());
            http::event(to, &piece.to_string())?;
        }
        http::event(to, &frame(shape.end(), shape.piece_object()).to_string())?;
        if body.pointer("/stream_options/include_usage").and_then(Value::as_bool) == Some(true) {
            let mut last = frame(Value::Null, shape.piece_object());
            put(&mut last, "choices", json!([]));
            put(&mut last, "usage", usage);
            http::event(to, &last.to_string())?;
        }
        http::event(to, "[DONE]")?;
        http::end_events(to)
    }

    /// Takes the time of one token, and dies before it where the script says so.
    fn make_token(&self, token: usize, to: &Connection) -> io::Result<()> {
        if self.script.die_after_tokens == Some(token) {
            raise(Signal::SIGKILL)?;
        }
        pause(self.script.token_gap);
        if to.is_closed() { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }

    fn embed(&self, request: &Request, to: &mut Connection) -> io::Result<()> {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let inputs = match body.get("input") {
            Some(Value::Array(inputs)) => inputs.len(),
            _ => 1,
        };
        let data: Vec<Value> = (0..inputs)
            .map(|index| json!({"object": "embedding", "index": index, "embedding": [0.6, 0.8]}))
            .collect();
        let answer = json!({
            "object": "list", "data": data, "model": self.script.alias,
            "usage": {"prompt_tokens": inputs, "total_tokens": inputs},
        });
        respond(to, 200, &answer.to_string())
    }
}

fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

#[derive(Clone, Copy)]
enum Shape {
    Chat,
    Text,
}

impl Shape {
    fn object(self) -> &'static str {
        match self {
            Self::Chat => "chat.completion",
            Self::Text => "text_completion",
        }
    }

    fn piece_object(self) -> &'static str {
        match self {
            Self::Chat => "chat.completion.chunk",
            Self::Text => "text_completion",
        }
    }

    fn whole(self, text: &str) -> Value {
        match self {
            Self::Chat => json!({
                "index": 0, "finish_reason": "length",
                "message": {"role": "assistant", "content": text},
            }),
            Self::Text => json!({"index": 0, "finish_reason": "length", "text": text}),
        }
    }

    fn piece(self, text: &str, token: usize) -> Value {
        match self {
            Self::Chat if token == 0 => json!({
                "index": 0, "finish_reason": null,
                "delta": {"role": "assistant", "content": text},
            }),
            Self::Chat => json!({"index": 0, "finish_reason": null, "delta": {"content": text}}),
            Self::Text => json!({"index": 0, "finish_reason": null, "text": text}),
        }
    }

    fn end(self) -> Value {
        match self {
            Self::Chat => json!({"index": 0, "finish_reason": "length", "delta": {}}),
            Self::Text => json!({"index": 0, "finish_reason": "length", "text": ""}),
        }
    }
}

fn put(object: &mut Value, key: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(key.to_owned(), value);
    }
}

fn word(token: usize) -> String {
    format!("t{token} ")
}

fn fault(status: u16, message: &str, kind: &str) -> String {
    json!({"error": {"code": status, "message": message, "type": kind}}).to_string()
}
