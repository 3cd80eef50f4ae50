//! One request of a bench: a prompt that nobody has seen, an answer of a given length, its pieces timed.

use std::{env, time::Duration};

use futures_util::future::try_join_all;
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Options,
    figures::{Answer, Round, Timings},
    target::{Target, Work},
};
use crate::{cli::failure::Failure, config::keys};

/// The longest line of a stream; a vector's answer is larger and comes whole.
const LONGEST_LINE: usize = 4 << 20;

/// Asks one engine.
#[derive(Debug)]
pub(super) struct Asker<'a> {
    options: &'a Options,
    target: &'a Target,
    http: reqwest::Client,
    key: Option<String>,
    /// Where the engine takes no tokens: so many words make a prompt.
    words: u32,
}

/// Makes a client that goes straight to where it is told.
pub(super) fn http() -> Result<reqwest::Client, Failure> {
    let built = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build();
    built.map_err(|error| Failure::Talk { path: "the endpoint".into(), source: error.into() })
}

/// Returns the key for the endpoint: the file's, else the environment's, else none.
pub(super) fn api_key(options: &Options) -> Result<Option<String>, Failure> {
    let Some(file) = &options.api_key_file else {
        let key = env::var("SLOTD_API_KEY").ok();
        return Ok(key.map(|key| key.trim().to_owned()).filter(|key| !key.is_empty()));
    };
    let read = keys::read_secret(file).map_err(|fault| Failure::Settings(vec![*fault]))?;
    Ok(Some(read.ok_or_else(|| Failure::NoKey { path: file.clone() })?.trim().to_owned()))
}

pub(super) fn with_key(request: RequestBuilder, key: Option<&String>) -> RequestBuilder {
    match key {
        Some(key) => request.bearer_auth(key),
        None => request,
    }
}

impl<'a> Asker<'a> {
    pub(super) fn new(options: &'a Options, target: &'a Target) -> Result<Self, Failure> {
        let (http, key) = (http()?, api_key(options)?);
        Ok(Self { options, target, http, key, words: options.prompt.div_ceil(2) })
    }

    /// Finds out how many words make a prompt, where tokens cannot be given as they are.
    pub(super) async fn calibrate(&mut self) -> Result<(), Failure> {
        if self.target.vocabulary.is_some() {
            return Ok(());
        }
        let answer = self.ask(1).await?;
        if let Some(counted) = answer.prompt_tokens.filter(|counted| *counted > 0) {
            let words = u64::from(self.words) * u64::from(self.options.prompt);
            self.words = u32::try_from(words / u64::from(counted)).unwrap_or(u32::MAX).max(1);
        }
        Ok(())
    }

    /// Asks so many times at once.
    pub(super) async fn round(&self, concurrency: u32) -> Result<Round, Failure> {
        let began = Instant::now();
        let asked = (0..concurrency).map(|_| self.ask(self.options.generate));
        let answers = try_join_all(asked).await?;
        Ok(Round { answers, took: began.elapsed() })
    }

    async fn ask(&self, tokens: u32) -> Result<Answer, Failure> {
        let prompt = self.prompt()?;
        match self.target.work {
            Work::Generate => self.generate(&prompt, tokens).await,
            Work::Embed => self.embed(&prompt).await,
        }
    }

    async fn generate(&self, prompt: &Value, tokens: u32) -> Result<Answer, Failure> {
        let model = self.target.slot.slot.as_str();
        let mut body = json!({
            "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
            "ignore_eos": true, "stream": true, "stream_options": { "include_usage": true },
        });
        if let (Some(_), Some(fields)) = (self.target.vocabulary, body.as_object_mut()) {
            // A word of engines that take tokens; others may refuse what they do not know.
            fields.insert("cache_prompt".to_owned(), false.into());
        }
        let began = Instant::now();
        let mut response = self.send("/v1/completions", &body).await?;
        let mut answer = Answer::default();
        let mut buffer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(cut)? {
            let at = began.elapsed();
            buffer.extend_from_slice(&chunk);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                take(&line, at, &mut answer)?;
            }
            if buffer.len() > LONGEST_LINE {
                return Err(Failure::Refused { message: "the answer is no stream".to_owned() });
            }
        }
        let made = answer.generated_tokens;
        if made.is_none_or(|made| made < tokens) {
            let made = made.map_or("no count of them".to_owned(), |made| made.to_string());
            let message = format!(
                "{tokens} tokens were asked for and {made} came: the engine does not take `ignore_eos`, or tells no usage"
            );
            return Err(Failure::Refused { message });
        }
        Ok(answer)
    }

    async fn embed(&self, prompt: &Value) -> Result<Answer, Failure> {
        let model = self.target.slot.slot.as_str();
        let body = json!({ "model": model, "input": prompt });
        let began = Instant::now();
        let response = self.send("/v1/embeddings", &body).await?;
        let body: Value = response.json().await.map_err(cut)?;
        let took = began.elapsed();
        Ok(Answer {
            first: Some(took),
            last: Some(took),
            prompt_tokens: number(&body, "/usage/prompt_tokens"),
            ..Answer::default()
        })
    }

    async fn send(&self, path: &str, body: &Value) -> Result<Response, Failure> {
        let request = self.http.post(format!("{}{path}", self.target.base)).json(body);
        let response = with_key(request, self.key.as_ref()).send().await.map_err(cut)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.json::<Value>().await.unwrap_or_default();
        let said = body.pointer("/error/message").and_then(Value::as_str);
        let message = match (status.as_u16(), said) {
            (401, _) => "the endpoint wants a key of its clients; name one with --api-key-file or `SLOTD_API_KEY`".to_owned(),
            (_, Some(said)) => format!("the request was refused: {said}"),
            (_, None) => format!("the request was refused: {status}"),
        };
        Err(Failure::Refused { message })
    }

    /// A prompt of random tokens, or of random words.
    fn prompt(&self) -> Result<Value, Failure> {
        let Some(vocabulary) = self.target.vocabulary else {
            let bytes = random(self.words.saturating_mul(4))?;
            let letter = |byte: &u8| char::from(b'a' + byte % 26);
            let words = bytes.chunks(4).map(|word| word.iter().map(letter).collect::<String>());
            return Ok(words.collect::<Vec<_>>().join(" ").into());
        };
        let bytes = random(self.options.prompt.saturating_mul(4))?;
        let words = bytes.as_chunks::<4>().0;
        Ok(words.iter().map(|four| u32::from_le_bytes(*four) % vocabulary.max(1)).collect())
    }
}

fn random(count: u32) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; usize::try_from(count).unwrap_or(usize::MAX)];
    getrandom::fill(&mut bytes).map_err(|error| Failure::System(std::io::Error::other(error)))?;
    Ok(bytes)
}

/// Takes one line of a stream in.
fn take(line: &[u8], at: Duration, answer: &mut Answer) -> Result<(), Failure> {
    let Some(data) = line.strip_prefix(b"data: ") else { return Ok(()) };
    let Ok(event) = serde_json::from_slice::<Value>(data) else { return Ok(()) };
    if let Some(message) = event.pointer("/error/message").and_then(Value::as_str) {
        return Err(Failure::Refused { message: format!("the answer broke off: {message}") });
    }
    let choices = event.get("choices").and_then(Value::as_array);
    if choices.is_some_and(|choices| !choices.is_empty()) {
        answer.first.get_or_insert(at);
        answer.last = Some(at);
    }
    if let Some(count) = number(&event, "/usage/prompt_tokens") {
        answer.prompt_tokens = Some(count);
        answer.generated_tokens = number(&event, "/usage/completion_tokens");
    }
    let measured = |name: &str| event.pointer(name).and_then(Value::as_f64);
    if let (Some(prompt_ms), Some(generated_ms)) =
        (measured("/timings/prompt_ms"), measured("/timings/predicted_ms"))
    {
        answer.timings = Some(Timings {
            prompt_tokens: number(&event, "/timings/prompt_n").unwrap_or(0),
            prompt_ms,
            generated_tokens: number(&event, "/timings/predicted_n").unwrap_or(0),
            generated_ms,
        });
    }
    Ok(())
}

fn number(value: &Value, pointer: &str) -> Option<u32> {
    u32::try_from(value.pointer(pointer)?.as_u64()?).ok()
}

fn cut(error: reqwest::Error) -> Failure {
    Failure::Talk { path: "the endpoint".into(), source: error.without_url().into() }
}
