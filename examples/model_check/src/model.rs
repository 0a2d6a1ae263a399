//! What may happen next.

use crate::node::{Cut, Input};
use crate::{Bounds, Network, Packet, State, laws};
use little_raft::ReplicaID;
use stateright::{Model, Property};
use std::sync::Arc;

/// What a replica is given, and whether it crashes over it.
#[derive(Clone, Debug)]
pub enum Action {
    /// A message arrives.
    Deliver(Arc<Packet>, Option<Cut>),
    /// A message arrives, and will arrive again.
    Duplicate(Arc<Packet>),
    /// A message is lost.
    Drop(Arc<Packet>),
    /// The replica's clock reaches its deadline: an election, or a heartbeat.
    Timeout(ReplicaID, Option<Cut>),
    /// A user proposes a transition.
    Propose(ReplicaID, Option<Cut>),
    /// The replica crashes between two turns.
    Crash(ReplicaID),
    /// The replica comes back with what it has saved.
    Restart(ReplicaID),
}

/// A cluster of shipping replicas within bounds.
#[derive(Clone, Copy, Debug)]
pub struct ModelChecked {
    /// The bounds.
    pub bounds: Bounds,
}

impl Model for ModelChecked {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::initial(&self.bounds, self.bounds.network == Network::Ordered)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for packet in arriving(state) {
            self.on_packet(state, packet, actions);
        }
        for (id, node) in state.nodes.iter().enumerate() {
            if node.life.is_none() {
                actions.push(Action::Restart(id));
                continue;
            }
            if state.left.timeouts > 0 {
                actions.extend(cuts(state).map(|cut| Action::Timeout(id, cut)));
            }
            if state.left.proposals > 0 && node.leads().is_some() {
                actions.extend(cuts(state).map(|cut| Action::Propose(id, cut)));
            }
            if state.left.crashes > 0 {
                actions.push(Action::Crash(id));
            }
        }
    }

    fn next_state(&self, last_state: &State, action: Action) -> Option<State> {
        let mut state = last_state.clone();
        match action {
            Action::Deliver(packet, cut) => {
                state.remove(&packet)?;
                state.input(packet.to, Input::Message(&packet.message), cut);
            }
            Action::Duplicate(packet) => {
                state.left.duplicates -= 1;
                state.input(packet.to, Input::Message(&packet.message), None);
            }
            Action::Drop(packet) => {
                state.left.drops -= 1;
                state.remove(&packet)?;
            }
            Action::Timeout(id, cut) => {
                state.left.timeouts -= 1;
                state.input(id, Input::Timeout, cut);
            }
            Action::Propose(id, cut) => {
                let number = self.bounds.proposals - state.left.proposals + 1;
                state.left.proposals -= 1;
                state.input(id, Input::Proposal(number), cut);
            }
            Action::Crash(id) => {
                state.left.crashes -= 1;
                Arc::make_mut(&mut state.nodes[id]).life = None;
            }
            Action::Restart(id) => {
                let turn = state.nodes[id].start(id, state.nodes.len());
                state.take(id, turn);
                Arc::make_mut(&mut state.nodes[id]).restarted = true;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        laws::properties(self)
    }
}

impl ModelChecked {
    fn on_packet(&self, state: &State, packet: &Arc<Packet>, actions: &mut Vec<Action>) {
        if state.nodes[packet.to].life.is_some() {
            actions.extend(cuts(state).map(|cut| Action::Deliver(packet.clone(), cut)));
            if self.bounds.network == Network::Duplicating && state.left.duplicates > 0 {
                actions.push(Action::Duplicate(packet.clone()));
            }
        }
        if state.left.drops > 0 {
            actions.push(Action::Drop(packet.clone()));
        }
    }
}

impl State {
    fn remove(&mut self, packet: &Arc<Packet>) -> Option<()> {
        let place = self.network.iter().position(|it| it == packet)?;
        self.network.remove(place);
        Some(())
    }

    fn input(&mut self, id: ReplicaID, input: Input, cut: Option<Cut>) {
        self.left.crashes -= u8::from(cut.is_some());
        let turn = self.nodes[id].turn(input, cut);
        self.take(id, turn);
    }
}

/// The messages that may arrive next: of equal ones only the first, and if the network keeps their
/// order the first from each replica to each other.
fn arriving(state: &State) -> impl Iterator<Item = &Arc<Packet>> {
    let hides = |early: &Packet, late: &Packet| match state.ordered {
        true => (early.from, early.to) == (late.from, late.to),
        false => early == late,
    };
    let first = move |place: usize, packet: &Packet| {
        !state.network[..place].iter().any(|early| hides(early, packet))
    };
    state.network.iter().enumerate().filter(move |(place, it)| first(*place, it)).map(|(_, it)| it)
}

/// The ways in which a turn may go.
fn cuts(state: &State) -> impl Iterator<Item = Option<Cut>> {
    let crashes = [Cut::BeforeSave, Cut::AfterSave].map(Some);
    [None].into_iter().chain(crashes.into_iter().filter(|_| state.left.crashes > 0))
}
