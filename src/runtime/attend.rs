//! What the daemon does while its slots live: it reads profiles again, and waits to be told to end.

use std::pin::pin;

use tokio::sync::mpsc;
use tracing::info;

use super::{
    profiles::Profiles,
    service_manager,
    signals::{Asked, Signals},
    stand_ins,
    upgrade::{self, Next},
};
use crate::mailbox::Mailbox;

/// Why a daemon ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reason {
    /// It was told to stop.
    Stop,
    /// The program on disk takes its place.
    Upgrade,
}

/// Reads the profiles; `None` when a signal says stop before they are read.
pub(super) async fn reload(
    signals: &mut Signals,
    profiles: &mut Profiles,
    mailbox: &Mailbox,
) -> Option<usize> {
    loop {
        let mut asked_again = false;
        let slots = {
            let mut reading = pin!(profiles.reload(mailbox));
            loop {
                tokio::select! {
                    slots = &mut reading => break slots,
                    asked = signals.next() => match asked {
                        Asked::Stop => return None,
                        Asked::Reload => asked_again = true,
                    },
                }
            }
        };
        if !asked_again {
            return Some(slots);
        }
    }
}

/// Reads profiles again when they change or a signal says so, and puts slots beside others; returns why the daemon is to end.
pub(super) async fn attend(
    signals: &mut Signals,
    profiles: &mut Profiles,
    (mut looks, mut stand_ins): (mpsc::Receiver<()>, mpsc::Receiver<stand_ins::Asked>),
    upgrades: &mut mpsc::Receiver<upgrade::Asked>,
    (mailbox, next): (&Mailbox, &Next),
) -> Reason {
    loop {
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::Stop => return Reason::Stop,
                Asked::Reload => {
                    service_manager::reloading();
                    let Some(slots) = reload(signals, profiles, mailbox).await else {
                        return Reason::Stop;
                    };
                    info!(slots, "profiles read again");
                    service_manager::ready();
                }
            },
            Some(asked) = upgrades.recv() => {
                let checked = next.check().await;
                let goes_on = checked.is_ok();
                // Who asked may be gone: it was asked all the same.
                drop(asked.send(checked));
                if goes_on {
                    return Reason::Upgrade;
                }
            }
            Some(asked) = stand_ins.recv() => profiles.put_beside(asked, mailbox).await,
            turn = profiles.stand_in_turn() => profiles.take_turn(turn, mailbox).await,
            Some(()) = looks.recv() => {
                if reload(signals, profiles, mailbox).await.is_none() {
                    return Reason::Stop;
                }
            }
        }
    }
}
