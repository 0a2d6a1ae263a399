//! One replica's log: the only place that does index arithmetic.
//!
//! ```text
//!            base          snapshot                 saved          last
//!   compacted |  kept for slow followers  |  entries  |   not yet   |
//! ------------+---------------------------+-----------+-------------+
//! ```

use crate::*;

/// The entries after `base`, held as the runs in which they were appended, the snapshot that
/// reaches them, and how much of it all is saved.
#[derive(Clone, Debug)]
pub(crate) struct Log<T, D> {
    /// The last compacted entry. It is known, those before it are forgotten.
    pub(crate) base: LogId,
    /// Up to here the log is durable.
    pub(crate) saved: Index,
    runs: VecDeque<Run<T>>,
    /// The configurations, each with the index from which it holds; of the first that is the end of
    /// the snapshot. One takes effect by being appended, and is reverted by being truncated (§6).
    pub(crate) memberships: Vec<(Index, Arc<Membership>)>,
    /// The latest snapshot, of an entry that is the base or in the log.
    pub(crate) snapshot: Option<Snapshot<D>>,
    /// Term, vote, and the ends of the snapshot and of the log, as they were last saved.
    pub(crate) durable: Option<(Term, Option<ReplicaID>, Index, Index)>,
}

impl<T: Clone, D: Clone> Log<T, D> {
    /// The log as it was saved, if it can have been: in order, without gaps, reaching the snapshot.
    pub(crate) fn load(from: Change<T, D>, initial: Membership) -> Option<Self> {
        let Change { term, voted_for, compacted: base, runs, snapshot, membership, .. } = from;
        let end = snapshot.as_ref().map_or(LogId::default(), Snapshot::last);
        let saved = runs.last().map_or(base, Run::last).index;
        let durable = membership.is_some().then_some((term, voted_for, end.index, saved));
        let memberships = vec![(end.index, Arc::new(membership.unwrap_or(initial)))];
        let mut log = Log { base, saved, runs: VecDeque::new(), memberships, snapshot, durable };
        let fits = log.splice(base, runs, term, base.index) && log.holds(end) && saved < LIMIT;
        log.saved = saved;
        (fits && (base.term..LIMIT).contains(&term)).then_some(log)
    }

    /// The last entry, or the base if there is none.
    pub(crate) fn last(&self) -> LogId {
        self.runs.back().map_or(self.base, Run::last)
    }

    /// The entry at an index; nothing if it is compacted or not there.
    pub(crate) fn entry(&self, index: Index) -> Option<LogId> {
        let run = self.runs.get(self.place(index)).filter(|_| index > self.base.index);
        let base = Some(self.base).filter(|base| base.index == index);
        run.map(|run| LogId { term: run.term, index }).or(base)
    }

    /// Whether the log holds exactly this entry, and so everything that came before it (§5.3).
    pub(crate) fn holds(&self, id: LogId) -> bool {
        self.entry(id.index) == Some(id)
    }

    /// The latest entry at or before `id` whose term is not above that of `id`: no entry after it
    /// can match a log in which `id` is an entry. Skips a whole term at a time.
    pub(crate) fn backtrack(&self, id: LogId) -> LogId {
        let end = self.runs.partition_point(|run| run.first <= id.index && run.term <= id.term);
        let last = end.checked_sub(1).map_or(self.base, |place| self.runs[place].last());
        LogId { index: last.index.min(id.index), ..last }.max(self.base)
    }

    /// Appends a run that follows the last entry.
    pub(crate) fn append(&mut self, run: Run<T>) {
        if let Some(membership) = run.membership.clone() {
            // What the snapshot covers is forgotten but for the last.
            let index = run.first.max(self.memberships[0].0);
            self.memberships.retain(|(first, _)| *first < index);
            self.memberships.push((index, membership));
        }
        self.runs.push_back(run);
    }

    /// Takes over what a leader of `term` sent after `prev`, which this log holds or has compacted.
    /// Entries that are already here stay, for a message may be late; the first that differs goes
    /// with all that follow it (§5.3). False if no leader can have sent that: it is out of order,
    /// or would remove what is committed, and so is the base.
    pub(crate) fn splice(
        &mut self, mut prev: LogId, runs: Vec<Run<T>>, term: Term, commit: Index,
    ) -> bool {
        runs.into_iter().all(|run| {
            let (before, last) = (replace(&mut prev, run.last()), run.last());
            // One thing or the other, the next index, and a term between those around it.
            let kind = run.transitions.is_empty() == run.membership.is_some();
            let next = run.first.checked_sub(1) == Some(before.index);
            let term_fits = (before.term.max(1)..=term).contains(&run.term);
            let mut indexes = run.first.max(self.base.index)..=last.index;
            let new = indexes.find(|&index| !self.holds(LogId { index, ..last }));
            let sound = kind && next && term_fits && new.is_none_or(|index| index > commit);
            if let Some(from) = new.filter(|_| sound) {
                self.truncate(from);
                self.append(run.slice(from, last.index));
            }
            sound
        })
    }

    /// Removes the entries from index `from` on, which lies above the base, if there are any.
    fn truncate(&mut self, from: Index) {
        while let Some(run) = self.runs.pop_back_if(|run| run.last().index >= from) {
            self.runs.extend((run.first < from).then(|| run.slice(run.first, from - 1)));
        }
        self.memberships.truncate(1.max(self.memberships.partition_point(|(at, _)| *at < from)));
        self.saved = self.saved.min(from - 1);
    }

    /// What is not saved yet, with this term and vote, as one change; nothing if nothing is new.
    pub(crate) fn unsaved(&mut self, term: Term, vote: Option<ReplicaID>) -> Option<Change<T, D>> {
        let (last, (end, membership)) = (self.last().index, &self.memberships[0]);
        let before = self.durable.replace((term, vote, *end, last));
        (before != self.durable || self.saved < last).then(|| {
            let truncate_from = before.filter(|it| it.3 > self.saved).map(|_| self.saved + 1);
            let news = before.is_none_or(|(_, _, saved, _)| saved != *end);
            let membership = news.then(|| Membership::clone(membership));
            let snapshot = if news { self.snapshot.clone() } else { None };
            let (voted_for, compacted, runs) = (vote, self.base, self.slice(self.saved + 1, LIMIT));
            Change { term, voted_for, truncate_from, compacted, runs, snapshot, membership }
        })
    }

    /// Takes over a snapshot, forgets the entries up to index `to`, and the configurations before
    /// that of the snapshot.
    pub(crate) fn compact(&mut self, snapshot: Snapshot<D>, to: Index) {
        self.memberships = self.memberships_from(snapshot.last_included_index).to_vec();
        self.memberships[0].0 = snapshot.last_included_index;
        self.snapshot = Some(snapshot);
        self.base = self.entry(to).unwrap_or(self.base);
        self.runs.drain(..self.place(self.base.index + 1));
    }

    /// Replaces the whole log by a snapshot.
    pub(crate) fn reset(&mut self, snapshot: Snapshot<D>, membership: Arc<Membership>) {
        self.base = snapshot.last();
        self.saved = self.base.index;
        self.runs.clear();
        self.memberships = vec![(self.saved, membership)];
        self.snapshot = Some(snapshot);
    }

    /// The entries from index `from` on: as many whole runs as have at most `limit` entries
    /// together, or the beginning of the first if that alone is longer.
    pub(crate) fn slice(&self, from: Index, limit: usize) -> Vec<Run<T>> {
        let (to, runs) = (from + limit - 1, self.runs.range(self.place(from)..));
        let fitting = runs.enumerate().take_while(|(n, run)| *n == 0 || run.last().index <= to);
        fitting.map(|(_, run)| run.slice(from, to)).collect()
    }

    /// The transitions from index `from` up to `to` at most that lie in one run; none if that is a
    /// configuration.
    pub(crate) fn transitions(&self, from: Index, to: Index) -> &[T] {
        let run = if from <= to { self.runs.get(self.place(from)) } else { None };
        let part = |it: &Run<T>| from - it.first..it.transitions.len().min(to + 1 - it.first);
        run.and_then(|run| run.transitions.get(part(run))).unwrap_or_default()
    }

    /// The configuration in force, which is the last, committed or not (§6), and since which index.
    pub(crate) fn membership(&self) -> &(Index, Arc<Membership>) {
        &self.memberships[self.memberships.len() - 1]
    }

    /// The configuration that held at an index, at the snapshot's end or later, and those after it.
    pub(crate) fn memberships_from(&self, index: Index) -> &[(Index, Arc<Membership>)] {
        let after = self.memberships.partition_point(|(first, _)| *first <= index);
        &self.memberships[after.saturating_sub(1)..]
    }

    /// The place among the runs of the first that reaches an index; their number if none does.
    fn place(&self, index: Index) -> usize {
        let (len, begun) = (self.runs.len(), |run: &Run<T>| run.first <= index);
        // Nearly always it is one of the last two, or none.
        let near = (1..3).find(|n| self.runs.get(len.wrapping_sub(*n)).is_some_and(begun));
        let place = near.map_or_else(|| self.runs.partition_point(begun).max(1) - 1, |n| len - n);
        place + usize::from(place < len && index > self.runs[place].last().index)
    }
}
