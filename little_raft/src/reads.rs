//! Linearizable reads that put nothing into the log (thesis §6.4).
//!
//! A read asks the leader for a *read index*: an index at or above everything that was committed
//! when the read came. The leader gives it once it is sure that it still led at that moment, because
//! a quorum has echoed a round that began later, or because its lease has not run out. The read is
//! ready, wherever it was asked, when that index is applied there.

use crate::message::{Body, Round};
use crate::raft::{Raft, State};
use crate::{Index, ReadState, ReplicaID, StateMachineTransition};
use std::collections::VecDeque;
use std::time::Duration;

/// The reads asked at this replica.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reads {
    /// The next ticket. Starts at random, so that a late answer to an earlier life of this replica
    /// answers nothing.
    next: u64,
    waiting: VecDeque<Read>,
    done: Vec<(u64, ReadState)>,
}

#[derive(Clone, Debug)]
struct Read {
    ticket: u64,
    /// The leader's answer.
    index: Option<Index>,
    /// When to stop waiting for the answer, which may be lost.
    overdue_at: Duration,
}

/// A question that a leader cannot answer yet.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    from_id: ReplicaID,
    context: u64,
    index: Index,
    /// A quorum's echo of this round or a later one shows that this replica led when the question
    /// came.
    round: Round,
}

impl Reads {
    pub(crate) fn starting_at(next: u64) -> Reads {
        Reads { next, ..Reads::default() }
    }

    /// Abandons the reads that only the leader of the past could have brought to an end.
    pub(crate) fn abandon_unanswered(&mut self, commit: Index) {
        self.abandon(|read| read.index.is_none_or(|index| index > commit));
    }

    pub(crate) fn abandon_overdue(&mut self, now: Duration) {
        self.abandon(|read| read.index.is_none() && now >= read.overdue_at);
    }

    fn abandon(&mut self, hopeless: impl Fn(&Read) -> bool) {
        let done = &mut self.done;
        self.waiting.retain(|read| {
            if hopeless(read) {
                done.push((read.ticket, ReadState::Abandoned));
            }
            !hopeless(read)
        });
    }
}

impl<T: StateMachineTransition, D: Clone> Raft<T, D> {
    /// Asks for a linearizable read at time `now`, which must not lie before the read was asked for.
    /// Returns the ticket under which [`take_reads`](Self::take_reads) answers it.
    pub fn read(&mut self, now: Duration) -> u64 {
        self.now = self.now.max(now);
        let ticket = self.reads.next;
        self.reads.next = ticket.wrapping_add(1);
        let Some(leader_id) = self.leader() else {
            self.reads.done.push((ticket, ReadState::Abandoned));
            return ticket;
        };
        let overdue_at = self.now.saturating_add(self.config.election_timeout_range.1);
        self.reads.waiting.push_back(Read { ticket, index: None, overdue_at });
        match leader_id == self.config.id {
            true => self.on_read_index(leader_id, ticket),
            false => self.send(leader_id, Body::ReadIndex { context: ticket }),
        }
        ticket
    }

    /// The reads that have come to an end. Call it after applying: ready is what the applied state
    /// can answer now.
    pub fn take_reads(&mut self) -> Vec<(u64, ReadState)> {
        let (applied, done) = (self.applied, &mut self.reads.done);
        self.reads.waiting.retain(|read| {
            let ready = read.index.is_some_and(|index| index <= applied);
            if ready {
                done.push((read.ticket, ReadState::Ready));
            }
            !ready
        });
        std::mem::take(done)
    }

    /// The leader takes down a question, its own or a follower's; nobody else can answer it.
    pub(crate) fn on_read_index(&mut self, from_id: ReplicaID, context: u64) {
        let has_lease = self.has_lease();
        let State::Leader(leader) = &mut self.state else { return };
        // All that was committed in earlier terms lies before the leader's no-op, so before that is
        // committed its index serves (thesis §6.4, step 1).
        let index = self.commit.max(leader.first);
        if has_lease {
            return self.answer_read(from_id, context, index);
        }
        let round = leader.begin_round(self.now);
        leader.questions.push_back(Question { from_id, context, index, round });
    }

    /// Answers what a quorum has confirmed by now.
    pub(crate) fn confirm_reads(&mut self) {
        let State::Leader(leader) = &self.state else { return };
        if leader.questions.is_empty() {
            return;
        }
        let echoed = self.echoed_by_quorum(leader);
        let State::Leader(leader) = &mut self.state else { return };
        let confirmed = leader.questions.partition_point(|question| question.round <= echoed);
        let confirmed: Vec<_> = leader.questions.drain(..confirmed).collect();
        for question in confirmed {
            self.answer_read(question.from_id, question.context, question.index);
        }
    }

    fn answer_read(&mut self, from_id: ReplicaID, context: u64, index: Index) {
        match from_id == self.config.id {
            true => self.on_read_answer(context, index),
            false => self.send(from_id, Body::ReadIndexResponse { context, index }),
        }
    }

    pub(crate) fn on_read_answer(&mut self, context: u64, index: Index) {
        for read in self.reads.waiting.iter_mut().filter(|read| read.ticket == context) {
            read.index.get_or_insert(index);
        }
    }

    /// Whether no other leader can have been elected yet: followers that heard this one wait at
    /// least the least election timeout before they vote (thesis §6.4.1).
    fn has_lease(&self) -> bool {
        let (State::Leader(leader), Some(drift)) = (&self.state, self.config.max_clock_drift)
        else {
            return false;
        };
        let echoed = self.echoed_by_quorum(leader);
        let lease = self.config.election_timeout_range.0 - drift;
        echoed.number > 0 && !leader.lease_void && self.now < echoed.began.saturating_add(lease)
    }
}
