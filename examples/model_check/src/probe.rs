//! What a replica does not tell of itself is found by trying it on a copy.

use crate::node::{Data, Message, Raft, Transition};
use little_raft::{Body, Index, LogId, ReplicaID, Role, Round, TransitionState};
use std::time::Duration;

fn receive(raft: &mut Raft, from_id: ReplicaID, term: usize, body: Body<Transition, Data>) {
    let now = raft.me.now;
    raft.step(now, Message { from_id, term, body });
}

/// The first index that is still in its log, which it tells with its next outputs.
pub(crate) fn first_index(raft: &Raft) -> Index {
    let mut next = raft.clone();
    next.outputs(raft.me.now);
    next.me.first_index
}

/// Whether it has heard a leader, and so does not even look at who stands in a later term.
pub(crate) fn shuns(raft: &Raft) -> bool {
    let (status, last) = (&raft.me, LogId::default());
    let mut asked = raft.clone();
    let stranger = status.id + 1;
    let body = Body::RequestVote { pre: true, transfer: false, last };
    receive(&mut asked, stranger, status.term + 1, body);
    asked.me.term == status.term
}

/// The sets of others whose votes would make a candidate win. They tell which votes it has, as far
/// as that matters.
pub(crate) fn wins(raft: &Raft) -> Vec<u8> {
    let status = &raft.me;
    let pre = match status.role {
        Role::PreCandidate => true,
        Role::Candidate => false,
        Role::Follower | Role::Leader => return Vec::new(),
    };
    let members: Vec<_> = status.membership.members().into_iter().collect();
    let all = members.iter().fold(0u8, |set, id| set | 1 << id);
    let win = |set: &u8| {
        let mut voted_for = raft.clone();
        for &id in members.iter().filter(|id| *set & 1 << **id != 0) {
            receive(&mut voted_for, id, status.term, Body::Vote { pre, granted: true });
            if voted_for.me.role != status.role {
                return true;
            }
        }
        false
    };
    (1..=all).filter(|set| *set & !all == 0).filter(win).collect()
}

/// A leader's current round; zero for others. A read begins the next.
pub(crate) fn round(raft: &Raft) -> Round {
    let status = &raft.me;
    if status.role != Role::Leader {
        return Round::ZERO;
    }
    let mut read = raft.clone();
    read.read(status.now);
    let outputs = read.outputs(status.now);
    let round = |message: &Message| match message {
        Message { body: Body::AppendEntries { round, .. }, .. } => Some(*round),
        _ => None,
    };
    let next = outputs.appends.iter().find_map(|(_, message)| round(message));
    next.map_or(Round::ZERO, |it| it.saturating_sub(Duration::from_nanos(1)))
}

/// Whether a leader is handing its leadership over, for then it takes no transitions; and to which
/// of its peers, for that one it would ask to stand as soon as it had everything.
pub(crate) fn hands(raft: &Raft, round: Round) -> Option<Option<ReplicaID>> {
    let status = &raft.me;
    let mut proposed = raft.clone();
    proposed.propose(vec![Transition::Proposal(0)]);
    let states = proposed.outputs(status.now).states;
    let mut states = states.iter().filter(|(transitions, _)| !transitions.is_empty());
    let refused = states.any(|(_, state)| matches!(state, TransitionState::Abandoned(_)));
    if status.role != Role::Leader || !refused {
        return None;
    }
    let asks = |id: &ReplicaID| {
        let mut answered = raft.clone();
        let result = Ok(status.last_index);
        receive(&mut answered, *id, status.term, Body::Appended { result, round });
        let messages = answered.outputs(status.now).messages;
        let stand = |it: &Message| matches!(it, Message { body: Body::TimeoutNow, .. });
        messages.iter().any(|(to, message)| to == id && stand(message))
    };
    Some(status.peers.keys().copied().find(asks))
}
