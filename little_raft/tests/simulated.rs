//! What the simulator prints as a script must be one: every line is done as it stands, by the same
//! code that runs the scripts, under the same laws.

mod runner;

use little_raft_sim::{Faults, Registers, Simulation};
use runner::Cluster;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// Does a script, and returns what happens in it, or which command broke a law.
fn replay(script: &str) -> Result<Vec<String>, String> {
    let mut cluster = Cluster::default();
    for line in script.lines().filter(|line| !line.starts_with('#')) {
        let done = catch_unwind(AssertUnwindSafe(|| cluster.command(line)));
        done.map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            format!("`{line}`: {text}")
        })?;
    }
    Ok(cluster.take_output())
}

/// The transitions that are applied anywhere.
fn applied(output: &[String]) -> BTreeSet<&str> {
    let names = output.iter().filter_map(|line| line.split_once(" applies "));
    names.flat_map(|(_, names)| names.split(' ')).filter(|name| *name != "noop").collect()
}

fn script(faults: Faults, seed: u64) -> (String, u64) {
    let mut simulation = Simulation::with_faults(Registers::default(), faults, seed).traced();
    simulation.run().unwrap_or_else(|broken| panic!("seed {seed} breaks {broken}"));
    (simulation.script(), simulation.counters().acknowledged)
}

#[test]
fn a_calm_run_comes_to_the_same_as_its_script() {
    let calm = || Faults { duration: Duration::from_millis(1_500), ..Faults::none(3) };
    for seed in 0..5 {
        let (script, acknowledged) = script(calm(), seed);
        let output = replay(&script).expect("a script that does not fail");
        let applied = applied(&output).len() as u64;
        assert!(acknowledged > 10, "seed {seed} has too little in it");
        assert!(applied * 10 >= acknowledged * 9, "seed {seed}: {applied} of {acknowledged}");
    }
}

#[test]
fn every_line_of_a_wild_run_is_a_command() {
    let mut commands = BTreeSet::new();
    let mut elections = 0;
    for seed in 0..30 {
        let mut faults = Simulation::new(Registers::default(), seed).faults().clone();
        faults.duration = faults.duration.min(Duration::from_millis(1_500));
        faults.clients = faults.clients.max(Duration::from_millis(50));
        let (script, _) = script(faults, seed);
        commands
            .extend(script.lines().filter_map(|line| Some(line.split_once(' ')?.0.to_string())));
        let output = replay(&script).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        elections += output.iter().filter(|it| it.ends_with("becomes leader")).count();
    }
    assert!(elections >= 20, "the scripts come to something: {elections} elections");
    for name in ["advance", "crash", "cut", "deliver", "drop", "fail-save", "members", "pause"] {
        assert!(commands.contains(name), "no script has {name}: {commands:?}");
    }
    for name in ["propose", "read", "restart", "resume", "timeout", "transfer", "wait"] {
        assert!(commands.contains(name), "no script has {name}: {commands:?}");
    }
}
