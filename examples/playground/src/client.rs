//! The client: finds the leader, tries again, has each write applied exactly once, and does not
//! wait forever.

use crate::board::{Leader, Outcome, Told};
use crate::cluster::{Cluster, HEARTBEAT};
use crate::store::{Action, Answer, RequestId, Text, Transition};
use little_raft::ReplicaID;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// There is one client here. Clients of a server would draw a random number each.
const SESSION: u64 = 1;
/// Writes that may be underway at once.
const MAX_UNDERWAY: usize = 4096;
/// Outcomes that are worth waking up for, if there is enough underway.
const BATCH: usize = 1024;

pub(crate) struct Client {
    /// How long to wait without any progress.
    time_limit: Duration,
    next_sequence: u64,
    underway: BTreeMap<u64, Underway>,
}

struct Underway {
    action: Action,
    /// How many copies of it may still be applied. More than one does no harm: each replica
    /// recognizes the second by its id.
    copies: usize,
}

/// Why the rest of some writes was given up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GivenUp {
    /// How many may still be applied, or may have been: nobody knows.
    pub(crate) unknown: usize,
    /// How many certainly were not and will not be.
    pub(crate) not_applied: usize,
}

impl Client {
    pub(crate) fn new(time_limit: Duration) -> Client {
        Client { time_limit, next_sequence: 1, underway: BTreeMap::new() }
    }

    fn next_id(&mut self) -> RequestId {
        self.next_sequence += 1;
        RequestId { session: SESSION, sequence: self.next_sequence - 1 }
    }

    /// Has actions applied, many at a time, in whatever order; `on_answer` is called for each that
    /// was. Actions that must come in order go one by one.
    ///
    /// A write goes to the leader, and again to the next leader as long as there is no answer.
    /// After the time limit it is given up, and may then have been applied or not.
    pub(crate) fn write(
        &mut self, cluster: &Cluster, actions: impl IntoIterator<Item = Action>,
        mut on_answer: impl FnMut(Answer),
    ) -> Result<(), GivenUp> {
        let mut actions = actions.into_iter();
        let mut leader = None;
        let mut to_send = Vec::new();
        let mut deadline = Instant::now() + self.time_limit;
        loop {
            self.take_up(&mut actions, &mut to_send);
            if self.underway.is_empty() {
                return Ok(());
            }
            let now_leads = cluster.board().look().leader();
            if leader != now_leads {
                // What the last leader had may be lost.
                to_send = self.underway.keys().copied().collect();
                leader = now_leads;
            }
            self.send(cluster, leader, &mut to_send);
            let outcomes = self.wait_for_outcomes(cluster, leader, deadline);
            for (id, outcome) in outcomes {
                if let Some(answer) = self.take_note(id, outcome, &mut to_send) {
                    on_answer(answer);
                    deadline = Instant::now() + self.time_limit;
                }
            }
            if Instant::now() >= deadline {
                return Err(self.give_up(actions.count()));
            }
            if !to_send.is_empty() && leader.is_some() {
                // A leader that is handing over refuses writes: do not ask again at once.
                pause(cluster, leader, deadline);
            }
        }
    }

    /// Takes up as many actions as may be underway.
    fn take_up(&mut self, actions: &mut impl Iterator<Item = Action>, to_send: &mut Vec<u64>) {
        for action in actions.take(MAX_UNDERWAY - self.underway.len()) {
            let RequestId { sequence, .. } = self.next_id();
            self.underway.insert(sequence, Underway { action, copies: 0 });
            to_send.push(sequence);
        }
    }

    /// Sends what is to be sent, if there is somebody to send it to.
    fn send(&mut self, cluster: &Cluster, leader: Option<Leader>, to_send: &mut Vec<u64>) {
        let Some(leader) = leader else { return };
        let settled = self.underway.keys().next().copied().unwrap_or(self.next_sequence);
        let mut transitions = Vec::with_capacity(to_send.len());
        for sequence in to_send.drain(..) {
            let Some(write) = self.underway.get_mut(&sequence) else { continue };
            write.copies += 1;
            let (id, action) = (RequestId { session: SESSION, sequence }, write.action.clone());
            transitions.push(Transition::Write { id, settled, action });
        }
        if !transitions.is_empty() {
            cluster.propose(leader.id, transitions);
        }
    }

    /// Waits for a batch of outcomes, or for another leader.
    fn wait_for_outcomes(
        &self, cluster: &Cluster, leader: Option<Leader>, deadline: Instant,
    ) -> Vec<(RequestId, Outcome)> {
        let wanted = self.underway.len().min(BATCH);
        let enough = |told: &mut Told| {
            (told.outcomes.len() >= wanted || told.leader() != leader).then_some(())
        };
        cluster.board().wait(deadline, enough);
        std::mem::take(&mut cluster.board().look().outcomes)
    }

    /// Returns the answer, if there is one. An outcome may also be that of a write that was given
    /// up.
    fn take_note(
        &mut self, id: RequestId, outcome: Outcome, to_send: &mut Vec<u64>,
    ) -> Option<Answer> {
        let write = self.underway.get_mut(&id.sequence)?;
        match outcome {
            Outcome::Applied(answer) => {
                self.underway.remove(&id.sequence);
                return Some(answer);
            }
            Outcome::NotApplied => write.copies = write.copies.saturating_sub(1),
            Outcome::Unknown | Outcome::Read(_) => {}
        }
        to_send.push(id.sequence);
        None
    }

    fn give_up(&mut self, never_sent: usize) -> GivenUp {
        let unknown = self.underway.values().filter(|write| write.copies > 0).count();
        let not_applied = self.underway.len() - unknown + never_sent;
        self.underway.clear();
        GivenUp { unknown, not_applied }
    }

    /// Reads a key at a replica, which asks the leader whether it knows all that is committed.
    /// Nothing if nobody can tell within the time limit.
    pub(crate) fn read(
        &mut self, cluster: &Cluster, key: &Text, at: Option<ReplicaID>,
    ) -> Option<(ReplicaID, Option<Text>)> {
        let deadline = Instant::now() + self.time_limit;
        loop {
            // At the leader a read takes the fewest messages, but any replica will do.
            let leader = cluster.board().look().leader();
            let by_leader = || cluster.board().wait(deadline, |told| told.leader());
            let at = at.or_else(|| by_leader().map(|leader| leader.id))?;
            let id = self.next_id();
            cluster.read(at, id, key.clone());
            let outcome = cluster.board().wait(deadline, |told| {
                let outcomes = std::mem::take(&mut told.outcomes).into_iter();
                outcomes.filter(|(it, _)| *it == id).map(|(_, outcome)| outcome).next()
            });
            match outcome? {
                Outcome::Read(value) => return Some((at, value)),
                // There was no leader for a moment: do not ask again at once.
                _ => pause(cluster, leader, deadline),
            };
        }
    }
}

/// Waits for a moment, or until there is another leader.
fn pause(cluster: &Cluster, leader: Option<Leader>, deadline: Instant) {
    let soon = deadline.min(Instant::now() + HEARTBEAT);
    cluster.board().wait(soon, |told| (told.leader() != leader).then_some(()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Standing;
    use std::collections::BTreeSet;

    const LIMIT: Duration = Duration::from_secs(60);
    const WRITES: usize = 20_000;

    /// Writes many new keys while `meddle` is called after every 2,000th answer with the leader of
    /// the moment. Each answer must be that of a key which was not there: that of the first copy.
    fn write_in_spite_of(mut meddle: impl FnMut(&Cluster, Leader)) {
        let cluster = Cluster::start(3, 1000).unwrap();
        let mut client = Client::new(LIMIT);
        let key = |number: usize| Text::from(number.to_string());
        let set = |number| Action::Set { key: key(number), value: key(number) };
        let mut answers = 0;
        let written = client.write(&cluster, (0..WRITES).map(set), |answer| {
            assert_eq!(answer, Answer::Done { before: None });
            answers += 1;
            if answers % 2000 == 0 && answers < WRITES {
                let leader = cluster.board().look().leader();
                leader.into_iter().for_each(|leader| meddle(&cluster, leader));
            }
        });
        assert_eq!((written, answers), (Ok(()), WRITES));
        cluster.network().heal();
        let deadline = Instant::now() + LIMIT;
        assert!(matches!(cluster.settle(deadline), Standing::Led(_)));
        assert_eq!(cluster.catch_up(deadline), cluster.ids());
        let states = cluster.ids().into_iter().map(|id| {
            let state = cluster.state(id).unwrap();
            (state.keys(), state.digest())
        });
        let states = states.collect::<BTreeSet<_>>();
        assert_eq!(states.iter().map(|(keys, _)| *keys).collect::<Vec<_>>(), [WRITES]);
    }

    #[test]
    fn every_write_is_applied_once_while_leaders_are_cut_off() {
        let mut leaders = BTreeSet::new();
        write_in_spite_of(|cluster, leader| {
            leaders.insert(leader.term);
            cluster.network().heal();
            let others = cluster.ids().into_iter().filter(|id| *id != leader.id);
            others.for_each(|other| cluster.network().cut(leader.id, other));
        });
        assert!(leaders.len() > 1, "nobody was cut off: {leaders:?}");
    }

    #[test]
    fn every_write_is_applied_once_while_leadership_is_handed_around() {
        let mut leaders = BTreeSet::new();
        write_in_spite_of(|cluster, leader| {
            leaders.insert(leader.term);
            cluster.transfer_leadership(leader, leader.id % 3 + 1);
        });
        assert!(leaders.len() > 1, "leadership was not handed over: {leaders:?}");
    }

    fn delete() -> Action {
        Action::Delete { key: "key".into() }
    }

    #[test]
    fn what_was_never_sent_was_not_applied() {
        let mut cluster = Cluster::start(1, 0).unwrap();
        cluster.stop(1).unwrap();
        let mut client = Client::new(Duration::from_millis(100));
        let given_up = client.write(&cluster, [delete(), delete()], |_| {});
        assert_eq!(given_up, Err(GivenUp { unknown: 0, not_applied: 2 }));
        assert_eq!(client.read(&cluster, &"key".into(), Some(1)), None);
    }

    #[test]
    fn what_a_leader_took_and_nobody_confirmed_is_unknown() {
        let cluster = Cluster::start(2, 0).unwrap();
        let mut client = Client::new(Duration::from_millis(100));
        let deadline = Instant::now() + LIMIT;
        // A leader that is cut off steps down soon, at times before it is sent the write.
        while Instant::now() < deadline {
            cluster.network().heal();
            cluster.settle(deadline);
            cluster.network().cut(1, 2);
            if client.write(&cluster, [delete()], |_| panic!("one of two is no majority"))
                == Err(GivenUp { unknown: 1, not_applied: 0 })
            {
                return;
            }
        }
        panic!("no leader ever took a write");
    }
}
