//! What those ask for who run a cluster: members, leadership, snapshots and backups.

use crate::command::Address;
use crate::http::refusal::{Refusal, sentence};
use crate::http::{Server, request};
use crate::node::{MembersChange, MembersStep, NodeStatus};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Bytes that a request of this kind may have.
const LIMIT: usize = 64 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Members {
    voters: Vec<Value>,
    #[serde(default)]
    learners: Vec<Value>,
    #[serde(default)]
    nodes: Vec<Address>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Leader {
    to: Option<Value>,
}

/// The id of a node that is named by its id or its name.
fn id(who: &Value, nodes: &[Address]) -> Result<usize, Refusal> {
    let known = |node: &&Address| match who {
        Value::Number(number) => number.as_u64() == u64::try_from(node.id).ok(),
        Value::String(name) => node.name == *name,
        _ => false,
    };
    nodes.iter().find(known).map(|node| node.id).ok_or_else(|| {
        let names: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
        let message = format!(
            "There is no node {who}. Name one of {}, by name or id, or tell where the new one is in \
             `nodes`.",
            names.join(", ")
        );
        Refusal::bad("unknown_node", message)
    })
}

impl Members {
    fn change(self, status: &NodeStatus) -> Result<MembersChange, Refusal> {
        let known: Vec<_> = self.nodes.iter().chain(&status.nodes).cloned().collect();
        let ids = |names: &[Value]| -> Result<BTreeSet<usize>, Refusal> {
            names.iter().map(|who| id(who, &known)).collect()
        };
        let voters = ids(&self.voters)?;
        if voters.is_empty() {
            let message = "A cluster needs at least one voter. Name them in `voters`.";
            return Err(Refusal::bad("no_voters", message));
        }
        Ok(MembersChange { voters, learners: ids(&self.learners)?, nodes: self.nodes })
    }
}

/// `PUT /cluster/members`: the steps as lines of JSON, as they happen.
pub(crate) async fn change_members(
    State(server): State<Arc<Server>>, body: Body,
) -> Result<Response, Refusal> {
    let members: Members = request::json(&request::body(&server.room, body, LIMIT).await?)?;
    let mut steps = server.node.change_members(members.change(&server.node.status())?);
    // What fails at once is no success with a sad end.
    let first = steps.recv().await;
    if let Some(MembersStep::Failed { reason }) = first {
        return Err(Refusal::new(StatusCode::CONFLICT, "members_not_changed", sentence(&reason)));
    }
    let rest = stream::unfold(steps, |mut steps| async { Some((steps.recv().await?, steps)) });
    let lines = stream::iter(first)
        .chain(rest)
        .map(|step| serde_json::to_string(&step).map(|line| Bytes::from(line + "\n")));
    let kind = HeaderValue::from_static("application/jsonl");
    Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(lines)).into_response())
}

/// `POST /cluster/leader`
pub(crate) async fn transfer(
    State(server): State<Arc<Server>>, body: Body,
) -> Result<Json<Value>, Refusal> {
    let body = request::body(&server.room, body, LIMIT).await?;
    let Leader { to } = if body.is_empty() { Leader::default() } else { request::json(&body)? };
    let nodes = server.node.status().nodes;
    let to = to.map(|who| id(&who, &nodes)).transpose()?;
    let leader = server.node.transfer(to).await?;
    let name = nodes.iter().find(|node| node.id == leader).map(|node| &node.name);
    Ok(Json(json!({ "leader": name, "id": leader })))
}

/// `POST /snapshot`
pub(crate) async fn snapshot(State(server): State<Arc<Server>>) -> Result<Response, Refusal> {
    let report = server.node.snapshot().await.map_err(|error| {
        let message = format!("The snapshot was not written: {error}. See to the disk, try again.");
        Refusal::new(StatusCode::INSUFFICIENT_STORAGE, "snapshot_failed", message)
    })?;
    Ok((StatusCode::CREATED, Json(report)).into_response())
}

/// `GET /backup`
pub(crate) async fn backup(State(server): State<Arc<Server>>) -> Result<Response, Refusal> {
    let backup = server.node.backup().await?;
    let name = format!("attachment; filename=\"kv-{}.backup\"", backup.revision);
    let name = HeaderValue::try_from(name).unwrap_or(HeaderValue::from_static("attachment"));
    let kind = HeaderValue::from_static("application/octet-stream");
    let revision = HeaderValue::from(backup.revision);
    let chunks = backup.chunks;
    let chunks =
        stream::unfold(chunks, |mut chunks| async { Some((chunks.recv().await?, chunks)) });
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_DISPOSITION, name),
        (header::HeaderName::from_static("kv-revision"), revision),
    ];
    Ok((headers, Body::from_stream(chunks)).into_response())
}
