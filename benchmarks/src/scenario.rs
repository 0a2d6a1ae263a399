//! What is measured: a scenario is a place for the client, a kind of command and a number of
//! commands outstanding. Its name, such as `own-thread/fixed-16/w1024`, travels to the child
//! process that measures it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where the client lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// In the leader's thread: it offers the next commands as the leader applies.
    #[serde(rename = "leader-thread")]
    WithLeader,
    /// In a thread of its own, beside one thread for each replica.
    #[serde(rename = "own-thread")]
    OnItsOwn,
    /// Together with all three replicas in one single thread.
    #[serde(rename = "one-thread")]
    AllInOne,
}

/// What a command is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Payload {
    #[serde(rename = "fixed-16")]
    Fixed16,
    #[serde(rename = "fixed-256")]
    Fixed256,
    #[serde(rename = "bytes-16")]
    Bytes16,
    #[serde(rename = "bytes-256")]
    Bytes256,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scenario {
    pub place: Place,
    pub payload: Payload,
    pub outstanding: u64,
}

/// A scenario and how long to measure it.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub scenario: Scenario,
    pub length: Length,
}

#[derive(Clone, Copy, Debug)]
pub enum Length {
    /// After warming up.
    Time(Duration),
    /// Exactly so many commands, without looking at the clock: the same work every time.
    Commands(u64),
}

pub const PLACES: [Place; 3] = [Place::WithLeader, Place::OnItsOwn, Place::AllInOne];
pub const PAYLOADS: [Payload; 4] =
    [Payload::Fixed16, Payload::Fixed256, Payload::Bytes16, Payload::Bytes256];
pub const OUTSTANDING: [u64; 4] = [1, 64, 1024, 16384];

/// Every scenario. Small counted buffers are measured in one thread only: they are there to tell
/// what the counting costs, which the channels between threads would blur.
pub fn all() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for place in PLACES {
        for payload in PAYLOADS {
            if payload == Payload::Bytes16 && place != Place::AllInOne {
                continue;
            }
            for outstanding in OUTSTANDING {
                scenarios.push(Scenario { place, payload, outstanding });
            }
        }
    }
    scenarios
}

impl Scenario {
    pub fn named(name: &str) -> Option<Scenario> {
        all().into_iter().find(|scenario| scenario.to_string() == name)
    }
}

impl Payload {
    pub fn size(self) -> u64 {
        match self {
            Payload::Fixed16 | Payload::Bytes16 => 16,
            Payload::Fixed256 | Payload::Bytes256 => 256,
        }
    }

    pub fn is_counted(self) -> bool {
        matches!(self, Payload::Bytes16 | Payload::Bytes256)
    }

    pub fn describe(self) -> &'static str {
        match self {
            Payload::Fixed16 => "16 bytes by value",
            Payload::Fixed256 => "256 bytes by value",
            Payload::Bytes16 => "16 bytes in `Bytes`",
            Payload::Bytes256 => "256 bytes in `Bytes`",
        }
    }
}

impl Place {
    pub fn describe(self) -> &'static str {
        match self {
            Place::WithLeader => "three threads, client in the leader's",
            Place::OnItsOwn => "three threads, client in a fourth",
            Place::AllInOne => "everything in one thread",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Place::WithLeader => "leader-thread",
            Place::OnItsOwn => "own-thread",
            Place::AllInOne => "one-thread",
        })
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Payload::Fixed16 => "fixed-16",
            Payload::Fixed256 => "fixed-256",
            Payload::Bytes16 => "bytes-16",
            Payload::Bytes256 => "bytes-256",
        })
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}/w{}", self.place, self.payload, self.outstanding)
    }
}
