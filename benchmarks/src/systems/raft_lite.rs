//! Raft Lite: it brings its own network, TCP with JSON on the loopback interface, and writes its
//! log to files, here on a memory file system where there is one. It cannot be had without either,
//! so it is beside the others only to show the order of magnitude, and only with one command
//! outstanding: with more it sends the same entries again and again and falls behind for ever.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use raft_lite::config::{RaftConfig, RaftParams};
use raft_lite::raft::Raft;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::{Kind, System, with_command};
use crate::client::{Client, Measurement};
use crate::command::{Command, State};
use crate::node::REPLICAS;
use crate::scenario::{Place, Scenario, Setup};
use crate::threads::settle;

pub fn system() -> System {
    System {
        name: "raft-lite",
        kind: Kind::Library,
        about: "its own TCP and files, one command outstanding only",
        package: Some("raft-lite"),
        supports,
        measure: |setup| with_command!(setup.scenario.payload, measure(setup)),
    }
}

fn supports(scenario: &Scenario) -> bool {
    // It takes a `Vec` for every command, so `Bytes` would be the same again.
    scenario.place == Place::OnItsOwn && scenario.outstanding == 1 && !scenario.payload.is_counted()
}

struct Replica {
    propose: UnboundedSender<Vec<u8>>,
    applied: UnboundedReceiver<Vec<u8>>,
}

fn measure<C: Command>(setup: &Setup) -> Result<Measurement, String> {
    let runtime = Runtime::new().map_err(|error| format!("cannot start tokio: {error}"))?;
    let folder = Folder::make()?;
    let [leader, followers @ ..] = start(&runtime, &folder.0)?;
    let Replica { propose, mut applied } = leader;
    let mut states = vec![];
    for follower in followers {
        let state = Arc::new(Mutex::new(State::default()));
        states.push(state.clone());
        runtime.spawn(apply_all(follower, state));
    }
    let mut state = State::default();
    let mut client = Client::new(setup);
    while !client.is_finished() {
        for number in client.next(state.count) {
            let command = C::numbered(number).as_slice().to_vec();
            propose.send(command).map_err(|_| "the leader is gone")?;
        }
        if state.count < client.proposed() {
            state.apply(&applied.blocking_recv().ok_or("the leader is gone")?);
        }
    }
    let followers = settle(client.proposed(), || states.iter().map(read).collect());
    // The library's threads cannot be told to stop.
    runtime.shutdown_background();
    client.measurement([vec![state], followers].concat())
}

/// Replica 0 has by far the shortest election timeout, so that it leads: a command given to a
/// follower would travel once more.
fn start(runtime: &Runtime, folder: &Path) -> Result<[Replica; REPLICAS], String> {
    let _inside = runtime.enter();
    let addresses = free_addresses().map_err(|error| format!("no free port: {error}"))?;
    let mut replicas = Vec::new();
    for (id, address) in addresses.iter().enumerate() {
        let election_timeout = if id == 0 { 300 } else { 10_000 };
        let parameters = RaftParams { election_timeout, replicate_timeout: 50 };
        let path = folder.join(id.to_string());
        let config = RaftConfig::new(addresses.to_vec(), address.clone(), parameters, Some(path));
        let (propose, applied) = Raft::new(config).run();
        replicas.push(Replica { propose, applied });
    }
    replicas.try_into().map_err(|_| "there are not three replicas".into())
}

/// Takes the whole follower: without its `propose` the library would panic.
async fn apply_all(mut follower: Replica, state: Arc<Mutex<State>>) {
    while let Some(command) = follower.applied.recv().await {
        state.lock().unwrap_or_else(PoisonError::into_inner).apply(&command);
    }
}

fn read(state: &Arc<Mutex<State>>) -> State {
    *state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ports that were free a moment ago: the library takes addresses, not sockets.
fn free_addresses() -> std::io::Result<[String; REPLICAS]> {
    let listeners = [(); REPLICAS].map(|()| TcpListener::bind("127.0.0.1:0"));
    let mut addresses = [const { String::new() }; REPLICAS];
    for (address, listener) in addresses.iter_mut().zip(listeners) {
        *address = listener?.local_addr()?.to_string();
    }
    Ok(addresses)
}

/// A folder for the logs that goes when the measurement is over.
struct Folder(PathBuf);

impl Folder {
    fn make() -> Result<Self, String> {
        let in_memory = Path::new("/dev/shm");
        let parent = if in_memory.is_dir() { in_memory.into() } else { std::env::temp_dir() };
        let path = parent.join(format!("benchmark-raft-lite-{}", std::process::id()));
        std::fs::create_dir_all(&path)
            .map_err(|error| format!("cannot make the folder {}: {error}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
