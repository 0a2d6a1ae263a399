//! What one replica has durably promised, kept beside its storage so that every law can be judged
//! without asking the code under test.

use crate::laws::{Broken, broken};
use little_raft::{Change, Index, LogId, Membership, ReplicaID, Run, Term};
use std::collections::VecDeque;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;

/// The content of an entry, for comparison.
pub(crate) type Digest = u64;

/// An entry without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) term: Term,
    pub(crate) digest: Digest,
}

/// Everything that `Storage::save` has returned `Ok` for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) term: Term,
    pub(crate) voted_for: Option<ReplicaID>,
    pub(crate) base: LogId,
    pub(crate) snapshot: LogId,
    entries: VecDeque<Entry>,
    /// The configurations with their indices; of the first that is the end of the snapshot.
    memberships: Vec<(Index, Arc<Membership>)>,
}

/// A change as the laws see it: every entry's index and content.
pub(crate) struct Appended {
    pub(crate) index: Index,
    pub(crate) entry: Entry,
    pub(crate) prev_term: Term,
    pub(crate) membership: Option<Arc<Membership>>,
}

impl Ledger {
    pub(crate) fn last(&self) -> LogId {
        let index = self.base.index + self.entries.len();
        LogId { index, term: self.entries.back().map_or(self.base.term, |entry| entry.term) }
    }

    pub(crate) fn entry(&self, index: Index) -> Option<Entry> {
        let place = index.checked_sub(self.base.index + 1)?;
        self.entries.get(place).copied()
    }

    /// The term at an index, if the index is known here.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        match index == self.base.index {
            true => Some(self.base.term),
            false => self.entry(index).map(|entry| entry.term),
        }
    }

    /// Whether the entry is durable here, in the log or in the snapshot.
    pub(crate) fn has(&self, id: LogId) -> bool {
        id.index <= self.snapshot.index.max(self.base.index)
            || self.term_at(id.index) == Some(id.term)
    }

    /// Whether two ledgers hold the same.
    pub(crate) fn same(&self, other: &Ledger) -> bool {
        let hard = |it: &Ledger| (it.term, it.voted_for, it.base, it.snapshot);
        hard(self) == hard(other)
            && self.entries == other.entries
            && self.memberships == other.memberships
    }

    pub(crate) fn memberships(&self) -> &[(Index, Arc<Membership>)] {
        &self.memberships
    }

    /// Takes over a change, if it is one that Raft allows. Returns what it appended.
    pub(crate) fn save<T: Clone + Hash, D>(
        &mut self, change: &Change<T, D>,
    ) -> Result<Vec<Appended>, Broken> {
        self.save_hard_state(change)?;
        let snapshot = change.snapshot.as_ref().map_or(self.snapshot, |it| it.last());
        if snapshot.index < self.snapshot.index || change.compacted.index < self.base.index {
            return broken("K9", format!("snapshot or compaction went back to {snapshot:?}"));
        }
        if let Some(from) = change.truncate_from {
            if from <= self.base.index {
                return broken("K9", format!("truncates from {from}, below {:?}", self.base));
            }
            self.entries.truncate(from - 1 - self.base.index);
            self.memberships.retain(|(index, _)| *index < from || *index <= self.snapshot.index);
        }
        self.compact(change.compacted, snapshot, change.membership.clone())?;
        let mut appended = Vec::new();
        for run in &change.runs {
            self.append(run, &mut appended)?;
        }
        if !self.has(self.snapshot) || self.last().index < self.snapshot.index {
            return broken("K9", format!("log ends at {:?} before {snapshot:?}", self.last()));
        }
        Ok(appended)
    }

    fn save_hard_state<T, D>(&mut self, change: &Change<T, D>) -> Result<(), Broken> {
        let same_term = change.term == self.term;
        let vote_kept = self.voted_for.is_none() || self.voted_for == change.voted_for;
        if change.term < self.term || (same_term && !vote_kept) {
            let (was, is) = ((self.term, self.voted_for), (change.term, change.voted_for));
            return broken("K2", format!("term and vote went from {was:?} to {is:?}"));
        }
        (self.term, self.voted_for) = (change.term, change.voted_for);
        Ok(())
    }

    fn compact(
        &mut self, base: LogId, snapshot: LogId, membership: Option<Membership>,
    ) -> Result<(), Broken> {
        let known = self.term_at(base.index);
        if base.index > self.last().index || known.is_some_and(|term| term != base.term) {
            self.entries.clear();
            self.memberships.clear();
        } else {
            self.entries.drain(..base.index - self.base.index);
        }
        (self.base, self.snapshot) = (base, snapshot);
        if base.index > snapshot.index {
            return broken("K9", format!("compacts to {base:?} beyond the snapshot {snapshot:?}"));
        }
        if let Some(membership) = membership {
            self.memberships.retain(|(index, _)| *index > snapshot.index);
            self.memberships.insert(0, (snapshot.index, Arc::new(membership)));
        }
        Ok(())
    }

    fn append<T: Clone + Hash>(
        &mut self, run: &Run<T>, appended: &mut Vec<Appended>,
    ) -> Result<(), Broken> {
        if run.first != self.last().index + 1 || run.last().index < run.first {
            return broken("K9", format!("a gap between {:?} and {:?}", self.last(), run.first));
        }
        if run.term < self.last().term || run.term > self.term {
            return broken(
                "K3",
                format!("term {} after {:?} in {}", run.term, self.last(), self.term),
            );
        }
        for (offset, digest) in digests(run).enumerate() {
            let (index, prev_term) = (run.first + offset, self.last().term);
            let entry = Entry { term: run.term, digest };
            self.entries.push_back(entry);
            let membership = run.membership.clone();
            if let Some(membership) = membership.clone().filter(|_| index > self.snapshot.index) {
                self.memberships.push((index, membership));
            }
            appended.push(Appended { index, entry, prev_term, membership });
        }
        Ok(())
    }
}

/// The contents of a run's entries.
pub(crate) fn digests<T: Hash>(run: &Run<T>) -> impl Iterator<Item = Digest> + '_ {
    let membership = run.membership.iter().map(|it| digest_of(&**it));
    run.transitions.iter().map(|it| digest_of(it)).chain(membership)
}

pub(crate) fn digest_of(content: &impl Hash) -> Digest {
    Mixing::default().hash_one(content)
}

/// Hashes the same on every machine and in every run.
pub(crate) type Mixing = BuildHasherDefault<Mixer>;
/// A map whose order never shows.
pub(crate) type Map<K, V> = std::collections::HashMap<K, V, Mixing>;

/// A small multiply-and-rotate hasher.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ (mixed >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.chunks(8).for_each(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        });
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(word.into());
    }
}
