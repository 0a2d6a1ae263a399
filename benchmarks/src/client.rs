//! The closed-loop client and the figures it takes.

use std::ops::Range;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};

use crate::command::State;
use crate::scenario::{Length, Setup};

/// What one measurement yields.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measurement {
    /// Commands applied at the leader in the measured time.
    pub applied: u64,
    pub seconds: f64,
    /// Processor time of the whole process in the measured time.
    pub processor_seconds: f64,
    /// From proposal to applied, in microseconds, of the commands that were sampled.
    pub latency_median: f64,
    pub latency_99th: f64,
    pub samples: usize,
    /// The most memory the process ever held.
    pub peak_mebibytes: f64,
    /// The state machines of all replicas after the last command. Empty for a limit without any.
    pub states: Vec<State>,
}

impl Measurement {
    pub fn rate(&self) -> f64 {
        self.applied as f64 / self.seconds
    }

    pub fn processor_seconds_per_million(&self) -> f64 {
        self.processor_seconds / self.applied as f64 * 1e6
    }

    pub fn states_equal(&self) -> bool {
        self.states.windows(2).all(|pair| pair[0] == pair[1])
    }
}

/// Keeps a number of commands outstanding: whoever drives a system asks it, after every step,
/// which commands to propose next. It warms up, measures, and then proposes no more.
pub struct Client {
    outstanding: u64,
    is_timed: bool,
    limit: u64,
    warm_up: Duration,
    measured: Duration,
    proposed: u64,
    phase: Phase,
    sampled: Option<Sampled>,
    proposals_until_sample: u32,
    latencies: Vec<Duration>,
}

enum Phase {
    Idle,
    WarmingUp { since: Instant },
    Measuring { from: Reading },
    Finished { from: Reading, to: Reading },
}

#[derive(Clone, Copy)]
struct Reading {
    at: Instant,
    processor: Duration,
    applied: u64,
}

/// The command whose way is being timed: applied once the leader's count reaches `count`.
struct Sampled {
    count: u64,
    proposed_at: Instant,
}

impl Client {
    pub fn new(setup: &Setup) -> Self {
        let (limit, measured) = match setup.length {
            Length::Time(measured) => (u64::MAX, measured),
            Length::Commands(limit) => (limit, Duration::ZERO),
        };
        Self {
            outstanding: setup.scenario.outstanding,
            is_timed: matches!(setup.length, Length::Time(_)),
            limit,
            warm_up: measured.mul_f64(0.3),
            measured,
            proposed: 0,
            phase: Phase::Idle,
            sampled: None,
            proposals_until_sample: 0,
            latencies: Vec::new(),
        }
    }

    /// For systems whose memory grows with every command: end early rather than exhaust it.
    pub fn with_limit(mut self, limit: u64) -> Self {
        self.limit = limit;
        self
    }

    /// The numbers of the commands to propose now that the leader has applied so many.
    pub fn next(&mut self, applied: u64) -> Range<u64> {
        self.observe(applied);
        if self.is_finished() {
            return self.proposed..self.proposed;
        }
        if applied == self.limit {
            self.advance(Instant::now(), applied);
        }
        let from = self.proposed;
        self.proposed = applied.saturating_add(self.outstanding).min(self.limit).max(from);
        if self.proposed > from {
            self.begin_sample();
        }
        from..self.proposed
    }

    /// To be told as early as possible that the leader has applied so many; costs a comparison.
    #[inline]
    pub fn observe(&mut self, applied: u64) {
        if self.sampled.as_ref().is_some_and(|sampled| applied >= sampled.count) {
            self.end_sample(applied);
        }
    }

    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Finished { .. })
    }

    /// How many commands every state machine has to have applied in the end.
    pub fn proposed(&self) -> u64 {
        self.proposed
    }

    /// The clock is read only for samples, and the phases advance only then: at small batches
    /// reading it every time would cost as much as some of the systems measured.
    fn begin_sample(&mut self) {
        if self.sampled.is_some() || !self.is_timed {
            return;
        }
        if self.proposals_until_sample > 0 {
            self.proposals_until_sample -= 1;
            return;
        }
        self.proposals_until_sample = if self.outstanding >= 1024 { 0 } else { 7 };
        let now = Instant::now();
        if let Phase::Idle = self.phase {
            self.phase = Phase::WarmingUp { since: now };
        }
        self.sampled = Some(Sampled { count: self.proposed, proposed_at: now });
    }

    fn end_sample(&mut self, applied: u64) {
        let Some(sampled) = self.sampled.take() else { return };
        let now = Instant::now();
        if let Phase::Measuring { .. } = self.phase {
            self.latencies.push(now - sampled.proposed_at);
        }
        self.advance(now, applied);
    }

    fn advance(&mut self, now: Instant, applied: u64) {
        match self.phase {
            // Nothing was timed: what the figures tell is that all commands were applied.
            Phase::Idle if !self.is_timed => {
                let to = Reading::take(now, applied);
                self.phase = Phase::Finished { from: Reading { applied: 0, ..to }, to };
            }
            Phase::WarmingUp { since } if now - since >= self.warm_up => {
                self.phase = Phase::Measuring { from: Reading::take(now, applied) };
            }
            Phase::Measuring { from }
                if now - from.at >= self.measured || applied >= self.limit =>
            {
                self.phase = Phase::Finished { from, to: Reading::take(now, applied) };
            }
            _ => {}
        }
    }

    /// The figures, once finished and with the state machines that the run ended with.
    pub fn measurement(mut self, states: Vec<State>) -> Result<Measurement, String> {
        let Phase::Finished { from, to } = self.phase else {
            return Err("the client stopped before the measured time was over; \
                        look for a panic above, or give it more time with --seconds"
                .into());
        };
        self.latencies.sort_unstable();
        Ok(Measurement {
            applied: to.applied - from.applied,
            seconds: (to.at - from.at).as_secs_f64(),
            processor_seconds: (to.processor - from.processor).as_secs_f64(),
            latency_median: microseconds_at(&self.latencies, 0.50),
            latency_99th: microseconds_at(&self.latencies, 0.99),
            samples: self.latencies.len(),
            peak_mebibytes: peak_mebibytes(),
            states,
        })
    }
}

impl Reading {
    fn take(at: Instant, applied: u64) -> Self {
        Self { at, processor: processor_time(), applied }
    }
}

fn microseconds_at(sorted: &[Duration], quantile: f64) -> f64 {
    let position = (sorted.len().saturating_sub(1) as f64 * quantile).round() as usize;
    sorted.get(position).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e6)
}

/// Of the whole process, so far.
pub fn processor_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("the usage of the own process is known");
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| {
            Duration::from_secs(time.tv_sec() as u64) + Duration::from_micros(time.tv_usec() as u64)
        })
        .sum()
}

fn peak_mebibytes() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("the usage of the own process is known");
    usage.max_rss() as f64 / 1024.0
}
