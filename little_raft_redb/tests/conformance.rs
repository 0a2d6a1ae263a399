//! The suite for everybody's storage, run on this one: with and without a power that fails.

mod common;
#[path = "common/disk.rs"]
mod disk;

use common::{Numbers, repetitions};
use disk::Cable;
use little_raft_redb::{RedbStorage, inspect};
use little_raft_sim::conformance::{FailingPlace, Place, check, check_failures};
use std::fs;
use std::io::Result;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tempfile::TempDir;

struct Directory(TempDir);

impl Place for Directory {
    type Storage = RedbStorage;

    fn open(&mut self) -> Result<RedbStorage> {
        RedbStorage::open(self.0.path())
    }
}

#[test]
fn the_storage_conforms() {
    check(|| Directory(tempfile::tempdir().expect("a temporary directory")));
}

/// A directory on such a disk.
struct Unreliable {
    directory: TempDir,
    disk: Option<Cable>,
    numbers: Numbers,
    /// The other file, as it was synced last.
    marker: Vec<u8>,
}

/// How many crashes there were, and how many saves were rolled back after them.
static CRASHES: AtomicUsize = AtomicUsize::new(0);
static ROLLED_BACK: AtomicUsize = AtomicUsize::new(0);

impl Unreliable {
    fn new(seed: usize) -> Unreliable {
        let (directory, numbers) =
            (tempfile::tempdir().expect("a directory"), Numbers::new(seed as u64));
        Unreliable { directory, disk: None, numbers, marker: Vec::new() }
    }

    fn restore_power(&mut self) -> Result<()> {
        let Some(disk) = self.disk.take().filter(|disk| disk.disk().is_off) else { return Ok(()) };
        disk.disk().come_back()?;
        if self.numbers.below(2) == 0 {
            fs::write(self.directory.path().join("acknowledged"), &self.marker)?;
        }
        let unfinished = inspect(self.directory.path())?.unfinished;
        CRASHES.fetch_add(1, Relaxed);
        ROLLED_BACK.fetch_add(usize::from(unfinished), Relaxed);
        Ok(())
    }
}

impl Place for Unreliable {
    type Storage = RedbStorage;

    fn open(&mut self) -> Result<RedbStorage> {
        self.restore_power()?;
        let seed = self.numbers.below(1 << 30) as u64;
        let (storage, disk) = Cable::open(self.directory.path(), seed)?;
        self.disk = Some(disk);
        self.marker = fs::read(self.directory.path().join("acknowledged"))?;
        Ok(storage)
    }
}

impl FailingPlace for Unreliable {
    fn fail_next_save(&mut self, _: &mut RedbStorage, point: usize) {
        let disk = self.disk.as_ref().expect("it is open");
        disk.disk().fail_after(point, 0);
    }
}

/// Torn writes, sectors that are lost or arrive in any order, and errors though all has arrived.
#[test]
fn a_power_cut_in_a_save_leaves_it_or_not() {
    let seeds = AtomicUsize::new(0);
    for _ in 0..repetitions("LITTLE_RAFT_CRASHES", 1) {
        check_failures(|| Unreliable::new(seeds.fetch_add(1, Relaxed)));
    }
    let (crashes, rolled_back) = (CRASHES.load(Relaxed), ROLLED_BACK.load(Relaxed));
    println!("{crashes} crashes, {rolled_back} unfinished saves rolled back");
    assert!(rolled_back > 0 && rolled_back < crashes, "{rolled_back} of {crashes}");
}
