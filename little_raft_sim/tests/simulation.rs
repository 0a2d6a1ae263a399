//! The simulator over the library that ships, and over itself.

use little_raft_sim::conformance::{Entry, FailingPlace, Place, check, check_failures};
use little_raft_sim::{Counters, DiskFault, Faults, MemoryStorage, Registers, SimulatedDisk};
use little_raft_sim::{Simulation, mermaid};
use std::io;

#[test]
fn every_law_holds_under_hundreds_of_seeds_and_the_faults_really_happen() {
    let mut total = Counters::default();
    for seed in 0..200 {
        let mut simulation = Simulation::new(Registers::default(), seed);
        if let Err(broken) = simulation.run() {
            panic!("seed {seed} breaks {broken}");
        }
        total.add(simulation.counters());
    }
    for (name, count) in total.all() {
        // A history that takes too long is nothing to wish for.
        assert!(count > 0 || name == "undecided", "never in all these runs: {name}");
    }
    assert!(total.undecided <= 1, "{} histories undecided", total.undecided);
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [3, 14, 15] {
        let run = || {
            let mut simulation = Simulation::new(Registers::default(), seed).traced();
            let result = simulation.run();
            (result, *simulation.counters(), simulation.trace().to_vec())
        };
        assert_eq!(run(), run());
    }
}

#[test]
fn a_cluster_without_faults_loses_nothing() {
    let mut simulation = Simulation::with_faults(Registers::default(), Faults::none(3), 1);
    simulation.run().expect("every law holds");
    let counters = simulation.counters();
    assert_eq!((counters.lost, counters.depositions, counters.overwritten), (0, 0, 0));
    assert!(counters.acknowledged > 100);
}

#[test]
fn a_trace_becomes_a_diagram() {
    let lines = ["    0.1 1 -> 2: TimeoutNow in term 3", "    0.2 2 leads term 4", "    0.3 cut"];
    let drawn = "sequenceDiagram\n    1->>2: TimeoutNow in term 3\n    Note over 2: leads term 4\n";
    assert_eq!(mermaid(&lines), drawn);
}

struct Memory(MemoryStorage<Entry>);

impl Place for Memory {
    type Storage = MemoryStorage<Entry>;

    fn open(&mut self) -> io::Result<Self::Storage> {
        Ok(self.0.clone())
    }
}

#[test]
fn the_storage_in_memory_conforms() {
    check(|| Memory(MemoryStorage::default()));
}

struct Simulated(SimulatedDisk<Entry>);

impl Place for Simulated {
    type Storage = SimulatedDisk<Entry>;

    fn open(&mut self) -> io::Result<Self::Storage> {
        Ok(self.0.reopen())
    }
}

impl FailingPlace for Simulated {
    fn fail_next_save(&mut self, _: &mut Self::Storage, point: usize) {
        self.0.fail_next_save(match point % 10 {
            5 => DiskFault::FailsAfterAll,
            6 => DiskFault::Full(1),
            7 => DiskFault::Fails,
            8 => DiskFault::Reordered(0x5555_5555_5555_5555),
            9 => DiskFault::CrashAt(usize::MAX),
            tenths => DiskFault::CrashAt(100 * tenths),
        });
    }
}

#[test]
fn the_simulated_disk_conforms() {
    check(|| Simulated(SimulatedDisk::default()));
    check_failures(|| Simulated(SimulatedDisk::default()));
}

#[test]
fn a_history_that_takes_too_long_is_counted() {
    let mut simulation = Simulation::with_faults(Registers::default(), Faults::none(3), 1);
    simulation.run().expect("every law holds");
    assert_eq!(simulation.counters().undecided, 0);
    let hasty = Registers::default().with_steps(10);
    let mut simulation = Simulation::with_faults(hasty, Faults::none(3), 1);
    simulation.run().expect("what is not decided breaks no law");
    assert_eq!(simulation.counters().undecided, 4, "one for each register");
}

#[test]
fn a_trace_becomes_a_script() {
    let faults = Faults { joining: 1, snapshot_delta: 5, ..Faults::none(3) };
    let mut simulation = Simulation::with_faults(Registers::default(), faults, 1).traced();
    simulation.run().expect("every law holds");
    let script = simulation.script();
    let mut lines = script.lines();
    let first = "cluster voters=0,1,2 joining=3 snapshots=5 heartbeat=50 election=200..400";
    assert_eq!(lines.next(), Some(first));
    let count = |name: &str| script.lines().filter(|line| line.starts_with(name)).count();
    let counters = simulation.counters();
    assert_eq!(count("read ") as u64, counters.reads_ready + counters.reads_abandoned);
    assert!(count("timeout ") > 100 && count("deliver ") > 500, "{script}");
    let proposed = script.lines().filter_map(|line| line.strip_prefix("propose "));
    let proposed: usize = proposed.map(|line| line.split(' ').count() - 1).sum();
    assert_eq!(proposed as u64, counters.acknowledged + counters.not_leader);
    let untraced = Simulation::with_faults(Registers::default(), Faults::none(1), 1);
    assert_eq!(untraced.script(), "");
}

#[test]
fn a_save_that_never_ends_stops_one_replica_and_not_the_others() {
    let mut tested = 0;
    for seed in 0..80 {
        let stalls = Some(std::time::Duration::from_secs(12));
        let faults = Faults { stalls, ..Faults::none(3) };
        let mut simulation = Simulation::with_faults(Registers::default(), faults, seed);
        simulation.run().unwrap_or_else(|broken| panic!("seed {seed} breaks {broken}"));
        let counters = simulation.counters();
        if (counters.endless_saves, counters.stalled_saves) == (1, 0) {
            tested += 1;
            assert!(counters.acknowledged > 300, "seed {seed}: {}", counters.acknowledged);
        }
    }
    assert!(tested > 3, "only {tested} seeds have one save that never ends");
}
