//! Who is pinned and holds what a model lacks.

use crate::{
    admin::SlotObject,
    spec::{
        Bytes, SlotName,
        memory::{GpuNeed, Need},
    },
};

/// What a slot holds of one kind of memory.
type Held = fn(&SlotObject) -> Option<Bytes>;

/// Names the pinned ones of `others` that hold what is lacking for `needs`, best first, where what all hold together
/// would be enough for one of them. `host` and `gpus` are what can be had now, where that is known.
pub(super) fn in_the_way(
    needs: &[Need],
    (host, gpus): (Option<Bytes>, Bytes),
    others: &[&SlotObject],
) -> Vec<SlotName> {
    let held = |of: Held| {
        let held = others.iter().filter_map(|slot| of(slot));
        Bytes(held.fold(0, |sum, bytes| sum.saturating_add(bytes.0)))
    };
    let lacks_host = |need: &Need, more: Bytes| {
        host.is_some_and(|host| need.host.0 > host.0.saturating_add(more.0))
    };
    let lacks_gpus = |need: &Need, more: Bytes| {
        let least = need.gpu.as_ref().map(GpuNeed::least).unwrap_or_default();
        least.0 > gpus.0.saturating_add(more.0)
    };
    let (on_host, on_gpus): (Held, Held) = (of_host, of_gpus);
    let (all_host, all_gpus) = (held(on_host), held(on_gpus));
    let Some(need) =
        needs.iter().find(|need| !lacks_host(need, all_host) && !lacks_gpus(need, all_gpus))
    else {
        return Vec::new();
    };
    let (is_host, is_gpus) = (lacks_host(need, Bytes(0)), lacks_gpus(need, Bytes(0)));
    let helps = |slot: &SlotObject| {
        let has = |of: Held| of(slot).is_some_and(|held| held.0 > 0);
        (is_host && has(on_host)) || (is_gpus && has(on_gpus))
    };
    let pinned = others.iter().filter(|slot| slot.pinned && helps(slot));
    pinned.map(|slot| slot.slot.clone()).collect()
}

fn of_host(slot: &SlotObject) -> Option<Bytes> {
    slot.promised_bytes
}

fn of_gpus(slot: &SlotObject) -> Option<Bytes> {
    slot.promised_gpu_bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::example, spec::memory::Basis};

    fn slot(name: &str, pinned: bool, host: u64, gpus: u64) -> SlotObject {
        SlotObject {
            slot: name.parse().unwrap(),
            pinned,
            promised_bytes: Some(Bytes(host)),
            promised_gpu_bytes: Some(Bytes(gpus)),
            ..example::ready()
        }
    }

    fn named(need: (u64, u64), free: (Option<u64>, u64)) -> Vec<String> {
        let slots = [
            slot("chat", true, 40, 0),
            slot("coder", true, 0, 60),
            slot("embed", false, 10, 5),
            slot("vision", true, 0, 0),
        ];
        let others: Vec<_> = slots.iter().collect();
        let gpu = (need.1 > 0).then_some(GpuNeed { spread: Bytes(need.1), each: Bytes(0) });
        let need = Need { host: Bytes(need.0), gpu, basis: Basis::Header };
        let free = (free.0.map(Bytes), Bytes(free.1));
        in_the_way(&[need], free, &others).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn those_that_are_pinned_and_hold_what_is_lacking_are_named() {
        assert_eq!(named((60, 0), (Some(20), 0)), ["chat"]);
        assert_eq!(named((10, 60), (Some(20), 0)), ["coder"]);
        assert_eq!(named((60, 60), (Some(20), 0)), ["chat", "coder"]);
        assert_eq!(named((0, 60), (None, 0)), ["coder"]);
    }

    #[test]
    fn nobody_is_named_who_could_not_help() {
        assert!(named((71, 0), (Some(20), 0)).is_empty(), "all of them hold 50");
        assert!(named((20, 0), (Some(20), 0)).is_empty(), "nothing is lacking");
        assert!(named((10, 66), (Some(20), 0)).is_empty());
    }
}
