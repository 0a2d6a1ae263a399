//! Little Raft as it lies beside this folder.
//!
//! In threads it is what a user gets from `Replica::start`; in one thread it is the pure protocol,
//! `Raft`, in a loop like the one that its documentation draws. Snapshots are on in both, so that
//! memory stays bounded. Replica 0 is the first to stand for election, and nobody else does before
//! it has been gone for two seconds.

use std::time::Duration;

use little_raft::{
    Change, Cluster, Config, Message, Raft, Replica, Role, Snapshot, StateMachine,
    StateMachineTransition, TransitionState,
};

use super::{Kind, System, with_command};
use crate::blocking::{self, Machine, Network, Parts, Transition};
use crate::client::{Client, Measurement};
use crate::command::{Command, State};
use crate::node::{self, Node};
use crate::scenario::{Place, Setup};

const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(50);
/// How many commands are applied between two snapshots, with threads.
const SNAPSHOT_DELTA: usize = 100_000;
/// The same for the pure protocol, where everybody shares one processor's caches: seldom enough to
/// cost nothing, often enough that the log stays in them. The other pure protocols do the same.
const SNAPSHOT_DELTA_IN_CACHE: usize = 16 * 1024;
/// What passes between two ticks.
const TICK: Duration = Duration::from_millis(10);

pub fn system() -> System {
    System {
        name: "little-raft",
        kind: Kind::Library,
        about: "this repository's library: `Replica` in threads, `Raft` in one thread",
        package: Some("little_raft"),
        supports: |_| true,
        measure: |setup| with_command!(setup.scenario.payload, measure(setup)),
    }
}

/// What the blocking loop costs shows beside it.
pub fn pure_in_threads() -> System {
    System {
        name: "little-raft-pure",
        kind: Kind::Library,
        about: "the same protocol, `Raft`, in threads with the loop of the other pure protocols",
        package: Some("little_raft"),
        supports: |scenario| scenario.place != Place::AllInOne,
        measure: |setup| with_command!(setup.scenario.payload, measure_pure(setup)),
    }
}

fn measure<C: Command>(setup: &Setup) -> Result<Measurement, String> {
    match setup.scenario.place {
        Place::AllInOne => measure_pure::<C>(setup),
        Place::WithLeader | Place::OnItsOwn => {
            blocking::measure::<C, _>(setup, Client::new(setup), start)
        }
    }
}

fn measure_pure<C: Command>(setup: &Setup) -> Result<Measurement, String> {
    let delta = match setup.scenario.place {
        Place::AllInOne => SNAPSHOT_DELTA_IN_CACHE,
        Place::WithLeader | Place::OnItsOwn => SNAPSHOT_DELTA,
    };
    node::measure(setup, [0, 1, 2].map(|id| Pure::<C>::new(id, node::REPLICAS, delta)))
}

fn start<C: Command>(parts: Parts<C, Message<Transition<C>, State>>) {
    let replica = Replica::new(
        parts.id,
        parts.peer_ids,
        parts.network,
        parts.machine,
        Transition::noop(),
        HEARTBEAT_TIMEOUT,
        election_timeout_range(parts.id),
    );
    let outcome = replica.with_snapshots(SNAPSHOT_DELTA).start(parts.messages, parts.transitions);
    outcome.expect("nothing is stored, so nothing can fail");
}

fn election_timeout_range(id: usize) -> (Duration, Duration) {
    let (least, greatest) = if id == 0 { (150, 200) } else { (2_000, 3_000) };
    (Duration::from_millis(least), Duration::from_millis(greatest))
}

impl<C: Command> StateMachineTransition for Transition<C> {
    type TransitionID = u64;

    fn get_id(&self) -> u64 {
        self.number()
    }
}

impl<C: Command> StateMachine<Transition<C>, State> for Machine<C> {
    fn register_transition_state(&mut self, _: u64, _: TransitionState) {}

    fn apply_transition(&mut self, transition: Transition<C>) {
        self.apply(&transition);
    }

    fn get_pending_transitions(&mut self) -> Vec<Transition<C>> {
        self.take_pending()
    }

    fn create_snapshot(&mut self, last_index: usize, last_term: usize) -> Snapshot<State> {
        let data = self.state();
        Snapshot { last_included_index: last_index, last_included_term: last_term, data }
    }

    fn set_snapshot(&mut self, snapshot: Snapshot<State>) {
        self.restore(snapshot.data);
    }
}

impl<C: Command> Cluster<Transition<C>, State> for Network<Message<Transition<C>, State>> {
    fn send_message(&mut self, to_id: usize, message: Message<Transition<C>, State>) {
        self.send(to_id, message);
    }

    fn receive_messages(&mut self) -> Vec<Message<Transition<C>, State>> {
        self.receive()
    }

    fn halt(&self) -> bool {
        self.should_halt()
    }

    fn register_leader(&mut self, leader_id: Option<usize>) {
        Network::register_leader(self, leader_id);
    }
}

/// One replica's protocol, with nothing around it. Its snapshots are the state machine, which is
/// small.
pub struct Pure<C> {
    raft: Raft<Transition<C>, State>,
    now: Duration,
    leads: bool,
    has_input: bool,
}

impl<C: Command> Pure<C> {
    /// One of so many replicas; no snapshots if `snapshot_delta` is 0.
    pub fn new(id: usize, replicas: usize, snapshot_delta: usize) -> Self {
        let config = Config {
            id,
            peer_ids: (0..replicas).filter(|peer| *peer != id).collect(),
            heartbeat_timeout: HEARTBEAT_TIMEOUT,
            election_timeout_range: election_timeout_range(id),
            snapshot_delta,
            seed: id as u64,
            ..Config::default()
        };
        let raft = Raft::new(config, Transition::noop(), Change::default(), Duration::ZERO);
        let raft = raft.expect("the configuration is sensible");
        Self { raft, now: Duration::ZERO, leads: false, has_input: false }
    }

    pub fn raft(&self) -> &Raft<Transition<C>, State> {
        &self.raft
    }

    pub fn raft_mut(&mut self) -> &mut Raft<Transition<C>, State> {
        &mut self.raft
    }

    /// Lets time pass for this replica.
    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        self.has_input = true;
    }

    fn apply_committed(&mut self, state: &mut State) {
        loop {
            let committed = self.raft.committed();
            let count = committed.len();
            for transition in committed.iter().filter(|it| !it.is_noop()) {
                state.apply(transition.0.as_slice());
            }
            if count == 0 {
                return;
            }
            self.raft.applied(count);
        }
    }
}

impl<C: Command> Node for Pure<C> {
    type Command = C;
    type Message = Message<Transition<C>, State>;

    fn leads(&self) -> bool {
        self.leads
    }

    fn tick(&mut self) {
        self.pass(TICK);
    }

    fn propose(&mut self, commands: Vec<C>) {
        self.raft.propose(commands.into_iter().map(Transition).collect());
        self.has_input = true;
    }

    fn receive(&mut self, message: Self::Message) {
        self.raft.step(self.now, message);
        self.has_input = true;
    }

    fn turn(&mut self, state: &mut State, outgoing: &mut Vec<(usize, Self::Message)>) {
        // Without any input a loop would still be asleep.
        if !std::mem::take(&mut self.has_input) {
            return;
        }
        let outputs = self.raft.outputs(self.now);
        outgoing.extend(outputs.appends);
        if outputs.change.is_some() {
            self.raft.saved();
        }
        outgoing.extend(outputs.messages);
        if let Some(status) = outputs.status {
            self.leads = status.role == Role::Leader;
        }
        if let Some(snapshot) = outputs.restore {
            *state = snapshot.data;
        }
        self.apply_committed(state);
        let compacted = self.raft.compact(|last_included_index, last_included_term| Snapshot {
            last_included_index,
            last_included_term,
            data: *state,
        });
        compacted.expect("it is the one that was asked for");
    }
}
