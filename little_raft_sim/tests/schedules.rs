//! Schedules that are bytes: a corpus of them, and random ones.
//!
//! ```text
//! cargo test -p little_raft_sim --test schedules
//! PROPTEST_CASES=1000000 cargo test --release -p little_raft_sim --test schedules      for longer
//! ```
//!
//! A failure is shrunk to the shortest and smallest bytes that show it. Add them to
//! `schedules.txt`.
//!
//! When the simulator draws otherwise than before, the schedules of the corpus mean something else.
//! `UPDATE=1 cargo test -p little_raft_sim --test schedules corpus` searches for others.

use little_raft_sim::{Counters, Random, Registers, Simulation};
use proptest::collection::vec;
use proptest::prelude::{any, proptest};
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};

/// What happened in a schedule.
fn run(schedule: &[u8]) -> Result<Counters, String> {
    let mut simulation = Simulation::with_schedule(Registers::default(), schedule);
    let result = simulation.run_caught().map_err(|broken| broken.to_string());
    result.map(|()| *simulation.counters())
}

fn parse(hex: &str) -> Vec<u8> {
    let digit = |letter: char| letter.to_digit(16).expect("hexadecimal digits") as u8;
    let digits: Vec<u8> = hex.chars().map(digit).collect();
    digits.chunks(2).map(|pair| 16 * pair[0] + pair[1]).collect()
}

fn reaches(schedule: &[u8], name: &str) -> bool {
    let counters = run(schedule).unwrap_or_else(|broken| panic!("{schedule:?} breaks {broken}"));
    counters.all().iter().any(|(other, count)| *other == name && *count > 0)
}

/// Takes out of a schedule what is not needed to reach something.
fn shorten(mut schedule: Vec<u8>, name: &str) -> Vec<u8> {
    for size in [256, 64, 16, 4, 2] {
        let mut at = 2;
        while at < schedule.len() {
            let mut shorter = schedule.clone();
            shorter.drain(at..(at + size).min(schedule.len()));
            match reaches(&shorter, name) {
                true => schedule = shorter,
                false => at += size,
            }
        }
    }
    schedule
}

/// Several short schedules for everything that can happen.
fn search() -> BTreeSet<Vec<u8>> {
    let mut found: BTreeMap<&str, Vec<Vec<u8>>> = BTreeMap::new();
    for seed in 0..2_500 {
        let mut random = Random::seed_from_u64(seed);
        let schedule: Vec<u8> = (0..20 + seed / 3).map(|_| random.random()).collect();
        let counters = run(&schedule).unwrap_or_else(|broken| panic!("{schedule:?}: {broken}"));
        for (name, _) in counters.all().into_iter().filter(|(_, count)| *count > 0) {
            let schedules = found.entry(name).or_default();
            if schedules.len() < 3 {
                schedules.push(shorten(schedule.clone(), name));
            }
        }
    }
    found.into_values().flatten().collect()
}

fn show(schedules: &BTreeSet<Vec<u8>>) -> String {
    let hex = |byte: &u8| format!("{byte:02x}");
    let line = |bytes: &Vec<u8>| bytes.iter().map(hex).collect::<String>() + "\n";
    schedules.iter().map(line).collect()
}

#[test]
fn the_corpus_reaches_everything() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/schedules.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, show(&search())).expect("the corpus can be written");
    }
    let text = std::fs::read_to_string(path).expect("the corpus can be read");
    let mut total = Counters::default();
    for line in text.lines() {
        total.add(&run(&parse(line)).unwrap_or_else(|broken| panic!("{line} breaks {broken}")));
    }
    for (name, count) in total.all() {
        // Schedules know no time in which something could be late.
        assert!(count > 0 || ["late", "undecided"].contains(&name), "not in the corpus: {name}");
    }
}

#[test]
fn the_same_bytes_are_the_same_run() {
    let schedule: Vec<u8> = (0..400_u32).map(|number| (number * number / 7) as u8).collect();
    let traced = || {
        let mut simulation = Simulation::with_schedule(Registers::default(), &schedule).traced();
        simulation.run().expect("every law holds");
        simulation.trace().to_vec()
    };
    let (one, other) = (traced(), traced());
    assert_eq!(one, other);
    assert!(one.len() > 200, "something happens in it");
}

proptest! {
    #[test]
    fn no_schedule_breaks_a_law(schedule in vec(any::<u8>(), 0..1_500)) {
        run(&schedule).unwrap();
    }
}
