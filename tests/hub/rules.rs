//! What goes wrong, and when.
//!
//! `POST /-/rules` takes all of it anew:
//!
//! ```json
//! {"token": "hf_x", "send_large_to_other_host": true, "faults": [
//!   {"path": "model-00001", "method": "GET", "host": "127.0.0.2", "skip": 1, "times": 2, "does": {"drop": {"after": 1000}}},
//!   {"path": "tree/", "does": {"status": {"code": 429, "retry_after_s": 1}}}
//! ]}
//! ```

use serde::Deserialize;

/// Everything that the hub does besides answering.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Rules {
    /// Who does not show it is refused with 401; the other host asks nobody.
    pub(crate) token: Option<String>,
    /// Large files are sent for at the other host, as the real hub does.
    pub(crate) send_large_to_other_host: bool,
    /// The first that fits is done.
    pub(crate) faults: Vec<Fault>,
}

/// Something that goes wrong.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fault {
    /// A part of the path.
    #[serde(default)]
    path: String,
    /// `GET` or `HEAD`; any where it is left out.
    #[serde(default)]
    method: Option<String>,
    /// The address that was asked, without its port; any where it is left out.
    #[serde(default)]
    host: Option<String>,
    /// How many requests that fit are let through first.
    #[serde(default)]
    skip: u64,
    /// How often it happens; for ever where it is left out.
    #[serde(default)]
    times: Option<u64>,
    does: Deed,
}

/// What happens.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Deed {
    /// The connection is cut after so many bytes of the body.
    Drop { after: u64 },
    /// Nothing more comes after so many bytes of the body, and the connection stays.
    Stall { after: u64 },
    /// Another status.
    Status {
        code: u16,
        #[serde(default)]
        retry_after_s: Option<u64>,
    },
    /// Somewhere else: `to` and the same path.
    Redirect { to: String },
    /// The file seems to be so many bytes shorter, in its length too.
    Short { by: u64 },
    /// One byte of the file is another.
    Flip { at: u64 },
    /// A part is asked for and the whole is sent.
    NoRange,
    /// No faster than this.
    Slow { bytes_per_s: u64 },
}

impl Rules {
    /// Says what happens to a request, and counts it.
    pub(crate) fn next(&mut self, method: &str, host: &str, target: &str) -> Option<Deed> {
        let fits = |fault: &&mut Fault| {
            target.contains(&fault.path)
                && fault.method.as_deref().is_none_or(|wanted| wanted == method)
                && fault.host.as_deref().is_none_or(|wanted| wanted == host)
                && fault.times != Some(0)
        };
        for fault in self.faults.iter_mut().filter(fits) {
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            fault.times = fault.times.map(|left| left - 1);
            return Some(fault.does.clone());
        }
        None
    }
}
