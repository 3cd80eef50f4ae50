//! Room that a person asks for: who goes for it, or why it cannot be had.
//!
//! By the same order as for a slot that is to be loaded, but that a person's word is enough: nobody's
//! `min_residency` counts, nor how many may be there at once. Where it is only asked whether a slot could be
//! loaded, that counts; a load waits until a `min_residency` is over, and so that does not. Those that work, are pinned, or go under pressure alone stay. Whoever goes is
//! unloaded like by hand: it does not come back into the room that was made. Nor do those that were displaced
//! before, for a while.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    spec::{
        Bytes, SlotName, WaiterId,
        memory::{GpuNeed, Need, Share},
        profile::Capability,
    },
    supervisor::{
        Supervisor,
        command::Command,
        eviction::{Candidate, Class, Wanted, choose},
        ledger::{Pool, Pools},
        limits::Limits,
        slot::Slot,
    },
};

use super::Stand;

/// For how long nobody who was displaced comes back into room that was asked for.
const KEPT_FREE: Duration = Duration::from_secs(30);

/// Room that is asked for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct RoomRequest {
    /// Who asks.
    pub asker: WaiterId,
    /// How much, and of what.
    pub need: Need,
    /// On which GPU alone; on any without it.
    pub gpu: Option<u32>,
    /// The slot that it is for, which does not go itself.
    pub slot: Option<SlotName>,
    /// What is to come of it.
    #[serde(default)]
    pub purpose: Purpose,
}

/// What is to come of a question for room.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Purpose {
    /// The room is made.
    #[default]
    Make,
    /// Nothing: how things stand is told. What the slot has itself that it is for counts as free.
    Ask,
}

/// What comes of it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct RoomAnswer {
    /// What could be promised before anybody went.
    pub free: Bytes,
    /// Who goes, in this order.
    pub going: Vec<SlotName>,
    /// Why nobody goes, where that would not be enough: one sentence without the full stop.
    pub refused: Option<String>,
    /// What could be promised of each pool before anybody went.
    pub left: Share,
}

impl Supervisor {
    /// Answers those who have asked for room. Called with a fresh reading.
    pub(super) fn make_headroom(&mut self, commands: &mut Vec<Command>) {
        for request in std::mem::take(&mut self.rooms) {
            let answer = self.headroom(&request);
            if request.purpose == Purpose::Make {
                self.make_room(&answer, commands);
            }
            commands.push(Command::AnswerRoom { asker: request.asker, answer });
        }
    }

    fn make_room(&mut self, answer: &RoomAnswer, commands: &mut Vec<Command>) {
        if answer.refused.is_none() {
            self.kept_free_until = self.now.after(KEPT_FREE);
        }
        for name in &answer.going {
            self.with(name, commands, Slot::give_way);
        }
    }

    /// Turns those away who ask while everything is being stopped.
    pub(super) fn refuse_rooms(&mut self, commands: &mut Vec<Command>) {
        for request in std::mem::take(&mut self.rooms) {
            let refused = Some("the daemon is stopping".to_owned());
            let answer = RoomAnswer { refused, ..RoomAnswer::default() };
            commands.push(Command::AnswerRoom { asker: request.asker, answer });
        }
    }

    fn headroom(&self, request: &RoomRequest) -> RoomAnswer {
        let mut stand = self.stand();
        let own = request.slot.as_ref().and_then(|slot| self.slots.get(slot));
        let mut kinds: &[Capability] = &[];
        match request.purpose {
            // A person's word: what may be there at once is for loads.
            Purpose::Make => stand.limits = Limits::default(),
            Purpose::Ask => {
                kinds = own.map(Slot::kinds).unwrap_or_default();
                if let Some(own) = own.filter(|own| own.has_child()) {
                    let goes = stand.leaving.remove(&own.name).map(|(share, _)| share);
                    let share = goes.or_else(|| own.held()).unwrap_or_default();
                    stand.pools.release(&share);
                    stand.limits.leave(kinds);
                }
            }
        }
        let left = left(&stand.pools);
        RoomAnswer { left, ..self.room_in(request, kinds, stand) }
    }

    fn room_in(&self, request: &RoomRequest, kinds: &[Capability], mut stand: Stand) -> RoomAnswer {
        if let Some(gpu) = request.gpu {
            stand.pools.gpus.retain(|index, _| *index == gpu);
            stand.pools.aside.retain(|index, _| *index == gpu);
        }
        let free = free(&stand.pools, &request.need);
        if let Some(reason) = no_gpu(request, &stand.pools) {
            return RoomAnswer { free, refused: Some(reason), ..RoomAnswer::default() };
        }
        let wanted = Wanted { need: &request.need, capabilities: kinds };
        let is_there = wanted.is_met(&stand.pools, &stand.limits);
        let freed = stand.without_the_leaving();
        if wanted.is_met(&freed.pools, &freed.limits) {
            // What they hold is there once they are gone.
            let going = if is_there { Vec::new() } else { stand.leaving.into_keys().collect() };
            return RoomAnswer { free, going, ..RoomAnswer::default() };
        }
        let candidates = self.candidates(|slot, class| {
            class < Class::Active && slot.may_ever_go() && Some(&slot.name) != request.slot.as_ref()
        });
        let chosen = choose(wanted, (&freed.pools, &freed.limits), &candidates);
        if let Some(going) = chosen {
            let going = going.iter().map(|one| one.name.clone()).collect();
            return RoomAnswer { free, going, ..RoomAnswer::default() };
        }
        let refused = Some(refusal(request, (kinds, &freed), &candidates));
        RoomAnswer { free, refused, ..RoomAnswer::default() }
    }
}

/// Says why no GPU can be asked, where one is.
fn no_gpu(request: &RoomRequest, pools: &Pools) -> Option<String> {
    if request.need.gpu.is_none() || !pools.gpus.is_empty() {
        return None;
    }
    let which = request.gpu.map_or_else(|| "no GPU".to_owned(), |gpu| format!("GPU {gpu}"));
    Some(match pools.aside.first_key_value() {
        Some((index, reason)) => format!("GPU {index} cannot be used: {reason}"),
        None if request.gpu.is_some() => format!("{which} is not known"),
        None => format!("{which} is known"),
    })
}

/// Says what is in the way.
fn refusal(
    request: &RoomRequest,
    (kinds, freed): (&[Capability], &Stand),
    candidates: &[Candidate<'_>],
) -> String {
    let mut limits = freed.limits.clone();
    for one in candidates {
        limits.leave(one.capabilities);
    }
    if !limits.admits(kinds) {
        return "as many slots are loaded as may be, and none of them may go".to_owned();
    }
    too_little(request, &freed.pools, candidates)
}

/// Says the numbers.
fn too_little(request: &RoomRequest, pools: &Pools, candidates: &[Candidate<'_>]) -> String {
    let now = free(pools, &request.need);
    let mut emptied = pools.clone();
    for one in candidates {
        emptied.release(&one.share);
    }
    let most = free(&emptied, &request.need);
    let wanted = request.need.gpu.as_ref().map_or(request.need.host, GpuNeed::least);
    let what = if request.need.gpu.is_some() { "GPU memory" } else { "memory" };
    let count = match candidates.len() {
        0 => "no slot may go".to_owned(),
        1 => format!("{most} if the one slot that may go were gone"),
        count => format!("{most} if all {count} slots that may go were gone"),
    };
    format!("{wanted} of {what} cannot be had: {now} is free, {count}")
}

/// Returns what of each pool can be promised; where nothing limits engines, anything.
fn left(pools: &Pools) -> Share {
    let gpus = pools.gpus.iter().map(|(gpu, pool)| (*gpu, pool.free()));
    let host = pools.host.as_ref().map_or(Bytes(u64::MAX), Pool::free);
    Share { host, gpus: gpus.collect() }
}

/// Returns what of the kind that is needed can be promised.
fn free(pools: &Pools, need: &Need) -> Bytes {
    if need.gpu.is_some() {
        return Bytes(pools.gpus.values().map(|pool| pool.free().0).sum());
    }
    // Where nothing limits engines, anything can be.
    pools.host.as_ref().map_or(Bytes(u64::MAX), Pool::free)
}
