//! What a replica does not tell of itself is found by trying it on a copy.

use crate::node::{Data, Message, Raft, Transition};
use little_raft::{Body, LogId, ReplicaID, Role, Round};
use std::time::Duration;

fn receive(raft: &mut Raft, from_id: ReplicaID, term: usize, body: Body<Transition, Data>) {
    let now = raft.status().now;
    raft.step(now, Message::Protocol { from_id, term, body });
}

/// Whether it has heard a leader, and so does not even look at who stands in a later term.
pub(crate) fn shuns(raft: &Raft) -> bool {
    let (status, last) = (raft.status(), LogId::default());
    let mut asked = raft.clone();
    let stranger = status.id + 1;
    let body = Body::RequestVote { pre: true, transfer: false, last };
    receive(&mut asked, stranger, status.term + 1, body);
    asked.status().term == status.term
}

/// The sets of others whose votes would make a candidate win. They tell which votes it has, as far
/// as that matters.
pub(crate) fn wins(raft: &Raft) -> Vec<u8> {
    let status = raft.status();
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
            if voted_for.status().role != status.role {
                return true;
            }
        }
        false
    };
    (1..=all).filter(|set| *set & !all == 0).filter(win).collect()
}

/// A leader's current round; zero for others. A read begins the next.
pub(crate) fn round(raft: &Raft) -> Round {
    let status = raft.status();
    if status.role != Role::Leader {
        return Round::ZERO;
    }
    let mut read = raft.clone();
    read.read(status.now);
    let outputs = read.outputs();
    let round = |message: &Message| match message {
        Message::Protocol { body: Body::AppendEntries { round, .. }, .. } => Some(*round),
        _ => None,
    };
    let next = outputs.appends.iter().find_map(|(_, message)| round(message));
    next.map_or(Round::ZERO, |it| it.saturating_sub(Duration::from_nanos(1)))
}

/// Whether a leader is handing its leadership over, for then it takes no transitions; and to which
/// of its peers, for that one it would ask to stand as soon as it had everything.
pub(crate) fn hands(raft: &Raft, round: Round) -> Option<Option<ReplicaID>> {
    let status = raft.status();
    let mut proposed = raft.clone();
    proposed.propose(vec![Transition::Proposal(0)]);
    if status.role != Role::Leader || proposed.outputs().abandoned.is_empty() {
        return None;
    }
    let asks = |id: &ReplicaID| {
        let mut answered = raft.clone();
        let result = Ok(status.last_index);
        receive(&mut answered, *id, status.term, Body::Appended { result, round });
        let messages = answered.outputs().messages;
        let stand = |it: &Message| matches!(it, Message::Protocol { body: Body::TimeoutNow, .. });
        messages.iter().any(|(to, message)| to == id && stand(message))
    };
    Some(status.peers.keys().copied().find(asks))
}
