//! What Little Raft costs by other measures than the clock, and how that grows. Each study is a
//! subcommand; it prints what it found, and writes it into `results/` under its own name.

pub mod failover;
pub mod growth;
pub mod instructions;
pub mod memory;

use std::fs;
use std::path::{Path, PathBuf};

use crate::machine::Machine;

/// Beside the sources, wherever the command was started.
fn in_this_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Prints a study, and keeps it in the folder `results`.
fn publish(name: &str, title: &str, text: &str) -> Result<(), String> {
    let text = format!("# {title}\n\n{}\n\n{text}", Machine::examine().describe());
    print!("{text}");
    let path = in_this_folder("results").join(name);
    fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// The value that this share of the sorted values does not exceed.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let position = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
    sorted.get(position).copied().unwrap_or(f64::NAN)
}
