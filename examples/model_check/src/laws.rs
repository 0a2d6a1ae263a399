//! What must hold in every state, and what must happen in some.

use crate::{ModelChecked, Node, State};
use stateright::Property;
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
        Property::always("committed is durable on a majority", |_, it| committed_is_durable(it)),
        Property::always("a vote is saved once per term", |_, it| keeps(it, Law::VoteOnce)),
        Property::always("no replica panics", |_, it| keeps(it, Law::Own)),
    ];
    let bounds = &model.bounds;
    if bounds.timeouts > 0 {
        all.push(Property::sometimes("a leader is elected", |_, it| leader(it, |_| true)));
        all.push(Property::sometimes("an entry is committed", |_, it: &State| {
            !it.history.committed.is_empty()
        }));
    }
    if bounds.timeouts > 0 && bounds.crashes > 0 {
        all.push(Property::sometimes("a leader is elected after a crash", |_, it| {
            leader(it, |node| node.restarted)
        }));
    }
    all
}

fn leader(state: &State, such: impl Fn(&Node) -> bool) -> bool {
    state.nodes.iter().any(|node| node.leads().is_some() && such(node))
}

fn keeps(state: &State, law: Law) -> bool {
    state.history.broken != Some(law)
}

/// If two logs hold an entry of one term at one index, they are equal up to there (§5.3).
pub fn logs_match(state: &State) -> bool {
    let agree = |one: &Arc<Node>, other: &Arc<Node>| {
        let pairs = one.log.iter().zip(&other.log);
        let last = pairs.clone().rposition(|(mine, theirs)| mine.term == theirs.term);
        pairs.take(last.map_or(0, |it| it + 1)).all(|(mine, theirs)| mine == theirs)
    };
    let rest = |place: usize| state.nodes.iter().skip(place + 1);
    state.nodes.iter().enumerate().all(|(place, one)| rest(place).all(|it| agree(one, it)))
}

/// Whoever leads holds all that was committed in earlier terms (§5.4).
pub fn leaders_are_complete(state: &State) -> bool {
    let complete = |node: &Node| {
        let Some(status) = node.leads() else { return true };
        let mut owed = state.history.committed.iter().enumerate();
        owed.all(|(place, (entry, term))| {
            *term >= status.term || node.log.get(place) == Some(entry)
        })
    };
    state.nodes.iter().all(|node| complete(node))
}

/// What was ever committed, and so perhaps acknowledged, is and stays on the disks of a majority.
pub fn committed_is_durable(state: &State) -> bool {
    let mut committed = state.history.committed.iter().enumerate();
    committed.all(|(place, (entry, _))| {
        let holders = state.nodes.iter().filter(|node| node.log.get(place) == Some(entry)).count();
        holders * 2 > state.nodes.len()
    })
}
