//! How a log spreads: the leader's view of its peers, the leader's side, and the follower's side.

use crate::TransitionAbandonedReason;
use crate::message::{Body, Entries, Message, Request, Round, Run};
use crate::raft::{Config, MAX_BATCH, MAX_IN_FLIGHT, PeerStatus, Raft, State};
use crate::reads::Question;
use crate::{Index, LogId, Membership, ReplicaID, Snapshot, StateMachineTransition};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
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
    /// Waiting for the peer to install a snapshot.
    Installing,
}

/// What a leader knows of a peer.
#[derive(Clone, Debug)]
struct Progress {
    /// Up to here the peer's log durably matches.
    matched: Index,
    /// What to send next. Runs ahead of `matched` by what is underway.
    next: Index,
    activity: Activity,
    /// Whether a probe is underway; another would tell nothing new.
    probed: bool,
    /// The snapshot that was sent, when, and how long to wait before sending again.
    sent_snapshot: (LogId, Duration, Duration),
    /// The latest round that the peer has echoed.
    echoed: Round,
    /// Answers to earlier rounds say nothing about where the peer's log is now.
    since: Round,
    heard: Duration,
}

/// What belongs to a leadership and ends with it.
#[derive(Clone, Debug)]
pub(crate) struct Leader {
    /// Index of the no-op, the first entry of this term.
    pub(crate) first: Index,
    /// The reads that wait for a quorum.
    pub(crate) questions: VecDeque<Question>,
    /// Somebody was asked to stand for election, whom others may follow at any moment.
    pub(crate) lease_void: bool,
    peers: BTreeMap<ReplicaID, Progress>,
    /// The number of the current round.
    round: u64,
    heartbeat_due: bool,
    heartbeat_at: Duration,
    /// When to look whether a quorum still answers.
    check_quorum_at: Duration,
    /// The latest configuration that is known to be committed, and whose consequences are drawn.
    settled: Option<Index>,
    transfer: Option<Transfer>,
}

/// A leadership being handed over.
#[derive(Clone, Debug)]
struct Transfer {
    to_id: ReplicaID,
    /// When to give up.
    until: Duration,
    /// Whether the target has been asked to stand since the last heartbeat.
    asked: bool,
}

impl Leader {
    pub(crate) fn new(first: Index, now: Duration, config: &Config) -> Leader {
        Leader {
            first,
            questions: VecDeque::new(),
            lease_void: false,
            peers: BTreeMap::new(),
            round: 1,
            heartbeat_due: false,
            heartbeat_at: now.saturating_add(config.heartbeat_timeout),
            check_quorum_at: now.saturating_add(config.election_timeout_range.1),
            settled: None,
            transfer: None,
        }
    }

    pub(crate) fn is_handing_over(&self) -> bool {
        self.transfer.is_some()
    }

    pub(crate) fn deadline(&self) -> Duration {
        let deadline = self.heartbeat_at.min(self.check_quorum_at);
        self.transfer.as_ref().map_or(deadline, |transfer| deadline.min(transfer.until))
    }

    /// Begins a round that is later than everything sent before, to be sent at once.
    pub(crate) fn begin_round(&mut self, now: Duration) -> Round {
        self.round += 1;
        self.heartbeat_due = true;
        Round { began: now, number: self.round }
    }

    pub(crate) fn peer_statuses(&self, now: Duration) -> Vec<PeerStatus> {
        let status = |(&id, peer): (&ReplicaID, &Progress)| PeerStatus {
            id,
            matched: peer.matched,
            next: peer.next,
            activity: peer.activity,
            silent_for: now.saturating_sub(peer.heard),
        };
        self.peers.iter().map(status).collect()
    }

    /// Checks the laws of progress.
    pub(crate) fn check(&self, last: Index) {
        for (id, peer) in &self.peers {
            let ordered = peer.matched < peer.next && peer.next <= last + 1;
            assert!(ordered, "matched < next ≤ last + 1: {id} {peer:?} {last}");
        }
    }
}

/// The leader's side.
impl<T: StateMachineTransition, D: Clone> Raft<T, D> {
    pub(crate) fn append_as_leader(&mut self, transitions: Vec<T>) {
        if !transitions.is_empty() {
            let entries = Entries::Transitions(Arc::new(transitions));
            let run = Run { first: self.log.last().index + 1, term: self.term, entries };
            self.outputs.queued.push(run.clone());
            self.log.append(run);
        }
    }

    fn append_membership(&mut self, membership: Membership) {
        log::info!("{}: appends {membership:?}", self.config.id);
        let entries = Entries::Membership(Arc::new(membership));
        self.log.append(Run { first: self.log.last().index + 1, term: self.term, entries });
        self.watch_members();
    }

    /// Keeps track of everybody in a configuration that is in force or not yet left for good, and of
    /// nobody else. Who is gone gets a last message, from which it may learn that it is.
    pub(crate) fn watch_members(&mut self) {
        let members: BTreeSet<ReplicaID> = self
            .log
            .memberships_from(self.commit)
            .flat_map(|membership| membership.members())
            .filter(|&id| id != self.config.id)
            .collect();
        let State::Leader(leader) = &mut self.state else { return };
        let gone: Vec<_> =
            leader.peers.keys().copied().filter(|id| !members.contains(id)).collect();
        let since = Round { began: self.now, number: leader.round + 1 };
        leader.round += 1;
        for id in members {
            leader.peers.entry(id).or_insert(Progress {
                matched: 0,
                next: leader.first,
                activity: Activity::Probing,
                probed: false,
                sent_snapshot: (LogId::default(), self.now, Duration::ZERO),
                echoed: Round::default(),
                since,
                heard: self.now,
            });
        }
        for id in gone {
            self.send_append(id, true);
            if let State::Leader(leader) = &mut self.state {
                leader.peers.remove(&id);
            }
        }
    }

    pub(crate) fn tick_leader(&mut self) {
        let State::Leader(leader) = &mut self.state else { return };
        if let Some(transfer) = leader.transfer.take_if(|transfer| self.now >= transfer.until) {
            log::warn!("{}: gives up handing over to {}", self.config.id, transfer.to_id);
        }
        if self.now >= leader.heartbeat_at {
            leader.heartbeat_due = true;
            leader.transfer.iter_mut().for_each(|transfer| transfer.asked = false);
            leader.heartbeat_at = self.now.saturating_add(self.config.heartbeat_timeout);
        }
        if self.now >= leader.check_quorum_at {
            self.check_quorum();
        }
    }

    /// A leader without a quorum's answers for an election timeout steps down, in its own term
    /// (thesis §6.2).
    fn check_quorum(&mut self) {
        let State::Leader(leader) = &mut self.state else { return };
        // A peer that has only just joined cannot have answered yet.
        let answered = self.log.membership().quorum(|id| match leader.peers.get(&id) {
            Some(peer) => peer.echoed.began.max(peer.since.began),
            None => self.now,
        });
        leader.check_quorum_at = answered.saturating_add(self.config.election_timeout_range.1);
        if self.now >= leader.check_quorum_at {
            log::warn!("{}: hears no quorum, steps down in term {}", self.config.id, self.term);
            self.enter(self.term, State::Follower { leader: None });
            self.reset_election_timer();
        }
    }

    /// The latest round that a quorum has echoed: this replica still led when it began.
    pub(crate) fn echoed_by_quorum(&self, leader: &Leader) -> Round {
        let current = Round { began: self.now, number: leader.round };
        let echoed = |id| leader.peers.get(&id).map_or(Round::default(), |peer| peer.echoed);
        let own = self.config.id;
        self.log.membership().quorum(|id| if id == own { current } else { echoed(id) })
    }

    /// What a leader does each turn, after all inputs.
    pub(crate) fn lead(&mut self) {
        self.advance_commit();
        self.confirm_reads();
        self.complete_membership();
        let State::Leader(leader) = &mut self.state else { return };
        let heartbeat = std::mem::take(&mut leader.heartbeat_due);
        let peers: Vec<_> = leader.peers.keys().copied().collect();
        for id in peers {
            self.send_append(id, heartbeat);
        }
        self.hand_over();
        let committed = self.log.membership_index() <= self.commit;
        if committed && !self.log.membership().is_voter(self.config.id) {
            log::info!("{}: is no voter any more, steps down", self.config.id);
            self.enter(self.term, State::Follower { leader: None });
        }
    }

    /// Commits what a quorum holds durably, if it is of this term or comes before such an entry
    /// (§5.4.2). The leader counts itself for what it has saved.
    pub(crate) fn advance_commit(&mut self) {
        let State::Leader(leader) = &self.state else { return };
        let matched = |id| leader.peers.get(&id).map_or(0, |peer| peer.matched);
        let (own, saved) = (self.config.id, self.log.saved());
        let reached = |id| if id == own { saved } else { matched(id) };
        let index = self.log.membership().quorum(reached);
        if index >= leader.first {
            self.commit_to(index);
        }
    }

    /// Leaves a joint configuration once it is committed, whoever began it (§6). Of one that is not
    /// joint everybody is told, and who is in it no more is forgotten.
    fn complete_membership(&mut self) {
        let (membership, index) = (self.log.membership(), self.log.membership_index());
        let State::Leader(leader) = &mut self.state else { return };
        if index > self.commit || leader.first > self.commit || leader.settled == Some(index) {
            return;
        }
        if membership.is_joint() {
            return self.append_membership(membership.settled());
        }
        leader.settled = Some(index);
        leader.heartbeat_due = true;
        self.watch_members();
    }

    fn is_own_term_committed(&self) -> bool {
        matches!(&self.state, State::Leader(leader) if leader.first <= self.commit)
    }

    /// Sends a peer what it lacks, as far as it may be underway, or if there is nothing and it is
    /// `due`, a heartbeat: an append at the frontier, which discovers every loss.
    fn send_append(&mut self, to_id: ReplicaID, mut due: bool) {
        loop {
            let State::Leader(leader) = &mut self.state else { return };
            let Some(peer) = leader.peers.get_mut(&to_id) else { return };
            let open = match peer.activity {
                Activity::Probing => !peer.probed,
                Activity::Replicating => peer.next - peer.matched <= MAX_IN_FLIGHT,
                Activity::Installing => false,
            };
            let more = open && peer.next <= self.log.last().index;
            if !more && !due {
                return;
            }
            due = false;
            let prev = match peer.activity {
                Activity::Installing => Some(peer.sent_snapshot.0),
                _ => self.log.id_at(peer.next - 1),
            };
            let Some(prev) = prev else { return self.send_snapshot(to_id) };
            let runs = if more { self.log.slice(peer.next, MAX_BATCH) } else { Vec::new() };
            peer.probed = true;
            if peer.activity == Activity::Replicating {
                peer.next = runs.last().map_or(peer.next, |run| run.last().index + 1);
            }
            let round = Round { began: self.now, number: leader.round };
            self.send_early(to_id, Body::AppendEntries { prev, runs, commit: self.commit, round });
        }
    }

    /// Appends promise nothing that is not durable, if only the term is: they need not wait for the
    /// save (thesis §10.2.1).
    fn send_early(&mut self, to_id: ReplicaID, body: Body<T, D>) {
        match self.durable.0 == self.term {
            true => {
                let (from_id, term) = (self.config.id, self.term);
                self.outputs.appends.push((to_id, Message::Protocol { from_id, term, body }));
            }
            false => self.send(to_id, body),
        }
    }

    /// Sends a snapshot to a peer that needs entries which are compacted (§7). A lost one is sent
    /// again, ever more rarely, as long as the peer answers that it does not have it.
    fn send_snapshot(&mut self, to_id: ReplicaID) {
        let State::Leader(leader) = &mut self.state else { return };
        let (Some(peer), Some(snapshot)) = (leader.peers.get_mut(&to_id), &self.snapshot) else {
            return;
        };
        let wait = match peer.activity {
            Activity::Installing => peer.sent_snapshot.2.saturating_mul(2),
            _ => self.config.election_timeout_range.1,
        };
        peer.activity = Activity::Installing;
        peer.sent_snapshot = (snapshot.last(), self.now, wait);
        let round = Round { began: self.now, number: leader.round };
        let membership = self.log.snapshot_membership().clone();
        let snapshot = snapshot.clone();
        self.send(to_id, Body::InstallSnapshot { snapshot, membership, round });
    }

    /// The log up to which is not compacted because a live peer is installing a snapshot and will
    /// need what follows.
    pub(crate) fn needed_by_receivers(&self) -> Index {
        let State::Leader(leader) = &self.state else { return Index::MAX };
        let recent = self.now.saturating_sub(self.config.election_timeout_range.1);
        let receivers = leader.peers.values();
        let live =
            receivers.filter(|peer| peer.activity == Activity::Installing && peer.heard >= recent);
        live.map(|peer| peer.sent_snapshot.0.index).min().unwrap_or(Index::MAX)
    }

    /// Takes note of an answer, and returns the peer if the answer is about its log as the leader
    /// knows it: from a member, to a round of this leadership, and not from before a rewind.
    fn on_answer(&mut self, from_id: ReplicaID, round: Round) -> Option<&mut Progress> {
        let State::Leader(leader) = &mut self.state else { return None };
        let current = Round { began: self.now, number: leader.round };
        let peer = leader.peers.get_mut(&from_id)?;
        if round > current || round.number > current.number {
            log::warn!("{}: dropped a forged answer from {from_id}", self.config.id);
            return None;
        }
        peer.heard = self.now;
        if round < peer.since {
            return None;
        }
        peer.echoed = peer.echoed.max(round);
        Some(peer)
    }

    pub(crate) fn on_accepted(&mut self, from_id: ReplicaID, matched: Index, round: Round) {
        let (last, base) = (self.log.last().index, self.log.base().index);
        let Some(peer) = self.on_answer(from_id, round) else { return };
        if matched > last {
            log::warn!(
                "dropped an answer from {from_id}, which claims to match {matched} of {last}"
            );
            return;
        }
        peer.matched = peer.matched.max(matched);
        peer.next = peer.next.max(peer.matched + 1);
        if peer.activity != Activity::Installing || peer.matched >= base {
            peer.activity = Activity::Replicating;
        }
    }

    /// The peer lacks what an append built upon: goes back to where the logs may still agree, past a
    /// whole term at a time, and no further than what is known to match.
    pub(crate) fn on_rejected(&mut self, from_id: ReplicaID, hint: LogId, round: Round) {
        let base = self.log.base();
        let agreed = if hint.index < base.index { hint } else { self.log.backtrack(hint) };
        let now = self.now;
        let Some(peer) = self.on_answer(from_id, round) else { return };
        if peer.activity == Activity::Installing {
            if now >= peer.sent_snapshot.1.saturating_add(peer.sent_snapshot.2) {
                self.send_snapshot(from_id);
            }
            return;
        }
        peer.next = (agreed.index + 1).clamp(peer.matched + 1, peer.next);
        (peer.activity, peer.probed) = (Activity::Probing, false);
        let State::Leader(leader) = &mut self.state else { return };
        leader.round += 1;
        let since = Round { began: now, number: leader.round };
        if let Some(peer) = leader.peers.get_mut(&from_id) {
            peer.since = since;
        }
    }

    /// A user's request: done by the leader, passed on once by others.
    pub(crate) fn on_request(&mut self, request: Request, forwarded: bool) {
        match (self.leader(), request) {
            (Some(leader_id), request) if leader_id != self.config.id && !forwarded => {
                let message = Message::Request { request, forwarded: true };
                self.outputs.messages.push((leader_id, message));
            }
            (Some(leader_id), Request::ChangeMembership { voters, learners })
                if leader_id == self.config.id =>
            {
                let id = self.config.id;
                match self.change_membership(voters, learners) {
                    Ok(()) => {}
                    Err(reason) => log::warn!("{id}: refused to change the membership: {reason}"),
                }
            }
            (Some(leader_id), Request::TransferLeadership { to_id })
                if leader_id == self.config.id =>
            {
                self.start_transfer(to_id);
            }
            (_, request) => log::warn!("{}: knows no leader to {request:?}", self.config.id),
        }
    }

    /// Begins a change of the configuration, unless another could overlap it: every earlier one must
    /// be committed, and so must an entry of this term (Ongaro's correction of 2015 to §6).
    fn change_membership(
        &mut self,
        voters: Vec<ReplicaID>,
        learners: Vec<ReplicaID>,
    ) -> Result<(), &'static str> {
        let current = self.log.membership();
        let named = voters.len() + learners.len();
        let target =
            Membership { learners: learners.into_iter().collect(), ..Membership::of(voters) };
        if target.voters.is_empty() {
            return Err("somebody must vote");
        } else if target.members().len() != named {
            return Err("a replica is named twice");
        } else if current.is_joint() || self.log.membership_index() > self.commit {
            return Err("an earlier change is underway, ask again when the status shows its end");
        } else if !self.is_own_term_committed() {
            return Err("the leader has only just been elected, ask again");
        } else if **current != target {
            self.append_membership(current.toward(target));
        }
        Ok(())
    }

    fn start_transfer(&mut self, to_id: ReplicaID) {
        let until = self.now.saturating_add(self.config.election_timeout_range.1);
        let is_voter = self.log.membership().voters.contains(&to_id);
        let State::Leader(leader) = &mut self.state else { return };
        if !is_voter || to_id == self.config.id {
            log::warn!("{}: cannot hand leadership to {to_id}", self.config.id);
        } else if leader.transfer.is_none() {
            leader.transfer = Some(Transfer { to_id, until, asked: false });
        }
    }

    /// Asks the replica that shall take over to stand for election, once it holds the whole log.
    /// From then on the lease is void: its voters need not wait for this leader to fall silent.
    fn hand_over(&mut self) {
        let (last, membership) = (self.log.last().index, self.log.membership());
        let State::Leader(leader) = &mut self.state else { return };
        let Some(transfer) = &mut leader.transfer else { return };
        let to_id = transfer.to_id;
        if !membership.voters.contains(&to_id) {
            leader.transfer = None;
        } else if !transfer.asked && leader.peers.get(&to_id).is_some_and(|p| p.matched == last) {
            (transfer.asked, leader.lease_void) = (true, true);
            self.send(to_id, Body::TimeoutNow);
        }
    }
}

/// The follower's side.
impl<T: StateMachineTransition, D: Clone> Raft<T, D> {
    /// Follows the leader of the current term, whatever this replica was, and waits for its next
    /// message. False if it is not the one already known: then somebody is lying.
    fn heed(&mut self, leader_id: ReplicaID) -> bool {
        match self.leader() {
            Some(known) if known != leader_id => {
                log::warn!("{}: dropped, two leaders in term {}", self.config.id, self.term);
                return false;
            }
            Some(_) => {}
            None => self.enter(self.term, State::Follower { leader: Some(leader_id) }),
        }
        self.heard = Some(self.now);
        self.reset_election_timer();
        true
    }

    pub(crate) fn on_append_entries(
        &mut self,
        from_id: ReplicaID,
        prev: LogId,
        runs: Vec<Run<T>>,
        commit: Index,
        round: Round,
    ) {
        if !self.heed(from_id) {
            return;
        }
        // What lies before the base is committed: the leader has it too.
        if prev.index >= self.log.base().index && !self.log.matches(prev) {
            let hint = self.log.backtrack(prev);
            return self.send(from_id, Body::Rejected { hint, round });
        }
        let matched = runs.last().map_or(prev.index, |run| run.last().index);
        match self.log.splice(runs, self.commit) {
            Ok(removed) => self.lose(removed),
            Err(error) => return log::warn!("{}: dropped an append: {error}", self.config.id),
        }
        // Only what this message has verified, not whatever may follow it here (§5.3).
        self.commit_to(commit.min(matched));
        self.accept(from_id, matched, round);
    }

    /// Answers that the log matches; of several such answers in a turn the last says it all.
    fn accept(&mut self, to_id: ReplicaID, matched: Index, round: Round) {
        if let Some((id, Message::Protocol { term, body, .. })) = self.outputs.messages.last_mut()
            && let Body::Accepted { matched: earlier, round: echoed } = body
            && (*id, *term) == (to_id, self.term)
        {
            (*earlier, *echoed) = (matched.max(*earlier), round.max(*echoed));
        } else {
            self.send(to_id, Body::Accepted { matched, round });
        }
    }

    /// Installs a snapshot, unless this replica has or may itself reach what it covers.
    pub(crate) fn on_install_snapshot(
        &mut self,
        from_id: ReplicaID,
        snapshot: Snapshot<D>,
        membership: Membership,
        round: Round,
    ) {
        if !self.heed(from_id) {
            return;
        }
        let last = snapshot.last();
        if last.index > self.commit && self.log.matches(last) {
            self.commit_to(last.index);
        } else if last.index > self.commit {
            log::info!("{}: installs a snapshot at {last}", self.config.id);
            let removed = self.log.reset(last, membership);
            self.lose(removed);
            (self.commit, self.applied) = (last.index, last.index);
            self.settle_orphans(TransitionAbandonedReason::OutcomeUnknown);
            self.outputs.restore = Some(snapshot.clone());
            self.snapshot = Some(snapshot);
            self.snapshot_unsaved = true;
        }
        self.accept(from_id, self.commit, round);
    }

    /// Commits up to an index, which must be in the log.
    pub(crate) fn commit_to(&mut self, index: Index) {
        if index > self.commit {
            self.commit = index;
            self.skip_configurations();
            self.settle_orphans(TransitionAbandonedReason::ConflictWithLeader);
        }
    }

    /// Remembers what this replica had queued as a leader and has now lost. That is not the end of
    /// it: another replica may still hold it, be elected, and bring it back.
    fn lose(&mut self, removed: Vec<Run<T>>) {
        for run in removed.iter().filter(|run| self.led.contains(&run.term)) {
            if let Entries::Transitions(transitions) = &run.entries {
                let entries = (run.first..).zip(transitions.iter());
                for (index, transition) in entries.filter(|(index, _)| *index > self.applied) {
                    self.orphans.insert(LogId { term: run.term, index }, transition.clone());
                }
            }
        }
    }

    /// Abandons what was lost for good: something else is committed in its place, or a snapshot
    /// covers it.
    fn settle_orphans(&mut self, reason: TransitionAbandonedReason) {
        if self.orphans.is_empty() {
            return;
        }
        let unknown = reason == TransitionAbandonedReason::OutcomeUnknown;
        for (id, transition) in std::mem::take(&mut self.orphans) {
            if id.index > self.commit {
                self.orphans.insert(id, transition);
            } else if unknown || !self.log.matches(id) {
                self.outputs.abandoned.push((transition, reason.clone()));
            }
        }
    }
}
