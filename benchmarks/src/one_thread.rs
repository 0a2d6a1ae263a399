//! All replicas and the client in one thread, messages in plain vectors: what the protocol costs
//! when no channel spins, parks or wakes.

use std::time::{Duration, Instant};

use crate::client::{Client, Measurement};
use crate::command::{Command, State};
use crate::node::{Node, REPLICAS};
use crate::scenario::Setup;

/// How many rounds without any progress, after the last command, mean that none will come.
const IDLE_ROUNDS: u32 = 10_000;

pub struct World<N: Node> {
    pub nodes: Vec<N>,
    pub states: Vec<State>,
    pub inboxes: Vec<Vec<N::Message>>,
    outgoing: Vec<(usize, N::Message)>,
}

pub fn measure<N: Node>(setup: &Setup, nodes: [N; REPLICAS]) -> Result<Measurement, String> {
    let mut world = World::new(nodes.into());
    world.elect()?;
    let mut client = Client::new(setup);
    while !client.is_finished() {
        let numbers = client.next(world.states[0].count);
        if !numbers.is_empty() {
            world.nodes[0].propose(numbers.map(N::Command::numbered).collect());
        }
        world.round();
    }
    world.settle(client.proposed());
    client.measurement(world.states)
}

impl<N: Node> World<N> {
    pub fn new(nodes: Vec<N>) -> Self {
        let states = vec![State::default(); nodes.len()];
        let inboxes = nodes.iter().map(|_| Vec::new()).collect();
        Self { nodes, states, inboxes, outgoing: Vec::new() }
    }

    pub fn elect(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.nodes[0].leads() {
            if Instant::now() > deadline {
                return Err("replica 0 did not come to lead within 5 s; \
                            check what its `tick` does"
                    .into());
            }
            self.nodes.iter_mut().for_each(N::tick);
            self.round();
        }
        Ok(())
    }

    /// Every replica once takes all its messages and acts on them.
    pub fn round(&mut self) {
        (0..self.nodes.len()).for_each(|id| self.turn(id, usize::MAX));
    }

    /// One replica takes so many of its messages, at most, and acts on them.
    pub fn turn(&mut self, id: usize, messages: usize) {
        let count = messages.min(self.inboxes[id].len());
        for message in self.inboxes[id].drain(..count) {
            self.nodes[id].receive(message);
        }
        self.nodes[id].turn(&mut self.states[id], &mut self.outgoing);
        for (to, message) in self.outgoing.drain(..) {
            self.inboxes[to].push(message);
        }
    }

    /// Lets the followers apply the last commands; ticks, because some learn only from a heartbeat
    /// what is decided.
    pub fn settle(&mut self, target: u64) {
        for _ in 0..IDLE_ROUNDS {
            if self.states.iter().all(|state| state.count == target) {
                return;
            }
            self.nodes[0].tick();
            self.round();
        }
    }
}
