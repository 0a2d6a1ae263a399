//! Several operations at once, and sessions, which have each write done once.

use crate::command::Transaction;
use crate::http::json::{CommandBody, SessionOpened, TransactionAnswer, TransactionBody, Written};
use crate::http::refusal::Refusal;
use crate::http::{Server, keys, request};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use std::sync::Arc;

/// JSON escapes a byte by six characters at most, and base 64 takes less.
const ESCAPED: usize = 6;
/// What JSON needs beside keys and values.
const OVERHEAD: usize = 64 * 1024;

async fn json<T: serde::de::DeserializeOwned>(server: &Server, body: Body) -> Result<T, Refusal> {
    let limit = server.node.config().limits.transaction_bytes;
    request::json(
        &request::body(&server.room, body, limit.saturating_mul(ESCAPED) + OVERHEAD).await?,
    )
}

/// `POST /command`
pub(crate) async fn command(
    State(server): State<Arc<Server>>, headers: HeaderMap, body: Body,
) -> Result<Json<Written>, Refusal> {
    let CommandBody { key, value } = json(&server, body).await?;
    let (revision, _) = keys::write(&server, &headers, Transaction::put(key, value)).await?;
    Ok(Json(Written { revision }))
}

/// `POST /txn`
pub(crate) async fn transaction(
    State(server): State<Arc<Server>>, headers: HeaderMap, body: Body,
) -> Result<Json<TransactionAnswer>, Refusal> {
    let written: TransactionBody = json(&server, body).await?;
    let transaction = written.transaction().map_err(|reason| {
        Refusal::bad("bad_transaction", format!("The transaction makes no sense: {reason}."))
    })?;
    let (revision, results) = keys::write(&server, &headers, transaction).await?;
    let results = results.into_iter().map(Into::into).collect();
    Ok(Json(TransactionAnswer { revision, results }))
}

/// `POST /sessions`
pub(crate) async fn open_session(
    State(server): State<Arc<Server>>,
) -> Result<(StatusCode, Json<SessionOpened>), Refusal> {
    let client = server.node.open_session().await?;
    Ok((StatusCode::CREATED, Json(SessionOpened { client })))
}
