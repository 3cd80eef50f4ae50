//! Room for bytes that are used at once: one for each thread, so that nothing that waits has any.

use std::cell::RefCell;

/// The most that is read at once.
const SIZE: usize = 64 << 10;

thread_local! {
    static SPACE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static OUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lends the thread's room. It is lent once at a time.
pub(super) fn with<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    SPACE.with_borrow_mut(|space| {
        if space.is_empty() {
            space.resize(SIZE, 0);
        }
        work(space)
    })
}

/// Takes the thread's buffer for what goes out; to be given back by [`give_back`].
pub(super) fn take_out() -> Vec<u8> {
    OUT.take()
}

/// Gives it back, emptied.
pub(super) fn give_back(mut out: Vec<u8>) {
    out.clear();
    if out.capacity() <= SIZE {
        OUT.set(out);
    }
}
