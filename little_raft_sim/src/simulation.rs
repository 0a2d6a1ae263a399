//! One run: virtual time, the events in their order, and the replicas they happen to.

use crate::clock::{Clock, Time, nanos};
use crate::counters::Counters;
use crate::laws::{Broken, Laws, broken};
use crate::ledger::{Appended, Digest, Ledger, Map, digest_of};
use crate::network::{Arrival, Network};
use crate::script::Script;
use crate::subject::{Ending, Subject};
use crate::{DiskFault, Faults, Random};
use little_raft::raft::{Config, Outputs};
use little_raft::{Membership, Message, Raft, ReplicaID, Role, Status};
use rand::{RngExt, SeedableRng};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::ErrorKind::InvalidData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// Where in a turn a replica crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CrashPoint {
    BeforeOutputs,
    AfterAppends,
    InSave,
    AfterSave,
    AmongMessages,
    Applying,
    AfterTurn,
}

/// What is to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    Arrival(usize),
    Turn(ReplicaID),
    Start(ReplicaID),
    Client,
    Crash,
    Break,
    Stall,
    Cut,
    Pause,
    Jump,
    ChangeMembership,
    Transfer,
}

/// What a turn leaves to be done.
pub(crate) type Batch<S> = Outputs<<S as Subject>::Transition, <S as Subject>::Data>;

/// A replica's life between two crashes.
pub(crate) struct Life<S: Subject> {
    pub(crate) raft: Raft<S::Transition, S::Data>,
    pub(crate) storage: S::Storage,
    pub(crate) machine: S::Machine,
    /// The last term it was seen to lead.
    pub(crate) led: usize,
    /// What was last seen of it.
    pub(crate) status: Status,
    pub(crate) inbox: Vec<Message<S::Transition, S::Data>>,
    pub(crate) proposals: Vec<(u64, S::Transition)>,
    pub(crate) questions: Vec<u64>,
    /// Proposals that were queued and have not ended: their numbers by content.
    pub(crate) queued: Map<Digest, u64>,
    /// Reads underway, by ticket: the number, what was committed when it was asked, and the turn.
    pub(crate) reads: Map<u64, (u64, usize, u64)>,
    /// What is left of a turn that is in the middle of a save.
    pub(crate) unfinished: Option<(Batch<S>, Option<CrashPoint>)>,
}

impl<S: Subject> Life<S> {
    fn new(
        raft: Raft<S::Transition, S::Data>, storage: S::Storage, machine: S::Machine,
    ) -> Life<S> {
        let (inbox, proposals, questions) = (Vec::new(), Vec::new(), Vec::new());
        let (led, status, queued, reads) = (0, raft.me.clone(), Map::default(), Map::default());
        let unfinished = None;
        Life {
            raft,
            storage,
            machine,
            led,
            status,
            inbox,
            proposals,
            questions,
            queued,
            reads,
            unfinished,
        }
    }
}

pub(crate) struct Node<S: Subject> {
    pub(crate) id: ReplicaID,
    pub(crate) life: Option<Life<S>>,
    pub(crate) clock: Clock,
    /// When the next turn is scheduled.
    pub(crate) turn_at: Time,
    pub(crate) paused_until: Time,
    pub(crate) crash: Option<CrashPoint>,
    pub(crate) lives: u64,
    /// How saves are expected to fail.
    pub(crate) breaks: Option<DiskFault>,
    /// How long the next save takes.
    pub(crate) stall: Option<Time>,
    /// What may have become durable in a save that failed.
    pub(crate) in_doubt: Option<(Ledger, Vec<Appended>)>,
}

impl<S: Subject> Node<S> {
    fn new(id: ReplicaID) -> Node<S> {
        Node {
            id,
            life: None,
            clock: Clock::new(0, 1_000_000),
            turn_at: Time::MAX,
            paused_until: 0,
            crash: None,
            lives: 0,
            breaks: None,
            stall: None,
            in_doubt: None,
        }
    }
}

/// A cluster under faults, all of which follow from one seed.
pub struct Simulation<S: Subject> {
    pub(crate) subject: S,
    pub(crate) faults: Faults,
    pub(crate) random: Random,
    pub(crate) now: Time,
    pub(crate) queue: BinaryHeap<Reverse<(Time, u64, Event)>>,
    pub(crate) sequence: u64,
    pub(crate) nodes: Vec<Node<S>>,
    pub(crate) ledgers: Vec<Ledger>,
    pub(crate) network: Network<S::Transition, S::Data>,
    pub(crate) laws: Laws,
    pub(crate) counters: Counters,
    pub(crate) noop: Digest,
    pub(crate) next_number: u64,
    pub(crate) next_read: u64,
    /// Reads that became ready after faults had ended.
    pub(crate) ready: Map<u64, ReplicaID>,
    pub(crate) trace: Option<Vec<String>>,
    pub(crate) script: Option<Script>,
    /// What happens next, byte by byte, instead of in the order of time.
    pub(crate) schedule: Option<Vec<u8>>,
    pub(crate) quiet: bool,
}

macro_rules! note {
    ($simulation:expr, $($argument:tt)*) => {
        if $simulation.trace.is_some() {
            let line = format!($($argument)*);
            $simulation.note(line);
        }
    };
}
pub(crate) use note;

impl<S: Subject> Simulation<S> {
    /// A cluster whose faults are drawn from a seed.
    pub fn new(subject: S, seed: u64) -> Self {
        let mut random = Random::seed_from_u64(seed);
        let faults = Faults::draw(&mut random);
        Self::with_faults(subject, faults, seed)
    }

    /// A cluster with chosen faults, whose order and places follow from a seed.
    pub fn with_faults(subject: S, faults: Faults, seed: u64) -> Self {
        let replicas = faults.voters + faults.joining;
        let noop = digest_of(&subject.noop());
        let voters = (0..faults.voters).collect();
        let mut simulation = Simulation {
            subject,
            random: Random::seed_from_u64(seed.wrapping_add(1)),
            now: 0,
            queue: BinaryHeap::new(),
            sequence: 0,
            nodes: (0..replicas).map(Node::new).collect(),
            ledgers: vec![Ledger::default(); replicas],
            network: Network::new(replicas),
            laws: Laws::new(noop, Membership { voters, ..Membership::default() }),
            counters: Counters::default(),
            noop,
            next_number: 0,
            next_read: 0,
            ready: Map::default(),
            trace: None,
            script: None,
            schedule: None,
            quiet: false,
            faults,
        };
        for id in 0..replicas {
            let at = simulation.random.random_range(0..50_000_000);
            simulation.schedule(at, Event::Start(id));
        }
        simulation.schedule_disturbances();
        simulation
    }

    /// Keeps a line for everything that happens, and a script of it.
    pub fn traced(mut self) -> Self {
        self.script = Some(Script::new(&self.faults));
        self.trace = Some(Vec::new());
        self
    }

    /// What has happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The faults of this run.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// What has been traced so far.
    pub fn trace(&self) -> &[String] {
        self.trace.as_deref().unwrap_or_default()
    }

    /// Runs to the end: faults, then the proof that the cluster still works.
    ///
    /// # Errors
    /// The first law that was broken.
    pub fn run(&mut self) -> Result<(), Broken> {
        match self.schedule.take() {
            Some(schedule) => self.follow(&schedule)?,
            None => self.run_until(nanos(self.faults.duration))?,
        }
        self.settle()?;
        self.counters.undecided += self.subject.verdict().or_else(|it| broken("K11", it))?;
        Ok(())
    }

    /// Runs to the end, as [`run`](Self::run) does, and takes a panic for the breach of a law.
    ///
    /// # Errors
    /// The first law that was broken.
    pub fn run_caught(&mut self) -> Result<(), Broken> {
        catch_unwind(AssertUnwindSafe(|| self.run())).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            broken("panic", text.unwrap_or_default())
        })
    }

    /// The time since the run began.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.now)
    }

    pub(crate) fn run_until(&mut self, end: Time) -> Result<(), Broken> {
        while let Some(Reverse((at, ..))) = self.queue.peek()
            && *at <= end
        {
            let Some(Reverse((at, _, event))) = self.queue.pop() else { break };
            self.now = self.now.max(at);
            self.counters.events += 1;
            self.happen(event)?;
        }
        self.now = end;
        Ok(())
    }

    pub(crate) fn schedule(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((at, self.sequence, event)));
    }

    pub(crate) fn happen(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Arrival(ticket) => self.arrive(ticket),
            Event::Turn(id) => return self.turn_if_due(id),
            Event::Start(id) => return self.start(id),
            _ if self.quiet => {}
            _ => return self.disturb(event),
        }
        Ok(())
    }

    fn arrive(&mut self, ticket: usize) {
        let (from, to, message) = match self.network.arrive(ticket) {
            Arrival::Lost => return,
            Arrival::Cut((from, to, message)) => return self.lose(from, to, &message),
            Arrival::Came(packet) => packet,
        };
        match &mut self.nodes[to].life {
            Some(life) => {
                life.inbox.push(message);
                self.wake_soon(to);
            }
            None => self.lose(from, to, &message),
        }
    }

    fn lose(&mut self, from: ReplicaID, to: ReplicaID, message: &Message<S::Transition, S::Data>) {
        self.script_loss(from, to, message);
        self.scripted(|script, now| script.end_turn(to, now));
    }

    /// Something has come for a replica, which will look at it at once or a little later.
    pub(crate) fn wake_soon(&mut self, id: ReplicaID) {
        let idle = nanos(self.faults.idleness);
        let idle = if idle == 0 || self.quiet { 0 } else { self.random.random_range(0..2 * idle) };
        self.wake_at(id, self.now + idle);
    }

    pub(crate) fn wake_at(&mut self, id: ReplicaID, at: Time) {
        let node = &mut self.nodes[id];
        let at = at.max(node.paused_until);
        if at < node.turn_at {
            node.turn_at = at;
            self.schedule(at, Event::Turn(id));
        }
    }

    fn turn_if_due(&mut self, id: ReplicaID) -> Result<(), Broken> {
        let node = &mut self.nodes[id];
        if node.turn_at > self.now {
            return Ok(());
        }
        node.turn_at = Time::MAX;
        if node.paused_until > self.now {
            let until = node.paused_until;
            self.wake_at(id, until);
            return Ok(());
        }
        match node.life.take() {
            Some(life) => self.turn(id, life),
            None => Ok(()),
        }
    }

    /// A replica comes up with what its storage has.
    fn start(&mut self, id: ReplicaID) -> Result<(), Broken> {
        if self.nodes[id].life.is_some() {
            return Ok(());
        }
        let skew = if self.quiet { 0 } else { u64::from(self.faults.clock_skew) };
        let rate = 1_000_000 + self.random.random_range(0..=2 * skew) - skew;
        let mut storage = self.subject.storage(id);
        let mut machine = self.subject.machine(id);
        let rotten = self.rot(id);
        let saved = match little_raft::Storage::load(&mut storage) {
            Err(error) if rotten && error.kind() == InvalidData => {
                self.refuse_to_start(id);
                return Ok(());
            }
            saved => saved.or_else(|error| broken("load", format!("{id}: {error}")))?,
        };
        self.recovered(id, &saved)?;
        if let Some(snapshot) = saved.snapshot.clone() {
            let index = snapshot.last_included_index;
            little_raft::StateMachine::set_snapshot(&mut machine, snapshot);
            self.laws.reaches(index, self.subject.digest(&machine))?;
        }
        let config = self.config(id);
        let raft = Raft::new(config, self.subject.noop(), saved, Duration::ZERO);
        let raft = raft.or_else(|error| broken("start", format!("{id}: {error}")))?;
        note!(self, "{id} starts with {:?}", self.ledgers[id].last());
        let node = &mut self.nodes[id];
        (node.clock, node.crash) = (Clock::new(self.now, rate), None);
        node.lives += 1;
        self.counters.restarts += u64::from(node.lives > 1);
        if node.lives > 1 {
            self.scripted(|script, now| script.say(now, format!("restart {id}")));
        }
        let node = &mut self.nodes[id];
        let first_turn = node.clock.shows(raft.me.deadline, self.now);
        node.life = Some(Life::new(raft, storage, machine));
        self.wake_at(id, first_turn);
        Ok(())
    }

    /// Perhaps damages what a replica has saved, before it starts.
    fn rot(&mut self, id: ReplicaID) -> bool {
        let chosen = !self.quiet
            && self.faults.rot > 0
            && self.random.random_range(0..1_000_000) < self.faults.rot;
        chosen && self.subject.flip_bit(id, self.random.random::<u32>() as usize)
    }

    /// A disk is found to be damaged; a sound copy of it takes its place.
    fn refuse_to_start(&mut self, id: ReplicaID) {
        note!(self, "{id} refuses to start with a flipped bit");
        self.scripted(|script, now| script.say(now, format!("# {id} finds its disk damaged")));
        self.counters.refused_starts += 1;
        self.subject.mend_storage(id);
        self.nodes[id].breaks = None;
        let down = self.random.random_range(0..=2 * nanos(self.faults.downtime));
        self.schedule(self.now + down, Event::Start(id));
    }

    fn config(&mut self, id: ReplicaID) -> Config {
        let joining = id >= self.faults.voters;
        Config {
            id,
            peer_ids: (0..self.faults.voters).filter(|peer| *peer != id).collect(),
            heartbeat_timeout: self.faults.heartbeat_timeout,
            election_timeout_range: self.faults.election_timeout_range,
            snapshot_delta: self.faults.snapshot_delta,
            max_clock_drift: self.faults.max_clock_drift,
            joining,
            seed: self.random.random(),
        }
    }

    /// Ends a replica's life. What it had not saved is gone.
    pub(crate) fn die(&mut self, id: ReplicaID, life: Life<S>, why: &str) {
        note!(self, "{id} crashes: {why}");
        self.scripted(|script, now| script.say(now, format!("crash {id}")));
        let (at, machine) = (Duration::from_nanos(self.now), &life.machine);
        let mut numbers: Vec<_> = life.queued.values().copied().collect();
        numbers.extend(life.proposals.iter().map(|(number, _)| *number));
        numbers.sort_unstable();
        for number in numbers {
            self.subject.ended(at, number, Ending::Unknown, machine);
        }
        self.nodes[id].turn_at = Time::MAX;
        self.nodes[id].paused_until = self.now;
        let down = nanos(self.faults.downtime);
        let down = self.random.random_range(0..=2 * down);
        self.schedule(self.now + down, Event::Start(id));
    }

    /// The living replica that leads the latest term.
    pub(crate) fn leader(&self) -> Option<ReplicaID> {
        let lives = self.nodes.iter().filter_map(|it| Some((it.id, &it.life.as_ref()?.status)));
        let leaders = lives.filter(|(_, status)| status.role == Role::Leader);
        leaders.max_by_key(|(_, status)| status.term).map(|(id, _)| id)
    }

    pub(crate) fn note(&mut self, line: String) {
        let at = Duration::from_nanos(self.now);
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>12.6} {line}", at.as_secs_f64()));
        }
    }
}
