//! GPUs, in words.

use super::text::{Paint, Tone, utc};
use crate::admin::{GpuObject, XidObject};

/// One GPU in a line of `slotd status`.
pub(super) fn line(gpu: &GpuObject) -> String {
    let memory = match (gpu.free_bytes, gpu.total_bytes) {
        (Some(free), Some(total)) => format!("{free} of {total} free"),
        _ => "memory unknown".to_owned(),
    };
    let busy = gpu.busy_percent.map(|busy| format!(", {busy} % busy")).unwrap_or_default();
    let GpuObject { name, .. } = gpu;
    let xids = match (&gpu.last_xid, gpu.xid_count) {
        (Some(XidObject { text, at_unix_ms, .. }), count) => {
            let more = count.filter(|count| *count > 1);
            let more = more.map(|count| format!(", {count} in all")).unwrap_or_default();
            format!("; last fault: {text}, {}{more}", utc(*at_unix_ms))
        }
        (None, Some(_)) => String::new(),
        (None, None) => "; faults unknown: its driver tells of none".to_owned(),
    };
    match gpu.state.as_str() {
        "present" => format!("{name}: {memory}{busy}{xids}"),
        "lost" => format!("{name}: lost{xids}"),
        state => format!("{name}: {state}, when last heard of {memory}{xids}"),
    }
}

/// What is wrong with a GPU; nothing for one that is there.
pub(super) fn ailment(gpu: &GpuObject, paint: Paint) -> Option<String> {
    let GpuObject { index, name, .. } = gpu;
    match gpu.state.as_str() {
        "lost" => {
            let lost = paint.apply(Tone::Bad, "is lost");
            let reason = gpu.reason.as_deref().unwrap_or("it is not known why");
            Some(format!("GPU {index} ({name}) {lost}: {reason}; its slots wait for it"))
        }
        "silent" => {
            let silent = paint.apply(Tone::Wary, "does not answer");
            Some(format!("GPU {index} ({name}) {silent}; slots that need it wait"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::spec::Bytes;

    fn gpu() -> GpuObject {
        GpuObject {
            index: 0,
            uuid: "GPU-1".to_owned(),
            name: "RTX 4090".to_owned(),
            state: "present".to_owned(),
            reason: None,
            total_bytes: Some(Bytes(24 << 30)),
            free_bytes: Some(Bytes(6 << 30)),
            busy_percent: Some(30),
            xid_count: Some(0),
            last_xid: None,
        }
    }

    #[test]
    fn a_gpu_is_told_in_one_line() {
        let xid = XidObject {
            code: 31,
            text: "Xid 31 (GPU memory page fault)".to_owned(),
            at_unix_ms: 1_795_251_612_345,
        };
        assert_snapshot!(line(&gpu()), @"RTX 4090: 6.0 GiB of 24 GiB free, 30 % busy");
        let faulty = GpuObject { xid_count: Some(3), last_xid: Some(xid), ..gpu() };
        assert_snapshot!(line(&faulty), @"RTX 4090: 6.0 GiB of 24 GiB free, 30 % busy; last fault: Xid 31 (GPU memory page fault), 2026-11-21 09:00:12 UTC, 3 in all");
        assert_eq!(ailment(&faulty, Paint::Never), None);
        let deaf = GpuObject { xid_count: None, busy_percent: None, ..gpu() };
        assert_snapshot!(line(&deaf), @"RTX 4090: 6.0 GiB of 24 GiB free; faults unknown: its driver tells of none");
    }

    #[test]
    fn a_lost_gpu_is_told_with_the_reason() {
        let reason = Some("the driver reports Xid 79 (the GPU has fallen off the bus)".to_owned());
        let lost = GpuObject { state: "lost".to_owned(), reason, total_bytes: None, ..gpu() };
        assert_snapshot!(line(&lost), @"RTX 4090: lost");
        assert_snapshot!(ailment(&lost, Paint::Never).unwrap(), @"GPU 0 (RTX 4090) is lost: the driver reports Xid 79 (the GPU has fallen off the bus); its slots wait for it");
    }
}
