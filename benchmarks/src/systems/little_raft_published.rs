//! Little Raft 0.2.0 as it is published.
//!
//! Its log is never compacted: compacting under load makes a follower panic. It sends the whole
//! suffix that is not acknowledged with every message and keeps every command for ever, so the run
//! ends early when a budget of memory is used up.

use std::time::Duration;

use little_raft_published::cluster::Cluster;
use little_raft_published::message::Message;
use little_raft_published::replica::Replica;
use little_raft_published::state_machine::{
    Snapshot, StateMachine, StateMachineTransition, TransitionState,
};

use super::{Kind, System, with_command};
use crate::blocking::{self, Machine, Network, Parts, Transition};
use crate::client::{Client, Measurement};
use crate::command::Command;
use crate::node::REPLICAS;
use crate::scenario::{Place, Setup};

/// For the logs of all replicas together.
const MEMORY_BUDGET: u64 = 6 << 30;
/// A term and an index beside every command.
const BESIDE_A_COMMAND: u64 = 16;

pub fn system() -> System {
    System {
        name: "little-raft-0.2",
        kind: Kind::Library,
        about: "the published release, log never compacted",
        package: Some("little_raft"),
        supports: |scenario| scenario.place != Place::AllInOne,
        measure: |setup| with_command!(setup.scenario.payload, measure(setup)),
    }
}

fn measure<C: Command>(setup: &Setup) -> Result<Measurement, String> {
    let entry = setup.scenario.payload.size() + BESIDE_A_COMMAND;
    let limit = MEMORY_BUDGET / (REPLICAS as u64 * entry);
    blocking::measure::<C, _>(setup, Client::new(setup).with_limit(limit), start)
}

fn start<C: Command>(parts: Parts<C, Message<Transition<C>, ()>>) {
    let mut replica = Replica::new(
        parts.id,
        parts.peer_ids,
        parts.network,
        parts.machine,
        0,
        Transition::noop(),
        Duration::from_millis(50),
        (Duration::from_secs(2), Duration::from_secs(3)),
    );
    replica.start(parts.messages, parts.transitions);
}

impl<C: Command> StateMachineTransition for Transition<C> {
    type TransitionID = u64;

    fn get_id(&self) -> u64 {
        self.number()
    }
}

impl<C: Command> StateMachine<Transition<C>, ()> for Machine<C> {
    fn register_transition_state(&mut self, _: u64, _: TransitionState) {}

    fn apply_transition(&mut self, transition: Transition<C>) {
        self.apply(&transition);
    }

    fn get_pending_transitions(&mut self) -> Vec<Transition<C>> {
        self.take_pending()
    }

    fn get_snapshot(&mut self) -> Option<Snapshot<()>> {
        None
    }

    fn create_snapshot(&mut self, index: usize, term: usize) -> Snapshot<()> {
        Snapshot { last_included_index: index, last_included_term: term, data: () }
    }

    fn set_snapshot(&mut self, _: Snapshot<()>) {}
}

impl<C: Command> Cluster<Transition<C>, ()> for Network<Message<Transition<C>, ()>> {
    fn send_message(&mut self, to_id: usize, message: Message<Transition<C>, ()>) {
        self.send(to_id, message);
    }

    fn receive_messages(&mut self) -> Vec<Message<Transition<C>, ()>> {
        self.receive()
    }

    fn halt(&self) -> bool {
        self.should_halt()
    }

    fn register_leader(&mut self, leader_id: Option<usize>) {
        Network::register_leader(self, leader_id);
    }
}
