//! The simulator over the library that ships, and over itself.

use little_raft_sim::MemoryStorage;
use little_raft_sim::conformance::{Entry, FailingPlace, Place, check, check_failures};
use little_raft_sim::{Counters, DiskFault, Faults, Registers, SimulatedDisk, Simulation, mermaid};
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
        assert!(count > 0, "never in all these runs: {name}");
    }
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
        self.0.fail_next_save(match point % 7 {
            5 => DiskFault::FailsAfterAll,
            6 => DiskFault::Full(1),
            sectors => DiskFault::CrashAfter(sectors),
        });
    }
}

#[test]
fn the_simulated_disk_conforms() {
    check(|| Simulated(SimulatedDisk::default()));
    check_failures(|| Simulated(SimulatedDisk::default()));
}

#[test]
fn a_disk_with_a_flipped_bit_refuses_to_load() {
    use little_raft::{Change, Storage};
    let mut disk = SimulatedDisk::<Entry>::default();
    assert!(!disk.flip_bit(0), "there is nothing to flip yet");
    disk.save(Change { term: 1, ..Change::default() }).expect("saves");
    disk.save(Change { term: 2, ..Change::default() }).expect("saves");
    assert_eq!(disk.reopen().load().expect("loads").term, 2);
    assert!(disk.flip_bit(0));
    let error = disk.reopen().load().expect_err("must not load");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}
