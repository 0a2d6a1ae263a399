//! What may happen next.

use crate::node::Cut;
use crate::turn::{Input, Turn, Turns};
use crate::{Bounds, Left, Network, Packet, State, laws};
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
    /// A user asks a leader to change to the other configuration.
    Change(ReplicaID, Option<Cut>),
    /// A user asks a leader to hand its leadership to another.
    Transfer(ReplicaID, ReplicaID, Option<Cut>),
    /// The replica crashes between two turns.
    Crash(ReplicaID),
    /// The replica comes back with what it has saved.
    Restart(ReplicaID),
}

/// A cluster of shipping replicas within bounds.
pub struct ModelChecked {
    /// The bounds.
    pub bounds: Bounds,
    turns: Turns,
}

impl Model for ModelChecked {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::initial(&self.bounds, &self.turns)]
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
            if state.left.timeouts > 0 || state.left.heartbeats > 0 && node.leads().is_some() {
                actions.extend(cuts(state).map(|cut| Action::Timeout(id, cut)));
            }
            self.on_request(state, id, actions);
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
                self.input(&mut state, packet.to, Input::Packet(&packet), cut);
            }
            Action::Duplicate(packet) => {
                state.left.duplicates -= 1;
                self.input(&mut state, packet.to, Input::Packet(&packet), None);
            }
            Action::Drop(packet) => {
                state.left.drops -= 1;
                state.remove(&packet)?;
            }
            Action::Timeout(id, cut) => {
                *state.timeouts_left(id) -= 1;
                self.input(&mut state, id, Input::Timeout, cut);
            }
            Action::Propose(id, cut) => {
                let number = self.bounds.proposals - state.left.proposals + 1;
                state.left.proposals -= 1;
                self.request(&mut state, id, Input::Proposal(number), cut)?;
            }
            Action::Change(id, cut) => {
                state.left.changes -= 1;
                self.request(&mut state, id, Input::Change, cut)?;
            }
            Action::Transfer(id, to, cut) => {
                state.left.transfers -= 1;
                self.request(&mut state, id, Input::Transfer(to), cut)?;
            }
            Action::Crash(id) => {
                state.left.crashes -= 1;
                state.nodes[id] = Arc::new(state.nodes[id].crashed(&state.namings));
            }
            Action::Restart(id) => self.input(&mut state, id, Input::Start, None),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        laws::properties(self)
    }
}

impl ModelChecked {
    /// A cluster within these bounds.
    pub fn new(bounds: Bounds) -> ModelChecked {
        ModelChecked { turns: Turns::new(bounds.clone()), bounds }
    }

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

    /// What users may ask of a leader.
    fn on_request(&self, state: &State, id: ReplicaID, actions: &mut Vec<Action>) {
        let Some(status) = state.nodes[id].leads() else { return };
        if state.left.proposals > 0 {
            actions.extend(cuts(state).map(|cut| Action::Propose(id, cut)));
        }
        if state.left.changes > 0 {
            actions.extend(cuts(state).map(|cut| Action::Change(id, cut)));
        }
        let voters = status.membership.voters.iter().filter(|to| **to != id);
        for &to in voters.filter(|_| state.left.transfers > 0) {
            actions.extend(cuts(state).map(|cut| Action::Transfer(id, to, cut)));
        }
    }

    fn input(&self, state: &mut State, id: ReplicaID, input: Input, cut: Option<Cut>) {
        state.left.crashes -= u8::from(cut.is_some());
        state.take(id, self.turns.turn(id, &state.nodes[id], input, cut));
    }

    /// A request that is refused leads nowhere.
    fn request(
        &self, state: &mut State, id: ReplicaID, input: Input, cut: Option<Cut>,
    ) -> Option<()> {
        let node = &state.nodes[id];
        let refused = |it: &Arc<Turn>| it.node.exact == node.exact;
        if self.turns.turn(id, node, input, None).is_some_and(|it| refused(&it)) {
            return None;
        }
        self.input(state, id, input, cut);
        Some(())
    }
}

impl State {
    /// A leader's heartbeats are counted by themselves as long as there are any.
    fn timeouts_left(&mut self, id: ReplicaID) -> &mut u8 {
        let beats = self.left.heartbeats > 0 && self.nodes[id].leads().is_some();
        let Left { timeouts, heartbeats, .. } = &mut self.left;
        if beats { heartbeats } else { timeouts }
    }

    fn remove(&mut self, packet: &Arc<Packet>) -> Option<()> {
        let place = self.network.iter().position(|it| it == packet)?;
        self.network.remove(place);
        Some(())
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
