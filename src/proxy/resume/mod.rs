//! Streams that survive their engine: what has been forwarded is kept, and another engine, or the
//! restarted one, goes on where it ended.
//!
//! The seam lies between two events of the first engine, where one token ended and the next one had
//! not begun. No character is lost or doubled there: what came of a broken event is thrown away, and
//! the next engine writes it again. What it writes is its own continuation of the text so far, which
//! need not be what the dead one would have written.
//!
//! Only what can be continued is: one choice of plain text. Whatever a continuation could not honour
//! (tools, logprobs, grammars) ends its stream with the error event that any broken stream gets, and
//! the error says why.

pub(super) mod event;
mod request;
mod stream;

pub(super) use self::{request::is_followed, stream::Resuming};
