//! Which engine has seen the beginning of a prompt: it has the work on it in its cache.
//!
//! A prompt is known by its bytes in the body, block by block, each block's mark made from all before
//! it. So the next turn of a chat finds the engine of its last one. Nothing of a prompt is kept but
//! marks, and only of requests that have a choice.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::spec::{Generation, SlotName};

/// The bytes of a block. A prompt that differs within its first block is another one.
const BLOCK: usize = 256;
/// The most blocks of a prompt that are looked at, 64 KiB of it.
const MOST_BLOCKS: usize = 256;
/// The most marks that are kept; those not used for the longest go first.
const MOST_MARKS: NonZeroUsize = NonZeroUsize::new(16 << 10).unwrap();

/// The marks of a prompt's beginnings, the shortest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Beginnings(Vec<u64>);

#[derive(Deserialize)]
struct Prompt<'a> {
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
}

impl Beginnings {
    /// Reads them from a request's body. What is no chat and no completion has none.
    pub(super) fn of(body: &[u8]) -> Self {
        let Ok(prompt) = serde_json::from_slice::<Prompt<'_>>(body) else { return Self::default() };
        let Some(text) = prompt.messages.or(prompt.prompt) else { return Self::default() };
        let mut mark = DefaultHasher::new();
        let blocks = text.get().as_bytes().chunks_exact(BLOCK).take(MOST_BLOCKS);
        let marks = blocks.map(|block| {
            block.hash(&mut mark);
            mark.finish()
        });
        Self(marks.collect())
    }
}

/// The engines that have seen beginnings of prompts.
#[derive(Debug)]
pub(super) struct Affinity(Mutex<LruCache<u64, (SlotName, Generation)>>);

impl Default for Affinity {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(MOST_MARKS)))
    }
}

impl Affinity {
    /// Returns the engine that has last seen the longest of these beginnings, if one has.
    pub(super) fn find(&self, beginnings: &Beginnings) -> Option<(SlotName, Generation)> {
        if beginnings.0.is_empty() {
            return None;
        }
        let marks = self.marks();
        beginnings.0.iter().rev().find_map(|mark| marks.peek(mark).cloned())
    }

    /// Notes that an engine is given a prompt.
    pub(super) fn note(&self, beginnings: &Beginnings, slot: &SlotName, generation: Generation) {
        if beginnings.0.is_empty() {
            return;
        }
        let mut marks = self.marks();
        for mark in &beginnings.0 {
            marks.put(*mark, (slot.clone(), generation));
        }
    }

    fn marks(&self) -> MutexGuard<'_, LruCache<u64, (SlotName, Generation)>> {
        // A panic elsewhere cannot leave the cache half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(turns: &[&str]) -> Beginnings {
        let messages: Vec<_> =
            turns.iter().map(|text| serde_json::json!({"role": "user", "content": text})).collect();
        let body = serde_json::json!({"model": "m", "messages": messages, "n": turns.len()});
        Beginnings::of(body.to_string().as_bytes())
    }

    #[test]
    fn the_next_turn_of_a_chat_finds_the_engine_of_the_last_one() {
        let (affinity, long) = (Affinity::default(), "word ".repeat(200));
        let (a, b): (SlotName, SlotName) = ("a".parse().unwrap(), "b".parse().unwrap());
        affinity.note(&chat(&[&long]), &a, Generation(1));
        affinity.note(&chat(&["other", &long]), &b, Generation(4));
        assert_eq!(affinity.find(&chat(&[&long, "and", &long])), Some((a, Generation(1))));
        assert_eq!(affinity.find(&chat(&["other", &long, "x"])), Some((b, Generation(4))));
        assert_eq!(affinity.find(&chat(&["new", &long])), None);
    }

    #[test]
    fn what_is_short_or_no_prompt_has_no_beginning() {
        assert!(chat(&["hello"]).0.is_empty());
        for body in ["", "[]", "{}", "{\"input\": \"a\"}", "{\"messages\": 3}"] {
            assert!(Beginnings::of(body.as_bytes()).0.is_empty(), "{body}");
        }
    }
}
