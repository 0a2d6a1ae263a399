//! Durable storage for [Little Raft](little_raft) on [`redb`].
//!
//! ```no_run
//! # use little_raft_redb::RedbStorage;
//! # fn main() -> std::io::Result<()> {
//! let storage = RedbStorage::open("/var/lib/orders/replica-1")?;
//! // Replica::new(..).with_storage(storage)
//! # Ok(()) }
//! ```
//!
//! * One save is one transaction and one `fdatasync`, whatever it holds. It is there as a whole or,
//!   after a crash, not at all.
//! * Opening verifies every checksum. What a crash left unfinished is rolled back, and logged; any
//!   other damage is an error that says which file, what was found and what can be done.
//! * After any error the storage is dead: what is durable then is known again after the next start.
//!
//! The package's README tells more: guarantees, errors, figures, and the command that inspects and
//! recovers directories.

mod error;
mod format;
mod inspect;
mod log_table;
mod marker;
mod overlay;
mod store;

pub use format::Recovery;
pub use inspect::{Inspection, inspect, recover};
pub use redb::StorageBackend;

use crate::error::{REMEDY, guarded};
use crate::format::Identity;
use crate::store::{Disk, Store};
use little_raft::{Change, ReplicaID, Storage};
use serde::{Serialize, de::DeserializeOwned};
use std::fs::File;
use std::io::{self, Error, ErrorKind};
use std::path::{Path, PathBuf};

/// Keeps what a replica must not forget in a directory of its own.
///
/// Transitions and snapshots are whatever `serde` can serialize. A directory must always be read
/// with the types it was written with, or with ones that
/// [postcard](https://postcard.jamesmunns.com/wire-format) encodes alike.
pub struct RedbStorage {
    /// Gone after an error.
    store: Option<Store>,
    directory: PathBuf,
}

/// What to insist on when a directory is opened.
#[derive(Clone, Debug, Default)]
pub struct Options {
    identity: Identity,
    existing: bool,
    accept_loss: bool,
    disk: Option<Disk>,
    /// Which directory it is, for errors.
    path: PathBuf,
}

impl Options {
    /// Refuses a directory that belongs to another replica. One that belongs to nobody yet is
    /// claimed.
    pub fn replica_id(mut self, id: ReplicaID) -> Self {
        self.identity.replica_id = Some(id);
        self
    }

    /// Refuses a directory that belongs to another cluster. One that belongs to none yet is
    /// claimed.
    pub fn cluster_id(mut self, id: impl Into<String>) -> Self {
        self.identity.cluster_id = Some(id.into());
        self
    }

    /// Refuses to begin with an empty directory. For every start but a replica's first: a replica
    /// that has lost what it saved, say because a disk is not mounted, must not come back under its
    /// id.
    pub fn existing(mut self) -> Self {
        self.existing = true;
        self
    }

    /// Has the database read and write its file through something of yours, which gets the open
    /// file.
    ///
    /// For tests: writes that fail, tear, or get lost with the power. What it returns must keep the
    /// promises of [`StorageBackend`]; the file itself is locked already.
    pub fn through<B: StorageBackend>(
        mut self, backend: impl Fn(File) -> B + Send + Sync + 'static,
    ) -> Self {
        self.disk = Some(Disk::new(backend));
        self
    }

    /// Opens a directory, or creates it.
    ///
    /// # Errors
    /// * `ResourceBusy`: somebody else has it open;
    /// * `InvalidInput`: it belongs to another replica or cluster;
    /// * `InvalidData`: something that was saved is lost or damaged;
    /// * `Unsupported`: a newer version of this package has written it;
    /// * `NotFound`: it should have been there;
    /// * whatever the system said.
    pub fn open(mut self, directory: impl AsRef<Path>) -> io::Result<RedbStorage> {
        self.path = directory.as_ref().to_path_buf();
        let store = Some(Store::open(directory.as_ref(), &self)?);
        Ok(RedbStorage { store, directory: self.path })
    }
}

impl RedbStorage {
    /// Opens a directory, or creates it, with no conditions: [`Options::open`].
    ///
    /// # Errors
    /// Those of [`Options::open`].
    pub fn open(directory: impl AsRef<Path>) -> io::Result<RedbStorage> {
        Options::default().open(directory)
    }

    /// The conditions that a directory may have to meet.
    pub fn options() -> Options {
        Options::default()
    }

    /// Does something with the store; if that fails, it was the last thing.
    fn attempt<R>(&mut self, work: impl FnOnce(&mut Store) -> io::Result<R>) -> io::Result<R> {
        let Some(mut store) = self.store.take() else {
            let text = format!(
                "{}: this storage has failed before and is not used again; look at the first error \
                 and start again",
                self.directory.display()
            );
            return Err(Error::other(text));
        };
        match work(&mut store) {
            Ok(result) => {
                self.store = Some(store);
                Ok(result)
            }
            Err(error) => {
                let Store { file, database, reader, marker, .. } = store;
                drop(reader);
                // Letting go of what has failed may fail as well; the first error counts.
                let _ = guarded(&file, || {
                    drop(database);
                    Ok(())
                });
                drop(marker);
                Err(error)
            }
        }
    }
}

impl Drop for RedbStorage {
    fn drop(&mut self) {
        if let Some(store) = self.store.take() {
            store.close();
        }
    }
}

impl<T, D> Storage<T, D> for RedbStorage
where
    T: Clone + Serialize + DeserializeOwned,
    D: Serialize + DeserializeOwned,
{
    fn load(&mut self) -> io::Result<Change<T, D>> {
        self.attempt(|store| {
            guarded(&store.file, || log_table::load(&store.database, &store.state))
        })
    }

    fn save(&mut self, change: Change<T, D>) -> io::Result<()> {
        self.attempt(|store| store.save(&change))
    }
}

/// An error for what can only be read and not be understood.
fn unreadable(file: &Path, finding: impl std::fmt::Display) -> Error {
    let text = format!("{} is damaged: {finding}. {REMEDY}", file.display());
    Error::new(ErrorKind::InvalidData, text)
}
