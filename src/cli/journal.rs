//! Logs as systemd's journal wants them: it has the time and the level of each entry itself.

use std::{env, fmt, io};

use nix::sys::stat::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Format, Full, Writer},
    },
    registry::LookupSpan,
};

/// Tells whether standard error leads to the journal.
/// Source: `JOURNAL_STREAM` in `systemd.exec(5)`: device and inode of the stream.
pub(super) fn is_stderr() -> bool {
    let found = fstat(io::stderr()).map(|file| format!("{}:{}", file.st_dev, file.st_ino));
    env::var("JOURNAL_STREAM").is_ok_and(|told| found.as_ref() == Ok(&told))
}

/// Writes an event without its time, the level as a priority.
#[derive(Debug)]
pub(super) struct Entry(Format<Full, ()>);

impl Entry {
    pub(super) fn new() -> Self {
        Self(Format::default().without_time().with_level(false).with_target(false).with_ansi(false))
    }
}

impl<S, N> FormatEvent<S, N> for Entry
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// Returns the priority of a level. Source: `sd-daemon(3)`, `SD_ERR` and its like.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex, PoisonError};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_entry_has_a_priority_and_neither_time_nor_level() {
        let written = Written::default();
        let writer = written.clone();
        let logs = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .event_format(Entry::new());
        tracing::subscriber::with_default(logs.finish(), || {
            tracing::info!(slot = "chat", "engine started");
            tracing::warn!(pid = 7, "engine died");
            tracing::error!("driver broke off");
        });
        let text = written.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        insta::assert_snapshot!(String::from_utf8(text).unwrap(), @r#"
        <6>engine started slot="chat"
        <4>engine died pid=7
        <3>driver broke off
        "#);
    }
}
