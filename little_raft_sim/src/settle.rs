//! K13: in the end a cluster with a connected quorum works, whatever came before.

use crate::clock::{Time, nanos};
use crate::laws::{Broken, broken};
use crate::simulation::{Event, Simulation, note};
use crate::subject::Subject;
use little_raft::{Body, Membership, Message, ReplicaID};
use rand::RngExt;
use rand::seq::SliceRandom;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What is still to be shown.
struct Goal {
    /// Who must be up and connected.
    connected: BTreeSet<ReplicaID>,
    /// Whether that is everybody, so that everybody must catch up.
    everybody: bool,
    /// The fresh write: at which leader, in which term, its number, its index bound.
    write: Option<(ReplicaID, usize, u64)>,
    reads: Vec<(ReplicaID, u64)>,
}

/// The configurations that a message holds.
fn told<T, D>(message: &Message<T, D>) -> Vec<Arc<Membership>> {
    match &message.body {
        Body::AppendEntries { runs, .. } => {
            runs.iter().filter_map(|run| run.membership.clone()).collect()
        }
        Body::InstallSnapshot { membership, .. } => vec![membership.clone()],
        _ => Vec::new(),
    }
}

impl<S: Subject> Simulation<S> {
    /// Ends the faults, or leaves some standing for good, and waits until the cluster works.
    pub(crate) fn settle(&mut self) -> Result<(), Broken> {
        (self.quiet, self.network.quiet) = (true, true);
        self.network.heal();
        self.scripted(|script, now| script.say(now, "heal".into()));
        // Raft promises progress only where messages travel much faster than patience runs out.
        self.faults.delay.0 = self.faults.delay.0.min(self.faults.heartbeat_timeout / 20);
        self.faults.delay.1 = self.faults.delay.1.min(self.faults.heartbeat_timeout / 20);
        for id in 0..self.nodes.len() {
            self.subject.mend_storage(id);
            (self.nodes[id].breaks, self.nodes[id].stall) = (None, None);
        }
        let connected = self.choose_connected();
        self.drop_requests();
        let everybody = connected.len() == self.nodes.len();
        note!(self, "faults end; connected for good: {connected:?}");
        for id in connected.iter().copied() {
            self.nodes[id].crash = None;
            self.nodes[id].paused_until = self.now;
            self.nodes[id].clock.change(self.now, std::time::Duration::ZERO, 1_000_000);
            if self.nodes[id].life.is_none() {
                self.schedule(self.now, Event::Start(id));
            }
            self.nodes[id].turn_at = Time::MAX;
            self.wake_at(id, self.now);
        }
        let mut goal = Goal { connected, everybody, write: None, reads: Vec::new() };
        let bound = self.now + 100 * self.election_timeout() + 10_000_000_000;
        while self.now < bound {
            let step = (self.election_timeout() / 4).max(1_000_000);
            self.run_until(self.now + step)?;
            if self.reached(&mut goal) {
                self.all_ended(&goal)?;
                return if goal.everybody { self.idle() } else { Ok(()) };
            }
        }
        let statuses: Vec<_> =
            self.nodes.iter().map(|it| it.life.as_ref().map(|it| &it.status)).collect();
        broken("K13", format!("no progress with {:?} connected: {statuses:?}", goal.connected))
    }

    /// What users have asked and nobody has heard yet could make a quorum of those who are not
    /// connected, or end the idleness.
    fn drop_requests(&mut self) {
        let asks = |message: &Message<_, _>| {
            matches!(message.body, Body::ChangeMembership(_) | Body::TransferLeadership(_))
        };
        self.network.retain(|message| !asks(message));
        for life in self.nodes.iter_mut().filter_map(|node| node.life.as_mut()) {
            life.inbox.retain(|message| !asks(message));
        }
    }

    /// Everybody or, if faults are to stand, a clique that has a majority of every configuration
    /// that may be in force.
    fn choose_connected(&mut self) -> BTreeSet<ReplicaID> {
        let mut connected: BTreeSet<ReplicaID> = (0..self.nodes.len()).collect();
        if !self.faults.standing {
            return connected;
        }
        let configurations: Vec<Arc<Membership>> = self.configurations();
        let mut ids: Vec<ReplicaID> = connected.iter().copied().collect();
        ids.shuffle(&mut self.random);
        for id in ids {
            connected.remove(&id);
            let quorum =
                |half: &BTreeSet<ReplicaID>| half.intersection(&connected).count() * 2 > half.len();
            let mut all = configurations.iter();
            if !all.all(|it| quorum(&it.voters) && (it.outgoing.is_empty() || quorum(&it.outgoing)))
            {
                connected.insert(id);
            }
        }
        self.leave_out(&connected);
        connected
    }

    /// Those that are durable anywhere, those that may turn out to be, and those that are about to
    /// be saved or are underway.
    fn configurations(&self) -> Vec<Arc<Membership>> {
        let initial = self.laws.membership_at(self.laws.commit());
        let in_doubt = self.nodes.iter().filter_map(|it| Some(&it.in_doubt.as_ref()?.0));
        let durable = self.ledgers.iter().chain(in_doubt).flat_map(|it| it.memberships());
        let lives = || self.nodes.iter().filter_map(|it| it.life.as_ref());
        let received = lives().flat_map(|it| &it.inbox).chain(self.network.underway());
        let known = durable.map(|(_, it)| it.clone()).chain([initial]);
        let in_force = lives().map(|it| it.status.membership.clone());
        known.chain(in_force).chain(received.flat_map(told)).collect()
    }

    /// Cuts the others off: dead for good, or without some of their links.
    fn leave_out(&mut self, connected: &BTreeSet<ReplicaID>) {
        let replicas = self.nodes.len();
        self.counters.standing += u64::from(connected.len() < replicas);
        for id in (0..replicas).filter(|id| !connected.contains(id)) {
            let one_way = self.random.random_ratio(1, 3);
            match self.random.random_range(0..4) {
                0 => self.nodes[id].paused_until = Time::MAX,
                1 => self.nodes[id].stall = Some(Time::MAX),
                _ => {
                    for other in 0..replicas {
                        if other != id && self.random.random_ratio(1, 2) {
                            let inbound = self.random.random();
                            let (from, to) = if inbound { (other, id) } else { (id, other) };
                            note!(self, "for good: cut {from} -> {to}, one way: {one_way}");
                            self.cut_link(from, to, one_way);
                        }
                    }
                }
            }
        }
    }

    /// Makes the next step towards the goal. True once there is a leader, a final configuration, a
    /// fresh write and a fresh read, and everybody has caught up who can.
    fn reached(&mut self, goal: &mut Goal) -> bool {
        let Some(leader) = self.leader() else { return false };
        let Some(life) = &self.nodes[leader].life else { return false };
        let status = life.status.clone();
        match goal.write {
            Some((id, term, _)) if (id, term) == (leader, status.term) => {}
            _ => {
                let number = self.propose_at(leader);
                goal.write = Some((leader, status.term, number));
                goal.reads.clear();
                return false;
            }
        }
        let ended = goal.write.is_some_and(|(.., number)| {
            !life.queued.values().any(|it| *it == number)
                && !life.proposals.iter().any(|(it, _)| *it == number)
        });
        let commit = self.laws.commit();
        if !ended || !status.membership.outgoing.is_empty() || status.applied < commit {
            return false;
        }
        let mut readers = BTreeSet::from([leader]);
        if goal.everybody {
            readers.extend(status.membership.members());
        }
        let applied = |id: &ReplicaID| self.nodes[*id].life.as_ref().map(|it| it.status.applied);
        if !readers.iter().all(|id| applied(id) >= Some(commit)) {
            return false;
        }
        self.read_everywhere(goal, &readers)
    }

    fn read_everywhere(&mut self, goal: &mut Goal, readers: &BTreeSet<ReplicaID>) -> bool {
        let mut all = true;
        for id in readers.iter().copied() {
            let asked = goal.reads.iter().filter(|(reader, _)| *reader == id);
            let done = asked.clone().any(|(_, number)| self.ready.contains_key(number));
            if !done {
                all = false;
                let number = self.read_at(id);
                goal.reads.push((id, number));
            }
        }
        all
    }

    /// K14: a cluster that nobody asks anything of says little and saves nothing.
    fn idle(&mut self) -> Result<(), Broken> {
        let Some(leader) = self.leader() else { return Ok(()) };
        let term = self.nodes[leader].life.as_ref().map(|it| it.status.term);
        self.run_until(self.now + 2 * self.election_timeout())?;
        let before = self.counters;
        let heartbeats = 20;
        self.run_until(self.now + heartbeats * nanos(self.faults.heartbeat_timeout))?;
        let same = self.nodes[leader].life.as_ref().map(|it| it.status.term) == term;
        // A heartbeat and its answer; and who is no member any more may ask everybody for votes.
        let replicas = self.nodes.len() as u64;
        let budget = 2 * (heartbeats + 1) * replicas * replicas.max(2);
        let (sent, saves) = (self.counters.sent - before.sent, self.counters.saves - before.saves);
        match same && (sent > budget || saves > replicas) {
            true => broken("K14", format!("{sent} messages and {saves} saves while idle")),
            false => Ok(()),
        }
    }

    /// Every proposal at a member has come to an end by now.
    fn all_ended(&self, goal: &Goal) -> Result<(), Broken> {
        let Some(leader) = self.leader().filter(|_| goal.everybody) else { return Ok(()) };
        let members = match &self.nodes[leader].life {
            Some(life) => life.status.membership.members(),
            None => return Ok(()),
        };
        for id in members {
            let open = self.nodes[id].life.as_ref().map_or(0, |it| it.queued.len());
            if open > 0 {
                return broken("outcome", format!("{open} proposals at {id} never ended"));
            }
        }
        Ok(())
    }
}
