//! Clusters on loopback addresses for tests.
#![allow(dead_code)] // Not every test uses everything.

pub(crate) mod proxy;

use kv::command::{Outcome, Session, Transaction};
use kv::config::{Config, Limits, NodeConfig, Timing};
use kv::node::{Consistency, Node, NodeStatus, WriteError};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

/// How long anything may take. Much longer than it does, for a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

/// A port that nobody listens on, below those that systems give to outgoing connections.
pub(crate) fn free_port() -> u16 {
    let first = (std::process::id() % 200) as u16 * 90;
    loop {
        let port = 10_000 + (first + NEXT_PORT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// What the node with this id is called and where it is.
pub(crate) fn node_config(id: usize) -> NodeConfig {
    let address = || format!("127.0.0.1:{}", free_port());
    let (raft, http) = (address(), address());
    NodeConfig { name: format!("node{id}"), id, raft, http, joining: false }
}

pub(crate) fn config(nodes: usize, directory: &TempDir) -> Config {
    let milliseconds = Duration::from_millis;
    Config {
        cluster: "test".to_string(),
        nodes: (1..=nodes).map(node_config).collect(),
        data_directory: directory.path().to_path_buf(),
        timing: Timing {
            heartbeat: milliseconds(50),
            election_timeout: (milliseconds(400), milliseconds(800)),
            request_timeout: Duration::from_secs(30),
            clock_drift: None,
        },
        snapshot_interval: 10_000,
        limits: Limits::default(),
        tls: None,
    }
}

/// The nodes of a cluster, by their place in the configuration; none for those that do not run.
pub(crate) struct Cluster {
    pub(crate) config: Config,
    pub(crate) nodes: Vec<Option<Node>>,
    pub(crate) directory: TempDir,
}

impl Cluster {
    pub(crate) async fn start(nodes: usize) -> Cluster {
        Cluster::start_with(nodes, |_| {}).await
    }

    pub(crate) async fn start_with(nodes: usize, change: impl FnOnce(&mut Config)) -> Cluster {
        let directory = TempDir::new().unwrap();
        let mut config = config(nodes, &directory);
        change(&mut config);
        let nodes = config.nodes.iter().map(|_| None).collect();
        let mut cluster = Cluster { config, nodes, directory };
        for place in 0..cluster.nodes.len() {
            if !cluster.config.nodes[place].joining {
                cluster.restart(place).await;
            }
        }
        cluster
    }

    /// Starts a node that does not run.
    pub(crate) async fn restart(&mut self, place: usize) {
        let name = self.config.nodes[place].name.clone();
        let node = Node::start(self.config.clone(), &name).await;
        self.nodes[place] = Some(node.unwrap_or_else(|error| panic!("{error}")));
    }

    /// Stops a node as a crash would.
    pub(crate) async fn kill(&mut self, place: usize) {
        self.nodes[place].take().expect("a node that runs").halt().await;
    }

    pub(crate) fn node(&self, place: usize) -> &Node {
        self.nodes[place].as_ref().expect("a node that runs")
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().flatten()
    }

    /// The place of the node that a majority follows.
    pub(crate) async fn leader(&self) -> usize {
        let followed = |place: usize| {
            let id = self.config.nodes[place].id;
            let leads = self.nodes[place].as_ref().map(Node::status);
            let leads = leads.filter(|status| status.role == "leader");
            let followers = self.running().filter(|node| node.status().leader == Some(id)).count();
            leads.is_some_and(|status| 2 * followers > status.voters.len())
        };
        let found = async {
            loop {
                if let Some(place) = (0..self.nodes.len()).find(|place| followed(*place)) {
                    return place;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, found).await.expect("a leader in time")
    }

    pub(crate) async fn stop(mut self) {
        for node in self.nodes.iter_mut().filter_map(Option::take) {
            node.halt().await;
        }
    }
}

/// Waits until a node's status is as it should be.
pub(crate) async fn until(
    node: &Node, what: &str, condition: impl Fn(&NodeStatus) -> bool,
) -> NodeStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = node.status();
        if condition(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "in vain: {what}: {status:#?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Writes until it is done, in a session so that it is done once.
pub(crate) async fn put(node: &Node, key: &str, value: &str) {
    let session = session(node).await;
    write(node, Some(session), Transaction::put(key.to_string(), value.to_string())).await;
}

/// A session's first request.
pub(crate) async fn session(node: &Node) -> Session {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match node.open_session().await {
            Ok(client) => return Session { client, sequence: 1 },
            Err(error) => assert!(Instant::now() < deadline, "no session: {error}"),
        }
    }
}

pub(crate) async fn write(
    node: &Node, session: Option<Session>, transaction: Transaction,
) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match node.write(session, transaction.clone()).await {
            Ok(outcome) => return outcome,
            Err(WriteError::OutcomeUnknown) if session.is_none() => panic!("an unknown outcome"),
            Err(error) => assert!(Instant::now() < deadline, "not written: {error}"),
        }
        sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn get(node: &Node, key: &str) -> Option<String> {
    let read = node.read(Consistency::Linearizable, |store| store.get(key).cloned()).await;
    let value = read.expect("a leader in time")?.value;
    Some(String::from_utf8(value.to_vec()).unwrap())
}
