//! A replica's own idea of time.

use std::time::Duration;

/// Nanoseconds since the simulation began.
pub(crate) type Time = u64;

pub(crate) fn nanos(duration: Duration) -> Time {
    duration.as_nanos() as Time
}

/// A clock that runs at a rate of its own and may jump ahead, but never goes back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    base: Time,
    local: Time,
    /// In millionths.
    rate: u64,
}

impl Clock {
    pub(crate) fn new(now: Time, rate: u64) -> Clock {
        Clock { base: now, local: 0, rate }
    }

    pub(crate) fn read(&self, now: Time) -> Duration {
        let passed = u128::from(now - self.base) * u128::from(self.rate) / 1_000_000;
        Duration::from_nanos(self.local + passed as Time)
    }

    /// When this clock shows a time, or now if it does already.
    pub(crate) fn shows(&self, local: Duration, now: Time) -> Time {
        let ahead = nanos(local.min(Duration::from_secs(1 << 32))).saturating_sub(self.local);
        let passed = (u128::from(ahead) * 1_000_000).div_ceil(u128::from(self.rate));
        now.max(self.base + passed as Time)
    }

    pub(crate) fn change(&mut self, now: Time, ahead: Duration, rate: u64) {
        *self = Clock { base: now, local: nanos(self.read(now) + ahead), rate };
    }
}
