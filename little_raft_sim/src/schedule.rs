//! A run that follows bytes rather than time, for fuzzers.
//!
//! An event that is passed over comes late, however late. A shorter sequence of bytes is a shorter
//! run, so that whatever shrinks bytes shrinks runs.
//!
//! ```text
//! cargo test -p little_raft_sim --test schedules
//! PROPTEST_CASES=1000000 cargo test --release -p little_raft_sim --test schedules
//! ```

use crate::clock::Time;
use crate::laws::Broken;
use crate::simulation::{Event, Simulation};
use crate::subject::Subject;
use crate::{DiskFault, Faults, Random};
use rand::SeedableRng;
use std::cmp::Reverse;
use std::time::Duration;

impl<S: Subject> Simulation<S> {
    /// A cluster in which what happens next is said by bytes: [`run`](Self::run) follows them to
    /// their end, and then wants the cluster to work as after any other run.
    ///
    /// Two bytes say what kind of cluster it is. Then each pair is a step: which of the events that
    /// wait comes next, which message is lost, whose deadline passes, which fault strikes. Every
    /// sequence of bytes is a schedule. The tests of this crate run a corpus of them and random
    /// ones, `PROPTEST_CASES` many.
    ///
    /// ```
    /// use little_raft_sim::{Registers, Simulation};
    ///
    /// let schedule = [7, 1, 20, 0, 0, 0, 0, 1, 0, 2, 24, 9];
    /// Simulation::with_schedule(Registers::default(), &schedule).run().unwrap();
    /// ```
    pub fn with_schedule(subject: S, schedule: &[u8]) -> Self {
        let byte = |place: usize| usize::from(schedule.get(place).copied().unwrap_or_default());
        let (first, second) = (byte(0), byte(1));
        let mut faults = Faults::none(1 + first % 5);
        faults.joining = first / 5 % 3;
        faults.batch = [1, 20][first / 15 % 2];
        faults.snapshot_delta = [0, 1, 3, 10][second % 4];
        faults.applied_at_once = [1_000, 1][second / 4 % 2];
        faults.standing = second / 8 % 2 == 1;
        faults.one_way_cuts = true;
        faults.rot = 100_000;
        if second / 16 % 2 == 1 {
            faults.max_clock_drift = Some(Duration::from_millis(40));
        }
        faults.disk_faults = vec![
            DiskFault::CrashAt(70),
            DiskFault::Reordered(0xaaaa_aaaa_aaaa_aaaa),
            DiskFault::Fails,
            DiskFault::FailsAfterAll,
            DiskFault::Full(2),
        ];
        let mut simulation = Simulation::with_faults(subject, faults, 0);
        simulation.queue.retain(|Reverse((.., event))| matches!(event, Event::Start(_)));
        simulation.schedule = Some(schedule.get(2..).unwrap_or_default().to_vec());
        simulation
    }

    pub(crate) fn follow(&mut self, schedule: &[u8]) -> Result<(), Broken> {
        // All replicas are there before the first step.
        self.run_until(100_000_000)?;
        for step in schedule.chunks_exact(2) {
            let (kind, argument) = (step[0] % 32, step[1]);
            self.counters.events += 1;
            self.now += 1_000;
            // What a step leaves to chance depends on nothing but its argument.
            self.random = Random::seed_from_u64(argument.into());
            self.take_step(kind, argument)?;
        }
        Ok(())
    }

    fn take_step(&mut self, kind: u8, argument: u8) -> Result<(), Broken> {
        match kind {
            0..=12 => self.happen_out_of_turn(argument)?,
            13 => self.lose_one(argument),
            14 => self.repeat_one(argument),
            15..=17 => self.let_deadline_pass(argument),
            18..=21 => self.act(Event::Client)?,
            22 => self.act(Event::Transfer)?,
            23 => self.act(Event::ChangeMembership)?,
            24 => self.act(Event::Crash)?,
            25 => self.act(Event::Break)?,
            26 => self.act(Event::Stall)?,
            27 => self.act(Event::Pause)?,
            // Leases count on clocks that drift apart by little.
            28 if self.faults.max_clock_drift.is_none() => self.act(Event::Jump)?,
            29 => self.network.heal(),
            _ => self.act(Event::Cut)?,
        }
        Ok(())
    }

    /// The events that wait, the earliest first, without one of them.
    fn pick(&mut self, argument: u8, fits: impl Fn(&Event) -> bool) -> Option<(Time, Event)> {
        let mut events = std::mem::take(&mut self.queue).into_sorted_vec();
        let fitting = events.iter().enumerate().rev().filter(|(_, Reverse((.., it)))| fits(it));
        let places: Vec<usize> = fitting.map(|(place, _)| place).collect();
        let chosen = usize::from(argument).checked_rem(places.len());
        let event = chosen.map(|chosen| events.remove(places[chosen]).0);
        self.queue = events.into();
        event.map(|(at, _, event)| (at, event))
    }

    fn happen_out_of_turn(&mut self, argument: u8) -> Result<(), Broken> {
        let Some((at, event)) = self.pick(argument, |_| true) else { return Ok(()) };
        // A message may be as fast as it likes, but nobody looks at a clock too early.
        if !matches!(event, Event::Arrival(_)) {
            self.now = self.now.max(at);
        }
        self.happen(event)
    }

    fn lose_one(&mut self, argument: u8) {
        let lost = self.pick(argument, |event| matches!(event, Event::Arrival(_)));
        if let Some((_, Event::Arrival(ticket))) = lost {
            self.counters.lost += 1;
            let _ = self.network.arrive(ticket);
        }
    }

    fn repeat_one(&mut self, argument: u8) {
        let repeated = self.pick(argument, |event| matches!(event, Event::Arrival(_)));
        if let Some((at, Event::Arrival(ticket))) = repeated {
            self.counters.duplicated += 1;
            let copy = self.network.copy(ticket);
            self.schedule(at, Event::Arrival(ticket));
            copy.into_iter().for_each(|ticket| self.schedule(at, Event::Arrival(ticket)));
        }
    }

    /// Time passes until a replica stands for election or, as a leader, sends heartbeats.
    fn let_deadline_pass(&mut self, argument: u8) {
        let id = usize::from(argument) % self.nodes.len();
        let node = &self.nodes[id];
        if let Some(life) = node.life.as_ref().filter(|_| node.paused_until <= self.now) {
            self.now = node.clock.shows(life.raft.me.deadline, self.now);
            self.wake_at(id, self.now);
        }
    }
}
