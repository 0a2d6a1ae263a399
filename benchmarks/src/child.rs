//! Every measurement has a process of its own: no system inherits another's memory or threads, and
//! one that hangs is stopped without stopping the run.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::Measurement;
use crate::options::MEASURE;
use crate::scenario::{Length, Scenario, Setup};
use crate::systems::{self, System};

/// For the election, the settling and a machine that is busy with something else.
const GRACE: Duration = Duration::from_secs(25);
/// Glibc gives large blocks, and the top of its heap, back to the system as soon as they are free,
/// so that with large batches the page faults of taking them again would be measured: up to six
/// times the cost, of the raw fan-out as of the libraries. All systems run with an allocator that
/// keeps what it has. The first value is the greatest that glibc accepts.
const ALLOCATOR: [(&str, &str); 2] =
    [("MALLOC_MMAP_THRESHOLD_", "33554432"), ("MALLOC_TRIM_THRESHOLD_", "1073741824")];
/// How much of what a failed child wrote is shown.
const LAST_LINES: usize = 6;

/// In the child: measures, and writes the figures to the standard output.
pub fn measure_here(system: &str, scenario: &str, seconds: f64) -> Result<(), String> {
    let system = systems::named(system).ok_or(format!("there is no system {system}"))?;
    let scenario = Scenario::named(scenario).ok_or(format!("there is no scenario {scenario}"))?;
    let length = Length::Time(Duration::from_secs_f64(seconds));
    let setup = Setup { scenario, length };
    let measurement = (system.measure)(&setup)?;
    let text = serde_json::to_string(&measurement).map_err(|error| error.to_string())?;
    println!("{text}");
    // Threads of libraries that cannot be stopped end with the process.
    std::process::exit(0);
}

/// What a child process runs: this program again.
pub fn own_program() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|error| format!("cannot find the own executable: {error}"))
}

/// In the parent: starts the child and waits for its figures.
pub fn measure(system: &System, scenario: &Scenario, seconds: f64) -> Result<Measurement, String> {
    let child = Command::new(own_program()?)
        .args([MEASURE, system.name, &scenario.to_string(), &seconds.to_string()])
        .envs(ALLOCATOR)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start a child process: {error}"))?;
    await_figures(child, Duration::from_secs_f64(seconds * 3.0) + GRACE)
}

fn await_figures(mut child: Child, patience: Duration) -> Result<Measurement, String> {
    // Read from the start, so that a child that writes much is not blocked by a full pipe.
    let output = child.stdout.take().map(read_in_background);
    let errors = child.stderr.take().map(read_in_background);
    let deadline = Instant::now() + patience;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("was stopped because it was not done within {patience:?}"));
            }
            Err(error) => return Err(format!("cannot wait for the child process: {error}")),
        }
    };
    let output = output.and_then(|thread| thread.join().ok()).unwrap_or_default();
    let errors = errors.and_then(|thread| thread.join().ok()).unwrap_or_default();
    if !status.success() {
        return Err(format!("ended with {status}: {}", last_lines(&errors)));
    }
    let figures = output.lines().last().unwrap_or_default();
    serde_json::from_str(figures).map_err(|error| format!("gave no figures ({error}): {output}"))
}

fn read_in_background(mut source: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = source.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join(" / ")
}

/// One line for whoever watches the run.
pub fn brief(outcome: &Result<Measurement, String>) -> String {
    match outcome {
        Ok(figures) => format!(
            "{:.0}/s, p50 {:.1} us, {:.4} CPU-s per million{}",
            figures.rate(),
            figures.latency_median,
            figures.processor_seconds_per_million(),
            if figures.states_equal() { "" } else { ", STATE MACHINES DIFFER" }
        ),
        Err(message) => message.clone(),
    }
}
