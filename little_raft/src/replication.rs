//! How a log spreads: what a leader knows of its peers, what it does, and what a follower does.

use crate::*;

/// What belongs to a candidacy or a leadership, and ends with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leading {
    /// Who voted for this replica.
    pub(crate) votes: BTreeSet<ReplicaID>,
    /// Index of the no-op, the first entry of this term.
    pub(crate) first: Index,
    /// The current round.
    pub(crate) round: Round,
    /// The reads that wait for a quorum to echo a later round: who asked, its context, the index,
    /// and the round that was the last then.
    pub(crate) questions: Vec<(ReplicaID, u64, Index, Round)>,
    /// To whom leadership is handed over, and until when that may take; zero if nobody was asked to
    /// take it in this term. Others may follow who was asked at any moment, also when the transfer
    /// has failed, so then there is no lease any more.
    pub(crate) transfer: (ReplicaID, Duration),
}

impl<T: StateMachineTransition, D: Clone> Raft<T, D> {
    // The leader's side.

    /// Appends transitions, or else a configuration.
    pub(crate) fn append_as_leader(&mut self, transitions: Vec<T>, next: Option<Membership>) {
        let (first, transitions) = (self.log.last().index + 1, Arc::new(transitions));
        let run = Run { first, term: self.me.term, transitions, membership: next.map(Arc::new) };
        self.outputs.states.push((run.transitions.clone(), Queued));
        self.log.append(run);
    }

    /// Keeps track of everybody in a configuration that is in force or not yet left for good, and
    /// of nobody else.
    pub(crate) fn watch_members(&mut self) {
        let since = self.me.now.max(self.leading.round + Duration::from_nanos(1));
        let new = Progress { next: self.leading.first, since, ..Progress::default() };
        let configurations = self.log.memberships_from(self.me.commit).iter();
        let others = configurations.flat_map(|(_, it)| it.members()).filter(|id| *id != self.me.id);
        let known = |id| self.me.peers.get(&id).unwrap_or(&new).clone();
        self.me.peers = others.map(|id| (id, known(id))).collect();
    }

    /// What a quorum has reached, of which the leader itself has `own`.
    pub(crate) fn quorum<V: Ord + Copy + Default>(&self, own: V, of: fn(&Progress) -> V) -> V {
        self.log.membership().1.quorum(|id| self.me.peers.get(&id).map_or(own, of))
    }

    /// What a leader does each turn, after all inputs. At its deadline everybody gets a heartbeat,
    /// which begins a new round. A leader without a quorum's answers for an election timeout steps
    /// down instead, in its own term (thesis §6.2).
    pub(crate) fn lead(&mut self) {
        let Leader = self.me.role else { return };
        let due = self.me.now >= self.me.deadline;
        if due {
            // Who has only just become a peer cannot have answered yet.
            let heard = self.quorum(self.me.now, |it| it.heard.max(it.since));
            if heard.saturating_add(self.config.election_timeout_range.1) <= self.me.now {
                warn!("{}: hears no quorum, steps down in term {}", self.me.id, self.me.term);
                return self.enter(self.me.term, Follower, None);
            }
            self.leading.round = self.me.now.max(self.leading.round + Duration::from_nanos(1));
            self.me.deadline = self.me.now.saturating_add(self.config.heartbeat_timeout);
        }
        self.advance_commit();
        for (from, context, index, after) in take(&mut self.leading.questions) {
            if after < self.quorum(self.leading.round, |it| it.heard) {
                self.send(from, Body::ReadIndexResponse { context, index });
            } else {
                self.leading.questions.push((from, context, index, after));
            }
        }
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
        let Leader = self.me.role else { return };
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
    }

    /// Sends a peer what it lacks, as far as it may be underway; if there is nothing and it is
    /// `due`, a heartbeat. That is an append at the frontier, and so discovers every loss. What is
    /// compacted it shall miss, and say so.
    fn send_append(&mut self, to: ReplicaID, due: bool) {
        let Some(peer) = self.me.peers.get_mut(&to) else { return };
        let end = self.log.last().index.min(peer.matched + MAX_UNDERWAY);
        let streams = !peer.probing && peer.installing.is_none();
        let more = streams && (self.log.base.index + 1..=end).contains(&peer.next);
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
    /// answers that it lacks them it gets another, after ever longer times.
    fn send_snapshot(&mut self, to: ReplicaID) {
        let (least, round) = (self.config.election_timeout_range.1, self.leading.round);
        let receiver = self.me.peers.get_mut(&to);
        let (Some(snapshot), Some(peer)) = (self.log.snapshot.clone(), receiver) else { return };
        let last = peer.installing.map_or(Duration::ZERO, |(_, wait)| wait);
        let wait = last.saturating_mul(2).clamp(least, least.saturating_mul(64));
        peer.installing = Some((self.me.now.saturating_add(wait), wait));
        peer.next = snapshot.last_included_index.max(peer.matched) + 1;
        let membership = self.log.memberships[0].1.clone();
        self.send(to, Body::InstallSnapshot { snapshot, membership, round });
    }

    /// Takes note of a peer's answer to a round of this leadership. From before it became a peer,
    /// or before the leader went back for it, an answer says nothing.
    pub(crate) fn on_appended(&mut self, id: ReplicaID, result: Answer, round: Round) {
        let (last, base, newest) = (self.log.last().index, self.log.base, self.leading.round);
        let Some(peer) = self.me.peers.get_mut(&id).filter(|it| it.since <= round) else { return };
        if round > newest || result.unwrap_or(0) > last {
            return warn!("{}: {id} cannot have answered {result:?} to {round:?}", self.me.id);
        }
        peer.heard = peer.heard.max(round);
        match result {
            Ok(matched) => {
                peer.matched = peer.matched.max(matched);
                if peer.matched + 1 >= peer.next {
                    (peer.probing, peer.installing, peer.next) = (false, None, peer.matched + 1);
                }
                let (to_id, until) = self.leading.transfer;
                if peer.matched == last && id == to_id && self.me.now < until {
                    self.send(id, Body::TimeoutNow);
                }
            }
            Err(_) if peer.installing.is_some_and(|(until, _)| self.me.now < until) => {}
            Err(hint) if hint < base && peer.matched < base.index => self.send_snapshot(id),
            Err(hint) => {
                // Back to where the logs may still agree, past a whole term at a time, and no
                // further than they are known to.
                let agreed = self.log.backtrack(hint).index;
                peer.next = (agreed + 1).clamp(peer.matched + 1, peer.next);
                (peer.probing, peer.installing) = (true, None);
                self.leading.round += Duration::from_nanos(1);
                peer.since = self.leading.round;
                self.send_append(id, true);
            }
        }
    }

    /// Does what a user asks, if this replica leads, or passes it on to the leader. A change of the
    /// configuration must not overlap another: every earlier one must be committed, and so must an
    /// entry of this term.
    pub(crate) fn on_request(&mut self, from: ReplicaID, request: Body<T, D>) {
        let (me, (since, active)) = (self.me.id, self.log.membership().clone());
        let settled = active.outgoing.is_empty() && self.leading.first.max(since) <= self.me.commit;
        let free = self.me.role == Leader && self.leading.transfer.1 <= self.me.now;
        if let Some(id) = self.me.leader.filter(|id| *id != me && from == USER) {
            return self.send(id, request);
        }
        match request {
            Body::TransferLeadership(id) if free && id != me && active.voters.contains(&id) => {
                let patience = self.config.election_timeout_range.1;
                self.leading.transfer = (id, self.me.now.saturating_add(patience));
                self.me.deadline = self.me.now;
            }
            Body::ChangeMembership(asked) if free && settled && !asked.voters.is_empty() => {
                let joint = Membership { outgoing: active.voters.clone(), ..asked };
                self.append_as_leader(Vec::new(), Some(joint));
                self.watch_members();
                self.me.deadline = self.me.now;
            }
            Body::ChangeMembership(it) => warn!("{}: refuses for now to become {it:?}", self.me.id),
            _ => warn!("{}: refuses for now to hand over its leadership", self.me.id),
        }
    }

    // The follower's side.

    /// Follows the leader of the current term, whatever this replica was, and waits for its next
    /// message. False if another is known to lead: then somebody is lying.
    pub(crate) fn heed(&mut self, leader_id: ReplicaID) -> bool {
        if self.me.leader.is_none() {
            self.enter(self.me.term, Follower, Some(leader_id));
        } else if self.me.leader != Some(leader_id) {
            warn!("{}: does not heed {leader_id}, a second leader: {:?}", self.me.id, self.me);
            return false;
        }
        self.reset_election_timer();
        self.me.loyal_until = self.me.now.saturating_add(self.config.election_timeout_range.0);
        true
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
    pub(crate) fn install(&mut self, snapshot: Snapshot<D>, membership: Arc<Membership>) -> Answer {
        let last = snapshot.last();
        let is_new = (self.me.commit + 1..LIMIT).contains(&last.index) && last.term <= self.me.term;
        if is_new && !self.log.holds(last) && self.me.applied == self.me.commit {
            info!("{}: installs a snapshot at {last:?}", self.me.id);
            self.outputs.restore = Some(snapshot.clone());
            self.log.reset(snapshot, membership);
            self.me.applied = last.index;
        }
        // What is committed here the leader has as well.
        let held = self.log.entry(self.me.commit).unwrap_or_default();
        self.take_entries(held.max(last), Vec::new(), last.index)
    }

    /// Commits up to an index, which must be in the log. Then it is certain what becomes of the
    /// orphans up to there, and of those of older terms than the last entry that is committed: no
    /// log that holds them will win an election. Nothing less is certain, for what this replica has
    /// lost another may still hold, and bring back as a leader. But what a snapshot has brought
    /// nobody can tell.
    pub(crate) fn commit_to(&mut self, index: Index) {
        self.me.commit = self.me.commit.max(index);
        self.applied(0);
        let (commit, committed) = (self.me.commit, || self.log.entry(self.me.commit));
        let certain = |id: &LogId| id.index <= commit || Some(*id) < committed();
        for (id, transition) in self.orphans.extract_if(.., |id, _| certain(id)) {
            let covered = id.index <= self.log.base.index;
            let reason = if covered { OutcomeUnknown } else { ConflictWithLeader };
            if covered || !self.log.holds(id) {
                self.outputs.states.push((vec![transition].into(), Abandoned(reason)));
            }
        }
    }
}
