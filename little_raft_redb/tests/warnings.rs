//! What is said in the log when a directory is opened.

mod common;

use common::*;
use little_raft::{Change, Storage};
use little_raft_redb::{RedbStorage, inspect};
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Keeps all that is said.
struct Notes(Mutex<Vec<(Level, String)>>);

static NOTES: Notes = Notes(Mutex::new(Vec::new()));

impl Log for Notes {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notes.push((record.level(), record.args().to_string()));
    }

    fn flush(&self) {}
}

/// What is said about a directory while it is opened and loaded, and what is in it.
fn said_about(directory: &Path) -> (Vec<(Level, String)>, Saved) {
    // Every test sets it; the first one does.
    let _ = log::set_logger(&NOTES);
    log::set_max_level(LevelFilter::Trace);
    let loaded = load(directory).expect("loaded");
    let notes = NOTES.0.lock().unwrap_or_else(PoisonError::into_inner);
    let path = directory.display().to_string();
    (notes.iter().filter(|(_, text)| text.contains(&path)).cloned().collect(), loaded)
}

fn warns(said: &[(Level, String)], text: &str) -> bool {
    said.iter().any(|(level, said)| *level == Level::Warn && said.contains(text))
}

#[test]
fn nothing_is_said_after_a_proper_end() {
    let directory = tempfile::tempdir().expect("a directory");
    furnish(&mut RedbStorage::open(directory.path()).expect("opened"));
    let (said, _) = said_about(directory.path());
    assert_eq!(said, []);
}

#[test]
fn a_crash_between_two_saves_is_logged_and_nothing_rolled_back() {
    let (directory, crashed) =
        (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
    let mut storage = RedbStorage::open(directory.path()).expect("opened");
    let saved = furnish(&mut storage);
    copy(directory.path(), crashed.path());
    let (said, loaded) = said_about(crashed.path());
    assert!(warns(&said, "was not closed"), "{said:?}");
    assert!(!warns(&said, "rolled back"), "{said:?}");
    assert_eq!(flat(loaded), flat(saved));
}

/// Of the last save some sectors are there, and some are not.
#[test]
fn an_unfinished_save_is_rolled_back_and_that_is_logged() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut storage = RedbStorage::open(directory.path()).expect("opened");
    let saved = furnish(&mut storage);
    let file = directory.path().join("replica.redb");
    let mut before = fs::read(&file).expect("read");
    let marker = fs::read(directory.path().join("acknowledged")).expect("read");
    let runs = vec![run(237, 9, 40, 300)];
    storage.save(Change { compacted: id(1, 30), ..appending(9, runs) }).expect("saved");
    let after = fs::read(&file).expect("read");
    // Where the file has become longer, there is nothing in the sectors that are lost.
    before.resize(after.len(), 0);
    let mut rolled_back = 0;
    for lost in 0..8 {
        let crashed = tempfile::tempdir().expect("a directory");
        let mut numbers = Numbers::new(lost);
        let mut database = after.clone();
        for sector in (4096..database.len()).step_by(512).filter(|_| numbers.below(2) == 0) {
            database[sector..sector + 512].copy_from_slice(&before[sector..sector + 512]);
        }
        fs::write(crashed.path().join("replica.redb"), &database).expect("written");
        fs::write(crashed.path().join("acknowledged"), &marker).expect("written");
        let unfinished = inspect(crashed.path()).expect("inspected").unfinished;
        let (said, loaded) = said_about(crashed.path());
        let told = warns(&said, "an unfinished save was rolled back");
        assert!(warns(&said, "was not closed"), "{said:?}");
        assert_eq!((told, unfinished), (flat(loaded) == flat(saved.clone()), told), "{said:?}");
        rolled_back += usize::from(told);
    }
    assert!(rolled_back > 0, "nothing was rolled back, so nothing was tried");
}
