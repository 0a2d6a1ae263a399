//! Linearizable reads that put nothing into the log (thesis §6.4).
//!
//! A read asks the leader for a *read index*: an index at or above everything that was committed
//! when the read came. The leader gives it once it is sure that it still led at that moment, because
//! a quorum has echoed a round that began later, or because its lease has not run out. The read is
//! ready, wherever it was asked, when that index is applied there.

use crate::message::Body;
use crate::raft::{Raft, Role};
use crate::{Index, ReadState, ReplicaID, StateMachineTransition};
use std::time::Duration;

/// The reads asked at this replica.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reads {
    /// The next ticket. Starts at random, so that a late answer to an earlier life of this replica
    /// answers nothing.
    pub(crate) next: u64,
    /// Tickets with the leader's answer, once there, and when to stop waiting for it.
    pub(crate) waiting: Vec<(u64, Option<Index>, Duration)>,
    pub(crate) done: Vec<(u64, ReadState)>,
}

impl Reads {
    /// Abandons the reads that only the leader of the past could have brought to an end.
    pub(crate) fn abandon_unanswered(&mut self, commit: Index) {
        self.end(ReadState::Abandoned, |index, _| index.is_none_or(|index| index > commit));
    }

    /// Abandons the reads whose question or answer must be lost.
    pub(crate) fn abandon_overdue(&mut self, now: Duration) {
        self.end(ReadState::Abandoned, |index, overdue_at| index.is_none() && overdue_at <= now);
    }

    fn end(&mut self, state: ReadState, ends: impl Fn(Option<Index>, Duration) -> bool) {
        let ended = self.waiting.extract_if(.., |(_, index, overdue_at)| ends(*index, *overdue_at));
        self.done.extend(ended.map(|(ticket, ..)| (ticket, state)));
    }
}

impl<T: StateMachineTransition, D: Clone> Raft<T, D> {
    /// Asks for a linearizable read at time `now`, which must not lie before the read was asked for.
    /// Returns the ticket under which [`take_reads`](Self::take_reads) answers it.
    pub fn read(&mut self, now: Duration) -> u64 {
        self.now = self.now.max(now);
        let ticket = self.reads.next;
        self.reads.next = ticket.wrapping_add(1);
        let overdue_at = self.now.saturating_add(self.config.election_timeout_range.1);
        self.reads.waiting.push((ticket, None, overdue_at));
        match self.leader {
            Some(id) if id == self.config.id => self.on_read_index(id, ticket),
            Some(id) => self.send(id, Body::ReadIndex { context: ticket }),
            None => self.reads.abandon_unanswered(self.commit),
        }
        ticket
    }

    /// The reads that have come to an end. Call it after applying: ready is what the applied state
    /// can answer now.
    pub fn take_reads(&mut self) -> Vec<(u64, ReadState)> {
        let applied = self.applied;
        self.reads.end(ReadState::Ready, |index, _| index.is_some_and(|index| index <= applied));
        std::mem::take(&mut self.reads.done)
    }

    /// The leader takes down a question, its own or a follower's; nobody else can answer it.
    pub(crate) fn on_read_index(&mut self, from_id: ReplicaID, context: u64) {
        if self.role != Role::Leader {
            return;
        }
        // All that was committed in earlier terms lies before the leader's no-op, so before that is
        // committed its index serves (thesis §6.4, step 1).
        let index = self.commit.max(self.leading.first);
        if self.has_lease() {
            self.answer_read(from_id, context, index);
        } else {
            let round = self.leading.begin_round(self.now);
            self.leading.questions.push((from_id, context, index, round));
        }
    }

    /// Answers what a quorum has confirmed by now.
    pub(crate) fn confirm_reads(&mut self) {
        if !self.leading.questions.is_empty() {
            let echoed = self.echoed_by_quorum();
            let confirmed = self.leading.questions.extract_if(.., |(.., round)| *round <= echoed);
            for (from_id, context, index, _) in confirmed.collect::<Vec<_>>() {
                self.answer_read(from_id, context, index);
            }
        }
    }

    fn answer_read(&mut self, from_id: ReplicaID, context: u64, index: Index) {
        if from_id == self.config.id {
            self.on_read_answer(context, index);
        } else {
            self.send(from_id, Body::ReadIndexResponse { context, index });
        }
    }

    pub(crate) fn on_read_answer(&mut self, context: u64, index: Index) {
        let asked = self.reads.waiting.iter_mut().find(|(ticket, ..)| *ticket == context);
        asked.into_iter().for_each(|(_, answer, _)| *answer = Some(index));
    }

    /// Whether no other leader can have been elected yet: the followers that heard this one wait at
    /// least the least election timeout before they vote (thesis §6.4.1).
    fn has_lease(&self) -> bool {
        let (echoed, least) = (self.echoed_by_quorum(), self.config.election_timeout_range.0);
        let expires_at = echoed.saturating_add(least);
        let drift = self.config.max_clock_drift.filter(|_| !self.leading.lease_void);
        drift.is_some_and(|drift| !echoed.is_zero() && self.now.saturating_add(drift) < expires_at)
    }
}
