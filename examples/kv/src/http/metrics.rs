//! `GET /metrics`: numbers for Prometheus, in its text format.

use crate::http::Server;
use crate::node::{Counters, NodeStatus};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Upper bounds of the histogram, in seconds.
const BOUNDS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// What was answered.
#[derive(Default)]
pub(crate) struct Requests(Mutex<BTreeMap<Kind, Tally>>);

/// Route, method and status.
type Kind = (String, String, u16);

#[derive(Clone, Default)]
struct Tally {
    within: [u64; BOUNDS.len()],
    count: u64,
    time: Duration,
}

/// Counts each request by its route, and how long it took until the answer began.
pub(crate) async fn count(
    State(server): State<Arc<Server>>, request: Request, next: Next,
) -> Response {
    let path = request.extensions().get::<MatchedPath>();
    let route = path.map_or("unknown", MatchedPath::as_str).to_string();
    // Methods are free text, of which anybody may send as many as they like.
    let method = match request.method().as_str() {
        known @ ("GET" | "HEAD" | "PUT" | "POST" | "DELETE") => known.to_string(),
        _ => "other".to_string(),
    };
    let begun = Instant::now();
    let response = next.run(request).await;
    server.requests.add((route, method, response.status().as_u16()), begun.elapsed());
    response
}

impl Requests {
    fn add(&self, kind: Kind, time: Duration) {
        let mut tallies = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let tally = tallies.entry(kind).or_default();
        for (within, bound) in tally.within.iter_mut().zip(BOUNDS) {
            *within += u64::from(time.as_secs_f64() <= bound);
        }
        tally.count += 1;
        tally.time += time;
    }

    fn all(&self) -> BTreeMap<Kind, Tally> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

/// `GET /metrics`
pub(crate) async fn metrics(State(server): State<Arc<Server>>) -> impl IntoResponse {
    let (mut text, status) = (String::new(), server.node.status());
    numbers(&mut text, "gauge", &gauges(&status));
    numbers(&mut text, "counter", &counters(&status.counters));
    peers(&status, &mut text);
    requests(&server.requests.all(), &mut text);
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], text)
}

/// A family begins with what it is about.
fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn sample(text: &mut String, name: &str, labels: &[(&str, &str)], value: impl Display) {
    let escape =
        |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let labels: Vec<_> =
        labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escape(value))).collect();
    let labels =
        if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    let _ = writeln!(text, "{name}{labels} {value}");
}

type Numbers<const COUNT: usize> = [(&'static str, &'static str, f64); COUNT];

/// How a node is: each number with its name and what it is.
#[rustfmt::skip]
fn gauges(status: &NodeStatus) -> Numbers<20> {
    let bit = |yes: bool| f64::from(u8::from(yes));
    let snapshot = status.snapshot.clone().unwrap_or_default();
    let memory = status.memory_bytes.unwrap_or_default() as f64;
    let uptime = status.uptime_milliseconds as f64 / 1e3;
    [
        ("up", "Whether the replica runs.", bit(status.failure.is_none())),
        ("is_leader", "Whether this node leads.", bit(status.role == "leader")),
        ("has_leader", "Whether this node knows of a leader.", bit(status.leader.is_some())),
        ("term", "The term.", status.term as f64),
        ("voters", "Nodes that vote.", status.voters.len() as f64),
        ("learners", "Nodes that only receive the log.", status.learners.len() as f64),
        ("log_first_index", "First index in the log.", status.first_index as f64),
        ("log_last_index", "Last index in the log.", status.last_index as f64),
        ("log_saved_index", "Up to where the log is durable here.", status.saved_index as f64),
        ("log_commit_index", "Up to where the log is committed.", status.commit_index as f64),
        ("log_applied_index", "Up to where the log is applied here.", status.applied_index as f64),
        ("revision", "The latest write that is applied here.", status.revision as f64),
        ("keys", "Keys.", status.keys as f64),
        ("sessions", "Sessions of clients.", status.sessions as f64),
        ("snapshot_index", "Last index that the latest snapshot covers.", snapshot.index as f64),
        ("snapshot_bytes", "Size of the latest snapshot.", snapshot.bytes as f64),
        ("disk_bytes", "Bytes that the node's directory takes.", status.disk_bytes as f64),
        ("memory_bytes", "Bytes that the process takes; 0 if unknown.", memory),
        ("uptime_seconds", "Time since the node has started.", uptime),
        ("writes_in_flight", "Writes underway.", status.counters.writes_in_flight as f64),
    ]
}

/// What has happened at a node.
#[rustfmt::skip]
fn counters(of: &Counters) -> Numbers<18> {
    [
        ("writes_total", "Writes that clients asked for.", of.writes as f64),
        ("writes_forwarded_total", "Writes sent to another node.", of.writes_forwarded as f64),
        ("writes_busy_total", "Writes refused for being too many.", of.writes_busy as f64),
        ("writes_unknown_total", "Writes whose outcome is unknown.", of.writes_unknown as f64),
        ("writes_no_leader_total", "Writes that found no leader.", of.writes_no_leader as f64),
        ("reads_total", "Reads that clients asked for.", of.reads as f64),
        ("reads_failed_total", "Reads that no leader confirmed.", of.reads_failed as f64),
        ("applied_total", "Commands applied here.", of.applied as f64),
        ("saves_total", "Saves to the disk.", of.saves as f64),
        ("save_seconds_total", "Time that saves took.", of.save_microseconds as f64 / 1e6),
        ("elections_total", "Leaders seen to come to be.", of.elections as f64),
        ("snapshots_taken_total", "Snapshots taken.", of.snapshots_taken as f64),
        ("snapshots_sent_total", "Snapshots sent.", of.snapshots_sent as f64),
        ("snapshots_received_total", "Snapshots received.", of.snapshots_received as f64),
        ("messages_sent_total", "Messages sent to other nodes.", of.messages_sent as f64),
        ("messages_dropped_total", "Messages for full queues.", of.messages_dropped as f64),
        ("messages_received_total", "Messages from other nodes.", of.messages_received as f64),
        ("callers_refused_total", "Callers refused.", of.callers_refused as f64),
    ]
}

fn numbers(text: &mut String, kind: &str, numbers: &[(&str, &str, f64)]) {
    for (name, help, value) in numbers {
        let name = format!("kv_{name}");
        family(text, &name, kind, help);
        sample(text, &name, &[], value);
    }
}

/// What a leader knows of its peers.
fn peers(status: &NodeStatus, text: &mut String) {
    if status.peers.is_empty() {
        return;
    }
    let name = |id| crate::http::status::name(status, id);
    family(text, "kv_peer_lag", "gauge", "Entries that a peer lacks, as the leader sees it.");
    for peer in &status.peers {
        sample(text, "kv_peer_lag", &[("peer", &name(peer.id))], peer.lag);
    }
    family(text, "kv_peer_heard_seconds", "gauge", "Time since the leader has heard a peer.");
    for peer in &status.peers {
        let seconds = peer.heard_milliseconds_ago as f64 / 1e3;
        sample(text, "kv_peer_heard_seconds", &[("peer", &name(peer.id))], seconds);
    }
    family(text, "kv_peer_connected", "gauge", "Whether the leader has a connection to a peer.");
    for peer in &status.peers {
        let connected = u8::from(peer.connected);
        sample(text, "kv_peer_connected", &[("peer", &name(peer.id))], connected);
    }
}

fn requests(tallies: &BTreeMap<Kind, Tally>, text: &mut String) {
    const NAME: &str = "kv_http_request_seconds";
    family(text, NAME, "histogram", "Time until the answer to a request began.");
    for ((route, method, status), tally) in tallies {
        let status = status.to_string();
        let labels = [("route", route.as_str()), ("method", method), ("status", &status)];
        for (bound, count) in BOUNDS.iter().zip(tally.within) {
            let bound = bound.to_string();
            let labels = [labels[0], labels[1], labels[2], ("le", &bound)];
            sample(text, &format!("{NAME}_bucket"), &labels, count);
        }
        let all = [labels[0], labels[1], labels[2], ("le", "+Inf")];
        sample(text, &format!("{NAME}_bucket"), &all, tally.count);
        sample(text, &format!("{NAME}_sum"), &labels, tally.time.as_secs_f64());
        sample(text, &format!("{NAME}_count"), &labels, tally.count);
    }
}
