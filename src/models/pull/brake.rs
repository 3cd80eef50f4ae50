//! What holds a pull for a while: it waits where it is, and goes on by itself.

use tokio::sync::watch;

use super::progress::Board;

/// Says whether a pull has to wait, and for what.
#[derive(Clone, Debug)]
pub struct Brake(Option<watch::Receiver<Option<String>>>);

impl Brake {
    /// Makes one that holds while there is a reason, one clause for people.
    pub fn new(reason: watch::Receiver<Option<String>>) -> Self {
        Self(Some(reason))
    }

    /// Makes one that never holds.
    pub fn none() -> Self {
        Self(None)
    }

    /// Waits until nothing holds; those who watch are told why.
    pub(super) async fn pass(&self, board: &Board) {
        let Some(reason) = &self.0 else { return };
        let held = reason.borrow().clone();
        let Some(held) = held else { return };
        board.tell(|status| status.trouble = Some(format!("paused: {held}")));
        // Whoever held it may be gone, and nobody holds it then.
        drop(reason.clone().wait_for(Option::is_none).await);
        board.tell(|status| status.trouble = None);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;
    use crate::models::pull::PullStatus;

    #[tokio::test]
    async fn a_pull_that_is_held_says_why_and_goes_on_by_itself() {
        let (shown, watched) = watch::channel(PullStatus::default());
        let board = Board::new(shown, "org/repo".to_owned());
        let (hold, reason) = watch::channel(None);
        let brake = Brake::new(reason);
        brake.pass(&board).await;
        hold.send_replace(Some("the disk is nearly full".to_owned()));
        let mut waiting = pin!(brake.pass(&board));
        assert!((&mut waiting).now_or_never().is_none());
        let trouble = watched.borrow().trouble.clone();
        assert_eq!(trouble.as_deref(), Some("paused: the disk is nearly full"));
        hold.send_replace(None);
        waiting.await;
        assert_eq!(watched.borrow().trouble, None);
        Brake::none().pass(&board).await;
    }
}
