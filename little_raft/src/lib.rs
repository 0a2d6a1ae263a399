//! The whole of Raft in under 1,000 lines: turn any state machine into a replicated one.
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
//! Here is all of it, for one value on three threads:
//!
//! ```
//! use std::{sync::Arc, sync::Mutex, thread, time::Duration};
//! use {crossbeam_channel::*, little_raft::*};
//!
//! #[derive(Clone, Debug)] struct Set(usize, i64); // An identity, 0 for the no-op, and the value.
//! impl StateMachineTransition for Set {
//!     type TransitionID = usize;
//!     fn get_id(&self) -> usize { self.0 }
//! }
//! type Door = (Sender<Message<Set>>, Sender<()>); // A replica's: for messages, and to wake it.
//! struct Node { inbox: Receiver<Message<Set>>, doors: Vec<Door>, asked: Receiver<Set>, value: i64 }
//! impl StateMachine<Set> for Node {
//!     fn get_pending_transitions(&mut self) -> Vec<Set> { self.asked.try_iter().collect() }
//!     fn apply_transition(&mut self, set: Set) { if set.0 > 0 { self.value = set.1 } }
//!     fn register_transition_state(&mut self, _: usize, now: TransitionState) { println!("{now:?}") }
//! }
//! impl Cluster<Set> for Node {
//!     fn receive_messages(&mut self) -> Vec<Message<Set>> { self.inbox.try_iter().collect() }
//!     fn send_message(&mut self, to_id: usize, message: Message<Set>) { // Raft can bear a loss.
//!         let _ = (self.doors[to_id].0.send(message), self.doors[to_id].1.try_send(()));
//!     }
//!     fn register_leader(&mut self, leader_id: Option<usize>) { println!("{leader_id:?} leads") }
//!     fn halt(&self) -> bool { false }
//! }
//!
//! fn main() {
//!     let (mail, bells): (Vec<_>, Vec<_>) = (0..3).map(|_| (unbounded(), bounded(1))).unzip();
//!     let doors: Vec<_> = (0..3).map(|id| (mail[id].0.clone(), bells[id].0.clone())).collect();
//!     let [beat, least, most] = [50, 200, 400].map(Duration::from_millis);
//!     let nodes = [0, 1, 2].map(|id| {
//!         let (inbox, recv_msg) = (mail[id].1.clone(), bells[id].1.clone());
//!         let ((ask, asked), (wake, recv_transition)) = (unbounded(), bounded(1));
//!         let node = Arc::new(Mutex::new(Node { inbox, doors: doors.clone(), asked, value: 0 }));
//!         let (peers, cluster, noop) = (vec![(id + 1) % 3, (id + 2) % 3], node.clone(), Set(0, 0));
//!         let mut replica = Replica::new(id, peers, cluster, node.clone(), noop, beat, (least, most));
//!         thread::spawn(move || replica.start(recv_msg, recv_transition));
//!         (node, ask, wake)
//!     });
//!     while nodes.iter().any(|(node, ..)| node.lock().unwrap().value != 42) {
//!         for (_, ask, wake) in &nodes { let _ = (ask.send(Set(1, 42)), wake.try_send(())); }
//!         thread::sleep(beat); // Only the leader takes it, so ask all, until it is done.
//!     }
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
//!       +----------- step, propose, read ---------+
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
//! 6. `election`: how a leader comes to be, and how to read from one that still is;
//! 7. `replication`: how a log spreads, at the leader and at a follower;
//! 8. [`replica`]: the blocking loop, the only place with a thread, a lock, a clock and a channel.
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
mod replication;

pub mod cluster;
pub mod message;
pub mod raft;
pub mod replica;
pub mod state_machine;
pub mod storage;

pub use {cluster::*, membership::*, message::*, raft::*, replica::*};
pub use {state_machine::*, storage::*};

// What the modules use; each begins with `use crate::*`.
pub(crate) use ::log::{info, warn};
pub(crate) use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
pub(crate) use std::{collections::*, fmt::Debug, io, io::ErrorKind::*, mem::replace, mem::take};
pub(crate) use std::{sync::Arc, sync::Mutex, time::Duration, time::Instant, time::UNIX_EPOCH};
pub(crate) use {Role::*, TransitionAbandonedReason::*, TransitionState::*};
