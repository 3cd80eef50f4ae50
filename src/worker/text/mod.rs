//! Between text and tokens: vocabulary, chat template, incremental text, stop strings.

mod bytes;
mod calls;
mod pair;
mod screen;
mod stop;
mod stream;
mod template;
mod vocabulary;

#[cfg(test)]
pub(crate) use self::bytes::byte_alphabet;
pub(crate) use self::{
    calls::{Call, CallStyle, Tool},
    pair::{Pair, Query},
    screen::CallScreen,
    stop::{StopMatcher, Stopped},
    stream::TextStream,
    template::Template,
    vocabulary::Vocabulary,
};
