//! Runs the jobs of a completion request and delivers their answers, whole or as a stream.

use std::{collections::VecDeque, convert::Infallible, pin::pin, sync::Arc};

use axum::{
    body::{Body, Bytes},
    http::header::{CACHE_CONTROL, CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
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
    text::{Call, CallScreen, CallStyle},
};

/// What ends a stream.
const DONE: &[u8] = b"data: [DONE]\n\n";

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
    /// How calls of tools are looked for.
    pub(super) calls: Calls,
    pub(super) delivery: Delivery,
}

/// Whether a choice repeats its prompt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Echo {
    No,
    Prompt,
}

/// Which calls of tools an answer may have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Calls {
    None,
    /// What is none is text.
    Sought(CallStyle),
    /// The answer is a call, or the half of one, which is told to nobody.
    Forced(CallStyle),
}

impl Calls {
    fn style(self) -> Option<CallStyle> {
        match self {
            Self::None => None,
            Self::Sought(style) | Self::Forced(style) => Some(style),
        }
    }

    /// Takes the calls out of a text; `None` where nothing is said beside them.
    fn divide(self, text: &str) -> (Option<String>, Vec<Call>) {
        match self {
            Self::None => (Some(text.to_owned()), Vec::new()),
            Self::Sought(style) => {
                let (said, calls) = style.divide(text);
                (Some(said).filter(|said| !said.is_empty() || calls.is_empty()), calls)
            }
            Self::Forced(style) => (None, style.divide(text).1),
        }
    }
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
                    let (said, calls) = self.calls.divide(&text);
                    let answer = (said.as_deref(), calls.as_slice());
                    let choice = self.envelope.choice(index, answer, &logprobs, &done);
                    return Ok((choice, done));
                }
                Event::Failed(fault) => return Err(fault.into()),
                Event::Unkept(fault) => return Err(Refusal::unkept(&fault)),
                Event::Begun | Event::Embedding(_) | Event::Score(_) => break,
            }
        }
        Err(Refusal::stopping())
    }

    async fn stream(self) -> Result<Response, Refusal> {
        // The first job is handed in before the head is sent, so that a full queue is an error.
        let mut begins = Vec::with_capacity(self.jobs.len());
        for job in &self.jobs {
            let job = Box::new(job.clone());
            begins.push(if begins.is_empty() {
                Choice::Begun(self.engine.submit(Job::Generate(job)).await?)
            } else {
                Choice::Waiting(job)
            });
        }
        let engine = &self.engine;
        let choices = begins.into_iter().enumerate();
        let choices = choices.map(|(index, choice)| choice.events(index, Arc::clone(engine)));
        let choices: Vec<_> = choices.map(StreamExt::boxed).collect();
        let streaming = Streaming {
            // As many at once as there are seats.
            events: stream::iter(choices).flatten_unordered(self.engine.parallel).boxed(),
            offsets: vec![0; self.jobs.len()],
            screens: vec![self.calls.style().map(CallScreen::new); self.jobs.len()],
            usage: Usage::default(),
            ready: VecDeque::new(),
            is_over: false,
            request: self,
        };
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

/// A choice on its way through the engine.
enum Choice {
    Waiting(Box<Generate>),
    Begun(Answer),
    Told(Answer),
    Over,
}

impl Choice {
    /// Gives all that is told about choice `index`, its begin included.
    fn events(
        self,
        index: usize,
        engine: Arc<Engine>,
    ) -> impl Stream<Item = (usize, Result<Event, Refusal>)> {
        stream::unfold(self, move |choice| {
            let engine = Arc::clone(&engine);
            async move {
                let (event, choice) = choice.next(&engine).await?;
                Some(((index, event), choice))
            }
        })
    }

    async fn next(self, engine: &Engine) -> Option<(Result<Event, Refusal>, Self)> {
        match self {
            Self::Waiting(job) => Some(match engine.submit(Job::Generate(job)).await {
                Ok(answer) => (Ok(Event::Begun), Self::Told(answer)),
                Err(refused) => (Err(refused.into()), Self::Over),
            }),
            Self::Begun(answer) => Some((Ok(Event::Begun), Self::Told(answer))),
            Self::Told(mut answer) => Some(match answer.recv().await {
                Some(event @ (Event::Done(_) | Event::Failed(_) | Event::Unkept(_))) => {
                    (Ok(event), Self::Over)
                }
                Some(event) => (Ok(event), Self::Told(answer)),
                None => (Err(Refusal::stopping()), Self::Over),
            }),
            Self::Over => None,
        }
    }
}

/// A stream of chunks in the making. Dropped when the client leaves, and the jobs with it.
struct Streaming {
    request: Request,
    /// What is told about the choices, each with its index.
    events: BoxStream<'static, (usize, Result<Event, Refusal>)>,
    /// Characters of each choice so far.
    offsets: Vec<usize>,
    /// Holds back what of each choice may be a call of a tool.
    screens: Vec<Option<CallScreen>>,
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
            match self.events.next().await {
                Some((index, Ok(event))) => self.take(index, event),
                Some((_, Err(refusal))) => self.break_off(&refusal),
                None => self.finish(),
            }
        }
    }

    fn take(&mut self, index: usize, event: Event) {
        let Some(job) = self.request.jobs.get(index) else { return };
        match event {
            Event::Begun => {
                let prompt = self.request.prompt_text(job);
                let is_told_with_scores = job.score_prompt;
                if let Some(choice) = self.request.envelope.opening(index) {
                    self.send(&choice, None);
                }
                if !prompt.is_empty() && !is_told_with_scores {
                    self.text(index, &prompt, &[]);
                }
            }
            Event::PromptScores(scores) => {
                let (text, scores) = (self.request.prompt_text(job), whole_prompt(job, scores));
                self.text(index, &text, &scores);
            }
            Event::Text(piece) => {
                let text = self.sure(index, piece.text);
                if !text.is_empty() || !piece.scores.is_empty() {
                    self.text(index, &text, &piece.scores);
                }
            }
            Event::Done(done) => {
                let screen = self.screens.get_mut(index).and_then(Option::as_mut);
                let held = screen.map(CallScreen::finish).unwrap_or_default();
                let (said, calls) = self.request.calls.divide(&held);
                if let Some(said) = said.filter(|said| !said.is_empty()) {
                    self.text(index, &said, &[]);
                }
                for choice in Envelope::call_deltas(index, &calls) {
                    self.send(&choice, None);
                }
                let choice = self.request.envelope.closing(index, &calls, &done);
                self.send(&choice, Some(timings(&done)));
                let is_new_prompt = index.is_multiple_of(self.request.answers_each);
                self.usage.add(&done, is_new_prompt);
            }
            Event::Failed(fault) => self.break_off(&Refusal::from(fault)),
            Event::Unkept(fault) => {
                self.break_off(&Refusal::unkept(&fault));
                // The client's own doing: nobody is to take it for an engine that died.
                self.ready.push_back(Bytes::from_static(DONE));
            }
            Event::Embedding(_) | Event::Score(_) => {
                self.break_off(&Refusal::internal("an answer came out of order"));
            }
        }
    }

    /// Gives what of a choice's text is no call of a tool for certain.
    fn sure(&mut self, index: usize, text: String) -> String {
        match self.screens.get_mut(index) {
            Some(Some(screen)) => screen.pass(&text),
            Some(None) | None => text,
        }
    }

    fn text(&mut self, index: usize, text: &str, scores: &[Scored]) {
        let Some(job) = self.request.jobs.get(index) else { return };
        let Some(offset) = self.offsets.get_mut(index) else { return };
        let logprobs = self.request.logprobs(job, scores, *offset);
        let choice = self.request.envelope.delta(index, text, &logprobs);
        *offset = offset.saturating_add(text.chars().count());
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
        self.ready.push_back(Bytes::from_static(DONE));
        self.is_over = true;
    }

    /// Ends the stream with an error: a clean end would read as a whole answer.
    fn break_off(&mut self, refusal: &Refusal) {
        self.ready.push_back(Bytes::from(format!("data: {}\n\n", refusal.body())));
        // The other choices end with it.
        self.events = stream::empty().boxed();
        self.is_over = true;
    }
}
