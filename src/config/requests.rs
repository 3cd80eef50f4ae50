//! The keys of a profile about its slot's requests.

use std::{ops::RangeInclusive, time::Duration};

use super::walk::Walk;
use crate::spec::requests::{Lane, OnClientGone, Requests};

const QUEUE_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(1);
const LANES: [(&str, Lane); 2] = [("interactive", Lane::Interactive), ("batch", Lane::Batch)];
const ON_CLIENT_GONE: [(&str, OnClientGone); 2] =
    [("cancel", OnClientGone::Cancel), ("drain", OnClientGone::Drain)];

/// Takes them out of a file.
pub(super) fn take(walk: &mut Walk<'_>) -> Requests {
    Requests {
        lane: walk.take_choice("lane", &LANES).unwrap_or_default(),
        queue_timeout: walk.take_duration("queue_timeout", &QUEUE_TIMEOUT),
        on_client_gone: walk.take_choice("on_client_gone", &ON_CLIENT_GONE).unwrap_or_default(),
        ..Requests::default()
    }
}
