//! A process that saves as fast as it can is killed, again and again: every save that it has
//! acknowledged is there, none is there in part.
//!
//! `LITTLE_RAFT_KILLS=500 cargo test --release -p little_raft_redb --test crash` for longer.

mod common;

use common::*;
use little_raft::{Change, Storage};
use little_raft_redb::RedbStorage;
use little_raft_sim::append;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};

const DIRECTORY: &str = "LITTLE_RAFT_REDB_DIRECTORY";

/// The change that a save makes of what was there. The term counts the saves.
fn next(saved: &Saved) -> Saved {
    let term = saved.term + 1;
    let last = saved.runs.last().map_or(saved.compacted, |run| run.last());
    let mut numbers = Numbers::new(term as u64);
    let mut change = Change { compacted: saved.compacted, ..appending(term, vec![]) };
    let mut first = last.index + 1;
    if term.is_multiple_of(7) {
        first = first.saturating_sub(numbers.below(30)).max(saved.compacted.index + 1);
        change.truncate_from = Some(first);
    }
    if term.is_multiple_of(11) && saved.runs.len() > 2 {
        change.compacted = saved.runs[saved.runs.len() / 2 - 1].last();
        change.truncate_from = None;
        first = last.index + 1;
        let length = numbers.below(300_000);
        change.snapshot = Some(snapshot(change.compacted.index, change.compacted.term, length));
        change.membership = Some(membership(&[1, term]));
    }
    let count = 1 + numbers.below(if term.is_multiple_of(5) { 600 } else { 8 });
    change.runs = vec![run(first, term, count, numbers.below(400))];
    change.runs.push(configuration(first + count, term, &[1, 2, term]));
    change
}

/// Not a test: what runs in the process that is killed.
#[test]
#[ignore = "runs in a process of its own"]
fn save_for_ever() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let mut storage = RedbStorage::open(directory).expect("opened");
    let mut saved: Saved = storage.load().expect("loaded");
    loop {
        let change = next(&saved);
        append(&mut saved, change.clone());
        storage.save(change).expect("saved");
        writeln!(std::io::stdout(), "acknowledged {}", saved.term).expect("the parent listens");
    }
}

fn spawn(directory: &Path) -> Child {
    let mut process = Process::new(std::env::current_exe().expect("this program"));
    process.args(["--exact", "save_for_ever", "--ignored", "--nocapture"]);
    process.env(DIRECTORY, directory).stdout(Stdio::piped()).stderr(Stdio::null());
    process.spawn().expect("spawned")
}

/// Lets a process save so many times and kills it; returns the last save it acknowledged.
fn kill_after(directory: &Path, saves: usize, spins: usize) -> usize {
    let mut child = spawn(directory);
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let (mut acknowledged, mut count) = (0, 0);
    let mut take = |line: std::io::Result<String>| {
        let line = line.unwrap_or_default();
        // The first line of all begins with what the test harness says.
        let number = line.rsplit_once("acknowledged ").and_then(|(_, number)| number.parse().ok());
        acknowledged = number.unwrap_or(acknowledged);
        number.is_some()
    };
    while count < saves {
        count += usize::from(take(lines.next().expect("the process saves until it is killed")));
    }
    for _ in 0..spins {
        std::hint::spin_loop();
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    lines.for_each(|line| {
        take(line);
    });
    acknowledged
}

#[test]
fn what_was_acknowledged_survives_every_kill() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut model, mut numbers, mut unfinished) = (Saved::default(), Numbers::new(1), 0);
    for kill in 0..repetitions("LITTLE_RAFT_KILLS", 20) {
        let saves = if kill % 10 == 9 { 0 } else { 1 + numbers.below(60) };
        let acknowledged = kill_after(directory.path(), saves, numbers.below(2_000_000));
        if saves > 0 {
            let inspection = little_raft_redb::inspect(directory.path()).expect("inspected");
            unfinished += usize::from(inspection.unfinished);
            assert!(!inspection.closed && inspection.acknowledged >= acknowledged as u64);
        }
        let loaded = load(directory.path()).expect("loaded");
        let lost = format!("kill {kill}: {} after {acknowledged} was acknowledged", loaded.term);
        assert!(loaded.term >= acknowledged && loaded.term >= model.term, "{lost}");
        while model.term < loaded.term {
            let change = next(&model);
            append(&mut model, change);
        }
        // What decides the next change is how the entries are grouped, so that is taken over.
        assert_eq!(flat(loaded.clone()), flat(model), "kill {kill}");
        model = loaded;
    }
    println!("saves: {}, unfinished ones rolled back: {unfinished}", model.term);
}
