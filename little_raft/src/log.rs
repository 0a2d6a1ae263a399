//! One replica's log: the only place that does index arithmetic.
//!
//! ```text
//!            base          snapshot                 saved          last
//!   compacted |  kept for slow followers  |  entries  |   not yet   |
//! ------------+---------------------------+-----------+-------------+
//! ```

use crate::message::Entries;
use crate::raft::LIMIT;
use crate::storage::Saved;
use crate::{Index, LogId, Membership, Run, Snapshot, Term};
use std::collections::VecDeque;
use std::sync::Arc;

/// The entries after `base`, held as the runs in which they were appended.
///
/// The configurations among them are known by their place, so that one takes effect by being
/// appended and is reverted by being truncated.
#[derive(Clone, Debug)]
pub(crate) struct Log<T> {
    /// The last compacted entry. Its term is known, those before it are forgotten.
    base: LogId,
    runs: VecDeque<Run<T>>,
    /// The configurations, each with the index from which it holds. The first holds at the
    /// snapshot's end; there is always one.
    memberships: Vec<(Index, Arc<Membership>)>,
    /// Up to here the log is durable.
    saved: Index,
    /// The lowest index removed since the last save.
    truncated: Option<Index>,
}

impl<T: Clone> Log<T> {
    /// The log as it was saved, if it can have been: in order, without gaps, and continuing the
    /// snapshot.
    pub(crate) fn load<D>(saved: &Saved<T, D>, initial: Membership) -> Result<Log<T>, String> {
        let snapshot = saved.snapshot.as_ref().map_or(LogId::default(), Snapshot::last);
        let initial = Arc::new(saved.membership.clone().unwrap_or(initial));
        let mut log = Log {
            base: saved.compacted,
            runs: VecDeque::new(),
            memberships: vec![(snapshot.index, initial)],
            saved: saved.compacted.index,
            truncated: None,
        };
        for run in &saved.runs {
            if run.first > LIMIT || !run.follows(log.last()) {
                return Err(format!("the saved log breaks after {}", log.last()));
            }
            log.append(run.clone());
        }
        log.saved = log.last().index;
        if !log.matches(snapshot) {
            return Err(format!("the saved log does not continue the snapshot at {snapshot}"));
        }
        Ok(log)
    }

    /// The last entry, or the base if there is none.
    pub(crate) fn last(&self) -> LogId {
        self.runs.back().map_or(self.base, Run::last)
    }

    /// The last compacted entry.
    pub(crate) fn base(&self) -> LogId {
        self.base
    }

    /// The index up to which the log is durable.
    pub(crate) fn saved(&self) -> Index {
        self.saved
    }

    /// The term of an entry; nothing of one that is compacted or not there.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        (index > self.base.index).then(|| self.runs.get(self.position(index)))?.map(|run| run.term)
    }

    /// The position of an entry that is here.
    pub(crate) fn id_at(&self, index: Index) -> Option<LogId> {
        self.term_at(index).map(|term| LogId { term, index })
    }

    /// Whether the log holds exactly this entry, and so everything that came before it (§5.3).
    pub(crate) fn matches(&self, id: LogId) -> bool {
        self.term_at(id.index) == Some(id.term)
    }

    /// The latest entry at or before `id` whose term is not above that of `id`: no entry after it
    /// can match a log in which `id` is an entry. Skips a whole term at a time.
    pub(crate) fn backtrack(&self, id: LogId) -> LogId {
        let end = self.runs.partition_point(|run| run.first <= id.index && run.term <= id.term);
        let found = end.checked_sub(1).map(|position| {
            let last = self.runs[position].last();
            LogId { index: last.index.min(id.index), ..last }
        });
        found.filter(|found| found.index > self.base.index).unwrap_or(self.base)
    }

    /// Appends a run that [follows](Run::follows) the last entry.
    pub(crate) fn append(&mut self, run: Run<T>) {
        if let Entries::Membership(membership) = &run.entries
            && run.first > self.memberships[0].0
        {
            self.memberships.push((run.first, membership.clone()));
        }
        self.runs.push_back(run);
    }

    /// Removes the entries from index `from` on, which must lie above the base, and returns them.
    pub(crate) fn truncate(&mut self, from: Index) -> Vec<Run<T>> {
        let mut removed: Vec<_> = self.runs.drain(self.position(from)..).collect();
        if let Some(run) = removed.first_mut().filter(|run| run.first < from) {
            self.runs.push_back(run.slice(run.first, from - 1));
            *run = run.slice(from, run.last().index);
        }
        self.memberships.retain(|(index, _)| *index < from);
        self.saved = self.saved.min(from - 1);
        self.truncated = Some(self.truncated.map_or(from, |lowest| lowest.min(from)));
        removed
    }

    /// Takes over what a leader sent, of which the entry before it is known to match. Entries that
    /// are already here stay (a message may be late), the first that differs goes with all that
    /// follow it (§5.3). Returns what went.
    ///
    /// Fails if it would have to remove entries up to index `committed`: no leader may ask for that.
    pub(crate) fn splice(
        &mut self,
        runs: Vec<Run<T>>,
        committed: Index,
    ) -> Result<Vec<Run<T>>, String> {
        let mut removed = Vec::new();
        for run in runs {
            let last = run.last();
            let held = self.backtrack(last);
            let from = match held.term == run.term || held == self.base {
                true => run.first.max(held.index + 1),
                false => run.first,
            };
            if from > last.index {
                continue;
            }
            if from <= self.last().index {
                if from <= committed {
                    return Err(format!("entry {from}@{} is against what is committed", run.term));
                }
                removed.append(&mut self.truncate(from));
            }
            self.append(run.slice(from, last.index));
        }
        Ok(removed)
    }

    /// Forgets the entries up to index `to`, and the configurations that the snapshot's covers.
    pub(crate) fn compact(&mut self, snapshot: Index, to: Index) {
        let covered = self.memberships.partition_point(|(index, _)| *index <= snapshot);
        self.memberships.drain(..covered - 1);
        self.memberships[0].0 = snapshot;
        if let Some(term) = self.term_at(to) {
            self.base = LogId { term, index: to };
            self.runs.drain(..self.runs.partition_point(|run| run.last().index <= to));
        }
    }

    /// Replaces the whole log by a snapshot's end, and returns what was there.
    pub(crate) fn reset(&mut self, snapshot: LogId, membership: Membership) -> Vec<Run<T>> {
        let removed = self.truncate(self.base.index + 1);
        self.base = snapshot;
        self.runs.clear();
        self.saved = snapshot.index;
        self.memberships = vec![(snapshot.index, Arc::new(membership))];
        removed
    }

    /// The entries from index `from` on, which must lie above the base: as many whole runs as have
    /// at most `limit` entries together, or a part of the first if that alone is longer.
    pub(crate) fn slice(&self, from: Index, limit: usize) -> Vec<Run<T>> {
        let mut runs = Vec::new();
        let end = from.saturating_add(limit - 1);
        for run in self.runs.range(self.position(from)..) {
            if run.last().index > end && !runs.is_empty() {
                break;
            }
            runs.push(run.slice(from, run.last().index.min(end)));
            if run.last().index >= end {
                break;
            }
        }
        runs
    }

    /// The transitions from index `from` up to index `to` at most that lie in one run; none if
    /// there is a configuration.
    pub(crate) fn transitions(&self, from: Index, to: Index) -> &[T] {
        match self.runs.get(self.position(from)).map(|run| (run.first, &run.entries)) {
            Some((first, Entries::Transitions(transitions))) if from <= to => {
                &transitions[from - first..transitions.len().min(to + 1 - first)]
            }
            _ => &[],
        }
    }

    /// What is not saved yet: from where the saved log is to be truncated, and what is to be
    /// appended to it.
    pub(crate) fn unsaved(&self) -> (Option<Index>, Vec<Run<T>>) {
        let runs = match self.saved < self.last().index {
            true => self.slice(self.saved + 1, LIMIT),
            false => Vec::new(),
        };
        (self.truncated, runs)
    }

    /// Everything is saved.
    pub(crate) fn set_saved(&mut self) {
        (self.saved, self.truncated) = (self.last().index, None);
    }

    /// The configuration in force: the last one in the log, committed or not (§6).
    pub(crate) fn membership(&self) -> &Arc<Membership> {
        &self.memberships[self.memberships.len() - 1].1
    }

    /// The index from which the configuration in force holds.
    pub(crate) fn membership_index(&self) -> Index {
        self.memberships[self.memberships.len() - 1].0
    }

    /// The configuration at the snapshot's end.
    pub(crate) fn snapshot_membership(&self) -> &Membership {
        &self.memberships[0].1
    }

    /// The configuration that held at an index, which must not lie before the snapshot, and those
    /// that came after it.
    pub(crate) fn memberships_from(&self, index: Index) -> impl Iterator<Item = &Arc<Membership>> {
        let at = self.memberships.partition_point(|(first, _)| *first <= index).saturating_sub(1);
        self.memberships[at..].iter().map(|(_, membership)| membership)
    }

    /// The place among the runs of the one that holds an index; their number if none does.
    fn position(&self, index: Index) -> usize {
        match self.runs.back() {
            Some(run) if run.last().index < index => self.runs.len(),
            Some(run) if run.first <= index => self.runs.len() - 1,
            _ => self.runs.partition_point(|run| run.last().index < index),
        }
    }
}
