//! What was measured of an engine, brought together with what is worked out.

use std::{collections::BTreeMap, ffi::OsStr};

use sha2::{Digest, Sha256};

use super::{Estimate, Launch};
use crate::spec::{
    Bytes,
    memory::{Basis, GpuNeed, Peak},
};

/// Options whose value says nothing about memory: where to listen, what to be called, how many threads.
const IRRELEVANT: [&str; 6] = ["--host", "--port", "--socket", "--listen", "--alias", "--threads"];
/// What a peak may be exceeded by in another run, as a share of it: 1/20.
const MARGIN: u64 = 20;

/// Makes the name under which the peak of an engine is remembered: two starts have one name if they
/// should take the same memory. `model` tells the model's file apart from others and from itself after
/// a change: its path, size and time, say.
pub fn peak_key(launch: &Launch, version: Option<&str>, model: &str) -> String {
    let mut digest = Sha256::new();
    let mut take = |text: &[u8]| {
        digest.update(text);
        digest.update([0]);
    };
    take(model.as_bytes());
    take(version.unwrap_or_default().as_bytes());
    take(launch.program.as_os_str().as_encoded_bytes());
    for (name, value) in &launch.env {
        take(name.as_encoded_bytes());
        take(value.as_encoded_bytes());
    }
    let mut args = launch.args.iter();
    while let Some(word) = args.next() {
        if IRRELEVANT.iter().any(|option| word == OsStr::new(option)) {
            // Its value goes with it.
            args.next();
        } else {
            take(word.as_encoded_bytes());
        }
    }
    let words =
        digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>();
    words.concat()
}

impl Estimate {
    /// Returns the estimate with what engines of this kind took at most before, if any ran.
    #[must_use]
    pub fn corrected(self, peak: Option<Peak>) -> Self {
        Self { measured: peak.or(self.measured), ..self }
    }

    /// What is to be kept free of the host's memory, and what that comes from.
    ///
    /// 1. Nothing was measured: the sum.
    /// 2. Nothing else is known: the peak, with a margin.
    /// 3. It took more than the sum: the peak.
    /// 4. It took less: its caches may not have been full, so of the sum only what depends on the traffic
    ///    is given back.
    pub(super) fn host_need(&self) -> (Bytes, Basis) {
        let sum = self.host.sum();
        let Some(Peak { host: peak, .. }) = self.measured else { return (sum, self.basis) }; // (1)
        let with_margin = with_margin(peak);
        let host = match self.basis {
            Basis::Unknown | Basis::Files => with_margin, // (2)
            Basis::Header | Basis::Measured | Basis::Profile if peak >= sum => peak, // (3)
            Basis::Header | Basis::Measured | Basis::Profile => {
                with_margin.max(Bytes(sum.0.saturating_sub(self.host.prompts.0))).min(sum) // (4)
            }
        };
        (host, Basis::Measured)
    }
}

fn with_margin(peak: Bytes) -> Bytes {
    Bytes(peak.0.saturating_add(peak.0 / MARGIN))
}

/// What is to be kept free on GPUs, by what an earlier run took on each of those that it was on.
///
/// 1. Nothing was measured there: the sum.
/// 2. It took more than the sum, or less: what each GPU takes on top is what was measured beyond the
///    weights and caches. These are known from the header, and are never taken for less: a peak of a load that
///    broke off is none.
pub(super) fn gpu_need(need: &GpuNeed, peaks: &BTreeMap<String, Bytes>) -> GpuNeed {
    let count = u64::try_from(peaks.len()).unwrap_or(u64::MAX);
    if count == 0 {
        return need.clone(); // (1)
    }
    let all = peaks.values().fold(0, |sum: u64, bytes| sum.saturating_add(bytes.0));
    let beyond = |all: u64| all.saturating_sub(need.spread.0).div_ceil(count);
    let exact = beyond(all);
    let each = if exact >= need.each.0 {
        exact
    } else {
        beyond(with_margin(Bytes(all)).0).min(need.each.0)
    };
    GpuNeed { spread: need.spread, each: Bytes(each) } // (2)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::PathBuf};

    use super::*;
    use crate::engine::HostParts;

    fn launch(args: &[&str]) -> Launch {
        Launch {
            program: PathBuf::from("/usr/bin/llama-server"),
            args: args.iter().map(Into::into).collect(),
            env: BTreeMap::new(),
            stop: Vec::new(),
            parallel: 1,
            cores: 1,
        }
    }

    #[test]
    fn only_what_changes_memory_makes_another_key() {
        let key = |args: &[&str], model: &str| peak_key(&launch(args), Some("b1"), model);
        let one = key(&["--host", "a.sock", "--ctx-size", "512", "--threads", "2"], "m");
        assert_eq!(one, key(&["--host", "b.sock", "--ctx-size", "512", "--threads", "7"], "m"));
        assert_eq!(one.len(), 32);
        assert_ne!(one, key(&["--host", "a.sock", "--ctx-size", "1024", "--threads", "2"], "m"));
        assert_ne!(one, key(&["--host", "a.sock", "--ctx-size", "512", "--threads", "2"], "n"));
    }

    #[test]
    fn what_was_measured_corrects_what_was_worked_out() {
        let host = HostParts { weights: Bytes(60), prompts: Bytes(40), ..HostParts::default() };
        let sum = Estimate { host, basis: Basis::Header, ..Estimate::default() };
        let need = |estimate: Estimate, peak: Option<Bytes>| {
            let peak = peak.map(|host| Peak { host, ..Peak::default() });
            let need = estimate.corrected(peak).need();
            (need.host.0, need.basis)
        };
        assert_eq!(need(sum.clone(), None), (100, Basis::Header));
        assert_eq!(need(sum.clone(), Some(Bytes(150))), (150, Basis::Measured));
        assert_eq!(need(sum.clone(), Some(Bytes(80))), (84, Basis::Measured));
        assert_eq!(need(sum, Some(Bytes(10))), (60, Basis::Measured));
        assert_eq!(need(Estimate::default(), Some(Bytes(200))), (210, Basis::Measured));
    }

    #[test]
    fn what_was_measured_on_gpus_corrects_what_each_takes_on_top() {
        let of = |peaks: &[u64]| {
            let need = GpuNeed { spread: Bytes(1000), each: Bytes(100) };
            let named = peaks.iter().enumerate();
            let peaks = named.map(|(at, bytes)| (format!("GPU-{at}"), Bytes(*bytes)));
            let GpuNeed { spread, each } = gpu_need(&need, &peaks.collect());
            (spread.0, each.0)
        };
        assert_eq!(of(&[]), (1000, 100), "nothing is known");
        assert_eq!(of(&[1300]), (1000, 300), "it took more");
        assert_eq!(of(&[1020]), (1000, 71), "it took less, and has a margin");
        assert_eq!(of(&[700, 700]), (1000, 200), "on two, each has its part on top");
        assert_eq!(of(&[40]), (1000, 0), "weights and caches come all the same");
    }
}
