//! How often, and after how long, something is asked for again.

use std::time::Duration;

use super::{client::Trouble, fault::PullFault};

/// How much trouble is borne before a pull is given up.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How often in a row, without a byte in between.
    pub tries: u32,
    /// The first pause; each one after it is twice as long.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
    /// The longest pause that the hub may ask for.
    pub longest_asked: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            tries: 7,
            first: Duration::from_millis(500),
            longest: Duration::from_secs(20),
            longest_asked: Duration::from_mins(5),
        }
    }
}

/// What has been borne so far.
#[derive(Debug)]
pub(super) struct Borne {
    patience: Patience,
    tries: u32,
}

impl Borne {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, tries: 0 }
    }

    /// Notes that something came.
    pub(super) fn reset(&mut self) {
        self.tries = 0;
    }

    /// Says how long to wait before the next try, and what for.
    pub(super) fn bear(&mut self, trouble: Trouble) -> Result<(Duration, String), PullFault> {
        let (host, reason, asked) = match trouble {
            Trouble::Lasting(fault) => return Err(fault),
            Trouble::Passing { host, reason, wait } => (host, reason, wait),
        };
        self.tries = self.tries.saturating_add(1);
        if let Some(wait) = asked.filter(|wait| *wait > self.patience.longest_asked) {
            return Err(PullFault::ComeBackLater { host, wait });
        }
        if self.tries >= self.patience.tries {
            return Err(PullFault::Unreachable { host, tries: self.tries, reason });
        }
        let doubled = 2_u32.saturating_pow(self.tries - 1);
        let pause = self.patience.first.saturating_mul(doubled).min(self.patience.longest);
        let pause = asked.map_or(pause, |asked| asked.max(self.patience.first));
        Ok((pause, format!("{host}: {reason}; next try in {:.1} s", pause.as_secs_f32())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passing(wait: Option<u64>) -> Trouble {
        let wait = wait.map(Duration::from_secs);
        Trouble::Passing { host: "h".into(), reason: "it answered 429".into(), wait }
    }

    #[test]
    fn pauses_double_until_something_comes() {
        let mut borne = Borne::new(Patience { tries: 4, ..Patience::default() });
        let pause = |borne: &mut Borne| borne.bear(passing(None)).unwrap().0.as_millis();
        assert_eq!([pause(&mut borne), pause(&mut borne), pause(&mut borne)], [500, 1000, 2000]);
        borne.reset();
        assert_eq!([pause(&mut borne), pause(&mut borne), pause(&mut borne)], [500, 1000, 2000]);
        insta::assert_snapshot!(borne.bear(passing(None)).unwrap_err(), @"the hub at `h` could not be heard, 4 times in a row (it answered 429); what came so far is kept: try again later");
    }

    #[test]
    fn the_hub_says_when_within_reason() {
        let mut borne = Borne::new(Patience::default());
        let (pause, said) = borne.bear(passing(Some(7))).unwrap();
        assert_eq!((pause.as_secs(), said.as_str()), (7, "h: it answered 429; next try in 7.0 s"));
        insta::assert_snapshot!(borne.bear(passing(Some(9999))).unwrap_err(), @"the hub at `h` wants to be asked again in 9999 s only; try again then");
    }
}
