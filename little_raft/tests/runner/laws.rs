//! What must be true of a cluster as a whole. Every function panics with the law that was broken.

use super::text::{Payload, entries, show_body, show_entry, show_id};
use super::{Body, Change, State};
use little_raft::{Index, LogId, Membership, ReplicaID, Snapshot, Term};
use std::collections::{BTreeMap, BTreeSet};

/// An entry that is committed, and the term in which it was first seen to be.
#[derive(Clone, Debug)]
struct Committed {
    entry: (LogId, Payload),
    by: Term,
}

/// What has been seen of a cluster.
#[derive(Debug, Default)]
pub(crate) struct Laws {
    leaders: BTreeMap<Term, ReplicaID>,
    committed: BTreeMap<Index, Committed>,
    /// What each replica has queued and not yet told the outcome of.
    queued: BTreeMap<ReplicaID, Vec<(LogId, String)>>,
    /// What was abandoned for good.
    lost: BTreeSet<String>,
}

/// The saved entry at an index.
fn entry_at(saved: &Change, index: Index) -> Option<(LogId, Payload)> {
    entries(&saved.runs).into_iter().find(|(id, _)| id.index == index)
}

/// Whether an entry is saved, or compacted and so covered by a snapshot.
fn holds(saved: &Change, id: LogId) -> bool {
    id.index <= saved.compacted.index || entry_at(saved, id.index).is_some_and(|it| it.0 == id)
}

fn last_saved(saved: &Change) -> Index {
    saved.runs.last().map_or(saved.compacted.index, |run| run.last().index)
}

impl Laws {
    /// The last index that is known to be committed anywhere.
    pub(crate) fn last_committed(&self) -> Index {
        self.committed.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// The state after everything committed up to an index is applied.
    pub(crate) fn state_at(&self, index: Index) -> State {
        let up_to = self.committed.range(..=index);
        let names = up_to.filter_map(|(_, committed)| match &committed.entry.1 {
            Payload::Transition(name) => Some(name.clone()),
            Payload::Membership(_) => None,
        });
        names.collect()
    }

    /// A script begins with these entries committed.
    pub(crate) fn given(&mut self, given: &[(LogId, Payload)]) {
        for entry in given {
            let committed = Committed { entry: entry.clone(), by: entry.0.term };
            self.committed.entry(entry.0.index).or_insert(committed);
        }
    }

    /// A term has one leader at most (Election Safety, §5.2), and that one holds all that earlier
    /// leaders have committed (Leader Completeness, §5.4.3).
    pub(crate) fn leads(&mut self, id: ReplicaID, term: Term, saved: Option<&Change>) {
        let leader = *self.leaders.entry(term).or_insert(id);
        assert_eq!(leader, id, "law: one leader in a term, but two lead term {term}");
        let Some(saved) = saved else { return };
        for Committed { entry, by } in self.committed.values().filter(|it| it.by < term) {
            let here = entry.0.index <= saved.compacted.index
                || entry_at(saved, entry.0.index).as_ref() == Some(entry);
            let entry = show_entry(entry);
            assert!(here, "law: a leader holds what is committed, n{id} lacks {entry} of {by}");
        }
    }

    /// Within a term the vote is given once; the term never falls (§5.2).
    pub(crate) fn saves(&self, id: ReplicaID, before: &Change, now: &Change) {
        assert!(now.term >= before.term, "law: n{id}'s saved term never falls");
        let kept = now.voted_for == before.voted_for || before.voted_for.is_none();
        assert!(now.term > before.term || kept, "law: one vote in a term, n{id} has changed its");
    }

    /// Nothing leaves before what it promises is saved.
    pub(crate) fn sends(
        &mut self, (id, to): (ReplicaID, ReplicaID), term: Term, body: &Body, saved: &Change,
    ) {
        let (own, voted) = (term == saved.term, saved.voted_for);
        let covered = match body {
            // What was said in a term that the disk has left behind can no longer become untrue.
            _ if term < saved.term => true,
            Body::RequestVote { pre: true, .. } | Body::Vote { pre: true, .. } => true,
            Body::RequestVote { .. } => own && voted == Some(id),
            Body::Vote { granted: true, .. } => own && voted == Some(to),
            Body::Appended { result: Ok(matched), .. } => own && *matched <= last_saved(saved),
            _ => own,
        };
        let body_text = show_body(body, |context| context.to_string());
        assert!(covered, "law: save, then send, but n{id} sends {body_text} of term {term}");
        if matches!(body, Body::AppendEntries { .. } | Body::InstallSnapshot { .. }) {
            self.leads(id, term, None);
        }
    }

    /// Replicas commit the same (State Machine Safety, §5.4.3), and only what they have saved.
    pub(crate) fn commits(&mut self, term: Term, saved: &Change, from: Index, to: Index) {
        for index in from..=to {
            let Some(entry) = entry_at(saved, index) else {
                assert!(index <= saved.compacted.index, "law: saved before committed, but {index}");
                continue;
            };
            let new = Committed { entry: entry.clone(), by: term };
            let known = &self.committed.entry(index).or_insert(new).entry;
            let (known, entry) = (show_entry(known), show_entry(&entry));
            assert_eq!(known, entry, "law: replicas commit the same entries");
        }
    }

    /// What a leader commits is durable on a majority, while joint on both.
    pub(crate) fn leader_commits(
        membership: &Membership, id: LogId, all: &BTreeMap<ReplicaID, &Change>,
    ) {
        for half in [&membership.voters, &membership.outgoing] {
            let holders =
                half.iter().filter(|it| all.get(it).is_some_and(|saved| holds(saved, id)));
            let (count, entry) = (holders.count(), show_id(id));
            let enough = half.is_empty() || count > half.len() / 2;
            assert!(enough, "law: only a majority commits, {count} of {half:?} hold {entry}");
        }
    }

    /// What a leader counts on, its peer has saved.
    pub(crate) fn matches(peer: ReplicaID, matched: Index, saved: &Change) {
        let last = last_saved(saved);
        assert!(matched <= last, "law: n{peer} has saved {last}, but counts for {matched}");
    }

    pub(crate) fn queues(&mut self, replica: ReplicaID, id: LogId, name: &str) {
        let is_new = name == super::NOOP || !self.queued.values().flatten().any(|it| it.1 == name);
        assert!(is_new, "a script proposes {name} once only");
        self.queued.entry(replica).or_default().push((id, name.into()));
    }

    /// Every replica applies what is committed, in order, each entry once.
    pub(crate) fn applies(&mut self, replica: ReplicaID, index: Index, name: &str) {
        let committed = self.committed.get(&index).map(|it| it.entry.clone());
        let Some((id, Payload::Transition(expected))) = committed else {
            panic!("law: only what is committed is applied, but n{replica} applies {index}={name}")
        };
        assert_eq!(expected, name, "law: replicas apply the same, at {index} on n{replica}");
        assert!(!self.lost.contains(name), "law: {name} was abandoned for good, but is applied");
        self.queued.entry(replica).or_default().retain(|it| it.0 != id);
    }

    /// A queued transition has one outcome.
    pub(crate) fn abandons(&mut self, replica: ReplicaID, name: &str, for_good: bool) {
        let queued = self.queued.entry(replica).or_default();
        let place = queued.iter().position(|it| it.1 == name);
        let Some(place) = place else {
            panic!("law: one outcome for what was queued, but n{replica} abandons {name}")
        };
        let (id, _) = queued.remove(place);
        let committed = self.committed.get(&id.index).filter(|it| it.entry.0 == id);
        assert!(!for_good || committed.is_none(), "law: {name} is committed, but abandoned");
        if for_good && name != super::NOOP {
            self.lost.insert(name.into());
        }
    }

    /// A replica that stops owes no outcome any more.
    pub(crate) fn stops(&mut self, replica: ReplicaID) {
        self.queued.remove(&replica);
    }

    /// What a replica has queued and owes an outcome for.
    pub(crate) fn underway(&self, replica: ReplicaID) -> Vec<String> {
        self.queued.get(&replica).into_iter().flatten().map(|it| it.1.clone()).collect()
    }

    /// A snapshot is the state at its end.
    pub(crate) fn restores(&self, replica: ReplicaID, snapshot: &Snapshot<State>) {
        let index = snapshot.last_included_index;
        let (known, state) = (self.last_committed() >= index, self.state_at(index));
        let right = known && snapshot.data == state;
        assert!(right, "law: a snapshot is the state at its end, n{replica} restores {snapshot:?}");
    }

    /// A read sees everything that was committed anywhere when it was asked for.
    pub(crate) fn reads(replica: ReplicaID, asked_at: Index, applied: Index) {
        let fresh = asked_at <= applied;
        assert!(fresh, "law: a read is fresh, n{replica} answers at {applied}, not {asked_at}");
    }
}
