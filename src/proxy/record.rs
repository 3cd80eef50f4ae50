//! What became of the requests that went through one gate: what the core judges its engine by.
//!
//! Counters only, each a relaxed atomic: a request costs no lock for them.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        LazyLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

/// How much of each end of a body goes into its fingerprint.
const ENDS: usize = 16 << 10;

/// Tells requests apart: a hash of a request's body. Of a long body only both ends and the length are
/// read. Says nothing beyond this process.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Fingerprint(u64);

impl Fingerprint {
    /// Takes the fingerprint of a body.
    pub(super) fn of(body: &[u8]) -> Self {
        let first = body.get(..ENDS).unwrap_or(body);
        let last = body.get(first.len().max(body.len().saturating_sub(ENDS))..);
        let (length, _) = eight(&body.len().to_le_bytes());
        let hash = mixed(mixed(*SEED, first) ^ length, last.unwrap_or_default());
        Self(hash)
    }
}

/// Differs in each life of the daemon, so that nobody can make two requests look alike.
static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one("fingerprint"));

/// Mixes bytes into a hash, sixteen at a time: many times as fast as the standard one, which a long
/// prompt would feel.
/// Source: the multiply-and-fold of wyhash and foldhash.
fn mixed(seed: u64, mut bytes: &[u8]) -> u64 {
    let (mut hash, secret) = (seed ^ 0x9e37_79b9_7f4a_7c15, 0xa076_1d64_78bd_642f ^ *SEED);
    loop {
        let (first, rest) = eight(bytes);
        let (second, rest) = eight(rest);
        hash = folded(hash ^ first, secret ^ second);
        if rest.is_empty() {
            return folded(hash, 0xe703_7ed1_a0b4_28db);
        }
        bytes = rest;
    }
}

/// Takes eight bytes; fewer are filled up with zeros.
fn eight(bytes: &[u8]) -> (u64, &[u8]) {
    if let Some((word, rest)) = bytes.split_first_chunk::<8>() {
        return (u64::from_le_bytes(*word), rest);
    }
    let word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    (word, &[])
}

fn folded(a: u64, b: u64) -> u64 {
    let [low, high] = {
        let [a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7] =
            (u128::from(a) * u128::from(b)).to_le_bytes();
        [
            u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]),
        ]
    };
    low ^ high
}

/// What became of requests.
#[derive(Debug, Default)]
pub struct Record {
    pieces: AtomicU64,
    failed_in_row: AtomicU32,
    last_failed: AtomicU64,
    given_up_in_row: AtomicU32,
}

impl Record {
    /// Returns how many pieces of answers came from the engine.
    pub fn pieces(&self) -> u64 {
        self.pieces.load(Ordering::Relaxed)
    }

    /// Returns how many different requests in a row the engine failed, none answered in between. One
    /// that is sent again counts once.
    pub fn failed_in_row(&self) -> u32 {
        self.failed_in_row.load(Ordering::Relaxed)
    }

    /// Returns of how many requests in a row the clients gave up before a byte came.
    pub fn given_up_in_row(&self) -> u32 {
        self.given_up_in_row.load(Ordering::Relaxed)
    }

    /// Notes a piece of an answer.
    pub(super) fn note_piece(&self) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
        if self.given_up_in_row.load(Ordering::Relaxed) > 0 {
            self.given_up_in_row.store(0, Ordering::Relaxed);
        }
    }

    /// Notes an answer that is whole.
    pub(super) fn note_answer(&self) {
        if self.failed_in_row.load(Ordering::Relaxed) > 0 {
            self.failed_in_row.store(0, Ordering::Relaxed);
        }
    }

    /// Notes that the engine failed a request.
    pub(super) fn note_failure(&self, request: Fingerprint) {
        if self.last_failed.swap(request.0, Ordering::Relaxed) != request.0 {
            self.failed_in_row.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes that a client gave up before a byte came.
    pub(super) fn note_given_up(&self) {
        self.given_up_in_row.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_same_request_failed_again_counts_once() {
        let record = Record::default();
        for body in ["one", "one", "two", "two", "one"] {
            record.note_failure(Fingerprint::of(body.as_bytes()));
        }
        assert_eq!(record.failed_in_row(), 3);
        record.note_answer();
        assert_eq!(record.failed_in_row(), 0);
    }

    #[test]
    fn any_byte_ends_the_row_of_those_who_gave_up() {
        let record = Record::default();
        record.note_given_up();
        record.note_given_up();
        assert_eq!((record.given_up_in_row(), record.pieces()), (2, 0));
        record.note_piece();
        assert_eq!((record.given_up_in_row(), record.pieces()), (0, 1));
    }

    #[test]
    fn bodies_are_told_apart_by_both_ends_and_their_length() {
        let long = vec![b'x'; 100_000];
        let mut other_start = long.clone();
        other_start[0] = b'y';
        let mut other_end = long.clone();
        other_end[99_999] = b'y';
        let all = [&long[..], &other_start, &other_end, &long[1..], b"", b"x"];
        let mut prints: Vec<_> = all.into_iter().map(Fingerprint::of).collect();
        prints.sort();
        prints.dedup();
        assert_eq!(prints.len(), 6);
        let bit = |bit: usize| {
            let mut body = [b'x'; 40];
            body[bit / 8] ^= 1 << (bit % 8);
            Fingerprint::of(&body)
        };
        let prints: BTreeSet<_> = (0..320).map(bit).collect();
        assert_eq!(prints.len(), 320, "every bit counts");
        assert_eq!(Fingerprint::of(&long), Fingerprint::of(&long.clone()));
    }
}
