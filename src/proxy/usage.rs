//! What an engine says of its tokens, read from an answer as it passes.
//!
//! Looks only for keys that cannot stand in a text (there they would be escaped), and never keeps more
//! than the end of one piece.

use std::sync::LazyLock;

use memchr::{memchr_iter, memmem::Finder};

/// How much of a piece's end is kept, for what the next one begins with the rest of.
const CARRY: usize = 1 << 10;
/// How far behind its key an object of figures reaches.
const REACH: usize = 1 << 10;

/// Figures of one answer; `None` where the engine did not say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Usage {
    /// Tokens of the prompt.
    pub(super) prompt: Option<u64>,
    /// Tokens that were generated.
    pub(super) generated: Option<u64>,
    /// How long the engine worked on the prompt.
    pub(super) prompt_ms: Option<f64>,
    /// How long the engine generated.
    pub(super) generated_ms: Option<f64>,
}

/// Reads one answer.
#[derive(Debug, Default)]
pub(super) struct UsageReader {
    carry: Vec<u8>,
    usage: Usage,
}

impl UsageReader {
    /// Reads the next piece. `is_last` says that no other follows.
    pub(super) fn read(&mut self, piece: &[u8], is_last: bool) {
        if self.carry.is_empty() {
            self.usage.look(piece);
        } else {
            let mut both = std::mem::take(&mut self.carry);
            both.extend_from_slice(piece);
            self.usage.look(&both);
        }
        // An event that is whole needs no rest.
        if !is_last && !piece.ends_with(b"\n") {
            self.carry.extend_from_slice(last(piece, CARRY));
        }
    }

    /// Returns what was found.
    pub(super) fn usage(&self) -> Usage {
        self.usage
    }
}

impl Usage {
    fn look(&mut self, text: &[u8]) {
        static USAGE: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(b"\"usage\":{"));
        static TIMINGS: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(b"\"timings\":{"));
        if let Some(object) = object(text, &USAGE) {
            let tokens =
                |openai, anthropic| count(object, openai).or_else(|| count(object, anthropic));
            self.prompt = tokens("prompt_tokens", "input_tokens").or(self.prompt);
            self.generated = tokens("completion_tokens", "output_tokens").or(self.generated);
        }
        // Source: llama.cpp, `result_timings::to_json`: `prompt_n` leaves out what came from the cache.
        if let Some(object) = object(text, &TIMINGS) {
            let cached = count(object, "cache_n").unwrap_or(0);
            let prompt = count(object, "prompt_n").map(|fresh| fresh.saturating_add(cached));
            self.prompt = self.prompt.or(prompt);
            self.generated = self.generated.or(count(object, "predicted_n"));
            self.prompt_ms = number(object, "prompt_ms").or(self.prompt_ms);
            self.generated_ms = number(object, "predicted_ms").or(self.generated_ms);
        }
    }
}

/// Counts the ends of events in a piece of a stream.
pub(super) fn events(piece: &[u8]) -> u64 {
    let is_end = |at: &usize| {
        let rest = piece.get(at.saturating_add(1)..).unwrap_or_default();
        rest.starts_with(b"\n") || rest.starts_with(b"\r\n")
    };
    u64::try_from(memchr_iter(b'\n', piece).filter(is_end).count()).unwrap_or(u64::MAX)
}

fn object<'a>(text: &'a [u8], key: &Finder<'_>) -> Option<&'a [u8]> {
    let start = key.find(text)?.saturating_add(key.needle().len());
    let rest = text.get(start..)?;
    Some(rest.get(..REACH).unwrap_or(rest))
}

/// Returns the text of the number behind a key.
fn digits<'a>(object: &'a [u8], key: &str) -> Option<&'a str> {
    let behind = |at: usize| {
        let rest = object.get(at.saturating_add(1)..)?.strip_prefix(key.as_bytes())?;
        rest.strip_prefix(b"\":")
    };
    let rest = memchr_iter(b'"', object).find_map(behind)?.trim_ascii_start();
    let is_digit = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'-' | b'+');
    let end = rest.iter().position(|byte| !is_digit(byte))?;
    std::str::from_utf8(rest.get(..end)?).ok()
}

/// Reads the number behind a key.
fn number(object: &[u8], key: &str) -> Option<f64> {
    let number: f64 = digits(object, key)?.parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number)
}

/// Reads a count behind a key; most engines write it as one.
fn count(object: &[u8], key: &str) -> Option<u64> {
    let text = digits(object, key)?;
    text.parse().ok().or_else(|| {
        let number: f64 = text.parse().ok()?;
        (number.is_finite() && number >= 0.0).then(|| format!("{number:.0}").parse().ok())?
    })
}

fn last(bytes: &[u8], most: usize) -> &[u8] {
    bytes.get(bytes.len().saturating_sub(most)..).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&str]) -> Usage {
        let mut reader = UsageReader::default();
        for (index, piece) in pieces.iter().enumerate() {
            reader.read(piece.as_bytes(), index + 1 == pieces.len());
        }
        reader.usage()
    }

    const LLAMA: &str = r#"data: {"choices":[{"finish_reason":"stop","delta":{}}],"timings":{"cache_n":3,"prompt_n":7,"prompt_ms":51.2,"predicted_n":20,"predicted_ms":400.5}}

data: [DONE]

"#;

    #[test]
    fn llama_servers_last_event_tells_tokens_and_times() {
        let usage = Usage {
            prompt: Some(10),
            generated: Some(20),
            prompt_ms: Some(51.2),
            generated_ms: Some(400.5),
        };
        assert_eq!(read(&[LLAMA]), usage);
        for cut in 0..LLAMA.len() {
            let (first, rest) = LLAMA.split_at(cut);
            assert_eq!(read(&[first, rest]), usage, "cut at {cut}");
        }
    }

    #[test]
    fn usage_is_read_in_each_of_its_spellings() {
        let openai = r#"{"usage":{"completion_tokens":2,"prompt_tokens":31,"total_tokens":33}}"#;
        assert_eq!((read(&[openai]).prompt, read(&[openai]).generated), (Some(31), Some(2)));
        let anthropic = r#"{"usage":{"input_tokens": 4,"output_tokens": 5}}"#;
        assert_eq!((read(&[anthropic]).prompt, read(&[anthropic]).generated), (Some(4), Some(5)));
    }

    #[test]
    fn a_text_about_usage_is_no_usage() {
        let text = serde_json::json!({"content": r#"{"usage":{"prompt_tokens":9,"x":1}}"#});
        assert_eq!(read(&[&text.to_string()]), Usage::default());
        for odd in [r#"{"usage":null}"#, r#"{"usage":{"prompt_tokens":-1,}"#, r#"{"usage":{"#] {
            assert_eq!(read(&[odd]), Usage::default(), "{odd}");
        }
    }

    #[test]
    fn events_are_counted_by_their_ends() {
        assert_eq!(events(b"data: {\"a\":\"\\n\\n\"}\n\ndata: [DONE]\n\n"), 2);
        assert_eq!(events(b"data: 1\r\n\r\ndata: 2"), 1);
        assert_eq!(events(b""), 0);
    }
}
