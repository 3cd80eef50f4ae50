//! Many small looks at disks, several at a time: what waits for a disk waits together.

use std::{
    panic::resume_unwind,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// Threads of one look. More would take cores from engines, fewer would wait for cold disks one by one.
const HANDS: usize = 4;
/// Fewer items are looked at by whoever asks.
const FEW: usize = 32;
/// Each thread takes so many turns, so that a slow one leaves its share to others.
const TURNS: usize = 8;

/// Gives `work` all items, some at a time, and returns what it makes of them in their order.
pub(super) fn in_turns<T: Sync, R: Send>(items: &[T], work: impl Fn(&[T]) -> R + Sync) -> Vec<R> {
    if items.len() < FEW {
        return vec![work(items)];
    }
    let shares: Vec<&[T]> = items.chunks(items.len().div_ceil(HANDS * TURNS)).collect();
    let next = AtomicUsize::new(0);
    let take_turns = || {
        let mut done = Vec::new();
        loop {
            let turn = next.fetch_add(1, Ordering::Relaxed);
            let Some(share) = shares.get(turn) else { return done };
            done.push((turn, work(share)));
        }
    };
    let mut done: Vec<(usize, R)> = thread::scope(|scope| {
        let hands: Vec<_> = (0..HANDS).map(|_| scope.spawn(take_turns)).collect();
        let ends = hands.into_iter().map(thread::ScopedJoinHandle::join);
        ends.flat_map(|end| end.unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    done.sort_by_key(|(turn, _)| *turn);
    done.into_iter().map(|(_, made)| made).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_looked_at_once_and_in_order() {
        for count in [0, 1, FEW, 1000, 1001] {
            let items: Vec<usize> = (0..count).collect();
            let seen = in_turns(&items, <[usize]>::to_vec).concat();
            assert_eq!(seen, items);
        }
    }
}
