//! The limit for latency: a bare chain of four messages between three threads, the way that a
//! command takes from a client through a leader to a follower and back. Nothing is replicated.

use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::{Kind, System};
use crate::client::{Client, Measurement};
use crate::scenario::{Payload, Place, Scenario, Setup};

pub fn system() -> System {
    System {
        name: "message-chain",
        kind: Kind::Limit,
        about: "no replication: one message from client to leader to follower and back",
        package: None,
        supports,
        measure,
    }
}

/// A number travels instead of a command, so one payload and one outstanding say it all.
fn supports(scenario: &Scenario) -> bool {
    scenario.place == Place::OnItsOwn
        && scenario.payload == Payload::Fixed16
        && scenario.outstanding == 1
}

fn measure(setup: &Setup) -> Result<Measurement, String> {
    let (client_to_leader, leader_from_client) = unbounded();
    let (leader_to_follower, follower_from_leader) = unbounded();
    let (follower_to_leader, leader_from_follower) = unbounded();
    let (leader_to_client, client_from_leader) = unbounded();
    thread::spawn(move || pass_on(follower_from_leader, follower_to_leader));
    // The leader waits for either side in turn: with one message under way it knows which.
    thread::spawn(move || {
        while let Ok(number) = leader_from_client.recv() {
            if leader_to_follower.send(number).is_err() {
                break;
            }
            let Ok(number) = leader_from_follower.recv() else { break };
            if leader_to_client.send(number).is_err() {
                break;
            }
        }
    });
    let mut client = Client::new(setup);
    let mut count = 0;
    while !client.is_finished() {
        for number in client.next(count) {
            client_to_leader.send(number).map_err(|_| "the leader's thread is gone")?;
            count = 1 + client_from_leader.recv().map_err(|_| "the leader's thread is gone")?;
        }
    }
    client.measurement(Vec::new())
}

fn pass_on(from: Receiver<u64>, to: Sender<u64>) {
    while let Ok(number) = from.recv() {
        if to.send(number).is_err() {
            break;
        }
    }
}
