//! How a log spreads: what a leader knows of its peers, what it does, and what a follower does.

use crate::raft::{LIMIT, MAX_BATCH, MAX_IN_FLIGHT};
use crate::{TransitionAbandonedReason::*, *};
use std::collections::{BTreeMap, BTreeSet};
use std::mem::{replace, take};
use std::{sync::Arc, time::Duration};

/// What a leader is doing about a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Activity {
    /// Finding out where the logs part, one message at a time.
    Probing,
    /// Sending entries as they come, ahead of the answers.
    #[default]
    Replicating,
    /// Waiting for it to install a snapshot.
    Installing,
}

/// How far a peer is, as its leader sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// When to send it a snapshot again, and how long to wait after that.
    pub patience: (Duration, Duration),
}

/// What belongs to a candidacy or a leadership, and ends with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leading {
    /// Who voted for this replica.
    pub(crate) votes: BTreeSet<ReplicaID>,
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
        let later = now.max(self.round + Duration::from_nanos(1));
        self.round = if replace(&mut self.heartbeat_due, true) { self.round } else { later };
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
        let (next, since, heard) =
            (self.leading.first, self.leading.begin_round(self.now), self.now);
        self.leading.peers.retain(|id, _| members.contains(id));
        for id in members.into_iter().filter(|id| *id != self.config.id) {
            let new = Progress { next, since, heard, ..Progress::default() };
            self.leading.peers.entry(id).or_insert(new);
        }
    }

    /// Time for heartbeats. A leader without a quorum's answers for an election timeout steps down
    /// instead, in its own term (thesis §6.2).
    pub(crate) fn on_heartbeat_timeout(&mut self) {
        self.deadline = self.now.saturating_add(self.config.heartbeat_timeout);
        // Who has only just become a peer cannot have answered yet.
        let heard = |id| self.leading.peers.get(&id).map_or(self.now, |it| it.echoed.max(it.since));
        let heard = self.log.membership().1.quorum(heard);
        if heard.saturating_add(self.config.election_timeout_range.1) <= self.now {
            warn!("{}: hears no quorum, steps down in term {}", self.config.id, self.term);
            return self.enter(self.term, Role::Follower, None);
        }
        self.leading.begin_round(self.now);
        self.leading.transfer = self.leading.transfer.filter(|(_, until)| self.now < *until);
    }

    /// The latest round that a quorum has echoed: this replica still led when it began.
    pub(crate) fn echoed_by_quorum(&self) -> Round {
        let Leading { peers, round, .. } = &self.leading;
        self.log.membership().1.quorum(|id| peers.get(&id).map_or(*round, |peer| peer.echoed))
    }

    /// What a leader does each turn, after all inputs.
    pub(crate) fn lead(&mut self) {
        self.advance_commit();
        if !self.leading.questions.is_empty() {
            self.confirm_reads();
        }
        let due = take(&mut self.leading.heartbeat_due);
        for id in self.leading.peers.keys().copied().collect::<Vec<_>>() {
            self.send_append(id, due);
        }
        if due {
            self.settle_membership();
        }
    }

    /// Commits what a quorum holds durably, if it reaches this term: then all before it is safe too
    /// (§5.4.2). The leader counts itself for what it has saved.
    pub(crate) fn advance_commit(&mut self) {
        let (Leading { peers, first, .. }, saved) = (&self.leading, self.log.saved);
        let held = |id| peers.get(&id).map_or(saved, |peer| peer.matched);
        let index = self.log.membership().1.quorum(held);
        if self.role == Role::Leader && index >= *first {
            self.commit_to(index);
        }
    }

    /// Everybody has just been told how far the log is committed. If that includes the configuration,
    /// a joint one is followed by the next, whoever began it (§6); from another, who is not in it is
    /// let go, be it this leader.
    fn settle_membership(&mut self) {
        let (since, membership) = self.log.membership().clone();
        if self.leading.first.max(since) <= self.commit {
            if !membership.outgoing.is_empty() {
                let next =
                    Membership { outgoing: BTreeSet::new(), ..Membership::clone(&membership) };
                self.append_as_leader(Vec::new(), Some(next));
            } else if !membership.voters.contains(&self.config.id) {
                return self.enter(self.term, Role::Follower, None);
            }
        }
        self.watch_members();
        self.leading.heartbeat_due = false;
    }

    /// Sends a peer what it lacks, as far as it may be underway; if there is nothing and it is
    /// `due`, a heartbeat. That is an append at the frontier, and so discovers every loss. What is
    /// compacted it shall miss, and say so.
    fn send_append(&mut self, to: ReplicaID, due: bool) {
        let Some(peer) = self.leading.peers.get_mut(&to) else { return };
        let ready = peer.activity == Activity::Replicating && peer.next <= self.log.last().index;
        let more =
            ready && peer.next - peer.matched <= MAX_IN_FLIGHT && peer.next > self.log.base.index;
        if more || due {
            let runs = if more { self.log.slice(peer.next, MAX_BATCH) } else { Vec::new() };
            let prev = self.log.entry(peer.next - 1).unwrap_or(self.log.base);
            peer.next = runs.last().map_or(peer.next, |run| run.last().index + 1);
            let (commit, round) = (self.commit, self.leading.round);
            self.send(to, Body::AppendEntries { prev, runs, commit, round });
            self.send_append(to, false);
        }
    }

    /// Sends a snapshot to a peer that needs entries which are compacted (§7). As long as it answers
    /// that it lacks them it gets another, after ever longer times until it has caught up.
    fn send_snapshot(&mut self, to: ReplicaID) {
        let (least, round) = (self.config.election_timeout_range.1, self.leading.round);
        let Some(snapshot) = self.snapshot.clone() else { return };
        let Some(peer) = self.leading.peers.get_mut(&to) else { return };
        let wait = (peer.patience.1 * 2).clamp(least, least * 64);
        (peer.activity, peer.patience) =
            (Activity::Installing, (self.now.saturating_add(wait), wait));
        peer.next = snapshot.last_included_index.max(peer.matched) + 1;
        let membership = Membership::clone(&self.log.memberships[0].1);
        self.send(to, Body::InstallSnapshot { snapshot, membership, round });
    }

    /// Up to where the log may be compacted: a peer that may still be installing a snapshot will need
    /// what follows it.
    pub(crate) fn needed_by_receivers(&self) -> Index {
        let installs =
            |it: &&Progress| it.activity == Activity::Installing && self.now < it.patience.0;
        let receivers = self.leading.peers.values().filter(installs);
        receivers.map(|it| it.next - 1).min().unwrap_or(Index::MAX)
    }

    /// Takes note of a peer's answer to a round of this leadership. From before it became a peer, or
    /// before the leader went back for it, an answer says nothing.
    pub(crate) fn on_appended(
        &mut self, from: ReplicaID, result: Result<Index, LogId>, round: Round,
    ) {
        let (last, base) = (self.log.last().index, self.log.base);
        let Some(peer) = self.leading.peers.get_mut(&from) else { return };
        let current = (peer.since..=self.leading.round).contains(&round);
        if !current || result.is_ok_and(|matched| matched > last) {
            return;
        }
        (peer.heard, peer.echoed) = (self.now, peer.echoed.max(round));
        match result {
            Ok(matched) => {
                peer.matched = peer.matched.max(matched);
                peer.patience.1 = if matched < last { peer.patience.1 } else { Duration::ZERO };
                if peer.matched + 1 >= peer.next {
                    (peer.activity, peer.next) = (Activity::Replicating, peer.matched + 1);
                }
                if peer.matched == last && self.leading.transfer.is_some_and(|(to, _)| to == from) {
                    self.leading.lease_void = true;
                    self.send(from, Body::TimeoutNow);
                }
            }
            Err(_) if peer.activity == Activity::Installing && self.now < peer.patience.0 => {}
            Err(hint) if hint < base && peer.matched < base.index => self.send_snapshot(from),
            Err(hint) => {
                // Back to where the logs may still agree, past a whole term at a time, and no
                // further than they are known to.
                let agreed = self.log.backtrack(hint).index;
                peer.next = (agreed + 1).clamp(peer.matched + 1, peer.next);
                peer.activity = Activity::Probing;
                self.leading.round += Duration::from_nanos(1);
                peer.since = self.leading.round;
                self.send_append(from, true);
            }
        }
    }

    /// Does what a user asks, if this replica leads, or passes it on to the leader. A change of the
    /// configuration must not overlap another: every earlier one must be committed, and so must an
    /// entry of this term.
    pub(crate) fn on_request(&mut self, request: Request, forwarded: bool) {
        let (since, current) = self.log.membership().clone();
        let settled = current.outgoing.is_empty() && self.leading.first.max(since) <= self.commit;
        let free = self.role == Role::Leader && self.leading.transfer.is_none();
        let elsewhere = self.leader.filter(|id| *id != self.config.id && !forwarded);
        match (elsewhere, request) {
            (Some(id), request) => self.send(id, Body::Request(request)),
            (_, Request::TransferLeadership { to_id })
                if free && to_id != self.config.id && current.voters.contains(&to_id) =>
            {
                let until = self.now.saturating_add(self.config.election_timeout_range.1);
                self.leading.transfer = Some((to_id, until));
                self.leading.begin_round(self.now);
            }
            (_, Request::ChangeMembership { voters, learners })
                if free && settled && !voters.is_empty() =>
            {
                let [voters, learners] = [voters, learners].map(BTreeSet::from_iter);
                let changed = |_: &ReplicaID| voters != current.voters;
                let outgoing = current.voters.iter().copied().filter(changed).collect();
                let learners = &learners - &voters;
                self.append_as_leader(Vec::new(), Some(Membership { voters, outgoing, learners }));
                self.watch_members();
            }
            (_, request) => warn!("{}: refused for now: {request:?}", self.config.id),
        }
    }
}

/// The follower's side.
impl<T: StateMachineTransition, D: Clone> Raft<T, D> {
    /// Follows the leader of the current term, whatever this replica was, and waits for its next
    /// message. False if another is known to lead: then somebody is lying.
    pub(crate) fn heed(&mut self, leader_id: ReplicaID) -> bool {
        if self.leader.is_none() {
            self.enter(self.term, Role::Follower, Some(leader_id));
        }
        if self.leader == Some(leader_id) && self.role == Role::Follower {
            self.heard = Some(self.now);
            self.reset_election_timer();
        }
        self.leader == Some(leader_id)
    }

    /// Takes over a leader's entries. Returns up to where the logs match, or where they may.
    pub(crate) fn on_append_entries(
        &mut self, prev: LogId, runs: Vec<Run<T>>, commit: Index,
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
        &mut self, snapshot: Snapshot<D>, membership: Membership,
    ) -> Index {
        let last = snapshot.last();
        let is_news = (self.commit + 1..LIMIT).contains(&last.index) && last.term <= self.term;
        if self.log.holds(last) {
            self.commit_to(last.index);
        } else if is_news && self.applied == self.commit {
            info!("{}: installs a snapshot at {last:?}", self.config.id);
            self.settle_orphans(last, OutcomeUnknown);
            self.log.reset(last, membership);
            (self.commit, self.applied) = (last.index, last.index);
            self.outputs.restore = Some(snapshot.clone());
            self.snapshot = Some(snapshot);
        }
        self.commit
    }

    /// Commits up to an index, which must be in the log.
    pub(crate) fn commit_to(&mut self, index: Index) {
        self.commit = index.max(self.commit);
        self.applied(0);
        if !self.orphans.is_empty() {
            let last = self.log.entry(self.commit).unwrap_or_default();
            self.settle_orphans(last, ConflictWithLeader);
        }
    }

    /// The entry `to` is committed, and so none that is older but not before it ever will be: it is
    /// certain now what becomes of the orphans up to there. Nothing less is certain, for what this
    /// replica has lost another may still hold, and bring back as a leader.
    fn settle_orphans(&mut self, to: LogId, reason: TransitionAbandonedReason) {
        for (id, transition) in self.orphans.extract_if(..=to, |_, _| true) {
            let covered = id.index <= to.index;
            if covered && reason == OutcomeUnknown {
                self.outputs.abandoned.push((transition, OutcomeUnknown));
            } else if !covered || !self.log.holds(id) {
                self.outputs.abandoned.push((transition, ConflictWithLeader));
            }
        }
    }
}
