//! The configuration of a cluster, from a file in YAML that all its nodes share.

use crate::command::Address;
use little_raft::USER;
use serde::{Deserialize, Serialize};
use serde_saphyr::{Location, Spanned};
use std::collections::HashMap;
use std::fmt::{Display, Formatter};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A cluster and its nodes, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The cluster's name. Nodes of other clusters are refused.
    pub cluster: String,
    /// The nodes that are known from the beginning.
    pub nodes: Vec<NodeConfig>,
    /// Where nodes keep their directories, each by its name.
    pub data_directory: PathBuf,
    /// Times.
    pub timing: Timing,
    /// Commands between two snapshots of the state.
    pub snapshot_interval: usize,
    /// How much is taken in.
    pub limits: Limits,
    /// How nodes prove to each other who they are; without it they do not.
    pub tls: Option<Tls>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Its id, unique in the cluster, and never used again for another disk.
    pub id: usize,
    /// Where the other nodes reach it, and where it listens for them, as `host:port`.
    pub raft: String,
    /// Where clients reach it, and where it listens for them, as `host:port`.
    pub http: String,
    /// It is no member from the beginning, but waits to be added.
    #[serde(default)]
    pub joining: bool,
}

impl NodeConfig {
    /// Where it is to be found.
    pub fn address(&self) -> Address {
        let NodeConfig { name, id, raft, http, .. } = self.clone();
        Address { id, name, raft, http }
    }
}

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats of the leader.
    pub heartbeat: Duration,
    /// Least and greatest time without a leader before a node stands for election.
    pub election_timeout: (Duration, Duration),
    /// After which a client is told that there is no leader, or that the outcome is not known.
    pub request_timeout: Duration,
    /// How far clocks may drift apart in one election timeout. If given, the leader answers reads
    /// without asking the others as long as none of them can lead.
    pub clock_drift: Option<Duration>,
}

/// How much is taken in. More is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of a key.
    pub key_bytes: usize,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Bytes of a transaction.
    pub transaction_bytes: usize,
    /// Conditions and operations of a transaction.
    pub transaction_steps: usize,
    /// Writes that a node has underway at once.
    pub writes_in_flight: usize,
    /// Bytes of these.
    pub bytes_in_flight: usize,
    /// Reads that a node has underway at once.
    pub reads_in_flight: usize,
    /// Changes that a node remembers for those who watch.
    pub changes_kept: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            key_bytes: 1024,
            value_bytes: 1024 * 1024,
            transaction_bytes: 2 * 1024 * 1024,
            transaction_steps: 128,
            writes_in_flight: 4096,
            bytes_in_flight: 64 * 1024 * 1024,
            reads_in_flight: 4096,
            changes_kept: 10_000,
        }
    }
}

/// Certificates, in files in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Of the authority that has signed every node's certificate.
    pub authority: PathBuf,
    /// This node's certificate. `{name}` stands for the node's name.
    pub certificate: PathBuf,
    /// Its private key. `{name}` stands for the node's name.
    pub key: PathBuf,
    /// The name in every node's certificate; without it, it is the host of the node's address.
    #[serde(default)]
    pub server_name: Option<String>,
}

/// What is wrong with a configuration, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The line, from 1; none if it is about the whole file.
    pub line: Option<u64>,
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// What is wrong, and what to do.
    pub reason: String,
}

impl Display for ConfigError {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        if let Some(file) = &self.file {
            write!(formatter, "{}: ", file.display())?;
        }
        if let Some(line) = self.line {
            write!(formatter, "line {line}: ")?;
        }
        formatter.write_str(&self.reason)
    }
}

impl std::error::Error for ConfigError {}

/// The file, as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    cluster: Spanned<String>,
    nodes: Spanned<Vec<Spanned<NodeConfig>>>,
    #[serde(default = "default_directory")]
    data_directory: PathBuf,
    #[serde(default = "default_heartbeat")]
    heartbeat_milliseconds: Spanned<u64>,
    #[serde(default = "default_election")]
    election_timeout_milliseconds: Spanned<(u64, u64)>,
    #[serde(default = "default_request")]
    request_timeout_milliseconds: Spanned<u64>,
    #[serde(default)]
    clock_drift_milliseconds: Option<Spanned<u64>>,
    #[serde(default = "default_interval")]
    snapshot_interval: Spanned<usize>,
    #[serde(default = "default_limits")]
    limits: Spanned<Limits>,
    #[serde(default)]
    tls: Option<Tls>,
}

/// A value that was not written, and so is on no line.
fn unwritten<T>(value: T) -> Spanned<T> {
    Spanned::new(value, Location::UNKNOWN, Location::UNKNOWN)
}

fn default_directory() -> PathBuf {
    "data".into()
}

fn default_heartbeat() -> Spanned<u64> {
    unwritten(100)
}

fn default_election() -> Spanned<(u64, u64)> {
    unwritten((500, 1000))
}

fn default_request() -> Spanned<u64> {
    unwritten(5000)
}

fn default_interval() -> Spanned<usize> {
    unwritten(10_000)
}

fn default_limits() -> Spanned<Limits> {
    unwritten(Limits::default())
}

impl Config {
    /// Reads a file. Paths in it count from the directory that it is in.
    ///
    /// # Errors
    /// If it cannot be read or makes no sense; the error names the line.
    pub fn load(file: &Path) -> Result<Config, ConfigError> {
        let named = |error| ConfigError { file: Some(file.to_path_buf()), ..error };
        let text = std::fs::read_to_string(file).map_err(|error| {
            let reason = format!("cannot be read: {error}; check the path given with --config");
            named(ConfigError { line: None, file: None, reason })
        })?;
        let mut config = Config::parse(&text).map_err(named)?;
        let base = file.parent().unwrap_or(Path::new(""));
        config.data_directory = base.join(&config.data_directory);
        if let Some(tls) = &mut config.tls {
            for path in [&mut tls.authority, &mut tls.certificate, &mut tls.key] {
                *path = base.join(&*path);
            }
        }
        Ok(config)
    }

    /// Reads what is in a file.
    ///
    /// # Errors
    /// If it makes no sense; the error names the line.
    pub fn parse(text: &str) -> Result<Config, ConfigError> {
        let written: Written = serde_saphyr::from_str(text).map_err(|error| {
            let line = error.location().map(|location| location.line());
            let reason = without_location(error.without_snippet().to_string());
            ConfigError { line, file: None, reason }
        })?;
        written.checked()
    }

    /// The node of this name.
    ///
    /// # Errors
    /// If there is none; the error says which there are.
    pub fn node(&self, name: &str) -> Result<&NodeConfig, ConfigError> {
        let found = self.nodes.iter().find(|node| node.name == name);
        let names: Vec<_> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        let reason = format!(
            "there is no node {name:?}; give --name one of {}, or add it to the nodes",
            names.join(", ")
        );
        found.ok_or(ConfigError { line: None, file: None, reason })
    }
}

/// The line is told at the front, so not again at the end.
fn without_location(text: String) -> String {
    let text = text.strip_prefix("error: ").map(str::to_string).unwrap_or(text);
    let location = text.find("line ").filter(|at| text[*at..].contains("column"));
    match location {
        Some(0) => text.split_once(": ").map_or(text.clone(), |(_, rest)| rest.to_string()),
        Some(at) => text[..at].trim_end_matches([' ', '(']).trim_end_matches(" at").to_string(),
        None => text,
    }
}

/// Refuses, for a reason, what is written on a line.
fn refuse<T, R>(place: &Spanned<T>, reason: impl Into<String>) -> Result<R, ConfigError> {
    let line = Some(place.referenced.line()).filter(|line| *line > 0);
    Err(ConfigError { line, file: None, reason: reason.into() })
}

/// Whether a name will do as a part of a path and of a call.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(plain)
}

/// Refuses a node that could not be called or found.
fn check_node(place: &Spanned<NodeConfig>) -> Result<(), ConfigError> {
    let node = &place.value;
    if !is_plain(&node.name) {
        let reason = format!(
            "{:?} is no name for a node, whose directory bears it; use letters, digits, - and _",
            node.name
        );
        return refuse(place, reason);
    }
    if node.id == USER {
        return refuse(place, format!("the id {USER} stands for users; give the node another"));
    }
    for address in [&node.raft, &node.http] {
        let port = address.rsplit_once(':').and_then(|(host, port)| {
            port.parse::<u16>().ok().filter(|port| *port > 0 && !host.is_empty())
        });
        if port.is_none() {
            return refuse(place, format!("{address:?} is no address; write host:port"));
        }
    }
    Ok(())
}

impl Written {
    fn checked(self) -> Result<Config, ConfigError> {
        if !is_plain(&self.cluster.value) {
            return refuse(
                &self.cluster,
                "the cluster's name goes into every call; use letters, digits, - and _",
            );
        }
        self.check_nodes()?;
        let timing = self.timing()?;
        self.check_limits()?;
        Ok(Config {
            cluster: self.cluster.value,
            nodes: self.nodes.value.into_iter().map(|node| node.value).collect(),
            data_directory: self.data_directory,
            timing,
            snapshot_interval: self.snapshot_interval.value,
            limits: self.limits.value,
            tls: self.tls,
        })
    }

    fn check_nodes(&self) -> Result<(), ConfigError> {
        if self.nodes.value.iter().all(|node| node.value.joining) {
            return refuse(
                &self.nodes,
                "a cluster begins with at least one node that is not `joining`; list it here",
            );
        }
        let mut seen: HashMap<String, u64> = HashMap::new();
        for place in &self.nodes.value {
            let node = &place.value;
            check_node(place)?;
            let claims = [
                ("the name", node.name.clone()),
                ("the id", node.id.to_string()),
                ("the address", node.raft.clone()),
                ("the address", node.http.clone()),
            ];
            for (what, value) in claims {
                let line = place.referenced.line();
                if let Some(other) = seen.insert(format!("{what} {value}"), line) {
                    let reason = format!(
                        "{what} {value} is taken already, on line {other}; give each node its own"
                    );
                    return refuse(place, reason);
                }
            }
        }
        Ok(())
    }

    fn timing(&self) -> Result<Timing, ConfigError> {
        let (least, greatest) = self.election_timeout_milliseconds.value;
        let heartbeat = self.heartbeat_milliseconds.value;
        if heartbeat == 0 {
            return refuse(&self.heartbeat_milliseconds, "heartbeats need some time; use 100");
        }
        if heartbeat * 2 > least || least > greatest {
            let reason = format!(
                "an election timeout is a range that begins at no less than two heartbeats; {least} \
                 to {greatest} with a heartbeat of {heartbeat} is none, use {} to {}",
                heartbeat * 5,
                heartbeat * 10
            );
            return refuse(&self.election_timeout_milliseconds, reason);
        }
        if self.request_timeout_milliseconds.value < greatest {
            let reason = format!(
                "a request that cannot outlive an election fails whenever there is one; use more \
                 than {greatest}"
            );
            return refuse(&self.request_timeout_milliseconds, reason);
        }
        let drift = self.clock_drift_milliseconds.as_ref();
        if let Some(place) = drift.filter(|drift| drift.value >= least) {
            let reason = format!(
                "clocks that drift apart by {} ms in an election timeout of {least} ms allow no \
                 reads from a lease; leave it out",
                place.value
            );
            return refuse(place, reason);
        }
        let time = Duration::from_millis;
        Ok(Timing {
            heartbeat: time(heartbeat),
            election_timeout: (time(least), time(greatest)),
            request_timeout: time(self.request_timeout_milliseconds.value),
            clock_drift: drift.map(|drift| time(drift.value)),
        })
    }

    fn check_limits(&self) -> Result<(), ConfigError> {
        let limits = &self.limits.value;
        let all = [
            [limits.key_bytes, limits.value_bytes, limits.transaction_bytes, limits.changes_kept],
            [
                limits.transaction_steps,
                limits.writes_in_flight,
                limits.bytes_in_flight,
                limits.reads_in_flight,
            ],
        ];
        if all.concat().contains(&0) {
            return refuse(&self.limits, "a limit of 0 would refuse everything; use at least 1");
        }
        if limits.value_bytes + limits.key_bytes + 64 > limits.transaction_bytes {
            let reason = format!(
                "a value of {} bytes with its key fits into no transaction of {}; raise \
                 transaction_bytes",
                limits.value_bytes, limits.transaction_bytes
            );
            return refuse(&self.limits, reason);
        }
        if limits.transaction_bytes > limits.bytes_in_flight {
            let reason = format!(
                "a transaction of {} bytes is more than all that may be underway, {}; raise \
                 bytes_in_flight",
                limits.transaction_bytes, limits.bytes_in_flight
            );
            return refuse(&self.limits, reason);
        }
        if limits.transaction_bytes > MAX_TRANSACTION {
            let reason = format!("transaction_bytes must be at most {MAX_TRANSACTION}");
            return refuse(&self.limits, reason);
        }
        if self.snapshot_interval.value == 0 {
            let reason = "without snapshots the log would grow for ever; use at least 1";
            return refuse(&self.snapshot_interval, reason);
        }
        Ok(())
    }
}

/// The most that `transaction_bytes` may be: one transaction must fit into one message.
pub const MAX_TRANSACTION: usize = 32 * 1024 * 1024;
