//! How a log spreads: what a leader knows of its peers, what it does, and what a follower does.

use crate::message::{Body, Request, Round, Run};
use crate::raft::{LIMIT, MAX_BATCH, MAX_IN_FLIGHT, Raft, Role};
use crate::{Index, LogId, Membership, ReplicaID, Snapshot, StateMachineTransition};
use crate::{TransitionAbandonedReason, TransitionAbandonedReason::*};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// What a leader is doing about a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Activity {
    /// Finding out where the logs part, one message at a time.
    Probing,
    /// Sending entries as they come, ahead of the answers.
    Replicating,
    /// Waiting for it to install the snapshot that ends here.
    Installing(LogId),
}

/// How far a peer is, as its leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Progress {
    /// Index up to which the peer's log durably matches.
    pub matched: Index,
    /// Index of the next entry to send; ahead of `matched` by what is underway.
    pub next: Index,
    /// What the leader is doing about the peer.
    pub activity: Activity,
    /// When it was last heard, or else when the leader began to wait for it.
    pub heard: Duration,
    /// The latest round that it has echoed, zero for none.
    pub echoed: Round,
    /// Answers to earlier rounds say nothing about where its log is now.
    pub since: Round,
    /// When to send a snapshot again, and how long to wait after that.
    pub patience: (Duration, Duration),
}

/// What belongs to a leadership.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leading {
    /// Everybody who receives the log, but for the leader itself.
    pub(crate) peers: BTreeMap<ReplicaID, Progress>,
    /// Index of the no-op, the first entry of this term.
    pub(crate) first: Index,
    /// The current round.
    pub(crate) round: Round,
    /// The reads that wait for a quorum to echo a round: who asked, its context, the index.
    pub(crate) questions: Vec<(ReplicaID, u64, Index, Round)>,
    /// To whom leadership is being handed, and until when that may take.
    pub(crate) transfer: Option<(ReplicaID, Duration)>,
    /// Somebody was asked to stand for election, whom others may follow at any moment.
    pub(crate) lease_void: bool,
    pub(crate) heartbeat_due: bool,
}

impl Leading {
    /// Begins a round that is later than everything sent in earlier turns, to be sent in this one.
    pub(crate) fn begin_round(&mut self, now: Duration) -> Round {
        if !self.heartbeat_due {
            self.round = now.max(self.round + Duration::from_nanos(1));
        }
        self.heartbeat_due = true;
        self.round
    }
}

/// The leader's side.
impl<T: StateMachineTransition, D: Clone> Raft<T, D> {
    /// Appends transitions, or else a configuration.
    pub(crate) fn append_as_leader(&mut self, transitions: Vec<T>, next: Option<Membership>) {
        let (first, transitions) = (self.log.last().index + 1, Arc::new(transitions));
        let run = Run { first, term: self.term, transitions, membership: next.map(Arc::new) };
        if run.membership.is_none() {
            self.outputs.queued.push(run.clone());
        }
        self.log.append(run);
    }

    /// Keeps track of everybody in a configuration that is in force or not yet left for good, and of
    /// nobody else.
    pub(crate) fn watch_members(&mut self) {
        let configurations = self.log.memberships_from(self.commit).iter();
        let members: BTreeSet<_> = configurations.flat_map(|(_, it)| it.members()).collect();
        self.leading.peers.retain(|id, _| members.contains(id));
        let since = self.leading.begin_round(self.now);
        for id in members.into_iter().filter(|id| *id != self.config.id) {
            let (next, heard, echoed) = (self.leading.first, self.now, Round::ZERO);
            let (activity, patience) = (Activity::Replicating, (self.now, Duration::ZERO));
            let new = Progress { matched: 0, next, activity, heard, echoed, since, patience };
            self.leading.peers.entry(id).or_insert(new);
        }
    }

    /// Time for heartbeats. A leader without a quorum's answers for an election timeout steps down
    /// instead, in its own term (thesis §6.2).
    pub(crate) fn on_heartbeat_timeout(&mut self) {
        let patience = self.config.election_timeout_range.1;
        // Who has only just become a peer cannot have answered yet.
        let heard = |id| self.leading.peers.get(&id).map_or(self.now, |it| it.echoed.max(it.since));
        if self.log.membership().1.quorum(heard).saturating_add(patience) <= self.now {
            log::warn!("{}: hears no quorum, steps down in term {}", self.config.id, self.term);
            return self.enter(self.term, Role::Follower, None);
        }
        self.leading.begin_round(self.now);
        self.leading.transfer = self.leading.transfer.filter(|(_, until)| self.now < *until);
        self.deadline = self.now.saturating_add(self.config.heartbeat_timeout);
    }

    /// The latest round that a quorum has echoed: this replica still led when it began.
    pub(crate) fn echoed_by_quorum(&self) -> Round {
        let Leading { peers, round, .. } = &self.leading;
        self.log.membership().1.quorum(|id| peers.get(&id).map_or(*round, |peer| peer.echoed))
    }

    /// What a leader does each turn, after all inputs.
    pub(crate) fn lead(&mut self) {
        self.advance_commit();
        self.confirm_reads();
        let due = std::mem::take(&mut self.leading.heartbeat_due);
        self.send_appends(due);
    }

    fn send_appends(&mut self, due: bool) {
        for id in self.leading.peers.keys().copied().collect::<Vec<_>>() {
            self.send_append(id, due);
        }
    }

    /// Commits what a quorum holds durably, if it reaches this term: then all before it is safe too
    /// (§5.4.2). The leader counts itself for what it has saved.
    pub(crate) fn advance_commit(&mut self) {
        let Leading { peers, first, .. } = &self.leading;
        let (since, membership) = self.log.membership();
        let saved = |id| peers.get(&id).map_or(self.log.saved, |peer| peer.matched);
        let (before, now, settled) = (self.commit, membership.quorum(saved), (*first).max(*since));
        if self.role == Role::Leader && now >= *first {
            self.commit_to(now);
            if before < settled && settled <= now {
                self.complete_membership();
            }
        }
    }

    /// The configuration in force is committed. If it is joint, whoever began it, the next one is
    /// appended (§6); if not, everybody is told, and who is no member any more is let go.
    fn complete_membership(&mut self) {
        let membership = self.log.membership().1.clone();
        if membership.is_joint() {
            let next = Membership { outgoing: BTreeSet::new(), ..Membership::clone(&membership) };
            return self.append_as_leader(Vec::new(), Some(next));
        }
        self.send_appends(true);
        self.watch_members();
        if !membership.is_voter(self.config.id) {
            log::info!("{}: votes no more, steps down", self.config.id);
            self.enter(self.term, Role::Follower, None);
        }
    }

    /// Sends a peer what it lacks, as far as it may be underway; if there is nothing and it is
    /// `due`, a heartbeat. That is an append at the frontier, and so discovers every loss.
    fn send_append(&mut self, to_id: ReplicaID, mut due: bool) {
        loop {
            let Some(peer) = self.leading.peers.get_mut(&to_id) else { return };
            let open =
                peer.next - peer.matched <= MAX_IN_FLIGHT && peer.next <= self.log.last().index;
            let more = open && peer.activity == Activity::Replicating;
            if !more && !due {
                return;
            }
            let prev = match peer.activity {
                Activity::Installing(end) => Some(end),
                _ => self.log.entry(peer.next - 1),
            };
            let Some(prev) = prev else { return self.send_snapshot(to_id) };
            let runs = if more { self.log.slice(peer.next, MAX_BATCH) } else { Vec::new() };
            peer.next = runs.last().map_or(peer.next, |run| run.last().index + 1);
            let (commit, round) = (self.commit, self.leading.round);
            self.send(to_id, Body::AppendEntries { prev, runs, commit, round });
            due = false;
        }
    }

    /// Sends a snapshot to a peer that needs entries which are compacted (§7). A lost one is sent
    /// again, ever more rarely, as long as the peer answers that it does not have it.
    fn send_snapshot(&mut self, to_id: ReplicaID) {
        let Some(snapshot) = self.snapshot.clone() else { return };
        let Some(peer) = self.leading.peers.get_mut(&to_id) else { return };
        let again = matches!(peer.activity, Activity::Installing(_));
        let wait = if again { peer.patience.1 * 2 } else { self.config.election_timeout_range.1 };
        peer.patience = (self.now.saturating_add(wait), wait);
        peer.activity = Activity::Installing(snapshot.last());
        let (membership, round) = (Membership::clone(&self.log.snapshot().1), self.leading.round);
        self.send(to_id, Body::InstallSnapshot { snapshot, membership, round });
    }

    /// What must not be compacted yet: a live peer is installing a snapshot and will need what
    /// follows it.
    pub(crate) fn needed_by_receivers(&self) -> Index {
        let live = self.now.saturating_sub(self.config.election_timeout_range.1);
        let needed = self.leading.peers.values().filter_map(|peer| match peer.activity {
            Activity::Installing(end) if peer.heard >= live => Some(end.index),
            _ => None,
        });
        needed.min().unwrap_or(Index::MAX)
    }

    /// Takes note of a peer's answer to a round of this leadership. From before it became a peer, or
    /// before the leader went back for it, an answer says nothing.
    pub(crate) fn on_appended(
        &mut self,
        from_id: ReplicaID,
        result: Result<Index, LogId>,
        round: Round,
    ) {
        let last = self.log.last().index;
        let Some(peer) = self.leading.peers.get_mut(&from_id) else { return };
        if round > self.leading.round || result.is_ok_and(|matched| matched > last) {
            return log::warn!("{}: dropped an answer to nothing: {result:?}", self.config.id);
        }
        peer.heard = self.now;
        if round < peer.since {
            return;
        }
        peer.echoed = peer.echoed.max(round);
        match (result, peer.activity) {
            (Ok(matched), activity) => {
                peer.matched = peer.matched.max(matched);
                peer.next = peer.next.max(peer.matched + 1);
                if !matches!(activity, Activity::Installing(end) if matched < end.index) {
                    peer.activity = Activity::Replicating;
                }
                if peer.matched == last
                    && self.leading.transfer.is_some_and(|(id, _)| id == from_id)
                {
                    self.leading.lease_void = true;
                    self.send(from_id, Body::TimeoutNow);
                }
            }
            (Err(_), Activity::Installing(_)) if self.now < peer.patience.0 => {}
            (Err(_), Activity::Installing(_)) => self.send_snapshot(from_id),
            (Err(hint), _) => {
                // Back to where the logs may still agree, past a whole term at a time, and no
                // further than they are known to.
                let below = hint.index < self.log.base.index;
                let agreed = if below { hint } else { self.log.backtrack(hint) };
                peer.next = (agreed.index + 1).clamp(peer.matched + 1, peer.next);
                peer.activity = Activity::Probing;
                peer.since = self.leading.round + Duration::from_nanos(1);
                self.leading.begin_round(self.now);
            }
        }
    }

    /// What a user asks: the leader does it, another replica passes it on.
    pub(crate) fn on_request(&mut self, request: Request) {
        match self.leader {
            Some(id) if id == self.config.id => self.serve(request),
            Some(id) => self.send(id, Body::Request(request)),
            None => log::warn!("{}: knows no leader to {request:?}", self.config.id),
        }
    }

    /// Does what a user asks, if this replica leads. A change of the configuration must not overlap
    /// another: every earlier one must be committed, and so must an entry of this term.
    pub(crate) fn serve(&mut self, request: Request) {
        let (since, current) = self.log.membership();
        let Leading { transfer, first, .. } = &mut self.leading;
        let settled = !current.is_joint() && (*first).max(*since) <= self.commit;
        match request {
            _ if self.role != Role::Leader || transfer.is_some() => {}
            Request::TransferLeadership { to_id } if current.voters.contains(&to_id) => {
                *transfer =
                    Some((to_id, self.now.saturating_add(self.config.election_timeout_range.1)));
                self.leading.begin_round(self.now);
                return;
            }
            Request::ChangeMembership { voters, learners } if settled => {
                let named = voters.len() + learners.len();
                let (voters, learners) =
                    (BTreeSet::from_iter(voters), BTreeSet::from_iter(learners));
                if !voters.is_empty() && voters.union(&learners).count() == named {
                    let changed = voters != current.voters;
                    let outgoing = current.voters.iter().copied().filter(|_| changed).collect();
                    self.append_as_leader(
                        Vec::new(),
                        Some(Membership { voters, outgoing, learners }),
                    );
                    return self.watch_members();
                }
            }
            _ => {}
        }
        log::warn!("{}: refused a request, ask again if it makes sense", self.config.id);
    }
}

/// The follower's side.
impl<T: StateMachineTransition, D: Clone> Raft<T, D> {
    /// Follows the leader of the current term, whatever this replica was, and waits for its next
    /// message. False if another is known to lead: then somebody is lying.
    pub(crate) fn heed(&mut self, leader_id: ReplicaID) -> bool {
        if self.leader.is_none() {
            self.enter(self.term, Role::Follower, Some(leader_id));
        } else if self.leader != Some(leader_id) {
            log::warn!("{}: dropped what {leader_id} says as another leader", self.config.id);
            return false;
        }
        self.heard = Some(self.now);
        self.reset_election_timer();
        true
    }

    /// Takes over a leader's entries. Returns up to where the logs match, or where they may.
    pub(crate) fn on_append_entries(
        &mut self,
        prev: LogId,
        runs: Vec<Run<T>>,
        commit: Index,
    ) -> Result<Index, LogId> {
        let matched = runs.last().map_or(prev.index, |run| run.last().index);
        // What lies before the base is committed: the leader has it too.
        let agrees = prev.index < self.log.base.index || self.log.holds(prev);
        if !agrees || !self.log.splice(prev, runs, self.term, self.commit) {
            return Err(self.log.backtrack(prev));
        }
        // Up to what this message has verified, not whatever may follow it here (§5.3).
        self.commit_to(commit.min(matched));
        Ok(matched)
    }

    /// Installs a snapshot, unless this replica holds what it covers. Returns up to where the logs
    /// match.
    pub(crate) fn on_install_snapshot(
        &mut self,
        snapshot: Snapshot<D>,
        membership: Membership,
    ) -> Index {
        let last = snapshot.last();
        if self.log.holds(last) {
            self.commit_to(last.index);
        } else if (self.commit + 1..LIMIT).contains(&last.index) && last.term <= self.term {
            log::info!("{}: installs a snapshot at {last:?}", self.config.id);
            self.log.reset(last, membership);
            (self.commit, self.applied) = (last.index, last.index);
            self.settle_orphans(OutcomeUnknown);
            self.outputs.restore = Some(snapshot.clone());
            self.snapshot = Some(snapshot);
        }
        self.commit
    }

    /// Commits up to an index, which must be in the log.
    pub(crate) fn commit_to(&mut self, index: Index) {
        if index > self.commit {
            self.commit = index;
            self.applied(0);
            self.settle_orphans(ConflictWithLeader);
        }
    }

    /// Abandons the orphans of which it is certain that they will not be applied here: something
    /// else is committed in their place, or a snapshot covers it. Nothing less is certain: an entry
    /// that this replica has lost another may still hold, and bring back as a leader.
    fn settle_orphans(&mut self, reason: TransitionAbandonedReason) {
        let (log, commit, applied) = (&self.log, self.commit, self.applied);
        for (id, transition) in std::mem::take(&mut self.orphans) {
            let held = log.holds(id) && reason == ConflictWithLeader;
            if id.index > commit || held && id.index > applied {
                self.orphans.insert(id, transition);
            } else if !held {
                self.outputs.abandoned.push((transition, reason.clone()));
            }
        }
    }
}
