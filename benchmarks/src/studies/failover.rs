//! How long a cluster is without a leader after its leader has vanished, in virtual time: the real
//! protocol, a network with a fixed delay, and nothing that depends on this machine.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use little_raft::{Change, Config, Message, Raft, Role};

use super::{publish, quantile};
use crate::blocking::Transition;
use crate::command::Fixed;

const TRIALS: u64 = 500;
const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(50);
/// When the leader vanishes, at the earliest: by then the cluster has long been at rest.
const SETTLED: Duration = Duration::from_secs(2);
const GIVE_UP: Duration = Duration::from_secs(60);

type Replica = Raft<Transition<Fixed<16>>, ()>;
type Letter = Message<Transition<Fixed<16>>, ()>;

/// What the trials are repeated for.
struct Circumstances {
    replicas: usize,
    /// Of a message, one way.
    delay: Duration,
    timeouts: (Duration, Duration),
}

/// What one trial yields.
struct Trial {
    /// From the leader's end to another that leads.
    leaderless: Duration,
    /// From the leader's end to the first entry committed by another.
    unavailable: Duration,
    /// The shortest election timeout drawn among the survivors.
    drawn: Duration,
    /// How many terms it took.
    terms: usize,
}

struct Cluster {
    now: Duration,
    replicas: Vec<Replica>,
    /// The election timeout that each drew last.
    drawn: Vec<Duration>,
    delay: Duration,
    gone: Option<usize>,
    /// What is underway, by arrival and order of sending.
    underway: BTreeMap<(Duration, u64), (usize, Letter)>,
    sent: u64,
    /// Who led in which term: one at most.
    leaders: BTreeMap<usize, usize>,
}

pub fn report() -> Result<(), String> {
    let mut text = format!(
        "{TRIALS} trials each; the leader of an idle cluster vanishes at a random point between \
         two heartbeats, which come every {HEARTBEAT_TIMEOUT:?}. *Without a leader*: until another \
         leads. *Unavailable*: until it has committed an entry. *Theory*: the median of the \
         shortest election timeout drawn among the survivors, plus one round trip. Every election \
         is preceded by a pre-vote, which takes a round trip of its own. Milliseconds.\n\n\
         | replicas | round trip | timeouts | theory | without a leader, median | ratio | p99 | most | unavailable, median | more than one term |\n\
         |---:|---:|---|---:|---:|---:|---:|---:|---:|---:|\n"
    );
    for circumstances in all() {
        write_row(&mut text, &circumstances)?;
    }
    publish("failover.md", "Failover", &text)
}

fn all() -> Vec<Circumstances> {
    let mut all = Vec::new();
    for replicas in [3, 5, 7] {
        for (delay, least, greatest) in [(250, 150, 300), (5_000, 150, 300), (250, 1_000, 2_000)] {
            let timeouts = (Duration::from_millis(least), Duration::from_millis(greatest));
            all.push(Circumstances { replicas, delay: Duration::from_micros(delay), timeouts });
        }
    }
    all
}

fn write_row(text: &mut String, circumstances: &Circumstances) -> Result<(), String> {
    let trials: Result<Vec<Trial>, String> =
        (0..TRIALS).map(|number| run(circumstances, number)).collect();
    let trials = trials?;
    let sorted = |value: fn(&Trial) -> Duration| {
        let mut values: Vec<f64> = trials.iter().map(|it| value(it).as_secs_f64() * 1e3).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let leaderless = sorted(|it| it.leaderless);
    let unavailable = quantile(&sorted(|it| it.unavailable), 0.5);
    let round_trip = circumstances.delay.as_secs_f64() * 2e3;
    let theory = quantile(&sorted(|it| it.drawn), 0.5) + round_trip;
    let [median, late, most] = [0.5, 0.99, 1.0].map(|share| quantile(&leaderless, share));
    let (least, greatest) = circumstances.timeouts;
    let split = trials.iter().filter(|it| it.terms > 1).count() as f64 / TRIALS as f64 * 100.0;
    let _ = writeln!(
        text,
        "| {} | {round_trip:.1} | {} to {} | {theory:.1} | {median:.1} | {:.2} | {late:.1} | {most:.1} | {unavailable:.1} | {split:.1} % |",
        circumstances.replicas,
        least.as_millis(),
        greatest.as_millis(),
        median / theory,
    );
    Ok(())
}

fn run(circumstances: &Circumstances, number: u64) -> Result<Trial, String> {
    let mut cluster = Cluster::new(circumstances, number)?;
    // Spread over the time between two heartbeats, by a step that has no common divisor with it.
    let phase = Duration::from_micros(number * 7_919 % HEARTBEAT_TIMEOUT.as_micros() as u64);
    let vanishes_at = SETTLED + circumstances.timeouts.1 * 2 + phase;
    while cluster.step_until(vanishes_at) {}
    let old = cluster.leader().ok_or("no leader came to be in time")?;
    cluster.now = vanishes_at;
    cluster.gone = Some(old);
    let (before, _) = cluster.leaders.last_key_value().ok_or("no leader came to be")?;
    let before = *before;
    // What the old leader had sent still arrives, and is answered with a new timeout.
    while cluster.step_until(vanishes_at + circumstances.delay) {}
    let survivors = (0..circumstances.replicas).filter(|id| *id != old);
    let drawn = survivors.map(|id| cluster.drawn[id]).min().unwrap_or_default();
    let mut leads_at = None;
    while leads_at.is_none() || !cluster.has_committed(leads_at) {
        if !cluster.step_until(vanishes_at + GIVE_UP) {
            return Err(format!("trial {number}: no new leader within {GIVE_UP:?}"));
        }
        leads_at = leads_at.or(cluster.leader().map(|id| (id, cluster.now)));
    }
    let (id, led_at) = leads_at.ok_or("nobody leads")?;
    let terms = cluster.replicas[id].me.term - before;
    let leaderless = led_at - vanishes_at;
    Ok(Trial { leaderless, unavailable: cluster.now - vanishes_at, drawn, terms })
}

impl Cluster {
    fn new(circumstances: &Circumstances, trial: u64) -> Result<Self, String> {
        let Circumstances { replicas: count, delay, timeouts } = *circumstances;
        let replicas: Result<Vec<Replica>, String> = (0..count)
            .map(|id| {
                let config = Config {
                    id,
                    peer_ids: (0..count).filter(|peer| *peer != id).collect(),
                    heartbeat_timeout: HEARTBEAT_TIMEOUT,
                    election_timeout_range: timeouts,
                    seed: trial * 1_000 + id as u64,
                    ..Config::default()
                };
                Raft::new(config, Transition::noop(), Change::default(), Duration::ZERO)
                    .map_err(|error| error.to_string())
            })
            .collect();
        Ok(Cluster {
            now: Duration::ZERO,
            replicas: replicas?,
            drawn: vec![Duration::ZERO; count],
            delay,
            gone: None,
            underway: BTreeMap::new(),
            sent: 0,
            leaders: BTreeMap::new(),
        })
    }

    /// The next thing that happens, if it does before the end: a message or a deadline.
    fn step_until(&mut self, end: Duration) -> bool {
        let alive = (0..self.replicas.len()).filter(|id| Some(*id) != self.gone);
        let deadline = alive.map(|id| (self.replicas[id].me.deadline, id)).min();
        let arrival = self.underway.first_key_value().map(|((at, _), _)| *at);
        let next = [deadline.map(|(at, _)| at), arrival].into_iter().flatten().min();
        let Some(next) = next.filter(|at| *at < end) else { return false };
        self.now = next;
        if arrival == Some(next) {
            let Some((_, (to, message))) = self.underway.pop_first() else { return false };
            if Some(to) != self.gone {
                let before = self.replicas[to].me.deadline;
                self.replicas[to].step(next, message);
                self.take_turn(to, before);
            }
        } else if let Some((before, id)) = deadline {
            self.take_turn(id, before);
        }
        true
    }

    fn take_turn(&mut self, id: usize, deadline_before: Duration) {
        let replica = &mut self.replicas[id];
        let outputs = replica.outputs(self.now);
        if replica.me.deadline != deadline_before {
            self.drawn[id] = replica.me.deadline - self.now;
        }
        if outputs.change.is_some() {
            replica.saved();
        }
        while !replica.committed().is_empty() {
            replica.applied(replica.committed().len());
        }
        for (to, message) in outputs.appends.into_iter().chain(outputs.messages) {
            self.sent += 1;
            self.underway.insert((self.now + self.delay, self.sent), (to, message));
        }
        if let Some(status) = outputs.status.filter(|status| status.role == Role::Leader) {
            let leader = *self.leaders.entry(status.term).or_insert(id);
            assert_eq!(leader, id, "two leaders in term {}", status.term);
        }
    }

    /// Whoever leads in the latest term, if alive.
    fn leader(&self) -> Option<usize> {
        let (term, leader) = self.leaders.last_key_value()?;
        let status = &self.replicas[*leader].me;
        let leads = status.role == Role::Leader && status.term == *term;
        Some(*leader).filter(|id| leads && Some(*id) != self.gone)
    }

    /// Whether a new leader has committed the entry that its term began with.
    fn has_committed(&self, leader: Option<(usize, Duration)>) -> bool {
        leader.is_some_and(|(id, _)| {
            let status = &self.replicas[id].me;
            status.commit == status.last_index
        })
    }
}
