//! Makes a failing run smaller.

use crate::{Broken, Faults, Simulation, Subject};
use std::time::Duration;

/// One way to make faults fewer.
type Simplification = fn(&mut Faults);

const SIMPLIFICATIONS: &[Simplification] = &[
    |it| it.crashes = None,
    |it| it.disk_errors = None,
    |it| it.disk_faults.truncate(it.disk_faults.len().div_ceil(2)),
    |it| _ = it.disk_faults.drain(..it.disk_faults.len() / 2),
    |it| it.stalls = None,
    |it| it.rot = 0,
    |it| it.cuts = None,
    |it| it.one_way_cuts = false,
    |it| it.pauses = None,
    |it| it.jumps = None,
    |it| it.membership_changes = None,
    |it| it.transfers = None,
    |it| it.standing = false,
    |it| it.max_clock_drift = None,
    |it| it.clock_skew = 0,
    |it| it.lost = 0,
    |it| it.duplicated = 0,
    |it| it.late = 0,
    |it| it.reads = 0,
    |it| it.batch = 1,
    |it| it.applied_at_once = 1_000,
    |it| it.idleness = Duration::ZERO,
    |it| it.snapshot_delta = 0,
    |it| it.joining = 0,
    |it| it.voters = it.voters.saturating_sub(1).max(1),
    |it| it.voters = it.voters.saturating_sub(2).max(1),
    |it| it.clients *= 4,
    |it| it.delay.1 = Duration::from_millis(3),
];

/// The fewest and mildest faults, and the seed, under which the same law still breaks: each
/// simplification is kept that does not make the failure go away under any of `seeds` seeds, until
/// none helps. Returns nothing if the run does not fail.
pub fn shrink<S: Subject>(
    subject: impl Fn() -> S, faults: Faults, seed: u64, seeds: u64,
) -> Option<(Faults, u64, Broken)> {
    let fails = |faults: &Faults, seed: u64| {
        let mut simulation = Simulation::with_faults(subject(), faults.clone(), seed);
        let broken = simulation.run_caught().err()?;
        Some((broken, simulation.now()))
    };
    let (broken, at) = fails(&faults, seed)?;
    let mut best = (faults, seed, broken, at);
    loop {
        let before = best.0.clone();
        for simplify in SIMPLIFICATIONS {
            let mut simpler = best.0.clone();
            simplify(&mut simpler);
            simpler.duration = simpler.duration.min(best.3);
            if simpler == best.0 {
                continue;
            }
            let found = (0..seeds).map(|more| best.1.wrapping_add(more)).find_map(|seed| {
                let same = fails(&simpler, seed).filter(|(broken, _)| broken.law == best.2.law);
                same.map(|(broken, at)| (simpler.clone(), seed, broken, at))
            });
            best = found.unwrap_or(best);
        }
        if best.0 == before {
            return Some((best.0, best.1, best.2));
        }
    }
}
