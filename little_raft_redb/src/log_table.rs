//! What a change means to the tables, in one transaction.

use crate::error::{Outcome, boxed, damaged, refused};
use crate::format::{
    self, Block, LOG, PIECE, RECORDS, SNAPSHOT, STATE, SnapshotRecord, State, seal, unseal,
};
use little_raft::{Change, Index, LogId, Membership, Run, Snapshot};
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, Table, WriteTransaction};
use serde::{Serialize, de::DeserializeOwned};
use std::sync::Arc;

/// Entries that are handed back as one run at most: what a message holds.
const RUN: usize = 1024;

/// Saves a change, durably, and returns the new state.
pub(crate) fn save<T, D>(
    database: &Database, state: &State, change: &Change<T, D>,
) -> Outcome<State>
where
    T: Clone + Serialize + DeserializeOwned,
    D: Serialize,
{
    let transaction = database.begin_write().map_err(boxed)?;
    let mut log = transaction.open_table(LOG).map_err(boxed)?;
    let last = save_log(&mut log, state, change)?;
    let (term, voted_for, compacted) = (change.term, change.voted_for, change.compacted);
    let state = State { saves: state.saves + 1, term, voted_for, compacted, last };
    format::put_state(&mut log, &state)?;
    drop(log);
    if change.membership.is_some() || change.snapshot.is_some() {
        save_base(&transaction, change)?;
    }
    transaction.commit().map_err(boxed)?;
    Ok(state)
}

/// Replaces what the log follows.
fn save_base<T, D: Serialize>(
    transaction: &WriteTransaction, change: &Change<T, D>,
) -> Outcome<()> {
    let mut records = transaction.open_table(RECORDS).map_err(boxed)?;
    if let Some(membership) = &change.membership {
        format::put(&mut records, "membership", membership)?;
    }
    if let Some(snapshot) = &change.snapshot {
        let length = save_snapshot(transaction, snapshot)?;
        let record = SnapshotRecord { last: snapshot.last(), length };
        format::put(&mut records, "snapshot", &record)?;
    }
    Ok(())
}

/// Truncates, compacts and appends; returns where the log ends then.
fn save_log<T, D>(
    log: &mut Table<u64, &[u8]>, state: &State, change: &Change<T, D>,
) -> Outcome<Index>
where
    T: Clone + Serialize + DeserializeOwned,
{
    let (base, mut last) = (change.compacted.index, state.last);
    if base < state.compacted.index {
        return refused(format!("the log is compacted up to {:?} already", state.compacted));
    }
    let unchanged = change.truncate_from.is_none() && change.compacted == state.compacted;
    if unchanged && change.runs.is_empty() {
        return Ok(last);
    }
    if let Some(from) = change.truncate_from
        && from <= last
    {
        truncate::<T>(log, from)?;
        last = from.saturating_sub(1);
    }
    if !unchanged {
        // A truncation calls for this as well: it may leave of a block only what is compacted.
        compact(log, base)?;
        last = last.max(base);
    }
    for run in &change.runs {
        let is_one_thing = run.transitions.is_empty() == run.membership.is_some();
        if run.first != last + 1 || !is_one_thing {
            return refused(format!("a run that begins at {} after entry {last}", run.first));
        }
        format::append(log, run)?;
        last = run.last().index;
    }
    Ok(last)
}

/// Removes the entries from an index on.
fn truncate<T: DeserializeOwned>(log: &mut Table<u64, &[u8]>, from: Index) -> Outcome<()> {
    log.retain_in(from as u64..STATE, |_, _| false).map_err(boxed)?;
    match format::block_at(log, from)? {
        Some(mut block) if block.last() >= from => {
            block.truncate::<T>(from)?;
            block.write(log)
        }
        _ => Ok(()),
    }
}

/// Removes the entries up to an index. A block that reaches beyond stays as it is; what is in it
/// and compacted is skipped by whoever reads it.
fn compact(log: &mut Table<u64, &[u8]>, to: Index) -> Outcome<()> {
    let end = match format::block_at(log, to)? {
        Some(block) if block.last() > to => block.first,
        _ => to + 1,
    };
    log.retain_in(..end as u64, |_, _| false).map_err(boxed)
}

fn save_snapshot<D: Serialize>(
    transaction: &WriteTransaction, snapshot: &Snapshot<D>,
) -> Outcome<u64> {
    let mut table = transaction.open_table(SNAPSHOT).map_err(boxed)?;
    table.retain(|_, _| false).map_err(boxed)?;
    let bytes = format::encode(&snapshot.data, Vec::new())?;
    // The checksum takes four bytes of each piece.
    for (place, piece) in (0_u64..).zip(bytes.chunks(PIECE - 4)) {
        table.insert(place, &seal(place, piece.to_vec())[..]).map_err(boxed)?;
    }
    Ok(bytes.len() as u64)
}

/// Everything that was saved, as one change.
pub(crate) fn load<T, D>(database: &Database, expected: &State) -> Outcome<Change<T, D>>
where
    T: DeserializeOwned,
    D: DeserializeOwned,
{
    let transaction = database.begin_read().map_err(boxed)?;
    let records = transaction.open_table(RECORDS).map_err(boxed)?;
    let state = format::state(&transaction.open_table(LOG).map_err(boxed)?)?;
    if state != *expected {
        return damaged("the record of the term and the vote has changed since it was opened");
    }
    let snapshot = format::get::<SnapshotRecord>(&records, "snapshot")?;
    Ok(Change {
        term: state.term,
        voted_for: state.voted_for,
        truncate_from: None,
        compacted: state.compacted,
        runs: load_log(&transaction, &state)?,
        snapshot: snapshot.map(|record| load_snapshot(&transaction, record)).transpose()?,
        membership: format::get::<Membership>(&records, "membership")?,
    })
}

/// The entries, in runs that are as long as is useful.
fn load_log<T: DeserializeOwned>(
    transaction: &ReadTransaction, state: &State,
) -> Outcome<Vec<Run<T>>> {
    let (mut runs, mut open) = (Vec::new(), None::<(Index, usize, Vec<T>)>);
    let close = |open: Option<(Index, usize, Vec<T>)>| {
        open.map(|(first, term, mut transitions)| {
            transitions.shrink_to_fit();
            Run { first, term, transitions: Arc::new(transitions), membership: None }
        })
    };
    blocks(transaction, state, |block| {
        let (first, term) = (block.first.max(state.compacted.index + 1), block.header.term);
        let mut transitions = block.decode()?;
        transitions.drain(..(first - block.first).min(transitions.len()));
        match &mut open {
            Some((_, same, longer))
                if *same == term
                    && block.header.membership.is_none()
                    && longer.len() + transitions.len() <= RUN =>
            {
                longer.append(&mut transitions);
            }
            _ => {
                runs.extend(close(open.take()));
                match block.header.membership.map(Arc::new) {
                    None => open = Some((first, term, transitions)),
                    membership => {
                        runs.push(Run { first, term, transitions: Arc::default(), membership });
                    }
                }
            }
        }
        Ok(())
    })?;
    runs.extend(close(open));
    Ok(runs)
}

/// Visits the blocks of the log in order, and makes sure that they are all of it.
pub(crate) fn blocks(
    transaction: &ReadTransaction, state: &State, mut visit: impl FnMut(Block) -> Outcome<()>,
) -> Outcome<()> {
    let log = transaction.open_table(LOG).map_err(boxed)?;
    let (mut last, mut is_first) = (state.compacted, true);
    for row in log.range(..STATE).map_err(boxed)? {
        let (first, row) = row.map_err(boxed)?;
        let block = Block::read(first.value(), row.value())?;
        let follows = block.first == last.index + 1 || is_first && block.first <= last.index + 1;
        if !follows || block.last() <= last.index {
            return damaged(format!("after entry {last:?} comes one at {}", block.first));
        }
        last = LogId { term: block.header.term, index: block.last() };
        is_first = false;
        visit(block)?;
    }
    match last.index == state.last {
        true => Ok(()),
        false => damaged(format!("the log ends with {last:?} and not with {}", state.last)),
    }
}

fn load_snapshot<D: DeserializeOwned>(
    transaction: &ReadTransaction, record: SnapshotRecord,
) -> Outcome<Snapshot<D>> {
    let bytes = snapshot_bytes(transaction, record)?;
    let Ok((data, [])) = postcard::take_from_bytes(&bytes) else {
        return format::foreign("the snapshot");
    };
    let LogId { term, index } = record.last;
    Ok(Snapshot { last_included_index: index, last_included_term: term, data })
}

/// The encoded snapshot.
pub(crate) fn snapshot_bytes(
    transaction: &ReadTransaction, record: SnapshotRecord,
) -> Outcome<Vec<u8>> {
    let table = transaction.open_table(SNAPSHOT).map_err(boxed)?;
    let mut bytes = Vec::new();
    for row in table.iter().map_err(boxed)? {
        let (place, piece) = row.map_err(boxed)?;
        bytes.extend_from_slice(unseal(place.value(), piece.value())?);
    }
    match bytes.len() as u64 == record.length {
        true => Ok(bytes),
        false => damaged(format!("{} of {} bytes of the snapshot", bytes.len(), record.length)),
    }
}
