//! The suite for everybody's storage, run on this one.

use little_raft_redb::RedbStorage;
use little_raft_sim::conformance::{Place, check};
use std::io;
use tempfile::TempDir;

struct Directory(TempDir);

impl Place for Directory {
    type Storage = RedbStorage;

    fn open(&mut self) -> io::Result<RedbStorage> {
        RedbStorage::open(self.0.path())
    }
}

#[test]
fn the_storage_conforms() {
    check(|| Directory(tempfile::tempdir().expect("a temporary directory")));
}
