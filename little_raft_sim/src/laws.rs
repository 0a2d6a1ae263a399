//! The laws of Raft, judged from outside: what every replica's disk holds, what leaves it, what it
//! applies and what it answers. Named after the checkers in the documentation of this crate.

use crate::ledger::{Appended, Digest, Entry, Ledger, Map, digests};
use little_raft::{Body, Index, LogId, Membership, Message, ReplicaID, Role, Status, Term};
use std::collections::BTreeSet;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

/// A law that was broken, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The short name of the law.
    pub law: &'static str,
    /// What was seen.
    pub detail: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.law, self.detail)
    }
}

impl std::error::Error for Broken {}

pub(crate) fn broken<V>(law: &'static str, detail: String) -> Result<V, Broken> {
    Err(Broken { law, detail })
}

/// An entry that is committed for good.
#[derive(Clone, Debug)]
struct Committed {
    entry: Entry,
    /// The term of the leader that committed it first.
    by: Term,
    /// The configuration that holds from here on.
    membership: Arc<Membership>,
    /// The state right after it was applied, once any replica was there.
    state: Option<u64>,
}

/// An entry that somebody has or had, committed or not.
#[derive(Clone, Debug)]
struct Known {
    entry: Entry,
    prev_term: Term,
    membership: Option<Arc<Membership>>,
}

/// What is true of the whole cluster.
#[derive(Debug, Default)]
pub(crate) struct Laws {
    leaders: Map<Term, ReplicaID>,
    /// All entries that ever were on a disk or on the wire, by index.
    entries: Vec<Vec<Known>>,
    committed: Vec<Committed>,
    /// Where each transition is committed.
    places: Map<Digest, Index>,
    /// What a proposer was told will never be applied.
    refused: Map<Digest, ()>,
    noop: Digest,
    /// The configuration at the beginning.
    initial: Arc<Membership>,
}

impl Laws {
    pub(crate) fn new(noop: Digest, initial: Membership) -> Laws {
        Laws { noop, initial: Arc::new(initial), ..Laws::default() }
    }

    pub(crate) fn commit(&self) -> Index {
        self.committed.len()
    }

    /// K1: at most one leader in a term.
    pub(crate) fn leads(&mut self, id: ReplicaID, term: Term) -> Result<bool, Broken> {
        match self.leaders.insert(term, id) {
            Some(other) if other != id => {
                broken("K1", format!("{other} and {id} both lead term {term}"))
            }
            known => Ok(known.is_none()),
        }
    }

    /// K3: an index and a term have one content and one predecessor.
    fn know(&mut self, it: &Appended) -> Result<(), Broken> {
        if self.entries.len() <= it.index {
            self.entries.resize(it.index + 1, Vec::new());
        }
        let Appended { index, entry, prev_term, .. } = *it;
        let mut known = self.entries[index].iter();
        match known.find(|known| known.entry.term == entry.term) {
            None => {
                let membership = it.membership.clone();
                self.entries[index].push(Known { entry, prev_term, membership });
                Ok(())
            }
            Some(known) if known.entry == entry && known.prev_term == prev_term => Ok(()),
            Some(known) => {
                broken("K3", format!("entry {index}: {entry:?} after {prev_term} and {known:?}"))
            }
        }
    }

    /// K3, of all that became durable.
    pub(crate) fn know_all(&mut self, appended: &[Appended]) -> Result<(), Broken> {
        appended.iter().try_for_each(|it| self.know(it))
    }

    /// K4: nothing that is committed and was durable is lost by a change.
    pub(crate) fn keeps(
        &self, before: Option<LogId>, ledger: &Ledger, appended: &[Appended],
    ) -> Result<(), Broken> {
        // A leader of a term before that of the commit may still take away what was committed later,
        // from a replica that was not needed for it.
        let by_earlier = |held: LogId| {
            let by = self.committed[held.index - 1].by;
            appended.first().is_some_and(|it| it.entry.term < by)
        };
        match before {
            Some(held) if !ledger.has(held) && !by_earlier(held) => {
                broken("K4", format!("the committed {held:?} was durable and is gone"))
            }
            _ => Ok(()),
        }
    }

    /// The last committed entry that is durable in a ledger.
    pub(crate) fn held_by(&self, ledger: &Ledger) -> Option<LogId> {
        let from = ledger.last().index.min(self.commit());
        let mut indices = (ledger.snapshot.index + 1..=from).rev();
        indices.find_map(|index| {
            let term = self.committed[index - 1].entry.term;
            (ledger.term_at(index) == Some(term)).then_some(LogId { term, index })
        })
    }

    /// K4: a new leader holds everything that was committed in earlier terms.
    pub(crate) fn complete(&self, term: Term, ledger: &Ledger) -> Result<(), Broken> {
        let earlier = self.committed.iter().rposition(|it| it.by < term);
        let Some(place) = earlier else { return Ok(()) };
        let id = LogId { index: place + 1, term: self.committed[place].entry.term };
        match ledger.has(id) {
            true => Ok(()),
            false => broken("K4", format!("the leader of term {term} lacks the committed {id:?}")),
        }
    }

    /// K8: what a leader commits, in the configurations that were in force, is its own term's and
    /// durable on a quorum of every half. Nobody else commits first.
    pub(crate) fn commits(
        &mut self, status: &Status, role_before: Role, configurations: &[&Arc<Membership>],
        ledgers: &[Ledger],
    ) -> Result<(), Broken> {
        let (from, to, own) = (self.commit() + 1, status.commit, &ledgers[status.id]);
        if role_before != Role::Leader {
            return broken("K4", format!("{} commits {to} before any leader", status.id));
        }
        let term = own.term_at(to);
        if term != Some(status.term) {
            return broken("K8", format!("leader of {} commits {to} of {term:?}", status.term));
        }
        let id = LogId { index: to, term: status.term };
        let durable = |member: &&ReplicaID| ledgers.get(**member).is_some_and(|it| it.has(id));
        let majority =
            |half: &BTreeSet<ReplicaID>| half.iter().filter(durable).count() * 2 > half.len();
        let mut configurations = configurations.iter();
        let settled = configurations
            .any(|it| majority(&it.voters) && (it.outgoing.is_empty() || majority(&it.outgoing)));
        if !settled {
            return broken("K8", format!("{id:?} is not durable on a quorum of {status:?}"));
        }
        (from..=to).try_for_each(|index| match own.entry(index) {
            Some(entry) => self.commit_entry(index, entry, status.term),
            None => broken("K8", format!("the leader itself lacks {index}")),
        })
    }

    fn commit_entry(&mut self, index: Index, entry: Entry, by: Term) -> Result<(), Broken> {
        let mut known = self.entries[index].iter();
        let known = known.find(|known| known.entry.term == entry.term);
        let changed = known.and_then(|known| known.membership.clone());
        if changed.is_none() && entry.digest != self.noop {
            if let Some(earlier) = self.places.insert(entry.digest, index) {
                let what = format!("one transition is committed at {earlier} and {index}");
                return broken("outcome", what);
            }
            if self.refused.contains_key(&entry.digest) {
                return broken("outcome", format!("{index} was abandoned and is committed"));
            }
        }
        let membership = changed.unwrap_or_else(|| self.membership_at(index - 1));
        self.committed.push(Committed { entry, by, membership, state: None });
        Ok(())
    }

    /// The configuration that holds after a committed index.
    pub(crate) fn membership_at(&self, index: Index) -> Arc<Membership> {
        match index.checked_sub(1) {
            Some(place) => self.committed[place].membership.clone(),
            None => self.initial.clone(),
        }
    }

    /// The configuration that is committed at this very index.
    pub(crate) fn configuration(&self, index: Index) -> Option<&Arc<Membership>> {
        let term = self.committed.get(index.checked_sub(1)?)?.entry.term;
        let known = self.entries[index].iter().find(|known| known.entry.term == term);
        known.and_then(|known| known.membership.as_ref())
    }

    /// A proposer was told that a transition will never be applied anywhere.
    pub(crate) fn refuse(&mut self, digest: Digest) -> Result<(), Broken> {
        self.refused.insert(digest, ());
        match self.places.get(&digest) {
            Some(index) => broken("outcome", format!("{index} is committed and was abandoned")),
            None => Ok(()),
        }
    }

    /// K5: this is what comes at that index, everywhere.
    pub(crate) fn applies(&self, index: Index, digest: Digest) -> Result<(), Broken> {
        let known = self.committed.get(index - 1).map(|it| it.entry.digest);
        match known == Some(digest) {
            true => Ok(()),
            false => {
                broken("K5", format!("applies {digest} at {index} where {known:?} is committed"))
            }
        }
    }

    /// K5: the state after an index is the same everywhere.
    pub(crate) fn reaches(&mut self, index: Index, state: u64) -> Result<(), Broken> {
        let Some(place) = index.checked_sub(1) else { return Ok(()) };
        let Some(known) = self.committed.get_mut(place) else {
            return broken("K5", format!("a state at {index}, which is not committed"));
        };
        match *known.state.get_or_insert(state) == state {
            true => Ok(()),
            false => broken("K5", format!("two states after {index}")),
        }
    }

    pub(crate) fn commit_id(&self, index: Index) -> Option<LogId> {
        let place = index.checked_sub(1)?;
        self.committed.get(place).map(|it| LogId { index, term: it.entry.term })
    }

    /// K9 and K10, at the end of a turn.
    pub(crate) fn consistent(&self, status: &Status, ledger: &Ledger) -> Result<(), Broken> {
        let Status { first_index, applied, commit, last_index, .. } = *status;
        let order = [first_index - 1, applied, commit, last_index];
        if !order.is_sorted() || commit > self.commit() {
            return broken("K9", format!("{order:?}, committed {}", self.commit()));
        }
        let durable = ledger.memberships().last().map(|(_, it)| it);
        if last_index == ledger.last().index && durable.is_some_and(|it| *it != status.membership) {
            return broken("K10", format!("{:?} in force, {durable:?} saved", status.membership));
        }
        match self.commit_id(commit) {
            Some(id) if !ledger.has(id) => broken("K4", format!("{id:?} committed, not held")),
            _ => Ok(()),
        }
    }

    /// K7: a message is true of the sender's disk when it leaves.
    pub(crate) fn leaves<T: Hash + Clone, D>(
        &mut self, (from_id, to_id): (ReplicaID, ReplicaID), message: &Message<T, D>,
        (ledger, role): (&Ledger, Role), of_leader: Option<&Ledger>,
    ) -> Result<(), Broken> {
        let Message { from_id: named, term, body } = message;
        // What was said in a term that the disk has left behind can no longer become untrue.
        let of_this_term = match body {
            Body::RequestVote { pre: true, .. } => *term <= ledger.term + 1,
            Body::Vote { pre: true, granted: true } => true,
            _ => *term <= ledger.term,
        };
        let true_now = match body {
            Body::Vote { pre: false, granted: true } if *term == ledger.term => {
                ledger.voted_for == Some(to_id)
            }
            Body::Appended { result: Ok(matched), .. } if *term == ledger.term => {
                self.matches(*matched, ledger, of_leader)
            }
            Body::RequestVote { pre, last, .. } => {
                // One that no longer asks may have been given another log in the same turn.
                let asks = matches!(role, Role::PreCandidate | Role::Candidate);
                let own_vote = *pre || *term < ledger.term || ledger.voted_for == Some(from_id);
                own_vote && (!asks || *last == ledger.last())
            }
            _ => self.is_leaders(from_id, *term, body, ledger)?,
        };
        match of_this_term && true_now && *named == from_id {
            true => Ok(()),
            false => {
                let (disk, last) = ((ledger.term, ledger.voted_for), ledger.last());
                let what = crate::trace::message(message);
                broken(
                    "K7",
                    format!("{from_id} tells {to_id} {what} with {disk:?} {last:?} on disk"),
                )
            }
        }
    }

    /// K7 of what only a leader says, and so K1.
    fn is_leaders<T: Hash + Clone, D>(
        &mut self, from_id: ReplicaID, term: Term, body: &Body<T, D>, ledger: &Ledger,
    ) -> Result<bool, Broken> {
        let voted = term < ledger.term || ledger.voted_for == Some(from_id);
        match body {
            Body::AppendEntries { prev, runs, commit, .. } => {
                self.leads(from_id, term)?;
                self.know_runs(*prev, runs)?;
                Ok(voted && *commit <= self.commit())
            }
            Body::InstallSnapshot { snapshot, membership, .. } => {
                self.leads(from_id, term)?;
                let id = snapshot.last();
                let committed = self.commit_id(id.index) == Some(id);
                Ok(voted && committed && *self.membership_at(id.index) == **membership)
            }
            Body::TimeoutNow => Ok(voted && !self.leads(from_id, term)?),
            _ => Ok(true),
        }
    }

    fn matches(&self, matched: Index, ledger: &Ledger, of_leader: Option<&Ledger>) -> bool {
        let Some(leader) = of_leader else { return matched <= ledger.last().index };
        let id = leader.term_at(matched).map(|term| LogId { index: matched, term });
        matched <= ledger.last().index && id.is_none_or(|id| ledger.has(id))
    }

    fn know_runs<T: Hash + Clone>(
        &mut self, prev: LogId, runs: &[little_raft::Run<T>],
    ) -> Result<(), Broken> {
        let mut prev_term = prev.term;
        let mut index = prev.index;
        for run in runs {
            for digest in digests(run) {
                index += 1;
                let entry = Entry { term: run.term, digest };
                let membership = run.membership.clone();
                self.know(&Appended { index, entry, prev_term, membership })?;
                prev_term = run.term;
            }
        }
        Ok(())
    }
}
