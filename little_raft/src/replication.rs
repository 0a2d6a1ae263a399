//! How a log spreads: what a leader knows of its peers, what it does, and what a follower does.

use crate::*;

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
    /// The latest round that it has echoed, zero for none: then, by the leader's clock, it was
    /// alive.
    pub heard: Round,
    /// Answers to earlier rounds say nothing about where its log is now.
    pub since: Round,
    /// When to send it a snapshot again, and how long this wait is.
    pub patience: (Duration, Duration),
}

/// What belongs to a candidacy or a leadership, and ends with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leading {
    /// Who voted for this replica.
    pub(crate) votes: BTreeSet<ReplicaID>,
    /// Index of the no-op, the first entry of this term.
    pub(crate) first: Index,
    /// The current round.
    pub(crate) round: Round,
    /// The reads that wait for a quorum to echo a round: who asked, its context, the index, and
    /// that round.
    pub(crate) questions: Vec<(ReplicaID, u64, Index, Round)>,
    /// To whom leadership is being handed, and until when that may take.
    pub(crate) transfer: Option<(ReplicaID, Duration)>,
    /// Somebody was asked to stand for election, whom others may follow at any moment.
    pub(crate) lease_void: bool,
    pub(crate) heartbeat_due: bool,
}

impl<T: StateMachineTransition, D: Clone> Raft<T, D> {
    // The leader's side.

    /// Begins a round that is later than everything sent before, to be sent in this turn.
    pub(crate) fn begin_round(&mut self) -> Round {
        self.leading.heartbeat_due = true;
        self.leading.round = self.me.now.max(self.leading.round + Duration::from_nanos(1));
        self.leading.round
    }

    /// Appends transitions, or else a configuration.
    pub(crate) fn append_as_leader(&mut self, transitions: Vec<T>, next: Option<Membership>) {
        let (first, transitions) = (self.log.last().index + 1, Arc::new(transitions));
        let run = Run { first, term: self.me.term, transitions, membership: next.map(Arc::new) };
        self.outputs.queued.push(run.clone());
        self.log.append(run);
    }

    /// Keeps track of everybody in a configuration that is in force or not yet left for good, and
    /// of nobody else.
    pub(crate) fn watch_members(&mut self) {
        let configurations = self.log.memberships_from(self.me.commit).iter();
        let members: BTreeSet<_> = configurations.flat_map(|(_, it)| it.members()).collect();
        let (next, since) = (self.leading.first, self.begin_round());
        self.me.peers.retain(|id, _| members.contains(id));
        for id in members.into_iter().filter(|id| *id != self.me.id) {
            let new = Progress { next, since, ..Progress::default() };
            self.me.peers.entry(id).or_insert(new);
        }
    }

    /// Time for heartbeats. A leader without a quorum's answers for an election timeout steps down
    /// instead, in its own term (thesis §6.2).
    pub(crate) fn on_heartbeat_timeout(&mut self) {
        self.deadline = self.me.now.saturating_add(self.config.heartbeat_timeout);
        // Who has only just become a peer cannot have answered yet.
        let heard = self.quorum(self.me.now, |it| it.heard.max(it.since));
        if heard.saturating_add(self.config.election_timeout_range.1) <= self.me.now {
            warn!("{}: hears no quorum, steps down in term {}", self.me.id, self.me.term);
            return self.enter(self.me.term, Follower, None);
        }
        self.begin_round();
        self.leading.transfer = self.leading.transfer.filter(|(_, until)| self.me.now < *until);
    }

    /// What a quorum has reached, of which the leader itself has `own`.
    pub(crate) fn quorum<V: Ord + Copy + Default>(&self, own: V, of: fn(&Progress) -> V) -> V {
        self.log.membership().1.quorum(|id| self.me.peers.get(&id).map_or(own, of))
    }

    /// What a leader does each turn, after all inputs.
    pub(crate) fn lead(&mut self) {
        self.advance_commit();
        if !self.leading.questions.is_empty() {
            self.confirm_reads();
        }
        let due = take(&mut self.leading.heartbeat_due);
        for id in self.me.peers.keys().copied().collect::<Vec<_>>() {
            self.send_append(id, due);
        }
        if due {
            self.settle_membership();
        }
    }

    /// Commits what a quorum holds durably, if it reaches this term: then all before it is safe too
    /// (§5.4.2). The leader counts itself for what it has saved. Nobody else asks.
    pub(crate) fn advance_commit(&mut self) {
        let index = self.quorum(self.log.saved, |it| it.matched);
        if index >= self.leading.first {
            self.commit_to(index);
        }
    }

    /// Everybody has just been told how far the log is committed. If that includes the
    /// configuration, a joint one is followed by the next, whoever began it (§6); from another, who
    /// is not in it is let go, be it this leader.
    fn settle_membership(&mut self) {
        let (since, membership) = self.log.membership().clone();
        let settled = self.leading.first.max(since) <= self.me.commit;
        if settled && !membership.outgoing.is_empty() {
            let next = Membership { outgoing: BTreeSet::new(), ..Membership::clone(&membership) };
            self.append_as_leader(Vec::new(), Some(next));
        } else if settled && !membership.voters.contains(&self.me.id) {
            return self.enter(self.me.term, Follower, None);
        }
        self.watch_members();
        self.leading.heartbeat_due = false;
    }

    /// Sends a peer what it lacks, as far as it may be underway; if there is nothing and it is
    /// `due`, a heartbeat. That is an append at the frontier, and so discovers every loss. What is
    /// compacted it shall miss, and say so.
    fn send_append(&mut self, to: ReplicaID, due: bool) {
        let Some(peer) = self.me.peers.get_mut(&to) else { return };
        let (first, last) = (self.log.base.index + 1, self.log.last().index);
        let sendable = first..=last.min(peer.matched + MAX_UNDERWAY);
        let more = peer.activity == Replicating && sendable.contains(&peer.next);
        if more || due {
            let runs = if more { self.log.slice(peer.next, MAX_BATCH) } else { Vec::new() };
            let prev = self.log.entry(peer.next - 1).unwrap_or(self.log.base);
            peer.next = runs.last().map_or(peer.next, |run| run.last().index + 1);
            let (commit, round) = (self.me.commit, self.leading.round);
            self.send(to, Body::AppendEntries { prev, runs, commit, round });
            self.send_append(to, false);
        }
    }

    /// Sends a snapshot to a peer that needs entries which are compacted (§7). As long as it
    /// answers that it lacks them it gets another, after ever longer times until it has caught up.
    fn send_snapshot(&mut self, to: ReplicaID) {
        let (least, round) = (self.config.election_timeout_range.1, self.leading.round);
        let receiver = self.me.peers.get_mut(&to);
        let (Some(snapshot), Some(peer)) = (self.log.snapshot.clone(), receiver) else { return };
        let wait = peer.patience.1.saturating_mul(2).clamp(least, least.saturating_mul(64));
        peer.activity = Installing;
        peer.patience = (self.me.now.saturating_add(wait), wait);
        peer.next = snapshot.last_included_index.max(peer.matched) + 1;
        let membership = self.log.memberships[0].1.clone();
        self.send(to, Body::InstallSnapshot { snapshot, membership, round });
    }

    /// Takes note of a peer's answer to a round of this leadership. From before it became a peer,
    /// or before the leader went back for it, an answer says nothing.
    pub(crate) fn on_appended(&mut self, from: ReplicaID, result: Answer, round: Round) {
        let (last, base, newest) = (self.log.last().index, self.log.base, self.leading.round);
        let possible = result.unwrap_or(0) <= last;
        let current = |it: &&mut Progress| possible && (it.since..=newest).contains(&round);
        let Some(peer) = self.me.peers.get_mut(&from).filter(current) else { return };
        peer.heard = peer.heard.max(round);
        match result {
            Ok(matched) => {
                peer.matched = peer.matched.max(matched);
                peer.patience.1 = if matched < last { peer.patience.1 } else { Duration::ZERO };
                if peer.matched + 1 >= peer.next {
                    (peer.activity, peer.next) = (Replicating, peer.matched + 1);
                }
                if peer.matched == last && self.leading.transfer.is_some_and(|(to, _)| to == from) {
                    self.leading.lease_void = true;
                    self.send(from, Body::TimeoutNow);
                }
            }
            Err(_) if peer.activity == Installing && self.me.now < peer.patience.0 => {}
            Err(hint) if hint < base && peer.matched < base.index => self.send_snapshot(from),
            Err(hint) => {
                // Back to where the logs may still agree, past a whole term at a time, and no
                // further than they are known to.
                let agreed = self.log.backtrack(hint).index;
                peer.next = (agreed + 1).clamp(peer.matched + 1, peer.next);
                peer.activity = Probing;
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
        let (since, active) = self.log.membership().clone();
        let settled = active.outgoing.is_empty() && self.leading.first.max(since) <= self.me.commit;
        let free = self.me.role == Leader && self.leading.transfer.is_none();
        let may_lead = |id: &ReplicaID| *id != self.me.id && active.voters.contains(id);
        if let Some(id) = self.me.leader.filter(|id| *id != self.me.id && !forwarded) {
            return self.send(id, Body::Request(request));
        }
        match request {
            Request::TransferLeadership { to_id } if free && may_lead(&to_id) => {
                let until = self.me.now.saturating_add(self.config.election_timeout_range.1);
                self.leading.transfer = Some((to_id, until));
                self.begin_round();
            }
            Request::ChangeMembership(asked) if free && settled && !asked.voters.is_empty() => {
                let joint = asked.voters != active.voters;
                let outgoing = if joint { active.voters.clone() } else { BTreeSet::new() };
                self.append_as_leader(Vec::new(), Some(Membership { outgoing, ..asked }));
                self.watch_members();
            }
            request => warn!("{}: refused for now: {request:?}", self.me.id),
        }
    }

    // The follower's side.

    /// Follows the leader of the current term, whatever this replica was, and waits for its next
    /// message. False if another is known to lead: then somebody is lying.
    pub(crate) fn heed(&mut self, leader_id: ReplicaID) -> bool {
        if self.me.leader.is_none() {
            self.enter(self.me.term, Follower, Some(leader_id));
        }
        let heeds = self.me.leader == Some(leader_id);
        if heeds {
            self.reset_election_timer();
            self.me.loyal_until = self.me.now.saturating_add(self.config.election_timeout_range.0);
        } else {
            warn!("{}: does not heed {leader_id}, a second leader: {:?}", self.me.id, self.me);
        }
        heeds
    }

    /// Takes over a leader's entries. Returns up to where the logs match, or where they may.
    pub(crate) fn take_entries(&mut self, prev: LogId, runs: Vec<Run<T>>, commit: Index) -> Answer {
        let matched = runs.last().map_or(prev.index, |run| run.last().index);
        // What lies before the base is committed: the leader has it too.
        let agrees = prev.index < self.log.base.index || self.log.holds(prev);
        if agrees && self.log.splice(prev, runs, self.me.term, self.me.commit) {
            // Up to what this message has verified, not whatever may follow it here (§5.3).
            self.commit_to(commit.min(matched));
            // Who applies more slowly than the leader commits must not have to hold ever more.
            return Ok(matched.min(self.me.applied + MAX_UNAPPLIED));
        } else if agrees {
            warn!("{}: refuses entries after {prev:?} that contradict its log", self.me.id);
        }
        Err(self.log.backtrack(prev))
    }

    /// Installs a snapshot, unless this replica holds what it covers. Returns up to where the logs
    /// match.
    pub(crate) fn install(&mut self, snapshot: Snapshot<D>, membership: Arc<Membership>) -> Index {
        let last = snapshot.last();
        let is_new = (self.me.commit + 1..LIMIT).contains(&last.index) && last.term <= self.me.term;
        if self.log.holds(last) {
            self.commit_to(last.index);
        } else if is_new && self.me.applied == self.me.commit {
            info!("{}: installs a snapshot at {last:?}", self.me.id);
            self.outputs.restore = Some(snapshot.clone());
            self.log.reset(snapshot, membership);
            self.settle_orphans(last, self.me.applied);
            (self.me.commit, self.me.applied) = (last.index, last.index);
        }
        self.me.commit
    }

    /// Commits up to an index, which must be in the log.
    pub(crate) fn commit_to(&mut self, index: Index) {
        if index > self.me.commit {
            self.me.commit = index;
            self.applied(0);
            self.settle_orphans(self.log.entry(index).unwrap_or_default(), index);
        }
    }

    /// The entry `to` is committed, and so none that is older but not before it ever will be: it is
    /// certain now what becomes of the orphans up to there. Nothing less is certain, for what this
    /// replica has lost another may still hold, and bring back as a leader. But what a snapshot has
    /// brought, beyond the entries `known` here, nobody can tell.
    fn settle_orphans(&mut self, to: LogId, known: Index) {
        for (id, it) in self.log.orphans.extract_if(..=to, |_, _| true).collect::<Vec<_>>() {
            let reason = match self.log.entry(id.index) {
                _ if (known + 1..=to.index).contains(&id.index) => OutcomeUnknown,
                Some(held) if held == id => continue,
                _ => ConflictWithLeader,
            };
            self.outputs.abandoned.push((it, reason));
        }
    }
}
