//! The disk that the directory is on, or one whose syncs take longer.

use little_raft_redb::{RedbStorage, StorageBackend};
use redb::backends::FileBackend;
use std::fs::File;
use std::io::{Result, Write};
use std::path::Path;
use std::time::Duration;

/// How much longer every sync takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disk {
    pub(crate) delay: Duration,
}

impl Disk {
    pub(crate) fn open(self, directory: &Path) -> Result<RedbStorage> {
        if self.delay.is_zero() {
            return RedbStorage::open(directory);
        }
        let slow = move |file| {
            let file = FileBackend::new(file).expect("the directory is this program's own");
            Slow { file, disk: self }
        };
        RedbStorage::options().through(slow).open(directory)
    }

    /// What every storage does at least.
    pub(crate) fn append(self, file: &mut File, bytes: &[u8]) -> Result<()> {
        file.write_all(bytes)?;
        file.sync_data()?;
        self.wait();
        Ok(())
    }

    fn wait(self) {
        if !self.delay.is_zero() {
            std::thread::sleep(self.delay);
        }
    }
}

#[derive(Debug)]
struct Slow {
    file: FileBackend,
    disk: Disk,
}

impl StorageBackend for Slow {
    fn len(&self) -> Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.file.set_len(length)
    }

    fn sync_data(&self) -> Result<()> {
        self.file.sync_data()?;
        self.disk.wait();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.file.write(offset, data)
    }
}
