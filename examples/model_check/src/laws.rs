//! What must hold in every state, and what must happen in some.

use crate::{Bounds, Content, ModelChecked, Node, State};
use little_raft::{Index, Membership, ReplicaID};
use stateright::Property;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A law that a single step can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Law {
    /// Two replicas led one term.
    ElectionSafety,
    /// Two replicas applied different entries at one index, or one applied them out of order.
    StateMachineSafety,
    /// A replica saved two votes in one term, or an older term.
    VoteOnce,
    /// A replica panicked, as it does when it finds a law of its own broken.
    Own,
}

/// Everything that is checked under these bounds.
pub(crate) fn properties(model: &ModelChecked) -> Vec<Property<ModelChecked>> {
    let mut all = vec![
        Property::always("Election Safety", |_, it: &State| keeps(it, Law::ElectionSafety)),
        Property::always("Log Matching", |_, it| logs_match(it)),
        Property::always("Leader Completeness", |_, it| leaders_are_complete(it)),
        Property::always("State Machine Safety", |_, it| keeps(it, Law::StateMachineSafety)),
        Property::always("committed is durable on a quorum", |_, it| committed_is_durable(it)),
        Property::always("a vote is saved once per term", |_, it| keeps(it, Law::VoteOnce)),
        Property::always("no replica panics", |_, it| keeps(it, Law::Own)),
    ];
    all.extend(hopes(&model.bounds));
    all
}

type Condition = fn(&ModelChecked, &State) -> bool;

/// What must happen in some state, if the bounds let it.
fn hopes(bounds: &Bounds) -> Vec<Property<ModelChecked>> {
    let (changes, several) = (!bounds.change_to.is_empty(), bounds.servers > 1);
    // Of two no leader commits what the other lacks.
    let compacts = (1..=bounds.proposals).contains(&bounds.snapshot_delta) && bounds.servers > 2;
    let hopes: [(bool, &'static str, Condition); 8] = [
        (true, "a leader is elected", |_, it| leader(it, |_| true)),
        (true, "an entry is committed", |_, it| !it.history.committed.is_empty()),
        (bounds.crashes > 0, "a leader is elected after a crash", |_, it| {
            leader(it, |node| node.restarted)
        }),
        (bounds.crashes >= bounds.servers, "all have crashed and are back", |_, it| {
            it.nodes.iter().all(|node| node.restarted && node.life.is_some())
        }),
        (bounds.transfers > 0 && several, "a leader is elected by a transfer", |_, it| {
            leader(it, |node| node.life.as_ref().is_some_and(|life| life.asked))
        }),
        (compacts, "a snapshot is installed", |_, it| {
            it.nodes.iter().any(|node| node.has_installed())
        }),
        (changes, "a joint configuration is committed", |_, it| {
            current(it).is_some_and(|(_, it)| !it.outgoing.is_empty())
        }),
        (changes && bounds.timeouts + bounds.heartbeats > 1, "the change is complete", |_, it| {
            current(it).is_some_and(|(_, it)| it.outgoing.is_empty())
        }),
    ];
    let possible = hopes.into_iter().filter(|(possible, ..)| *possible && bounds.timeouts > 0);
    possible.map(|(_, name, condition)| Property::sometimes(name, condition)).collect()
}

fn leader(state: &State, such: impl Fn(&Node) -> bool) -> bool {
    state.nodes.iter().any(|node| node.leads().is_some() && such(node))
}

fn keeps(state: &State, law: Law) -> bool {
    state.history.broken != Some(law)
}

/// The last committed configuration and its index; nothing if that is still the first.
fn current(state: &State) -> Option<(Index, &Membership)> {
    let committed = state.history.committed.iter().enumerate();
    let mut latest = committed.map(|(place, (entry, _))| (place + 1, &entry.content)).rev();
    latest.find_map(|(index, content)| match content {
        Content::Configuration(membership) => Some((index, &**membership)),
        Content::Transition(_) => None,
    })
}

/// If two logs hold an entry of one term at one index, they are equal up to there (§5.3), as far as
/// they are not compacted.
pub fn logs_match(state: &State) -> bool {
    let agree = |one: &Arc<Node>, other: &Arc<Node>| {
        let base = one.disk.compacted.index.max(other.disk.compacted.index);
        let after = |it: &Node| base - it.disk.compacted.index;
        let pairs = one.log.iter().skip(after(one)).zip(other.log.iter().skip(after(other)));
        let same = pairs.clone().map(|(mine, theirs)| mine.term == theirs.term);
        let last = same.enumerate().rfind(|(_, same)| *same);
        pairs.take(last.map_or(0, |(it, _)| it + 1)).all(|(mine, theirs)| mine == theirs)
    };
    let rest = |place: usize| state.nodes.iter().skip(place + 1);
    state.nodes.iter().enumerate().all(|(place, one)| rest(place).all(|it| agree(one, it)))
}

/// Whoever leads holds all that was committed in earlier terms (§5.4).
pub fn leaders_are_complete(state: &State) -> bool {
    let complete = |node: &Node| {
        let Some(status) = node.leads() else { return true };
        let mut owed = (1..).zip(&state.history.committed);
        owed.all(|(index, (entry, term))| *term >= status.term || node.holds(index, entry))
    };
    state.nodes.iter().all(|node| complete(node))
}

/// What was ever committed, and so perhaps acknowledged, is and stays on the disks of a quorum of
/// the committed configuration. Of the old half of a joint one that holds up to the configuration
/// itself: after that the next, which is the new half, may decide before it is committed.
pub fn committed_is_durable(state: &State) -> bool {
    let holds = |id: ReplicaID, count: usize| {
        let mut committed = (1..).zip(&state.history.committed).take(count);
        committed.all(|(index, (entry, _))| state.nodes[id].holds(index, entry))
    };
    let (since, current) = current(state).unwrap_or((0, &state.first));
    let old = &current.outgoing;
    is_majority(&current.voters, |id| holds(id, usize::MAX))
        && (old.is_empty() || is_majority(old, |id| holds(id, since)))
}

/// Whether most do. The library's own arithmetic is not asked: it is what is judged here.
fn is_majority(voters: &BTreeSet<ReplicaID>, does: impl Fn(ReplicaID) -> bool) -> bool {
    voters.iter().filter(|id| does(**id)).count() * 2 > voters.len()
}
