//! How fast, how large, how long to open.
//!
//! ```text
//! cargo run --release -p little_raft_redb --example benchmark -- DIRECTORY throughput 0
//! cargo run --release -p little_raft_redb --example benchmark -- DIRECTORY cluster 1024 0
//! cargo run --release -p little_raft_redb --example benchmark -- DIRECTORY reopen 1000000
//! strace -f -c -e trace=fsync,fdatasync target/release/examples/benchmark DIRECTORY saves 1000 16
//! ```
//!
//! The directory should lie on the disk in question and is filled with files of this program's own.
//! The last number of the first two is how many microseconds are added to every sync, those of the
//! bare loop as well, for what a slower disk would make of it.

use little_raft::{Change, LogId, Run, Storage};
use little_raft_redb::RedbStorage;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[path = "benchmark/cluster.rs"]
mod cluster;
#[path = "benchmark/disk.rs"]
mod disk;

use disk::Disk;

const ENTRY: usize = 256;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry(#[serde(with = "serde_bytes")] Vec<u8>);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let disk = |slower| Disk { delay: Duration::from_micros(slower as u64) };
    let number = |text: &str| text.parse().map_err(|_| Error::new(ErrorKind::InvalidInput, USAGE));
    match *arguments {
        [directory, "throughput", slower] => {
            throughput(Path::new(directory), disk(number(slower)?))
        }
        [directory, "reopen", entries] => reopen(Path::new(directory), number(entries)?),
        [directory, "cluster", outstanding, slower] => {
            cluster::run(Path::new(directory), number(outstanding)?, disk(number(slower)?))
        }
        [directory, "saves", count, batch] => {
            saves(Path::new(directory), number(count)?, number(batch)?)
        }
        _ => Err(Error::new(ErrorKind::InvalidInput, USAGE)),
    }
}

const USAGE: &str = "benchmark DIRECTORY throughput MICROSECONDS | \
    cluster OUTSTANDING MICROSECONDS | reopen ENTRIES | saves COUNT BATCH";

/// A part of the directory that nobody has used yet.
fn fresh(directory: &Path, name: &str) -> Result<PathBuf> {
    let path = directory.join(name);
    if path.exists() {
        fs::remove_dir_all(&path)?;
    }
    fs::create_dir_all(&path)?;
    Ok(path)
}

/// Entries that no compression would make smaller.
fn batch(first: usize, count: usize) -> Change<Entry> {
    let mut state = first as u64 | 1;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    let entries = (0..count).map(|_| Entry((0..ENTRY).map(|_| byte()).collect()));
    let transitions = Arc::new(entries.collect());
    let run = Run { first, term: 1, transitions, membership: None };
    Change { term: 1, runs: vec![run], ..Change::default() }
}

/// The same bytes appended to a file and synced, which is what the disk can do, beside a storage,
/// in turns of twenty saves.
fn throughput(directory: &Path, disk: Disk) -> Result<()> {
    println!(
        "entries a save | append+fdatasync | this storage | time ratio | bytes written, ratio"
    );
    for count in [1, 16, 256, 4096] {
        let path = fresh(directory, "throughput")?;
        let mut storage = disk.open(&path.join("storage"))?;
        let mut file = File::create(path.join("plain"))?;
        let rounds = if count == 4096 { 10 } else { 40 };
        let (mut plain, mut stored, mut first) = (Vec::new(), Vec::new(), 1);
        for _ in 0..rounds {
            let changes: Vec<_> = (0..20).map(|turn| batch(first + turn * count, count)).collect();
            first += 20 * count;
            for change in &changes {
                let entries = change.runs[0].transitions.iter();
                let bytes: Vec<u8> = entries.flat_map(|entry| entry.0.iter().copied()).collect();
                let began = Instant::now();
                disk.append(&mut file, &bytes)?;
                plain.push(began.elapsed());
            }
            for change in &changes {
                let change = change.clone(); // A replica keeps the entries as well.
                let began = Instant::now();
                storage.save(change)?;
                stored.push(began.elapsed());
            }
        }
        drop::<RedbStorage>(storage);
        let size = size(&path.join("storage"))? as f64 / ((first - 1) * ENTRY) as f64;
        let (plain, stored) = (summary(plain), summary(stored));
        let ratio = stored.1.as_secs_f64() / plain.1.as_secs_f64();
        let ratio_of_medians = stored.0.as_secs_f64() / plain.0.as_secs_f64();
        println!(
            "{count:>5} | {:>8.2?} median, {:>8.2?} mean | {:>8.2?} median, {:>8.2?} mean | \
             {ratio_of_medians:.2} of medians, {ratio:.2} of means | {size:.2}",
            plain.0, plain.1, stored.0, stored.1
        );
    }
    Ok(())
}

/// Median and mean.
fn summary(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times.iter().sum::<Duration>() / times.len() as u32)
}

fn size(directory: &Path) -> Result<u64> {
    fs::metadata(directory.join("replica.redb")).map(|file| file.len())
}

/// Opens a directory with so many entries, and compacts most of them.
fn reopen(directory: &Path, entries: usize) -> Result<()> {
    let path = fresh(directory, "reopen")?;
    let mut storage = RedbStorage::open(&path)?;
    for first in (1..=entries).step_by(1000) {
        storage.save(batch(first, 1000.min(entries + 1 - first)))?;
    }
    drop::<RedbStorage>(storage);
    let payload = (entries * ENTRY) as f64;
    println!("{entries} entries: {:.3} bytes on disk per byte", size(&path)? as f64 / payload);
    let (before, began) = (memory("VmRSS"), Instant::now());
    let mut storage = RedbStorage::open(&path)?;
    let opened = began.elapsed();
    let loaded: Change<Entry> = storage.load()?;
    let (total, runs) = (began.elapsed(), loaded.runs.len());
    println!("opened and checked in {opened:.2?}, loaded in {total:.2?}, {runs} runs");
    println!(
        "memory: {before:?} KiB before, {:?} KiB after, peak {:?} KiB",
        memory("VmRSS"),
        memory("VmHWM")
    );
    drop(loaded);
    let compacted = LogId { term: 1, index: entries * 9 / 10 };
    let began = Instant::now();
    storage.save(Change { compacted, term: 1, ..Change::<Entry>::default() })?;
    println!("nine tenths compacted in {:.2?}: {} bytes", began.elapsed(), size(&path)?);
    let mut first = entries + 1;
    for turn in 1..=100 {
        let compacted = LogId { term: 1, index: compacted.index + turn * 1000 };
        storage.save(Change { compacted, ..batch(first, 1000) })?;
        first += 1000;
    }
    println!("after 100 saves of 1,000 that compact as many: {} bytes", size(&path)?);
    drop::<RedbStorage>(storage);
    println!("after closing: {} bytes", size(&path)?);
    shrink(&path)
}

/// Opens a directory of which most is unused.
fn shrink(path: &Path) -> Result<()> {
    let began = Instant::now();
    let storage = RedbStorage::open(path)?;
    println!("after opening in {:.2?}: {} bytes", began.elapsed(), size(path)?);
    drop(storage);
    println!("after closing again: {} bytes", size(path)?);
    Ok(())
}

/// A line of what Linux says about this process.
fn memory(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Nothing but saves, for `strace -c`.
fn saves(directory: &Path, count: usize, size: usize) -> Result<()> {
    let mut storage = RedbStorage::open(fresh(directory, "saves")?)?;
    println!("opened");
    for save in 0..count {
        storage.save(batch(1 + save * size, size))?;
    }
    println!("{count} saves");
    Ok(())
}
