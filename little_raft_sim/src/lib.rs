//! A failing world for [Little Raft](little_raft): clusters in virtual time, on a network that
//! loses, repeats, delays and cuts, on disks that fail, with replicas that crash at any point of a
//! turn, all of it drawn from one seed.
//!
//! What runs is the [`Raft`](little_raft::Raft) that ships, not a model of it. After every event
//! these laws are judged, from what leaves the replicas and what their disks hold, without asking
//! the code under test:
//!
//! * **K1** one leader in a term; **K2** terms never fall and a vote is given once;
//! * **K3** an index and a term stand for one content and one predecessor on all disks and messages;
//! * **K4** what is committed stays, and every later leader holds it;
//! * **K5** every state machine applies the same, each index once, to the same states;
//! * **K6** what a leader believes of its peers never falls; **K7** what a replica says is true of
//!   its disk when it says it;
//! * **K8** what is committed is the leader's own term's and durable on a majority of every half of
//!   the configuration;
//! * **K9** snapshot, applied, commit and last index are in order; **K10** the configuration in force
//!   is the last one on disk;
//! * **K11** what clients see is linearizable, reads included, and every proposal has one end;
//! * **K12** a read that is ready shows everything that was committed when it was asked, leases or
//!   not;
//! * **K13** once faults end, or stand but leave a quorum connected, the cluster works again;
//! * **K14** an idle cluster says little and saves nothing.
//!
//! # Your own state machine and storage
//!
//! Implement [`Subject`] and run it under many seeds:
//!
//! ```
//! use little_raft_sim::{Registers, Simulation};
//!
//! for seed in 0..5 {
//!     let mut simulation = Simulation::new(Registers::default(), seed);
//!     simulation.run().unwrap_or_else(|broken| panic!("seed {seed} breaks {broken}"));
//! }
//! ```
//!
//! `examples/your_state_machine.rs` has a state machine and a storage of its own.
//!
//! The same seed leads to the same run, event by event. [`Simulation::traced`] tells what happens in
//! it, [`shrink`] makes it smaller, [`mermaid`] draws it, and [`Simulation::script`] puts it into the
//! words of a script that drives replicas by hand. [`Counters`] say what a run has really tested.
//! Where a fuzzer is to choose what happens there is [`Simulation::with_schedule`].
//!
//! For a storage alone there is [`conformance`], for the histories of a program of yours
//! [`linearizability`], and for tests on real threads and clocks [`threads`].
//!
//! # Disks
//!
//! [`SimulatedDisk`] keeps its changes as bytes. Power is lost at any byte of a save, or with its
//! sectors written in any order; the disk fails once, with or without having written, or is full for
//! a while; a bit of what was saved is flipped while the replica is down, and then it must refuse to
//! start. With any storage, a save may take long or never end: then the replica is as good as
//! stopped, and the others must go on.

mod clock;
pub mod conformance;
mod counters;
mod disk;
mod disturb;
mod faults;
mod laws;
mod ledger;
pub mod linearizability;
mod memory;
mod network;
mod registers;
mod schedule;
mod script;
mod settle;
mod shrink;
mod simulation;
mod subject;
pub mod threads;
mod trace;
mod turn;

pub use counters::Counters;
pub use disk::{DiskFault, SimulatedDisk};
pub use faults::{Faults, PerMillion};
pub use laws::Broken;
pub use memory::{MemoryStorage, append};
pub use registers::{Access, Bank, REGISTERS, Register, Registers, Write};
pub use shrink::shrink;
pub use simulation::Simulation;
pub use subject::{Ending, Subject};
pub use trace::mermaid;

/// Where all chance comes from.
pub type Random = rand::rngs::Xoshiro256PlusPlus;

/// The README's example must run as well.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
