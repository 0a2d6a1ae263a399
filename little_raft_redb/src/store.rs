//! One directory: a database and its marker, opened, checked, created and closed.

use crate::Options;
use crate::error::{Outcome, REMEDY, boxed, damaged, guarded, refused};
use crate::format::{self, Identity, LOG, RECORDS, SNAPSHOT, State};
use crate::log_table;
use crate::marker::{Marker, Stage};
use little_raft::{Change, Index};
use redb::{Builder, Database, DatabaseError, ReadTransaction, ReadableDatabase};
use redb::{RepairSession, StorageBackend};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::{self, Debug, Formatter};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Error, ErrorKind};
use std::mem::replace;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// How much of the database `redb` keeps in memory. What is needed again and again is the end of
/// the log; the replica holds the rest by itself.
const CACHE: usize = 16 << 20;

/// A file is not worth being made smaller for less.
const SLACK: u64 = 4 << 20;

/// A file is made smaller between two saves only if no more than this has to be moved. That took 10
/// to 90 ms with files of up to 128 MB, during which a replica is silent.
const MOVED: u64 = 4 << 20;

/// What a database reads and writes its file through, if that is not the system's own.
#[derive(Clone)]
pub(crate) struct Disk(Arc<Connect>);

type Connect = dyn Fn(&Builder, File) -> Result<Database, DatabaseError> + Send + Sync;

impl Disk {
    pub(crate) fn new<B: StorageBackend>(
        backend: impl Fn(File) -> B + Send + Sync + 'static,
    ) -> Disk {
        Disk(Arc::new(move |builder, file| builder.create_with_backend(backend(file))))
    }
}

impl Debug for Disk {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}

/// A directory that is open, and locked.
pub(crate) struct Store {
    pub(crate) directory: PathBuf,
    pub(crate) file: PathBuf,
    pub(crate) database: Database,
    /// The last save, as if it were being read. With that `redb` leaves the pages that a save
    /// replaces to the next one; otherwise it would do its books a second time after every save.
    pub(crate) reader: Option<ReadTransaction>,
    pub(crate) marker: Marker,
    pub(crate) state: State,
    /// How long the log has been since the last look at what is unused.
    longest: Index,
    /// Where the log ended then.
    looked_at: Index,
}

impl Store {
    /// Opens a directory, checks everything in it, and rolls back what a crash left unfinished.
    pub(crate) fn open(directory: &Path, options: &Options) -> io::Result<Store> {
        if !options.existing {
            create_directory(directory)?;
        }
        let mut marker = Marker::lock(directory, true, !options.existing)?;
        let file = directory.join("replica.redb");
        let recorded = match (marker.read(), options.accept_loss) {
            (Err(error), true) if error.kind() == ErrorKind::InvalidData => Some((Stage::Open, 0)),
            (recorded, _) => recorded?,
        };
        let exists = fs::metadata(&file).is_ok_and(|file| file.len() > 0);
        let (stage, acknowledged) = match recorded {
            Some((Stage::Open | Stage::Closed, _)) if !exists => return lost(&file, "is missing"),
            None if exists && options.accept_loss => (Stage::Open, 0),
            None if exists => return lost(&directory.join("acknowledged"), "is missing or empty"),
            None | Some((Stage::Creating, _)) if options.existing => {
                return lost(&file, "was never completely created");
            }
            None | Some((Stage::Creating, _)) => {
                create(directory, &file, &mut marker, options)?;
                (Stage::Closed, 0)
            }
            Some(recorded) => recorded,
        };
        let mut database = open_database(directory, &file, stage, options)?;
        let state = guarded(&file, || check(&database, acknowledged, options))?;
        guarded(&file, || give_back(&mut database, &file, u64::MAX))?;
        let (directory, longest, looked_at) = (directory.to_path_buf(), 0, 0);
        let reader = None;
        let mut store =
            Store { directory, file, database, reader, marker, state, longest, looked_at };
        store.mark(Stage::Open)?;
        store.marker.sync()?;
        Ok(store)
    }

    /// Records in the marker what is durable.
    pub(crate) fn mark(&mut self, stage: Stage) -> io::Result<()> {
        self.marker.write(stage, self.state.saves).map_err(|error| {
            let file = self.directory.join("acknowledged");
            Error::new(error.kind(), format!("{}: {error}; check the disk", file.display()))
        })
    }

    /// Saves a change, durably.
    pub(crate) fn save<T, D>(&mut self, change: &Change<T, D>) -> io::Result<()>
    where
        T: Clone + Serialize + DeserializeOwned,
        D: Serialize,
    {
        if change.compacted != self.state.compacted {
            // What a compaction replaces is to be unused at once, to be given back.
            self.reader = None;
        }
        let (database, state) = (&self.database, &self.state);
        let state = guarded(&self.file, || log_table::save(database, state, change))?;
        self.saved(state)?;
        let reader = guarded(&self.file, || self.database.begin_read().map_err(boxed))?;
        self.reader = Some(reader);
        Ok(())
    }

    /// Puts a save on record that is durable, and makes the file smaller if it was a compaction
    /// that left little of it in use. That is looked at once in as many entries as the log was
    /// long, so that it costs little beside writing them.
    fn saved(&mut self, state: State) -> io::Result<()> {
        let before = replace(&mut self.state, state);
        self.mark(Stage::Open)?;
        self.longest = self.longest.max(before.last.saturating_sub(before.compacted.index));
        let is_due = state.last >= self.looked_at.saturating_add(self.longest);
        if state.compacted == before.compacted || !is_due {
            return Ok(());
        }
        (self.longest, self.looked_at) = (0, state.last);
        guarded(&self.file, || give_back(&mut self.database, &self.file, MOVED))
    }

    /// Closes everything, and says so in the marker, so that the next start knows that there was no
    /// crash. Without that, or if it fails, the next start looks closer; nothing is lost.
    pub(crate) fn close(self) {
        let Store { directory, file, database, reader, mut marker, state, .. } = self;
        drop(reader);
        let closed = guarded(&file, || database.close().map_err(boxed))
            .and_then(|()| marker.write(Stage::Closed, state.saves))
            .and_then(|()| marker.sync());
        if let Err(error) = closed {
            log::warn!("{}: not closed properly: {error}", directory.display());
        }
    }
}

fn lost<R>(file: &Path, finding: &str) -> io::Result<R> {
    let text = format!("{} {finding}. {REMEDY}", file.display());
    Err(Error::new(ErrorKind::InvalidData, text))
}

/// Creates a directory, durably, with the directories above it.
fn create_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.map_or(Ok(()), create_directory)?;
    let explain = |error: Error| {
        let text = format!("{}: {error}; create it for this user", directory.display());
        Error::new(error.kind(), text)
    };
    match fs::create_dir(directory) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(explain(error)),
        _ => sync_directory(parent.unwrap_or(Path::new("."))),
    }
}

/// Makes the names in a directory durable, where the system knows that.
fn sync_directory(directory: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
}

/// Creates the database. Until the marker says otherwise it is begun anew after every crash.
fn create(directory: &Path, file: &Path, marker: &mut Marker, options: &Options) -> io::Result<()> {
    marker.write(Stage::Creating, 0)?;
    marker.sync()?;
    sync_directory(directory)?;
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    guarded(file, || {
        let mut builder = Builder::new();
        let database = connect(builder.set_cache_size(CACHE), file, true, options)?;
        let transaction = database.begin_write().map_err(boxed)?;
        {
            let mut records = transaction.open_table(RECORDS).map_err(boxed)?;
            format::put(&mut records, "identity", &options.identity)?;
            let mut log = transaction.open_table(LOG).map_err(boxed)?;
            format::put_state(&mut log, &State::default())?;
            transaction.open_table(SNAPSHOT).map_err(boxed)?;
        }
        transaction.commit().map_err(boxed)?;
        database.close().map_err(boxed)
    })?;
    sync_directory(directory)?;
    marker.write(Stage::Open, 0)?;
    marker.sync()
}

/// The database in a file, which is new if `create` is set.
fn connect(builder: &Builder, file: &Path, create: bool, options: &Options) -> Outcome<Database> {
    let database = match &options.disk {
        Some(Disk(connect)) => {
            let mut access = OpenOptions::new();
            let file = access.read(true).write(true).create(create).open(file);
            connect(builder, file.map_err(|error| boxed(redb::Error::Io(error)))?)
        }
        None if create => builder.create(file),
        None => builder.open(file),
    };
    database.map_err(boxed)
}

/// Opens the database with all its checksums verified, and logs what was found.
fn open_database(
    directory: &Path, file: &Path, stage: Stage, options: &Options,
) -> io::Result<Database> {
    let (builder, rolled_back) = builder();
    let database = guarded(file, || connect(&builder, file, false, options))?;
    if stage == Stage::Open {
        log::warn!("{}: was not closed; all of it is checked", directory.display());
    }
    if rolled_back.load(Ordering::Relaxed) {
        log::warn!("{}: an unfinished save was rolled back", directory.display());
    }
    Ok(database)
}

/// What opens a database, and what tells whether that had to roll something back.
pub(crate) fn builder() -> (Builder, Arc<AtomicBool>) {
    let rolled_back = Arc::new(AtomicBool::new(false));
    let seen = rolled_back.clone();
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    builder.set_repair_callback(move |session: &mut RepairSession| {
        // Every open reports 0, 0.6 and 0.9; what lies in between means that the last commit did
        // not verify and the one before it was taken.
        if session.progress() > 0.0 && session.progress() < 0.5 {
            seen.store(true, Ordering::Relaxed);
        }
    });
    (builder, rolled_back)
}

/// Makes the file smaller if most of it is unused, which a compaction of the log leaves behind, and
/// no more than `moved` bytes have to be moved for that. Without it, what is unused is filled
/// again, and cut off only if it lies at the end.
fn give_back(database: &mut Database, file: &Path, moved: u64) -> Outcome<()> {
    let length = || fs::metadata(file).map_or(0, |file| file.len());
    let before = length();
    if before <= SLACK {
        return Ok(());
    }
    let transaction = database.begin_write().map_err(boxed)?;
    let used = {
        let stats = transaction.stats().map_err(boxed)?;
        stats.allocated_pages() * stats.page_size() as u64
    };
    transaction.abort().map_err(boxed)?;
    if before > 2 * used + SLACK && used <= moved {
        let began = Instant::now();
        database.compact().map_err(boxed)?;
        let (after, took) = (length(), began.elapsed());
        log::info!("{}: {before} bytes made {after} in {took:.2?}", file.display());
    }
    Ok(())
}

/// The state, if this is the right directory and nothing that was acknowledged is missing.
fn check(database: &Database, acknowledged: u64, options: &Options) -> Outcome<State> {
    let transaction = database.begin_read().map_err(boxed)?;
    let records = transaction.open_table(RECORDS).map_err(boxed)?;
    let state = format::state(&transaction.open_table(LOG).map_err(boxed)?)?;
    let found: Identity = format::get(&records, "identity")?.unwrap_or_default();
    drop((records, transaction));
    let identity = merged(&found, options)?;
    if state.saves < acknowledged && !options.accept_loss {
        return damaged(format!(
            "it ends with save {}, but save {acknowledged} was acknowledged",
            state.saves
        ));
    }
    if identity != found {
        let transaction = database.begin_write().map_err(boxed)?;
        let mut records = transaction.open_table(RECORDS).map_err(boxed)?;
        format::put(&mut records, "identity", &identity)?;
        drop(records);
        transaction.commit().map_err(boxed)?;
    }
    Ok(state)
}

/// Whose directory it is from now on, unless it is somebody else's.
fn merged(found: &Identity, options: &Options) -> Outcome<Identity> {
    let (wanted, path) = (&options.identity, options.path.display());
    if let (Some(found), Some(wanted)) = (found.replica_id, wanted.replica_id)
        && found != wanted
    {
        return refused(format!(
            "{path} belongs to replica {found}, not to replica {wanted}; open the directory of the \
             right replica, a new replica begins with an empty one"
        ));
    }
    if let (Some(found), Some(wanted)) = (&found.cluster_id, &wanted.cluster_id)
        && found != wanted
    {
        return refused(format!(
            "{path} belongs to cluster {found:?}, not to cluster {wanted:?}; open the directory of \
             the right cluster, a new replica begins with an empty one"
        ));
    }
    let cluster_id = found.cluster_id.as_ref().or(wanted.cluster_id.as_ref()).cloned();
    Ok(Identity { replica_id: found.replica_id.or(wanted.replica_id), cluster_id })
}
