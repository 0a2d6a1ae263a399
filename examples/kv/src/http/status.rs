//! How this node is, and how all are, for programs and for the page.

use crate::http::refusal::Refusal;
use crate::http::{Server, request};
use crate::node::NodeStatus;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::MissedTickBehavior;

/// How many seconds are remembered.
const REMEMBERED: usize = 310;
/// How long another node may take to tell how it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// How a node was in one second.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Second {
    /// Seconds since 1970.
    second: u64,
    /// Index up to which the log was applied.
    applied: usize,
    /// Reads and writes asked for since the node has started.
    requests: u64,
    /// How many entries each peer lacked, if this node led.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    behind: BTreeMap<String, usize>,
}

impl Second {
    fn new(second: u64, status: &NodeStatus) -> Second {
        let requests = status.counters.writes + status.counters.reads;
        let behind = status.peers.iter().map(|peer| (name(status, peer.id), peer.lag)).collect();
        Second { second, applied: status.applied_index, requests, behind }
    }
}

/// How a node was in the last minutes.
#[derive(Default)]
pub(crate) struct History(Mutex<VecDeque<Second>>);

impl History {
    fn since(&self, since: u64) -> Vec<Second> {
        let seconds = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        seconds.iter().filter(|it| it.second >= since).cloned().collect()
    }

    fn add(&self, second: Second) {
        let mut seconds = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if seconds.back().is_none_or(|latest| latest.second < second.second) {
            seconds.push_back(second);
        }
        while seconds.len() > REMEMBERED {
            seconds.pop_front();
        }
    }
}

/// Remembers how the node is, every second, until the server stops.
pub(crate) async fn remember(server: Arc<Server>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let stopped = server.stopped();
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                server.history.add(Second::new(now.as_secs(), &server.node.status()));
            }
            () = &mut stopped => return,
        }
    }
}

pub(crate) fn name(status: &NodeStatus, id: usize) -> String {
    let known = status.nodes.iter().find(|node| node.id == id);
    known.map_or_else(|| format!("node with id {id}"), |node| node.name.clone())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Asked {
    /// Tell of the seconds from this one on, too.
    since: Option<u64>,
}

/// `GET /status?since=`
pub(crate) async fn status(
    State(server): State<Arc<Server>>, uri: Uri,
) -> Result<Json<Value>, Refusal> {
    let Asked { since } = request::query(&uri)?;
    Ok(Json(own_status(&server, since)))
}

fn own_status(server: &Server, since: Option<u64>) -> Value {
    let mut status = json!(server.node.status());
    if let Some(since) = since {
        status["history"] = json!(server.history.since(since));
    }
    status
}

/// `GET /cluster/status?since=`: every node that is known, each as it says itself.
pub(crate) async fn cluster(
    State(server): State<Arc<Server>>, uri: Uri, headers: HeaderMap,
) -> Result<Response, Refusal> {
    let Asked { since } = request::query(&uri)?;
    let own = server.node.status();
    let ask = own.nodes.iter().map(|node| async {
        let answer = match node.id == own.id {
            true => Ok(own_status(&server, since)),
            false => ask(&server.client, &node.http, since).await,
        };
        let (status, error) = match answer {
            Ok(status) => (Some(status), None),
            Err(error) => (None, Some(error)),
        };
        let http = format!("http://{}", node.http);
        json!({ "id": node.id, "name": node.name, "http": http, "status": status, "error": error })
    });
    let body = Json(json!({ "asked": own.name, "nodes": join_all(ask).await }));
    let origins = own.nodes.iter().map(|node| format!("http://{}", node.http));
    Ok((shared_with(&headers, origins), body).into_response())
}

/// What another node says about itself.
async fn ask(client: &reqwest::Client, http: &str, since: Option<u64>) -> Result<Value, String> {
    let mut request = client.get(format!("http://{http}/status")).timeout(PATIENCE);
    if let Some(since) = since {
        request = request.query(&[("since", since)]);
    }
    let answer = request.send().await.and_then(reqwest::Response::error_for_status);
    let told = match answer {
        Ok(answer) => answer.json().await,
        Err(error) => Err(error),
    };
    told.map_err(|error| match error {
        error if error.is_timeout() => format!("It did not answer in {} s.", PATIENCE.as_secs()),
        error if error.is_connect() => "There is no connection to it.".to_string(),
        error => format!("It did not answer as it should: {}.", error.without_url()),
    })
}

/// The page of one node asks another if the first is gone; nobody else's page may.
fn shared_with(asking: &HeaderMap, mut origins: impl Iterator<Item = String>) -> HeaderMap {
    let mut headers = HeaderMap::from_iter([(header::VARY, HeaderValue::from_static("origin"))]);
    let origin = asking.get(header::ORIGIN);
    let known = origin.filter(|origin| origins.any(|it| it.as_bytes() == origin.as_bytes()));
    if let Some(origin) = known {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
    headers
}

/// `GET /healthz`: the process need not be restarted.
pub(crate) async fn health(State(server): State<Arc<Server>>) -> Result<Json<Value>, Refusal> {
    match server.node.status().failure {
        None => Ok(Json(json!({ "healthy": true }))),
        Some(failure) => {
            let message = format!("The replica has failed: {failure}. Restart the node.");
            Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "failed", message))
        }
    }
}

/// `GET /readyz`: clients may be sent here.
pub(crate) async fn readiness(State(server): State<Arc<Server>>) -> Result<Json<Value>, Refusal> {
    let refuse = |code, message| Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, code, message));
    let status = server.node.status();
    let member = status.voters.contains(&status.id) || status.learners.contains(&status.id);
    if server.is_ending() {
        return refuse("shutting_down", "This node is being stopped. Ask another.");
    }
    if !member {
        return refuse("not_a_member", "This node waits to be added with PUT /cluster/members.");
    }
    match status.leader {
        Some(leader) => Ok(Json(json!({ "ready": true, "leader": name(&status, leader) }))),
        None => refuse("no_leader", "This node knows of no leader. Ask again in a second."),
    }
}
