//! Exit codes: the only place that names them.

use std::process::ExitCode;

/// How a subcommand ends. Source: `sysexits.h`; 1 is what checkers use for "found something", 130
/// is 128 + `SIGINT`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exit {
    /// It did what was asked.
    Success,
    /// `validate`, `plan` or `models verify` found faults.
    Faults,
    /// The command line cannot be understood.
    Usage,
    /// A file is damaged. Used by `worker` for its model.
    BadData,
    /// A file is missing or cannot be read. Used by `worker` for its model.
    NoInput,
    /// No daemon answers, there is no such slot, a load or a pull failed, or the address is taken.
    Unavailable,
    /// Something broke inside slotd, or its output cannot be written.
    Software,
    /// Another daemon holds the state directory or the control socket, or another bench runs; later it
    /// may work.
    TryAgain,
    /// A file, a directory or a socket may not be used.
    NoPermission,
    /// The settings have faults, or the state directory is of a newer slotd.
    BadConfig,
    /// Ctrl-C.
    Interrupted,
}

/// The table for `--help`.
pub(super) const TABLE: &str = "\
Exit codes:
    0  done
    1  `validate`, `plan` or `models verify` found faults
   64  the command line cannot be understood
   65  a model file is damaged (`worker`)
   66  a model file is missing (`worker`)
   69  no daemon answers, no such slot, a load or a pull failed, or the address is taken
   70  something broke inside slotd
   71  there is not enough memory (`worker`)
   75  another daemon holds the state directory or the control socket, or another bench runs
   77  a file, directory or socket may not be used
   78  the settings have faults
  130  interrupted";

impl Exit {
    /// Returns the number.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Faults => 1,
            Self::Usage => 64,
            Self::BadData => 65,
            Self::NoInput => 66,
            Self::Unavailable => 69,
            Self::Software => 70,
            Self::TryAgain => 75,
            Self::NoPermission => 77,
            Self::BadConfig => 78,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(feature = "worker")]
    fn every_exit_code_of_the_worker_is_in_the_table() {
        use crate::worker::exit;
        let codes = [
            exit::STOPPED,
            exit::BAD_ARGUMENTS,
            exit::BAD_MODEL,
            exit::MISSING_FILE,
            exit::CANNOT_BIND,
            exit::INTERNAL,
            exit::OUT_OF_MEMORY,
        ];
        for code in codes {
            let is_there =
                TABLE.lines().any(|line| line.trim_start().starts_with(&format!("{code} ")));
            assert!(is_there, "{code} is not in the table");
        }
    }
}
