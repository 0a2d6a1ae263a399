//! Cost per command without the machine's noise: the same single-threaded run is executed by
//! `valgrind --tool=callgrind`, once long and once short, and the difference in instructions is
//! divided by the difference in commands. Election and start-up cancel out.
//!
//! Little Raft's figures must not exceed the budget in `instructions-budget.json`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::{in_this_folder, publish};
use crate::child::own_program;
use crate::options::COUNT;
use crate::scenario::{Length, Payload, Place, Scenario, Setup};
use crate::systems;

const BUDGET: &str = "instructions-budget.json";
const OURS: &str = "little-raft";
/// Those that run the same instructions every time; openraft's runtime does not.
const SYSTEMS: [&str; 6] =
    ["raw-fan-out", "raw-fan-out-shared", "omnipaxos-batch", "omnipaxos-append", "tikv-raft", OURS];
const BATCHES: [u64; 3] = [1, 64, 1024];
/// In thousandths: how far above the budget a figure may be, because allocators and libraries of
/// the system differ between machines.
const TOLERANCE: u64 = 30;

/// Instructions per command, of all three replicas together, in thousandths, for each batch.
#[derive(Serialize, Deserialize)]
struct Budget {
    what: String,
    thousandths_of_instructions_per_command: BTreeMap<u64, u64>,
}

/// In the process that valgrind watches: so many commands, in batches of this size.
pub fn run_here(system: &str, batch: u64, commands: u64) -> Result<(), String> {
    let system = systems::named(system).ok_or(format!("there is no system {system}"))?;
    let scenario =
        Scenario { place: Place::AllInOne, payload: Payload::Fixed16, outstanding: batch };
    let setup = Setup { scenario, length: Length::Commands(commands) };
    let measurement = (system.measure)(&setup)?;
    let complete = measurement.states.iter().all(|state| state.count == commands);
    if complete && measurement.states_equal() {
        println!("{commands} commands applied by all, state machines equal");
        Ok(())
    } else {
        Err(format!("not all replicas applied {commands} commands: {:?}", measurement.states))
    }
}

/// Counts for every system, and holds ours against the budget, or makes it the budget.
pub fn report(is_update: bool) -> Result<(), String> {
    let mut text = String::from(
        "Instructions per command, of three replicas and the client together, 16 bytes by value, \
         everything in one thread. The raw fan-out tells what the client, the state machines and \
         the vectors between the replicas cost alone.\n\n| system | w1 | w64 | w1024 |\n",
    );
    text.push_str("|---|---:|---:|---:|\n");
    let mut ours = BTreeMap::new();
    for system in SYSTEMS.into_iter().filter(|name| systems::named(name).is_some()) {
        let _ = write!(text, "| {system} |");
        for batch in BATCHES {
            let cost = per_command(system, batch)?;
            eprintln!("{system}/w{batch}: {}", decimal(cost));
            let _ = write!(text, " {} |", decimal(cost));
            if system == OURS {
                ours.insert(batch, cost);
            }
        }
        text.push('\n');
    }
    let verdict = if is_update { write_budget(ours) } else { compare(&ours, &mut text) };
    publish("instructions.md", "Instructions per command", &text)?;
    verdict
}

/// In thousandths of an instruction.
fn per_command(system: &str, batch: u64) -> Result<u64, String> {
    // The batches are what costs, so as many of them for each size, more or less: enough that
    // snapshots come several times.
    let short = batch * 256;
    let long = short + (batch * 512).max(128 * 1024);
    let [short_total, long_total] = [short, long].map(|commands| count(system, batch, commands));
    Ok((long_total? - short_total?) * 1000 / (long - short))
}

/// The instructions of a whole process, by valgrind.
fn count(system: &str, batch: u64, commands: u64) -> Result<u64, String> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(own_program()?)
        .args([COUNT, system, &batch.to_string(), &commands.to_string()])
        .output()
        .map_err(|error| format!("cannot start valgrind, install it: {error}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("valgrind or the run in it failed:\n{errors}"));
    }
    let line = errors.lines().rev().find(|line| line.contains("Collected :"));
    let total = line.and_then(|line| line.split_whitespace().last()?.parse().ok());
    total.ok_or(format!("valgrind did not say how many instructions it counted:\n{errors}"))
}

fn compare(ours: &BTreeMap<u64, u64>, text: &mut String) -> Result<(), String> {
    let path = in_this_folder(BUDGET);
    let unreadable = |error: String| {
        format!("cannot read {}: {error}; make it with `instructions --update`", path.display())
    };
    let content = fs::read_to_string(&path).map_err(|error| unreadable(error.to_string()))?;
    let budget: Budget =
        serde_json::from_str(&content).map_err(|error| unreadable(error.to_string()))?;
    let budget = budget.thousandths_of_instructions_per_command;
    let mut exceeded = Vec::new();
    text.push_str(
        "\n| little-raft's budget | per command | measured | used |\n|---|---:|---:|---:|\n",
    );
    for (batch, cost) in ours {
        let granted = budget.get(batch).copied().unwrap_or(0);
        let used = *cost as f64 / granted as f64 * 100.0;
        let _ = writeln!(
            text,
            "| w{batch} | {} | {} | {used:.0} % |",
            decimal(granted),
            decimal(*cost)
        );
        if *cost > granted + granted * TOLERANCE / 1000 {
            exceeded.push(format!("w{batch} by {:.1} %", used - 100.0));
        }
    }
    if exceeded.is_empty() {
        return Ok(());
    }
    let exceeded = exceeded.join(", ");
    Err(format!(
        "the budget for instructions is exceeded: {exceeded}; find out why or, if it is worth it, raise it with `instructions --update`"
    ))
}

fn write_budget(costs: BTreeMap<u64, u64>) -> Result<(), String> {
    let what = "Instructions of three replicas and the client per command of 16 bytes, everything \
                in one thread, in thousandths, by the number of commands outstanding"
        .to_string();
    let budget = Budget { what, thousandths_of_instructions_per_command: costs };
    let text = serde_json::to_string_pretty(&budget).map_err(|error| error.to_string())? + "\n";
    let path = in_this_folder(BUDGET);
    fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn decimal(thousandths: u64) -> String {
    format!("{:.1}", thousandths as f64 / 1000.0)
}
