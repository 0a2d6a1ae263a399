//! Whether memory stays bounded and flat under sustained load: replicas in threads, snapshots on,
//! the client in the leader's thread with as many commands outstanding as it can, and what the
//! process holds, looked up again and again until all commands are applied everywhere.

use std::fmt::Write;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{in_this_folder, publish, quantile};
use crate::child::own_program;
use crate::options::SATURATE;
use crate::scenario::{Length, Payload, Place, Scenario, Setup};
use crate::systems;

const SYSTEM: &str = "little-raft";
const OUTSTANDING: [u64; 2] = [1024, 16384];
const PAUSE: Duration = Duration::from_millis(20);
/// For the election and the settling, beside a second for each hundred thousand commands.
const GRACE: Duration = Duration::from_secs(60);
const PARTS: usize = 5;

/// In the child: applies so many commands everywhere.
pub fn run_here(outstanding: u64, commands: u64) -> Result<(), String> {
    let system = systems::named(SYSTEM).ok_or(format!("there is no system {SYSTEM}"))?;
    let scenario = Scenario { place: Place::WithLeader, payload: Payload::Fixed16, outstanding };
    let measurement = (system.measure)(&Setup { scenario, length: Length::Commands(commands) })?;
    if !measurement.states_equal() {
        return Err("the state machines are not equal".into());
    }
    std::process::exit(0);
}

/// Watches a child for each number of commands outstanding.
pub fn report(commands: u64) -> Result<(), String> {
    let mut text = format!(
        "Resident memory of a process in which {SYSTEM}'s three replicas apply {commands} commands \
         of 16 bytes each, in MiB: the median of each fifth of the time, and the most there ever \
         was.\n\n| outstanding | 1st | 2nd | 3rd | 4th | 5th | most | seconds |\n\
         |---:|---:|---:|---:|---:|---:|---:|---:|\n"
    );
    let mut curves = Vec::new();
    for outstanding in OUTSTANDING {
        let curve = watch(outstanding, commands)?;
        let _ = write!(text, "| {outstanding} |");
        for part in 0..PARTS {
            let range = curve.len() * part / PARTS..curve.len() * (part + 1) / PARTS;
            let mut values: Vec<f64> = curve[range].iter().map(|(_, held)| *held).collect();
            values.sort_by(f64::total_cmp);
            let _ = write!(text, " {:.0} |", quantile(&values, 0.5));
        }
        let most = curve.iter().map(|(_, held)| *held).fold(0.0, f64::max);
        let seconds = curve.last().map_or(0.0, |(at, _)| *at);
        let _ = writeln!(text, " {most:.0} | {seconds:.1} |");
        curves.push((format!("{outstanding} outstanding"), curve));
    }
    text.push_str("\n![memory over time](memory.svg)\n");
    let path = in_this_folder("results").join("memory.svg");
    let picture = crate::picture::curves("resident memory, MiB, over seconds", &curves);
    fs::write(&path, picture)
        .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    publish("memory.md", "Memory under load", &text)
}

/// Seconds since the start, and MiB.
fn watch(outstanding: u64, commands: u64) -> Result<Vec<(f64, f64)>, String> {
    let mut child = Command::new(own_program()?)
        .args([SATURATE, &outstanding.to_string(), &commands.to_string()])
        .stdin(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot start a child process: {error}"))?;
    let (began, mut curve) = (Instant::now(), Vec::new());
    let patience = GRACE + Duration::from_secs(commands / 100_000);
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(curve),
            Ok(Some(status)) => return Err(format!("the child failed: {status}")),
            Ok(None) if began.elapsed() < patience => {
                curve.extend(held(&child).map(|mib| (began.elapsed().as_secs_f64(), mib)));
                thread::sleep(PAUSE);
            }
            Ok(None) | Err(_) => {
                let _ = child.kill();
                return Err(format!("{commands} commands were not applied in {patience:?}"));
            }
        }
    }
}

/// What a process holds in memory now, in MiB; nothing if it has just ended.
fn held(child: &Child) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}
