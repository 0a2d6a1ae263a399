//! What is written where, byte by byte.
//!
//! Everything is encoded as [postcard](https://postcard.jamesmunns.com) says, and followed by four
//! bytes, least significant first: the CRC-32 of its key and itself. `redb` keeps checksums of its
//! pages, which it verifies when it opens a file; this one is verified whenever a value is read.
//!
//! | table | key | value |
//! |---|---|---|
//! | `records` | `identity` | [`Identity`] |
//! | | `membership` | `Membership`: the configuration at the snapshot's end or the beginning |
//! | | `snapshot` | [`SnapshotRecord`] |
//! | | `recoveries` | a sequence of [`Recovery`] |
//! | `log` | index of the first entry | [`BlockHeader`], then the transitions one by one |
//! | | [`STATE`] | [`State`], behind the last entries, in a page that is written anyway |
//! | `snapshot` | 0, 1, .. | the encoded snapshot, cut into pieces |

use crate::error::{Outcome, boxed, damaged, refused};
use little_raft::{Index, LogId, Membership, ReplicaID, Run, Term};
use redb::{ReadableTable, Table, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt::{Debug, Display};
use std::mem::take;

pub(crate) const RECORDS: TableDefinition<&str, &[u8]> = TableDefinition::new("records");
pub(crate) const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
pub(crate) const SNAPSHOT: TableDefinition<u64, &[u8]> = TableDefinition::new("snapshot");

/// Where the log holds what changes with every save: behind any entry.
pub(crate) const STATE: u64 = u64::MAX;

/// A value above a page gets a power of two of pages, so a run is cut into pieces that fill one.
const PAGE: usize = 4096;
/// The largest piece. Larger ones save nothing more.
pub(crate) const PIECE: usize = 16 * PAGE - ROOM;
/// What a page needs beside the value, with some to spare.
const ROOM: usize = 64;

/// Whose directory this is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) replica_id: Option<ReplicaID>,
    pub(crate) cluster_id: Option<String>,
}

/// What changes with every save.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// How many saves led here.
    pub(crate) saves: u64,
    pub(crate) term: Term,
    pub(crate) voted_for: Option<ReplicaID>,
    pub(crate) compacted: LogId,
    /// Where the log ends, so that a missing end does not pass for a short log.
    pub(crate) last: Index,
}

/// The snapshot, whose data is in a table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    pub(crate) last: LogId,
    pub(crate) length: u64,
}

/// One use of the `recover` command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// When it was, in seconds since 1970.
    pub unix_time: u64,
    /// The save that it made.
    pub save: u64,
    /// The configuration that was in force before.
    pub before: Option<Membership>,
    /// The configuration that it put in place.
    pub after: Membership,
    /// Whether damage or loss that had been found was accepted.
    pub accepted_loss: bool,
}

/// Consecutive entries of one term: either some transitions or one configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BlockHeader {
    pub(crate) term: Term,
    pub(crate) count: usize,
    pub(crate) membership: Option<Membership>,
}

/// A block as it lies in the table.
pub(crate) struct Block {
    pub(crate) first: Index,
    pub(crate) header: BlockHeader,
    pub(crate) transitions: Vec<u8>,
}

/// The bytes of a key, which go into the checksum so that a value counts only where it belongs.
pub(crate) trait KeyBytes {
    fn sum(&self) -> crc32fast::Hasher;
}

impl KeyBytes for &str {
    fn sum(&self) -> crc32fast::Hasher {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(self.as_bytes());
        hasher
    }
}

impl KeyBytes for u64 {
    fn sum(&self) -> crc32fast::Hasher {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.to_le_bytes());
        hasher
    }
}

/// Appends the checksum.
pub(crate) fn seal(key: impl KeyBytes, mut value: Vec<u8>) -> Vec<u8> {
    let mut hasher = key.sum();
    hasher.update(&value);
    value.extend(hasher.finalize().to_le_bytes());
    value
}

/// Verifies and takes off the checksum.
pub(crate) fn unseal<K: KeyBytes + Debug>(key: K, value: &[u8]) -> Outcome<&[u8]> {
    let (value, sum) = value.split_at(value.len().saturating_sub(4));
    let mut hasher = key.sum();
    hasher.update(value);
    match hasher.finalize().to_le_bytes() == sum {
        true => Ok(value),
        false => damaged(format!("the checksum of {key:?} does not match its content")),
    }
}

pub(crate) fn encode(value: &impl Serialize, buffer: Vec<u8>) -> Outcome<Vec<u8>> {
    postcard::to_extend(value, buffer)
        .or_else(|error| refused(format!("what is to be saved cannot be serialized: {error}")))
}

pub(crate) fn decode<V: DeserializeOwned>(what: &str, bytes: &[u8]) -> Outcome<V> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => damaged(format!("{what} has {} bytes too many", rest.len())),
        Err(error) => damaged(format!("{what} cannot be read: {error}")),
    }
}

/// The checksums are right, and yet it cannot be understood.
pub(crate) fn foreign<R>(what: impl Display) -> Outcome<R> {
    refused(format!(
        "{what} is undamaged but not of this program's types; use the program that wrote it, or \
         have transitions and snapshots encoded as they were there"
    ))
}

/// Puts a record in place.
pub(crate) fn put(
    records: &mut Table<&str, &[u8]>, key: &'static str, value: &impl Serialize,
) -> Outcome<()> {
    let value = seal(key, encode(value, Vec::new())?);
    records.insert(key, &value[..]).map_err(boxed)?;
    Ok(())
}

/// A record, if there is one.
pub(crate) fn get<V: DeserializeOwned>(
    records: &impl ReadableTable<&'static str, &'static [u8]>, key: &'static str,
) -> Outcome<Option<V>> {
    let value = records.get(key).map_err(boxed)?;
    value.map(|value| decode(key, unseal(key, value.value())?)).transpose()
}

/// Puts the state in place.
pub(crate) fn put_state(log: &mut Table<u64, &[u8]>, state: &State) -> Outcome<()> {
    let value = seal(STATE, encode(state, Vec::new())?);
    log.insert(STATE, &value[..]).map_err(boxed)?;
    Ok(())
}

/// The state, without which nothing else means anything.
pub(crate) fn state(log: &impl ReadableTable<u64, &'static [u8]>) -> Outcome<State> {
    match log.get(STATE).map_err(boxed)? {
        Some(value) => decode("the state", unseal(STATE, value.value())?),
        None => damaged("the record of the term and the vote is missing"),
    }
}

impl Block {
    /// Reads a row of the log.
    pub(crate) fn read(first: u64, row: &[u8]) -> Outcome<Block> {
        let bytes = unseal(first, row)?;
        let Ok((header, transitions)) = postcard::take_from_bytes::<BlockHeader>(bytes) else {
            return damaged(format!("the entries at {first} have no readable header"));
        };
        let (first, transitions) = (first as Index, transitions.to_vec());
        let is_configuration = header.membership.is_some();
        if header.count == 0 || is_configuration && (header.count, transitions.len()) != (1, 0) {
            return damaged(format!("the entries at {first} are neither transitions nor a change"));
        }
        Ok(Block { first, header, transitions })
    }

    pub(crate) fn last(&self) -> Index {
        self.first.saturating_add(self.header.count - 1)
    }

    /// Puts the block in its place.
    pub(crate) fn write(&self, log: &mut Table<u64, &[u8]>) -> Outcome<()> {
        write(log, self.first, &self.header, &self.transitions)
    }

    /// The transitions.
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Outcome<Vec<T>> {
        let count = if self.header.membership.is_some() { 0 } else { self.header.count };
        let (mut transitions, mut rest) = (Vec::new(), &self.transitions[..]);
        for index in self.first..self.first + count {
            let Ok((transition, after)) = postcard::take_from_bytes(rest) else {
                return foreign(format_args!("entry {index}"));
            };
            transitions.push(transition);
            rest = after;
        }
        match rest {
            [] => Ok(transitions),
            _ => foreign(format_args!("what follows entry {}", self.first)),
        }
    }

    /// Keeps only the entries before an index, which lies within the block.
    pub(crate) fn truncate<T: DeserializeOwned>(&mut self, from: Index) -> Outcome<()> {
        let mut rest = &self.transitions[..];
        for index in self.first..from {
            let Ok((_, after)) = postcard::take_from_bytes::<T>(rest) else {
                return foreign(format_args!("entry {index}"));
            };
            rest = after;
        }
        let kept = self.transitions.len() - rest.len();
        self.transitions.truncate(kept);
        self.header.count = from - self.first;
        Ok(())
    }
}

fn write(
    log: &mut Table<u64, &[u8]>, first: Index, header: &BlockHeader, transitions: &[u8],
) -> Outcome<()> {
    let mut row = encode(header, Vec::with_capacity(transitions.len() + ROOM))?;
    row.extend_from_slice(transitions);
    log.insert(first as u64, &seal(first as u64, row)[..]).map_err(boxed)?;
    Ok(())
}

/// Appends a run: cut into blocks that fill their pages, the first of them together with what is in
/// the last page so far, which has to be written again anyway.
pub(crate) fn append<T: Serialize>(log: &mut Table<u64, &[u8]>, run: &Run<T>) -> Outcome<()> {
    let membership = run.membership.as_ref().map(|membership| Membership::clone(membership));
    if membership.is_some() {
        let header = BlockHeader { term: run.term, count: 1, membership };
        return write(log, run.first, &header, &[]);
    }
    let mut encoded = match open_block(log, run.first, run.term)? {
        Some(Block { first, transitions, .. }) => Encoded {
            term: run.term,
            first,
            ends: vec![(transitions.len(), run.first)],
            transitions,
        },
        None => Encoded { term: run.term, first: run.first, ..Encoded::default() },
    };
    for (index, transition) in (run.first..).zip(run.transitions.iter()) {
        encoded.transitions = encode(transition, take(&mut encoded.transitions))?;
        encoded.ends.push((encoded.transitions.len(), index + 1));
        if encoded.transitions.len() >= PIECE {
            encoded.write_block(log)?;
        }
    }
    while !encoded.ends.is_empty() {
        encoded.write_block(log)?;
    }
    Ok(())
}

/// Transitions on their way into the log.
#[derive(Default)]
struct Encoded {
    term: Term,
    first: Index,
    transitions: Vec<u8>,
    /// Where a block may end, and the index that follows then.
    ends: Vec<(usize, Index)>,
}

impl Encoded {
    /// Writes the first block.
    fn write_block(&mut self, log: &mut Table<u64, &[u8]>) -> Outcome<()> {
        let limit = piece(self.transitions.len());
        let ends = self.ends.partition_point(|(end, _)| *end <= limit).max(1);
        let (length, next) = self.ends[ends - 1];
        let header = BlockHeader { term: self.term, count: next - self.first, membership: None };
        write(log, self.first, &header, &self.transitions[..length])?;
        self.first = next;
        self.transitions.drain(..length);
        self.ends.drain(..ends);
        self.ends.iter_mut().for_each(|(end, _)| *end -= length);
        Ok(())
    }
}

/// The last block, if entries of this index and term can be added to it.
fn open_block(
    log: &impl ReadableTable<u64, &'static [u8]>, next: Index, term: Term,
) -> Outcome<Option<Block>> {
    let block = block_at(log, next)?.filter(|block| {
        let is_open = block.header.membership.is_none() && block.transitions.len() < PAGE - ROOM;
        is_open && block.header.term == term && block.last() + 1 == next
    });
    Ok(block)
}

/// How many of these bytes to put into one value: as many as fill a power of two of pages, or all
/// if they do not fill one.
pub(crate) fn piece(length: usize) -> usize {
    match ((length + ROOM) / PAGE).checked_ilog2() {
        Some(order) => ((PAGE << order) - ROOM).min(PIECE),
        None => length,
    }
}

/// The block that holds an index or, if none does, the last before it.
pub(crate) fn block_at(
    log: &impl ReadableTable<u64, &'static [u8]>, index: Index,
) -> Outcome<Option<Block>> {
    let row = log.range(..=index as u64).map_err(boxed)?.next_back().transpose().map_err(boxed)?;
    row.map(|(first, row)| Block::read(first.value(), row.value())).transpose()
}
