//! The limit without consensus: the leader gives every batch to two followers, and applies it
//! once one of them has acknowledged it, which is the median of three. No term, no log, no order
//! to agree on, nothing to recover from.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Kind, System, with_command};
use crate::client::Measurement;
use crate::command::{Command, State};
use crate::node::{Node, measure};
use crate::scenario::Setup;

pub fn copied() -> System {
    System {
        name: "raw-fan-out",
        kind: Kind::Limit,
        about: "no consensus: every batch is cloned for each follower, applied at the median",
        package: None,
        supports: |_| true,
        measure: |setup| with_command!(setup.scenario.payload, measure_copied(setup)),
    }
}

pub fn shared() -> System {
    System {
        name: "raw-fan-out-shared",
        kind: Kind::Limit,
        about: "no consensus: all replicas share every batch, applied at the median",
        package: None,
        supports: |_| true,
        measure: |setup| with_command!(setup.scenario.payload, measure_shared(setup)),
    }
}

fn measure_copied<C: Command>(setup: &Setup) -> Result<Measurement, String> {
    measure(setup, [0, 1, 2].map(Replica::<C, Vec<C>>::new))
}

fn measure_shared<C: Command>(setup: &Setup) -> Result<Measurement, String> {
    measure(setup, [0, 1, 2].map(Replica::<C, Arc<Vec<C>>>::new))
}

/// Commands proposed together, cloned or shared when they are sent.
trait Batch<C>: Clone + From<Vec<C>> + Send + 'static {
    fn commands(&self) -> &[C];
}

impl<C: Command> Batch<C> for Vec<C> {
    fn commands(&self) -> &[C] {
        self
    }
}

impl<C: Command> Batch<C> for Arc<Vec<C>> {
    fn commands(&self) -> &[C] {
        self
    }
}

enum Message<B> {
    Batch(B),
    /// How many batches the follower has received.
    Acknowledgement(u64),
}

struct Replica<C, B> {
    id: usize,
    /// At the leader: proposed since the last turn.
    proposed: Vec<Vec<C>>,
    /// At the leader: sent, not yet acknowledged. At a follower: received, not yet applied.
    batches: VecDeque<B>,
    /// How many batches left `batches`, that is, were applied.
    applied: u64,
    /// At the leader: how many batches somebody acknowledged.
    acknowledged: u64,
}

impl<C, B> Replica<C, B> {
    fn new(id: usize) -> Self {
        let (proposed, batches) = (Vec::new(), VecDeque::new());
        Self { id, proposed, batches, applied: 0, acknowledged: 0 }
    }
}

impl<C: Command, B: Batch<C>> Replica<C, B> {
    fn apply_one(&mut self, state: &mut State) {
        let Some(batch) = self.batches.pop_front() else { return };
        for command in batch.commands() {
            state.apply(command.as_slice());
        }
        self.applied += 1;
    }
}

impl<C: Command, B: Batch<C>> Node for Replica<C, B> {
    type Command = C;
    type Message = Message<B>;

    fn leads(&self) -> bool {
        self.id == 0
    }

    fn tick(&mut self) {}

    fn propose(&mut self, commands: Vec<C>) {
        self.proposed.push(commands);
    }

    fn receive(&mut self, message: Message<B>) {
        match message {
            Message::Batch(batch) => self.batches.push_back(batch),
            Message::Acknowledgement(count) => self.acknowledged = self.acknowledged.max(count),
        }
    }

    fn turn(&mut self, state: &mut State, outgoing: &mut Vec<(usize, Message<B>)>) {
        if self.id == 0 {
            for commands in self.proposed.drain(..) {
                let batch = B::from(commands);
                outgoing.extend([1, 2].map(|to| (to, Message::Batch(batch.clone()))));
                self.batches.push_back(batch);
            }
            while self.applied < self.acknowledged {
                self.apply_one(state);
            }
        } else if !self.batches.is_empty() {
            let received = self.applied + self.batches.len() as u64;
            outgoing.push((0, Message::Acknowledgement(received)));
            while !self.batches.is_empty() {
                self.apply_one(state);
            }
        }
    }
}
