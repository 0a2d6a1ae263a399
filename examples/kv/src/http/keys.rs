//! `/kv`: keys one by one, and lists of them.

use crate::command::{Expected, OperationResult, Outcome, Revision, Transaction};
use crate::http::json::{Entry, Listing, Value, Written};
use crate::http::refusal::{Refusal, refusal_of};
use crate::http::{Server, request};
use crate::node::Consistency;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::sync::Arc;

/// Keys in a list, if nobody says how many.
const LIMIT: usize = 100;
/// Keys in a list, at most.
const MAX_LIMIT: usize = 1000;
/// Bytes of the keys and values in a list, about, unless the first alone has more.
const MAX_BYTES: usize = 8 * 1024 * 1024;

type Answer = Result<Response, Refusal>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Freshness {
    #[serde(default)]
    consistency: Consistency,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Asked {
    /// One key, for those that do not survive in a path, such as `..`.
    key: Option<String>,
    prefix: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
    #[serde(default)]
    consistency: Consistency,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OneKey {
    key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// The key that a write is about: in the path, or else in the query.
fn key(uri: &Uri) -> Result<String, Refusal> {
    if uri.path() == "/kv" {
        return Ok(request::query::<OneKey>(uri)?.key);
    }
    request::query::<Nothing>(uri)?;
    request::key_in_path(uri)
}

/// `GET /kv/{key}`
pub(crate) async fn get(State(server): State<Arc<Server>>, uri: Uri, headers: HeaderMap) -> Answer {
    let Freshness { consistency } = request::query(&uri)?;
    read(&server, &request::key_in_path(&uri)?, consistency, &headers).await
}

/// `GET /kv?prefix=&after=&limit=`, or one key with `?key=`
pub(crate) async fn list(
    State(server): State<Arc<Server>>, uri: Uri, headers: HeaderMap,
) -> Answer {
    let asked: Asked = request::query(&uri)?;
    let listing = asked.prefix.is_some() || asked.after.is_some() || asked.limit.is_some();
    if let Some(key) = asked.key {
        if listing {
            let message = "A list has no key, and a key no list: leave one of them out.";
            return Err(Refusal::bad("bad_query", message));
        }
        return read(&server, &key, asked.consistency, &headers).await;
    }
    let limit = asked.limit.unwrap_or(LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        let message = format!("A list takes a limit from 1 to {MAX_LIMIT}; {limit} is not.");
        return Err(Refusal::bad("bad_query", message));
    }
    let prefix = asked.prefix.unwrap_or_default();
    let read = server.node.read(asked.consistency, |store| {
        (store.revision(), store.list(&prefix, asked.after.as_deref(), limit))
    });
    let (revision, page) = read.await?;
    let (mut entries, mut next, mut bytes) = (Vec::new(), page.next, 0);
    for (key, found) in page.entries {
        bytes += key.len() + found.value.len();
        if bytes > MAX_BYTES && !entries.is_empty() {
            next = entries.last().map(|entry: &Entry| entry.key.clone());
            break;
        }
        entries.push(Entry { key, version: found.version, value: Value::new(&found.value) });
    }
    Ok(Json(Listing { revision, entries, next }).into_response())
}

async fn read(server: &Server, key: &str, consistency: Consistency, headers: &HeaderMap) -> Answer {
    let held = request::held(headers)?;
    let found = server.node.read(consistency, |store| store.get(key).cloned()).await?;
    let found = found.ok_or_else(|| Refusal::not_found(key))?;
    let tag = tag(found.version);
    if held == Some(found.version) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    let kind = HeaderValue::from_static("application/octet-stream");
    Ok(([(header::CONTENT_TYPE, kind), (header::ETAG, tag)], found.value).into_response())
}

/// `PUT /kv/{key}`, or `PUT /kv?key=`
pub(crate) async fn put(
    State(server): State<Arc<Server>>, uri: Uri, headers: HeaderMap, body: Body,
) -> Answer {
    let (key, expected) = (key(&uri)?, request::expected(&headers)?);
    let value = request::body(&server.room, body, server.node.config().limits.value_bytes).await?;
    let transaction = with(Transaction::put(&key, value), &key, expected);
    let (revision, _) = write(&server, &headers, transaction).await?;
    Ok(([(header::ETAG, tag(revision))], Json(Written { revision })).into_response())
}

/// `DELETE /kv/{key}`, or `DELETE /kv?key=`
pub(crate) async fn delete(
    State(server): State<Arc<Server>>, uri: Uri, headers: HeaderMap,
) -> Answer {
    let (key, expected) = (key(&uri)?, request::expected(&headers)?);
    let transaction = with(Transaction::delete(&key), &key, expected);
    let (revision, results) = write(&server, &headers, transaction).await?;
    match results.as_slice() {
        [OperationResult::Deleted { existed: false }] => Err(Refusal::not_found(&key)),
        _ => Ok(Json(Written { revision }).into_response()),
    }
}

fn with(transaction: Transaction, key: &str, expected: Option<Expected>) -> Transaction {
    match expected {
        Some(expected) => transaction.only_if(key, expected),
        None => transaction,
    }
}

/// Carries a transaction out, once if the headers name a session.
pub(crate) async fn write(
    server: &Server, headers: &HeaderMap, transaction: Transaction,
) -> Result<(Revision, Vec<OperationResult>), Refusal> {
    let session = request::session(headers)?;
    match server.node.write(session, transaction).await? {
        Outcome::Done { revision, results } => Ok((revision, results)),
        other => Err(refusal_of(other)),
    }
}

fn tag(version: Revision) -> HeaderValue {
    let text = format!("\"{version}\"");
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("\"0\""))
}
