//! What a verdict rests on, fact by fact.

use nix::sys::signal::Signal;

use crate::{
    admin::DeathObject,
    cli::text::{brief, counted},
    spec::{
        death::{Evidence, ExitStatus, KernelLog, MemorySample, MemoryTimeline, Verdict},
        gpu::XidName,
    },
};

/// How many readings of memory are told.
const READINGS: usize = 4;

/// Tells each fact, the deciding ones first.
pub(super) fn told(death: &DeathObject) -> Vec<String> {
    let Some(evidence) = &death.evidence else {
        return vec![if death.pid.is_some() {
            "slotd's own record; the process is not quite gone yet".to_owned()
        } else {
            "slotd's own check before the start; no process was made".to_owned()
        }];
    };
    let mut lines = vec![status(evidence.status)];
    if death.verdict == Verdict::StartTimeout {
        lines.push("slotd's own clock: it killed it itself".to_owned());
    } else if death.verdict.is_ours() {
        lines.push("slotd's own watch: it told it to end itself".to_owned());
    } else {
        lines.push("slotd had sent it no signal".to_owned());
    }
    lines.extend(counters(evidence));
    lines.push(match &evidence.kernel_log {
        KernelLog::Unreadable => "the kernel's log cannot be read here".to_owned(),
        KernelLog::Silent => "the kernel's log does not name it".to_owned(),
        KernelLog::OomKill { line } | KernelLog::Fault { line } => {
            format!("the kernel's log: `{line}`")
        }
    });
    lines.push(match &evidence.log {
        None => "its own log names no cause that is known".to_owned(),
        Some(finding) => format!("its own log: `{}`", finding.line),
    });
    if evidence.code_cause.is_some() {
        lines.push("its exit code has a meaning of its own, which is this".to_owned());
    }
    lines.extend(evidence.xids.iter().map(|xid| {
        let before = brief(xid.before_ms);
        format!("GPU {} reported {}, {before} before", xid.gpu, XidName(xid.code))
    }));
    lines.extend(memory(&evidence.memory));
    lines
}

fn status(status: ExitStatus) -> String {
    match status {
        ExitStatus::Code(code @ 129..=159) => {
            format!("exit code {code}: a wrapper's word for {}", signal(code - 128))
        }
        ExitStatus::Code(code) => format!("exit code {code}"),
        ExitStatus::Signal(number) => format!("ended by {}", signal(number)),
        ExitStatus::Unknown => "how it ended could not be read".to_owned(),
    }
}

fn signal(number: i32) -> String {
    match Signal::try_from(number) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) => format!("signal {number}"),
    }
}

fn counters(evidence: &Evidence) -> Vec<String> {
    let kills = |count: u64| match count {
        0 => "no OOM kill".to_owned(),
        more => counted(usize::try_from(more).unwrap_or(usize::MAX), "OOM kill"),
    };
    if let Some(count) = evidence.oom_kills {
        return vec![format!("its own cgroup counted {} in its last seconds", kills(count))];
    }
    let mut lines = vec!["it had no cgroup that counts OOM kills".to_owned()];
    if let Some(count) = evidence.daemon_oom_kills {
        lines.push(format!("slotd's cgroup counted {} in these seconds", kills(count)));
    }
    if let Some(count) = evidence.machine_oom_kills {
        lines.push(format!("the machine counted {} in these seconds", kills(count)));
    }
    lines
}

fn memory(timeline: &MemoryTimeline) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(limit) = timeline.limit_bytes {
        lines.push(format!("its memory was limited to {limit}"));
    }
    let skipped = timeline.samples.len().saturating_sub(READINGS);
    let readings: Vec<_> =
        timeline.samples.iter().skip(skipped).filter_map(|sample| reading(*sample)).collect();
    if !readings.is_empty() {
        let total = timeline.total_bytes.map(|total| format!(" of {total}")).unwrap_or_default();
        let available = timeline.samples.iter().rev().find_map(|sample| sample.available_bytes);
        let left = available.map(|left| format!("; the machine had {left}{total} left"));
        lines.push(format!("its memory: {}{}", readings.join(", "), left.unwrap_or_default()));
    }
    if timeline.was_scarce() == Some(true) {
        lines.push("the machine was short of memory".to_owned());
    }
    lines
}

fn reading(sample: MemorySample) -> Option<String> {
    Some(format!("{} {} before", sample.rss_bytes?, brief(sample.before_ms)))
}
