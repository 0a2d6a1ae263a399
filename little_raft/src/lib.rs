//! The whole of Raft in some 1,200 lines: turn any state machine into a replicated one.
//!
//! # What Raft is here
//!
//! A *state machine* is a value that changes by *transitions* and by nothing else. Several
//! *replicas* each keep a copy of it. If all of them apply the same transitions in the same order,
//! all copies are equal, and it does not matter which of them a crash takes away. So everything
//! comes down to agreeing on one list of transitions, the *log*, while replicas stop and come back
//! and messages are lost.
//!
//! Raft does this by letting one replica lead. Time is divided into *terms*, in each of which at
//! most one replica is elected *leader*, by a majority of the voters. The leader appends
//! transitions to its log and sends them to the others. What a majority holds durably is
//! *committed*: any later leader needs a vote out of that majority, and nobody votes for a replica
//! whose log lacks what its own holds, so no later leader can be without it. What is committed is
//! *applied*. All else, in the paper and in here, is about doing this when things go wrong, about
//! forgetting the beginning of a log that grows (snapshots), about changing who votes (joint
//! consensus), and about reading without writing (read indices, leases).
//!
//! References like (§5.4.2) are to the [extended paper](https://raft.github.io/raft.pdf), (thesis
//! §6.4) to Ongaro's [thesis](https://github.com/ongardie/dissertation).
//!
//! # What you write, and what you get
//!
//! You implement [`StateMachine`] for what is replicated, [`Cluster`] for the way messages travel
//! and, for replicas that are to survive a crash, [`Storage`]; you run a [`Replica`] in a thread.
//! Here is all of it, for a counter on three threads:
//!
//! ```
//! use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
//! use little_raft::*;
//! use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
//! use std::{mem::take, sync::Arc, sync::Mutex, thread, time::Duration};
//!
//! #[derive(Clone, Debug)]
//! struct Add { number: usize, amount: i64 }
//! impl StateMachineTransition for Add {
//!     type TransitionID = usize;
//!     fn get_id(&self) -> usize { self.number }
//! }
//!
//! struct Counter { value: i64, latest: usize, pending: Vec<Add>, values: Sender<i64> }
//! impl StateMachine<Add> for Counter {
//!     fn get_pending_transitions(&mut self) -> Vec<Add> { take(&mut self.pending) }
//!     fn register_transition_state(&mut self, number: usize, state: TransitionState) {
//!         println!("transition {number}: {state:?}");
//!     }
//!     fn apply_transition(&mut self, add: Add) {
//!         if add.number > self.latest { // The client may have repeated itself.
//!             (self.latest, self.value) = (add.number, self.value + add.amount);
//!             self.values.send(self.value).unwrap();
//!         }
//!     }
//! }
//!
//! static HALT: AtomicBool = AtomicBool::new(false);
//! type Outbox = (Sender<Message<Add>>, Sender<()>);
//! struct Wires { inbox: Receiver<Message<Add>>, outboxes: Vec<Outbox> }
//! impl Cluster<Add> for Wires {
//!     fn send_message(&mut self, to_id: usize, message: Message<Add>) {
//!         let _ = self.outboxes[to_id].0.send(message); // Raft can bear the loss.
//!         let _ = self.outboxes[to_id].1.try_send(()); // A token that still lies there will do.
//!     }
//!     fn receive_messages(&mut self) -> Vec<Message<Add>> { self.inbox.try_iter().collect() }
//!     fn register_leader(&mut self, leader_id: Option<usize>) { println!("{leader_id:?} leads") }
//!     fn halt(&self) -> bool { HALT.load(Relaxed) }
//! }
//!
//! fn main() {
//!     let wires = (0..3).map(|_| (unbounded(), bounded(1)));
//!     let wires = wires.map(|(letters, tokens)| ((letters.0, tokens.0), (letters.1, tokens.1)));
//!     let (outboxes, inboxes): (Vec<Outbox>, Vec<_>) = wires.unzip();
//!     let (values, recv_value) = unbounded();
//!     let (mut counters, mut threads) = (Vec::new(), Vec::new());
//!     for (id, (inbox, recv_msg)) in inboxes.into_iter().enumerate() {
//!         let wires = Arc::new(Mutex::new(Wires { inbox, outboxes: outboxes.clone() }));
//!         let counter = Counter { value: 0, latest: 0, pending: vec![], values: values.clone() };
//!         let (counter, (token, recv_transition)) = (Arc::new(Mutex::new(counter)), bounded(1));
//!         counters.push((counter.clone(), token));
//!         let peers = (0..3).filter(|peer| *peer != id).collect();
//!         let (noop, ms) = (Add { number: 0, amount: 0 }, Duration::from_millis);
//!         let (heartbeat, election) = (ms(50), (ms(200), ms(400)));
//!         let mut replica = Replica::new(id, peers, wires, counter, noop, heartbeat, election);
//!         threads.push(thread::spawn(move || replica.start(recv_msg, recv_transition)));
//!     }
//!     let mut counted = 0;
//!     while counted < 3 { // A client that does not know who leads: it asks all until it is done.
//!         for (counter, token) in &counters {
//!             counter.lock().unwrap().pending.push(Add { number: 1, amount: 42 });
//!             let _ = token.try_send(());
//!         }
//!         while counted < 3 && recv_value.recv_timeout(Duration::from_millis(100)).is_ok() {
//!             counted += 1;
//!         }
//!     }
//!     HALT.store(true, Relaxed);
//!     threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
//!     assert!(counters.iter().all(|(counter, _)| counter.lock().unwrap().value == 42));
//! }
//! ```
//!
//! Those who have an event loop use [`Raft`] without [`Replica`]: it is the protocol as a pure
//! machine.
//!
//! # A turn
//!
//! ```text
//!   messages         transitions, reads         time
//!       |                    |                    |
//!       +-------- step, propose, read, tick ------+
//!                            |
//!                         [ Raft ]
//!                            |  outputs
//!                            v
//!        1. send the leader's appends       they promise nothing
//!        2. save one change                 whole or not at all; an error ends the replica
//!        3. send everything else            votes and answers promise what is durable by now
//!        4. apply what is committed         in slices, so that heartbeats leave on time
//!        5. answer reads, take a snapshot if one is due
//! ```
//!
//! Nothing that promises anything leaves before what it promises is durable. All that came in
//! during one turn shares the save and the messages of the next, so that a busy cluster needs fewer
//! of both for each transition than an idle one.
//!
//! # Reading the code
//!
//! In an evening, top to bottom:
//!
//! 1. [`state_machine`], [`cluster`], [`storage`]: the user's side, which is the contract;
//! 2. [`message`]: positions in the log, runs of entries, and what replicas say to each other;
//! 3. `membership`: who votes, and [the one function](Membership::quorum) that knows what a
//!    majority is;
//! 4. `log`: the only place that does index arithmetic;
//! 5. [`raft`]: one replica as a pure machine, with the gate through which every message comes, the
//!    one function that changes term and role, and the laws that are checked each turn;
//! 6. `election`: how a leader comes to be;
//! 7. `replication`: how a log spreads, at the leader and at a follower;
//! 8. `reads`: how to read without writing;
//! 9. [`replica`]: the blocking loop, the only place with a thread, a lock, a clock and a channel.
//!
//! Why things are as they are, and what was refused, is told in `docs/design.md`; how they are
//! tested, in `docs/testing.md`.
//!
//! # Features
//!
//! * `serde`: derives `Serialize` and `Deserialize` for messages, entries, snapshots,
//!   configurations, saved changes and status.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod election;
mod log;
mod membership;
mod reads;
mod replication;

pub mod cluster;
pub mod message;
pub mod raft;
pub mod replica;
pub mod state_machine;
pub mod storage;

pub use {cluster::*, membership::*, message::*, raft::*, replica::*};
pub use {replication::*, state_machine::*, storage::*};

// What nearly every module uses; each begins with `use crate::*`.
pub(crate) use ::log::{info, warn};
pub(crate) use rand::RngExt;
pub(crate) use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
pub(crate) use std::mem::{replace, take};
pub(crate) use std::{io, sync::Arc, sync::Mutex, time::Duration, time::Instant};

/// The README's example is the crate's, and must run as well.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
