//! For people: what is in a directory, and how to go on after the loss of a quorum.

use crate::error::{Outcome, boxed, guarded, refused};
use crate::format::{self, Block, Identity, LOG, RECORDS, Recovery, STATE, SnapshotRecord, State};
use crate::log_table;
use crate::marker::{Marker, Stage};
use crate::overlay::Overlay;
use crate::store::{Store, builder};
use crate::{Options, unreadable};
use little_raft::{Index, LogId, Membership, ReplicaID, Term};
use redb::{Database, ReadableDatabase, ReadableTable, WriteTransaction};
use std::fmt::{self, Display, Formatter};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

/// What is in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Whose it is, if it was claimed.
    pub replica_id: Option<ReplicaID>,
    /// Which cluster's it is, if it was claimed.
    pub cluster_id: Option<String>,
    /// Whether it was closed; if not there was a crash.
    pub closed: bool,
    /// Whether there is an unfinished save, which the next start rolls back.
    pub unfinished: bool,
    /// How many saves it holds.
    pub saves: u64,
    /// How many saves are known to have been acknowledged. More than there are means a loss.
    pub acknowledged: u64,
    /// The current term.
    pub term: Term,
    /// The vote in that term.
    pub voted_for: Option<ReplicaID>,
    /// The configuration in force, and since which entry; nothing before the first save.
    pub membership: Option<(Index, Membership)>,
    /// The last entry that is compacted.
    pub compacted: LogId,
    /// The last entry.
    pub last: LogId,
    /// Where the snapshot ends, and how many bytes it takes.
    pub snapshot: Option<(LogId, u64)>,
    /// What `recover` did here.
    pub recoveries: Vec<Recovery>,
    /// The size of the database.
    pub file_bytes: u64,
}

impl Display for Inspection {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let id = |id: LogId| format!("{} of term {}", id.index, id.term);
        writeln!(f, "replica        {}", or_none(self.replica_id.map(|id| id.to_string())))?;
        writeln!(f, "cluster        {}", or_none(self.cluster_id.clone()))?;
        writeln!(f, "term           {}", self.term)?;
        writeln!(f, "vote           {}", or_none(self.voted_for.map(|id| id.to_string())))?;
        let membership = self.membership.as_ref().map(|(since, membership)| {
            format!("{} since entry {since}", configuration(membership))
        });
        writeln!(f, "configuration  {}", or_none(membership))?;
        let (first, last) = (self.compacted.index + 1, self.last.index);
        match last < first {
            true => writeln!(f, "log            empty after {}", id(self.compacted))?,
            false => writeln!(f, "log            {first} to {}", id(self.last))?,
        }
        let snapshot = self.snapshot.map(|(last, bytes)| format!("{}, {bytes} bytes", id(last)));
        writeln!(f, "snapshot       up to {}", or_none(snapshot))?;
        let (saves, acknowledged) = (self.saves, self.acknowledged);
        writeln!(f, "saves          {saves}, {acknowledged} known to be acknowledged")?;
        let end = if self.closed { "closed" } else { "not closed: a crash, or still in use" };
        let tail = if self.unfinished { ", an unfinished save to be rolled back" } else { "" };
        writeln!(f, "end            {end}{tail}")?;
        writeln!(f, "file           {} bytes", self.file_bytes)?;
        for recovery in &self.recoveries {
            writeln!(f, "recovered      {recovery}")?;
        }
        match self.saves < self.acknowledged {
            true => {
                write!(f, "LOST           acknowledged saves are missing; do not start on this")
            }
            false => write!(f, "checksums      all verified"),
        }
    }
}

impl Display for Recovery {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let before = or_none(self.before.as_ref().map(configuration));
        let loss = if self.accepted_loss { ", accepting a loss" } else { "" };
        let (after, save, at) = (configuration(&self.after), self.save, self.unix_time);
        write!(f, "from {before} to {after}{loss}, save {save}, unix time {at}")
    }
}

fn or_none(value: Option<String>) -> String {
    value.unwrap_or_else(|| "none".to_string())
}

fn configuration(membership: &Membership) -> String {
    let mut text = format!("voters {:?}", membership.voters);
    for (name, ids) in [("outgoing", &membership.outgoing), ("learners", &membership.learners)] {
        if !ids.is_empty() {
            text += &format!(", {name} {ids:?}");
        }
    }
    text
}

/// Reads a directory without changing it, and verifies every checksum in it. The entries and the
/// snapshot are not decoded, so this needs no types.
///
/// # Errors
/// * `ResourceBusy`: a replica is running on it;
/// * `InvalidData`: what is in it cannot be read, or a checksum does not match;
/// * whatever the system said.
pub fn inspect(directory: impl AsRef<Path>) -> io::Result<Inspection> {
    let directory = directory.as_ref();
    let mut marker = Marker::lock(directory, false, false)?;
    let file = directory.join("replica.redb");
    let Some((stage, acknowledged)) = marker.read()? else {
        return Err(unreadable(&directory.join("acknowledged"), "it is empty"));
    };
    let explain = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => unreadable(&file, "it is missing"),
        kind => io::Error::new(kind, format!("{}: {error}; check the disk", file.display())),
    };
    let file_bytes = fs::metadata(&file).map_err(explain)?.len();
    if file_bytes == 0 {
        return Err(unreadable(&file, "it is empty"));
    }
    let overlay = Overlay::new(File::open(&file).map_err(explain)?)?;
    let (builder, rolled_back) = builder();
    guarded(&file, || {
        let database = builder.create_with_backend(overlay).map_err(boxed)?;
        let found = read(&database)?;
        Ok(Inspection {
            closed: stage == Stage::Closed,
            unfinished: rolled_back.load(Ordering::Relaxed),
            acknowledged,
            file_bytes,
            ..found
        })
    })
}

/// What the tables say.
fn read(database: &Database) -> Outcome<Inspection> {
    let transaction = database.begin_read().map_err(boxed)?;
    let records = transaction.open_table(RECORDS).map_err(boxed)?;
    let state = format::state(&transaction.open_table(LOG).map_err(boxed)?)?;
    let identity = format::get::<Identity>(&records, "identity")?.unwrap_or_default();
    let snapshot = format::get::<SnapshotRecord>(&records, "snapshot")?;
    if let Some(record) = snapshot {
        log_table::snapshot_bytes(&transaction, record)?;
    }
    let end = snapshot.map_or(0, |record| record.last.index);
    let first = format::get::<Membership>(&records, "membership")?;
    let (mut membership, mut last) = (first.map(|first| (end, first)), state.compacted);
    log_table::blocks(&transaction, &state, |block| {
        last = LogId { term: block.header.term, index: block.last() };
        if let Some(newer) = block.header.membership.filter(|_| block.first > end) {
            membership = Some((block.first, newer));
        }
        Ok(())
    })?;
    let State { saves, term, voted_for, compacted, .. } = state;
    Ok(Inspection {
        replica_id: identity.replica_id,
        cluster_id: identity.cluster_id,
        closed: false,
        unfinished: false,
        saves,
        acknowledged: 0,
        term,
        voted_for,
        membership,
        compacted,
        last,
        snapshot: snapshot.map(|record| (record.last, record.length)),
        recoveries: format::get(&records, "recoveries")?.unwrap_or_default(),
        file_bytes: 0,
    })
}

/// Puts another configuration in force, after the loss of a quorum, and records that it did. Every
/// replica is to be stopped; do the same in the directory of each that is left, and never start one
/// of the others again.
///
/// Every configuration that is saved is replaced; the log's indices and terms stay, so that the
/// survivor whose log is most up-to-date still wins the election. What only the lost replicas held
/// is lost. With `accept_loss` the directory may have lost acknowledged saves itself; what can be
/// read of it counts then.
///
/// # Errors
/// Those of [`Options::open`](crate::Options::open), and `InvalidInput` for a configuration that
/// has no voter or lacks this replica.
pub fn recover(
    directory: impl AsRef<Path>, voters: impl IntoIterator<Item = ReplicaID>, accept_loss: bool,
) -> io::Result<Recovery> {
    let (path, existing) = (directory.as_ref().to_path_buf(), true);
    let options = Options { existing, accept_loss, path: path.clone(), ..Options::default() };
    let mut store = Store::open(&path, &options)?;
    let after = Membership { voters: voters.into_iter().collect(), ..Membership::default() };
    let outcome =
        guarded(&store.file, || rewrite(&store.database, &store.state, after, accept_loss));
    if let Ok((state, _)) = &outcome {
        store.state = *state;
        store.mark(Stage::Open)?;
    }
    store.close();
    outcome.map(|(_, recovery)| recovery)
}

fn rewrite(
    database: &Database, state: &State, after: Membership, accepted_loss: bool,
) -> Outcome<(State, Recovery)> {
    let found = read(database)?;
    if after.voters.is_empty() {
        return refused("a configuration needs at least one voter");
    }
    if let Some(id) = found.replica_id.filter(|id| !after.voters.contains(id)) {
        return refused(format!(
            "this is the directory of replica {id}: make it one of the voters"
        ));
    }
    let state = State { saves: state.saves.max(found.saves) + 1, ..*state };
    let recovery = Recovery {
        unix_time: SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs()),
        save: state.saves,
        before: found.membership.map(|(_, membership)| membership),
        after,
        accepted_loss,
    };
    let transaction = database.begin_write().map_err(boxed)?;
    rewrite_log(&transaction, &recovery.after, &state)?;
    let mut records = transaction.open_table(RECORDS).map_err(boxed)?;
    format::put(&mut records, "membership", &recovery.after)?;
    let recoveries: Vec<_> = found.recoveries.into_iter().chain([recovery.clone()]).collect();
    format::put(&mut records, "recoveries", &recoveries)?;
    drop(records);
    transaction.commit().map_err(boxed)?;
    Ok((state, recovery))
}

/// Replaces every configuration in the log, and the state.
fn rewrite_log(transaction: &WriteTransaction, after: &Membership, state: &State) -> Outcome<()> {
    let mut log = transaction.open_table(LOG).map_err(boxed)?;
    let mut changes = Vec::new();
    for row in log.range(..STATE).map_err(boxed)? {
        let (first, row) = row.map_err(boxed)?;
        let mut block = Block::read(first.value(), row.value())?;
        if block.header.membership.is_some() {
            block.header.membership = Some(after.clone());
            changes.push(block);
        }
    }
    changes.iter().try_for_each(|block| block.write(&mut log))?;
    format::put_state(&mut log, state)
}
