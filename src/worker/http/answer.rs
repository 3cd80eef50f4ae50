//! Runs the jobs of a completion request and delivers their answers, whole or as a stream.

use std::{collections::VecDeque, convert::Infallible, pin::pin, sync::Arc};

use axum::{
    body::{Body, Bytes},
    http::header::{CACHE_CONTROL, CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt as _, stream};
use serde_json::{Map, Value as Json, json};

use super::{
    options::Delivery,
    refusal::Refusal,
    shape::{Envelope, Usage, timings},
};
use crate::worker::{
    engine::{Answer, Engine},
    job::{Done, Event, Generate, Job},
    sampler::Scored,
};

/// The jobs of one request, in the order of their choices.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) engine: Arc<Engine>,
    pub(super) envelope: Envelope,
    pub(super) jobs: Vec<Generate>,
    /// Answers for each prompt: so many jobs in a row share theirs.
    pub(super) answers_each: usize,
    /// Whether the text of a choice begins with its prompt.
    pub(super) echo: Echo,
    pub(super) delivery: Delivery,
}

/// Whether a choice repeats its prompt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Echo {
    No,
    Prompt,
}

impl Request {
    /// Answers the request.
    pub(super) async fn answer(self) -> Result<Response, Refusal> {
        match self.delivery {
            Delivery::Whole => self.whole().await.map(IntoResponse::into_response),
            Delivery::Stream | Delivery::StreamWithUsage => self.stream().await,
        }
    }

    async fn whole(self) -> Result<axum::Json<Json>, Refusal> {
        let mut choices = Vec::with_capacity(self.jobs.len());
        let mut usage = Usage::default();
        let mut last = None;
        // Together, as far as there are seats; the choices keep their order.
        let answers = (0..self.jobs.len()).map(|index| self.one(index));
        let mut answers = pin!(stream::iter(answers).buffered(self.engine.parallel));
        while let Some(answer) = answers.next().await {
            let (choice, done) = answer?;
            usage.add(&done, choices.len().is_multiple_of(self.answers_each));
            choices.push(choice);
            last = Some(done);
        }
        let mut body = self.envelope.whole(json!(choices));
        body.insert("usage".to_owned(), usage.json());
        body.insert("timings".to_owned(), last.as_ref().map_or(Json::Null, timings));
        Ok(axum::Json(Json::Object(body)))
    }

    async fn one(&self, index: usize) -> Result<(Json, Done), Refusal> {
        let job = self.jobs.get(index).ok_or_else(|| Refusal::internal("a choice has no job"))?;
        let mut events = self.engine.submit(Job::Generate(Box::new(job.clone()))).await?;
        let mut text = self.prompt_text(job);
        let mut scores = Vec::new();
        while let Some(event) = events.recv().await {
            match event {
                Event::PromptScores(prompt) => scores = whole_prompt(job, prompt),
                Event::Text(piece) => {
                    text.push_str(&piece.text);
                    scores.extend(piece.scores);
                }
                Event::Done(done) => {
                    let logprobs = self.logprobs(job, &scores, 0);
                    return Ok((self.envelope.choice(index, &text, &logprobs, &done), done));
                }
                Event::Failed(fault) => return Err(fault.into()),
                Event::Begun | Event::Embedding(_) => break,
            }
        }
        Err(Refusal::stopping())
    }

    async fn stream(self) -> Result<Response, Refusal> {
        let mut streaming = Streaming {
            events: None,
            index: 0,
            offset: 0,
            usage: Usage::default(),
            ready: VecDeque::new(),
            is_over: false,
            request: self,
        };
        // The first job is handed in before the head is sent, so that a full queue is an error.
        streaming.begin().await?;
        let body = stream::unfold(streaming, async |mut streaming| {
            let bytes = streaming.next().await?;
            Some((Ok::<Bytes, Infallible>(bytes), streaming))
        });
        let head = [
            (CONTENT_TYPE.as_str(), "text/event-stream"),
            (CACHE_CONTROL.as_str(), "no-cache"),
            ("x-accel-buffering", "no"),
        ];
        Ok((head, Body::from_stream(body)).into_response())
    }

    fn prompt_text(&self, job: &Generate) -> String {
        match self.echo {
            Echo::No => String::new(),
            Echo::Prompt => {
                let bytes = job.prompt.iter().map(|id| self.engine.vocabulary.bytes(*id));
                String::from_utf8_lossy(&bytes.collect::<Vec<_>>().concat()).into_owned()
            }
        }
    }

    fn logprobs(&self, job: &Generate, scores: &[Scored], offset: usize) -> Json {
        match job.sampling.logprobs {
            None => Json::Null,
            Some(_) => self.envelope.logprobs(scores, offset, &self.engine.vocabulary),
        }
    }
}

/// The scores of a prompt, its first token included, which has none.
fn whole_prompt(job: &Generate, scores: Vec<Scored>) -> Vec<Scored> {
    let first = job.prompt.first().map(|id| Scored { id: *id, logprob: f32::NAN, top: Vec::new() });
    first.into_iter().chain(scores).collect()
}

/// A stream of chunks in the making. Dropped when the client leaves, and the job with it.
#[derive(Debug)]
struct Streaming {
    request: Request,
    events: Option<Answer>,
    /// The choice that is being made.
    index: usize,
    /// Characters of this choice so far.
    offset: usize,
    usage: Usage,
    ready: VecDeque<Bytes>,
    is_over: bool,
}

impl Streaming {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some(bytes);
            }
            if self.is_over {
                return None;
            }
            let Some(events) = &mut self.events else {
                if let Err(refusal) = self.begin().await {
                    self.break_off(&refusal);
                }
                continue;
            };
            match events.recv().await {
                Some(event) => self.take(event),
                None => self.break_off(&Refusal::stopping()),
            }
        }
    }

    /// Begins the next choice, or ends the stream after the last one.
    async fn begin(&mut self) -> Result<(), Refusal> {
        let Some(job) = self.request.jobs.get(self.index).cloned() else {
            self.finish();
            return Ok(());
        };
        let prompt = self.request.prompt_text(&job);
        let engine = Arc::clone(&self.request.engine);
        let scores_prompt = job.score_prompt;
        self.events = Some(engine.submit(Job::Generate(Box::new(job))).await?);
        self.offset = 0;
        if let Some(choice) = self.request.envelope.opening(self.index) {
            self.send(&choice, None);
        }
        if !prompt.is_empty() && !scores_prompt {
            self.text(&prompt, &[]);
        }
        Ok(())
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::PromptScores(scores) => {
                let Some(job) = self.request.jobs.get(self.index) else { return };
                let (text, scores) = (self.request.prompt_text(job), whole_prompt(job, scores));
                self.text(&text, &scores);
            }
            Event::Text(piece) => self.text(&piece.text, &piece.scores),
            Event::Done(done) => {
                let choice = self.request.envelope.closing(self.index, &done);
                self.send(&choice, Some(timings(&done)));
                let is_new_prompt = self.index.is_multiple_of(self.request.answers_each);
                self.usage.add(&done, is_new_prompt);
                self.index = self.index.saturating_add(1);
                self.events = None;
            }
            Event::Failed(fault) => self.break_off(&Refusal::from(fault)),
            Event::Begun | Event::Embedding(_) => {
                self.break_off(&Refusal::internal("an answer came out of order"));
            }
        }
    }

    fn text(&mut self, text: &str, scores: &[Scored]) {
        let Some(job) = self.request.jobs.get(self.index) else { return };
        let logprobs = self.request.logprobs(job, scores, self.offset);
        let choice = self.request.envelope.delta(self.index, text, &logprobs);
        self.offset = self.offset.saturating_add(text.chars().count());
        self.send(&choice, None);
    }

    fn send(&mut self, choice: &Json, timings: Option<Json>) {
        let mut chunk = self.request.envelope.chunk(json!([choice]));
        if self.request.delivery == Delivery::StreamWithUsage {
            chunk.insert("usage".to_owned(), Json::Null);
        }
        chunk.extend(timings.map(|timings| ("timings".to_owned(), timings)));
        self.event(chunk);
    }

    fn event(&mut self, chunk: Map<String, Json>) {
        self.ready.push_back(Bytes::from(format!("data: {}\n\n", Json::Object(chunk))));
    }

    fn finish(&mut self) {
        if self.request.delivery == Delivery::StreamWithUsage {
            let mut chunk = self.request.envelope.chunk(json!([]));
            chunk.insert("usage".to_owned(), self.usage.json());
            self.event(chunk);
        }
        self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        self.is_over = true;
    }

    /// Ends the stream with an error: a clean end would read as a whole answer.
    fn break_off(&mut self, refusal: &Refusal) {
        self.ready.push_back(Bytes::from(format!("data: {}\n\n", refusal.body())));
        self.events = None;
        self.is_over = true;
    }
}
