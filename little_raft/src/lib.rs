//! The whole of Raft in some 1,100 lines: turn any state machine into a replicated one.
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
//! use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
//! use little_raft::*;
//! use std::{mem::take, sync::Arc, sync::Mutex, thread, time::Duration};
//!
//! #[derive(Clone, Debug)]
//! struct Set(usize, Option<i64>); // An identity, and the new value; none changes nothing.
//! impl StateMachineTransition for Set {
//!     type TransitionID = usize;
//!     fn get_id(&self) -> usize { self.0 }
//! }
//!
//! type Door = (Sender<Message<Set>>, Sender<()>); // A replica's: for messages, and to wake it.
//! struct Node { inbox: Receiver<Message<Set>>, doors: Vec<Door>, pending: Vec<Set>, value: i64 }
//! impl StateMachine<Set> for Node {
//!     fn get_pending_transitions(&mut self) -> Vec<Set> { take(&mut self.pending) }
//!     fn register_transition_state(&mut self, id: usize, now: TransitionState) {
//!         println!("transition {id}: {now:?}");
//!     }
//!     fn apply_transition(&mut self, set: Set) { self.value = set.1.unwrap_or(self.value) }
//! }
//! impl Cluster<Set> for Node {
//!     fn send_message(&mut self, to_id: usize, message: Message<Set>) {
//!         let _ = self.doors[to_id].0.send(message); // Raft can bear the loss.
//!         let _ = self.doors[to_id].1.try_send(()); // A token that still lies there will do.
//!     }
//!     fn receive_messages(&mut self) -> Vec<Message<Set>> { self.inbox.try_iter().collect() }
//!     fn register_leader(&mut self, leader_id: Option<usize>) { println!("{leader_id:?} leads") }
//!     fn halt(&self) -> bool { false }
//! }
//!
//! fn main() {
//!     let (mail, bells): (Vec<_>, Vec<_>) = (0..3).map(|_| (unbounded(), bounded(1))).unzip();
//!     let doors = (0..3).map(|id| (mail[id].0.clone(), bells[id].0.clone()));
//!     let (doors, ms): (Vec<Door>, _) = (doors.collect(), Duration::from_millis);
//!     let start = |id: usize| {
//!         let (inbox, recv_msg) = (mail[id].1.clone(), bells[id].1.clone());
//!         let node = Node { inbox, doors: doors.clone(), pending: Vec::new(), value: 0 };
//!         let (node, (wake, recv_transition)) = (Arc::new(Mutex::new(node)), bounded(1));
//!         let (cluster, machine, noop) = (node.clone(), node.clone(), Set(0, None));
//!         let (peers, times) = ((0..3).filter(|peer| *peer != id).collect(), (ms(200), ms(400)));
//!         let mut replica = Replica::new(id, peers, cluster, machine, noop, ms(50), times);
//!         thread::spawn(move || replica.start(recv_msg, recv_transition));
//!         (node, wake)
//!     };
//!     let nodes: Vec<_> = (0..3).map(start).collect();
//!     while nodes.iter().any(|(node, _)| node.lock().unwrap().value != 42) {
//!         for (node, wake) in &nodes { // Only the leader takes it, so ask all, until done.
//!             node.lock().unwrap().pending = vec![Set(1, Some(42))];
//!             let _ = wake.try_send(());
//!         }
//!         thread::sleep(ms(10));
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
pub use {replication::*, state_machine::*, storage::*};

// What the modules use; each begins with `use crate::*`.
pub(crate) use ::log::{info, warn};
pub(crate) use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
pub(crate) use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
pub(crate) use std::{fmt::Debug, io, mem::replace, mem::take, sync::Arc, sync::Mutex};
pub(crate) use std::{io::ErrorKind::*, time::Duration, time::Instant, time::UNIX_EPOCH};
pub(crate) use {Activity::*, Role::*, TransitionAbandonedReason::*, TransitionState::*};
