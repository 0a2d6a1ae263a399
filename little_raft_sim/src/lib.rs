//! sim
mod clock;
mod counters;
pub mod disk;
mod disturb;
mod faults;
mod laws;
mod ledger;
pub mod linearizability;
mod network;
mod registers;
mod settle;
mod simulation;
mod subject;
mod trace;
mod turn;

pub use counters::Counters;
pub use disk::{DiskFault, SimulatedDisk};
pub use faults::{Faults, PerMillion};
pub use laws::Broken;
pub use registers::{Bank, REGISTERS, Access, Register, Registers, Write};
pub use simulation::Simulation;
pub use subject::{Ending, Subject};

/// Where all chance comes from.
pub type Random = rand::rngs::Xoshiro256PlusPlus;
