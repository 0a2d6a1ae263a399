//! A disk whose power fails.

use crate::common::Numbers;
use little_raft_redb::{RedbStorage, StorageBackend};
use std::fs::File;
use std::io::{Error, Read, Result, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SECTOR: usize = 512;

/// A disk that has not written anything for certain before it is told to sync, and whose power may
/// fail.
#[derive(Debug)]
pub(crate) struct Disk {
    file: File,
    /// What the file held at the last sync.
    synced: Vec<u8>,
    /// How many writes and how many syncs until the power fails, whichever comes first.
    fuse: Option<(usize, usize)>,
    pub(crate) is_off: bool,
    /// How often it was told to sync.
    pub(crate) syncs: usize,
    numbers: Numbers,
}

impl Disk {
    fn contents(&mut self) -> Result<Vec<u8>> {
        let mut contents = Vec::new();
        self.file.rewind()?;
        self.file.read_to_end(&mut contents)?;
        Ok(contents)
    }

    fn put(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        self.file.write_all(data)
    }

    /// Makes the power fail after so many writes or so many syncs.
    pub(crate) fn fail_after(&mut self, writes: usize, syncs: usize) {
        self.fuse = Some((writes, syncs));
    }

    /// An error if the power is off, or fails now.
    fn use_power(&mut self, writes: usize, syncs: usize) -> Result<()> {
        self.fuse = self.fuse.and_then(|(w, s)| {
            let left = w.checked_sub(writes).zip(s.checked_sub(syncs));
            self.is_off |= left.is_none();
            left
        });
        if self.is_off { Err(Error::other("the power is off")) } else { Ok(()) }
    }

    /// The power comes back. Of what was written since the last sync any sectors are there, and the
    /// file is as long as before or as after.
    pub(crate) fn come_back(&mut self) -> Result<()> {
        let (mut now, before) = (self.contents()?, std::mem::take(&mut self.synced));
        if self.numbers.below(2) == 0 {
            now.resize(before.len(), 0);
        }
        let lost = [0, 2, 50, 300, 600, 950, 1000][self.numbers.below(7)];
        for (place, sector) in now.chunks_mut(SECTOR).enumerate() {
            if self.numbers.below(1000) < lost {
                let old = before.get(place * SECTOR..).unwrap_or_default();
                let old: Vec<_> =
                    old.iter().copied().chain([0; SECTOR]).take(sector.len()).collect();
                sector.copy_from_slice(&old);
            }
        }
        self.file.set_len(now.len() as u64)?;
        self.put(0, &now)?;
        (self.fuse, self.is_off) = (None, false);
        Ok(())
    }
}

/// What the database has of the disk.
#[derive(Clone, Debug)]
pub(crate) struct Cable(Arc<Mutex<Disk>>);

impl Cable {
    /// Opens a storage whose database is on such a disk.
    pub(crate) fn open(directory: &Path, seed: u64) -> Result<(RedbStorage, Cable)> {
        let place = Arc::new(Mutex::new(None));
        let kept = place.clone();
        let storage = RedbStorage::options().through(move |file| {
            let cable = Cable::new(file, seed).expect("the real disk works");
            *kept.lock().expect("nobody panics with it") = Some(cable.clone());
            cable
        });
        let storage = storage.open(directory)?;
        let cable = place.lock().expect("nobody panics with it").take();
        Ok((storage, cable.expect("the storage goes through it")))
    }

    fn new(file: File, seed: u64) -> Result<Cable> {
        let (fuse, is_off, syncs, numbers) = (None, false, 0, Numbers::new(seed));
        let mut disk = Disk { file, synced: Vec::new(), fuse, is_off, syncs, numbers };
        disk.synced = disk.contents()?;
        Ok(Cable(Arc::new(Mutex::new(disk))))
    }

    pub(crate) fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StorageBackend for Cable {
    fn len(&self) -> Result<u64> {
        Ok(self.disk().file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut disk = self.disk();
        disk.file.seek(SeekFrom::Start(offset))?;
        disk.file.read_exact(out)
    }

    fn set_len(&self, length: u64) -> Result<()> {
        let mut disk = self.disk();
        disk.use_power(1, 0)?;
        disk.file.set_len(length)
    }

    fn sync_data(&self) -> Result<()> {
        let mut disk = self.disk();
        disk.syncs += 1;
        let (powered, arrives) = (disk.use_power(0, 1), disk.numbers.below(2) == 0);
        if powered.is_ok() || arrives {
            disk.synced = disk.contents()?;
        }
        powered
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut disk = self.disk();
        let (powered, was_off) = (!disk.is_off, disk.is_off);
        let powered = disk.use_power(1, 0).is_ok() && powered;
        if !powered && !was_off {
            // The write is torn, or does not happen at all.
            let part = disk.numbers.below(data.len() + 1);
            disk.put(offset, &data[..part])?;
        }
        if powered { disk.put(offset, data) } else { Err(Error::other("the power is off")) }
    }
}
